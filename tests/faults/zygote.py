"""A process that has run everything once and runs each command in a fork of itself, with one fault armed.

Reads a line of JSON per command from stdin, {"argv": […], "answer": FILE, "told": FILE, "log": FILE or null, "fault":
[folder, op, part, nth, errno] or null, "seconds": …}, and answers with its exit code, or null where it had to be ended.
With "warm" the command is run in this process, so that what is imported and computed once need not be again.

A process that has started threads must not fork, and Ray needs seconds: the stages that Ray's workers run are run by
the command's own process instead. No pretrained network is looked for.
"""

import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
from typing import Any

import torch

import rayssl.jobs.main
import rayssl.pipeline.launch.runs
import rayssl.pipeline.stages.search_networks
from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.base.reporter import LocalReporter
from rayssl.pipeline.stages.start import Prepared
from rayssl.pipeline.stages.story import pending, run_worker_stages


def main() -> None:
    """Answer until stdin ends; never returns."""
    torch.set_num_threads(1)
    rayssl.pipeline.stages.search_networks.available = list  # no pretrained network: it would be looked at for long
    rayssl.pipeline.launch.runs.check_resources = lambda config: None
    rayssl.pipeline.launch.runs.run_on_ray = in_this_process
    for line in sys.stdin:
        asked = json.loads(line)
        code = warmed(asked) if asked.get("warm") else answer(asked)
        print(json.dumps(code), flush=True)
    os._exit(0)  # some libraries complain when Python ends with them


def in_this_process(prepared: list[Prepared], names: list[str], folder: object, display: Display) -> None:
    """What there is to do in workers, in this process instead of a group of Ray's."""
    for one in prepared:
        if stages := pending(one.run, names, one.config, one.dataset):
            run_worker_stages(one.run, stages, LocalReporter(display))


def warmed(asked: dict[str, Any]) -> int:
    """The exit code of a command that is run here; what it leaves in memory is every fork's, and never collected."""
    with open(asked["told"], "w") as told, contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = rayssl.jobs.main.run_verb(asked["argv"][0], asked["argv"][1:])
    if threading.active_count() > 1:  # pyarrow's own, which Python does not know of, start again in a fork
        raise RuntimeError(f"{asked['argv'][0]} left threads behind: a fork of this process may hang")
    gc.collect()
    gc.freeze()
    return code


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
    """The command; never returns."""
    code = 1
    try:
        for name, stream in (("answer", 1), ("told", 2)):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if asked["log"] else -1
        if asked["fault"] is not None:
            folder, op, part, nth, number = asked["fault"]
            arm = ctypes.CDLL(None).fault_arm
            arm(folder.encode(), ctypes.c_char(op.encode()), part.encode(), nth, number, log)
        code = rayssl.jobs.main.run_verb(asked["argv"][0], asked["argv"][1:])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
