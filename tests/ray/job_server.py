"""A real job server with token authentication, and what is needed to submit to it."""

import contextlib
import importlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rayssl.pipeline.cluster.submit import CODE, package_code


@dataclass(frozen=True)
class Server:
    """A job server, and a folder with the project, from which the tests submit."""

    address: str
    cluster: str  # where drivers connect
    pid: int  # of `ray start`, above all that runs there
    temporary: Path
    project: Path
    environment: dict[str, str] = field(repr=False)  # whatever the caller's own holds

    def command(self, *argv: str) -> list[str]:
        """The command that submits."""
        return [sys.executable, "-m", "rayssl.jobs.submit", self.address, *argv]

    def submit(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Submit, and wait for the end of what is followed."""
        return subprocess.run(
            self.command(*argv),
            cwd=self.project,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )


@contextmanager
def job_server(project: Path) -> Iterator[Server]:
    """A cluster of one node with token authentication, on ports of its own; only its own processes are ended."""
    temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets have at most 107 characters
    token = temporary / "token"
    token.write_text(secrets.token_hex(16))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAYSSL_CACHE": str(temporary / "cache"),
        "RAY_worker_niceness": "0",  # see worker_niceness
        "TMPDIR": str(temporary),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    dashboard, agent, client, port = _free_ports(4)
    options = f"start --head --block --node-ip-address=127.0.0.1 --port={port} --num-cpus=2"
    options += f" --dashboard-host=127.0.0.1 --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
    options += f" --ray-client-server-port={client} --object-store-memory=100000000 --temp-dir={temporary}"
    head = subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), *options.split()],
        env=environment,
        stdout=(temporary / "start.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        for url in (f"{address}/api/version", f"http://127.0.0.1:{agent}/api/local_raylet_healthz"):
            _wait_for_answer(url, head, temporary / "start.log")
        yield Server(address, f"127.0.0.1:{port}", head.pid, temporary, _project(project), environment)
    finally:
        _end(head)
        shutil.rmtree(temporary, ignore_errors=True)


def _project(folder: Path) -> Path:
    staging = package_code(CODE)
    shutil.copytree(staging, folder, dirs_exist_ok=True)
    shutil.rmtree(staging)
    return folder


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for_answer(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return  # 401: it answers, and it wants a token
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"{url} does not answer: {log.read_text()[-2000:]}")


def _end(head: subprocess.Popen[bytes]) -> None:
    importlib.import_module("ray")  # brings psutil
    psutil = importlib.import_module("psutil")
    family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.kill()
    head.wait()
