"""A process that has imported everything and runs each command in a fork of itself, with one fault armed.

Reads a line of JSON per command from stdin, {"argv": […], "told": FILE, "log": FILE or null, "fault": [folder, op,
part, nth, errno] or null, "seconds": …}, and answers with its exit code, or null where it had to be ended.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import time
import warnings
from typing import Any

import torch

import jobs.main
import pipeline.choose
import pipeline.launch

torch.set_num_threads(1)
pipeline.choose.available = list  # no pretrained network: it would be looked at for long


def main() -> None:
    """Answer until stdin ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        code = answer(asked)
        if asked.get("import"):
            take_over(asked["import"])
        print(json.dumps(code), flush=True)


def take_over(path: str) -> None:
    """Import here what a command imported, so that later ones need not."""
    with open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in json.load(file):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def answer(asked: dict[str, Any]) -> int | None:
    """The exit code of a command; None for one that hangs."""
    child = os.fork()
    if child == 0:
        run(asked)
    deadline = time.monotonic() + asked["seconds"]
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def run(asked: dict[str, Any]) -> None:
    """The command, as a worker group of one would run it; never returns."""
    code = 1
    try:
        told = os.open(asked["told"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1)
        os.dup2(told, 2)
        rank = {"TORCHELASTIC_RUN_ID": "faults", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        if asked["argv"][0] == "run":  # without Ray, in this process
            os.environ.update(rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if asked["log"] else -1
        if asked["fault"] is not None:
            folder, op, part, nth, number = asked["fault"]
            arm = ctypes.CDLL(None).fault_arm
            arm(folder.encode(), ctypes.c_char(op.encode()), part.encode(), nth, number, log)
        code = jobs.main.run_verb(asked["argv"][0], asked["argv"][1:])
        sys.stdout.flush()
        sys.stderr.flush()
        if asked.get("import"):
            with open(asked["import"], "w") as file:
                json.dump([name for name in sys.modules if not name.startswith("__")], file)
    finally:
        os._exit(code)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    main()
