"""Jobs on a real job server with token authentication: submit, follow, stop, submit again."""

import importlib
import json
import os
import pty
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.cluster.submit import CODE, package_code

pytestmark = pytest.mark.ray

# A run in small: counts up in its folder, takes its time over a checkpoint when it is told to stop.
COUNT = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
folder.mkdir(parents=True, exist_ok=True)
state = folder / "state"
count = int(state.read_text()) if state.exists() else 0
def stop(signum, frame):
    time.sleep(4)  # longer than the 3 s that Ray itself leaves between SIGTERM and SIGKILL
    state.write_text(str(count))
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
print("starts at", count)
if count:
    sys.exit(0)
while True:
    count += 1
    time.sleep(0.05)
"""
FILES = """
import os, pathlib, sys
print("packed:", *sorted(str(p.relative_to(os.getcwd())) for p in pathlib.Path.cwd().rglob("*") if p.is_file()))
print("arguments:", sys.argv[1:])
print("cluster:", bool(os.environ.get("RAY_ADDRESS")))
sys.exit("no such data")
"""


@dataclass(frozen=True)
class Server:
    """A job server, and a folder with the project, two small verbs, and files that are nobody's business."""

    address: str
    project: Path
    environment: dict[str, str] = field(repr=False)  # whatever the caller's own holds

    def command(self, *argv: str) -> list[str]:
        return [sys.executable, "-m", "jobs.submit", self.address, *argv]

    def submit(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*argv),
            cwd=self.project,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cluster of one node on ports of its own; only its own processes are ended."""
    temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets have at most 107 characters
    token = temporary / "token"
    token.write_text(secrets.token_hex(16))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    dashboard, agent, client = _free_ports(3)
    options = "start --head --block --port=0 --num-cpus=2"
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
        _wait_for_answer(address, head, temporary / "start.log")
        yield Server(address, _project(tmp_path_factory.mktemp("project")), environment)
    finally:
        _end(head)
        shutil.rmtree(temporary, ignore_errors=True)


def _project(folder: Path) -> Path:
    staging = package_code(CODE)
    shutil.copytree(staging, folder, dirs_exist_ok=True)
    shutil.rmtree(staging)
    for name, text in {"count": COUNT, "files": FILES}.items():
        (folder / f"jobs/{name}.py").write_text(text)
    for name in ("cat.png", ".git/config", "runs/x/metrics.jsonl", ".ray/auth_token", "pipeline/cat.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("private")
    return folder


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for_answer(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5)
        except urllib.error.HTTPError:
            return  # 401: it answers, and it wants a token
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"no job server: {log.read_text()[-2000:]}")


def _end(head: subprocess.Popen[bytes]) -> None:
    importlib.import_module("ray")  # brings psutil
    psutil = importlib.import_module("psutil")
    family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        process.kill()
    head.kill()
    head.wait()


def test_job_gets_the_code_and_its_arguments_and_its_failure_is_told(server: Server) -> None:
    done = server.submit("--json", "--", "files", "--name", "two words", "$HOME", "it's")
    assert done.returncode == 1, done.stderr
    assert "arguments: ['--name', 'two words', '$HOME', \"it's\"]" in done.stderr
    assert "cluster: True" in done.stderr
    packed = next(line for line in done.stderr.splitlines() if line.startswith("packed:")).split()
    assert {"jobs/files.py", "pipeline/cluster/submit.py", "pyproject.toml"} <= set(packed)
    assert {Path(name).suffix for name in packed[1:]} <= {".py", ".typed", ".html", ".css", ".toml"}
    assert done.stderr.endswith("no such data\nrayssl-files-1: failed with exit code 1\n")
    assert json.loads(done.stdout) == {"address": server.address, "job": "rayssl-files-1", "status": "FAILED"}


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_the_token_there_is_one_line(server: Server, token: str | None, tmp_path: Path) -> None:
    mode = "disabled" if token is None else "token"
    done = server.submit("--", "files", RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN=token or "", HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "RAY_AUTH_MODE=token" in done.stderr


def test_stop_and_submit_again_goes_on(server: Server, tmp_path: Path) -> None:
    run = str(tmp_path / "my run")
    terminal, stdin = pty.openpty()
    follower = subprocess.Popen(
        server.command("--", "count", "--out", run),
        cwd=server.project,
        env=server.environment,
        stdin=stdin,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stderr is not None
    heard = []
    for line in follower.stderr:
        heard.append(line)
        if line.startswith("starts at 0"):
            break
    assert heard[-1] == "starts at 0\n", heard

    second = server.submit("--", "count", "--out", run)
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert "rayssl-my-run-1, which has not ended" in second.stderr

    follower.send_signal(signal.SIGINT)
    os.write(terminal, b"y\n")
    _, rest = follower.communicate(timeout=60)
    assert "stop the job too? [y/N]" in rest
    assert rest.splitlines()[-1] == "rayssl-my-run-1: stopped"
    assert follower.returncode == 1
    count = int((tmp_path / "my run/state").read_text())

    again = server.submit("--", "count", "--out", run)
    assert again.returncode == 0, again.stderr
    assert f"starts at {count}\n" in again.stderr
    assert again.stderr.splitlines()[-1] == "rayssl-my-run-2: succeeded"
