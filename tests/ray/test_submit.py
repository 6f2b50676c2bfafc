"""Jobs on a real job server with token authentication: submit, follow, stop, submit again."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from job_server import Server

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
OLD_BYTECODE = "rayssl/jobs/__pycache__/old.cpython-39.pyc"


@pytest.fixture(scope="module", autouse=True)
def small_verbs(server: Server) -> None:
    """Two small verbs in the project, and files that are nobody's business."""
    for name, text in {"count": COUNT, "files": FILES}.items():
        (server.project / f"rayssl/jobs/{name}.py").write_text(text)
    for name in (
        "cat.png",
        ".git/config",
        "runs/x/metrics.jsonl",
        ".ray/auth_token",
        "rayssl/pipeline/cat.jpg",
        OLD_BYTECODE,
    ):
        (server.project / name).parent.mkdir(parents=True, exist_ok=True)
        (server.project / name).write_text("private")


def test_job_gets_the_code_and_its_arguments_and_its_failure_is_told(server: Server) -> None:
    done = server.submit("--json", "--", "files", "--name", "two words", "$HOME", "it's")
    assert done.returncode == 1, done.stderr
    assert "arguments: ['--name', 'two words', '$HOME', \"it's\"]" in done.stderr
    assert "cluster: True" in done.stderr
    packed = next(line for line in done.stderr.splitlines() if line.startswith("packed:")).split()
    packed = [name for name in packed if not name.endswith(f".{sys.implementation.cache_tag}.pyc")]  # the job's imports
    assert {"rayssl/jobs/files.py", "rayssl/pipeline/cluster/submit.py", "pyproject.toml"} <= set(packed)
    assert {Path(name).suffix for name in packed[1:]} <= {".py", ".typed", ".html", ".css", ".js", ".txt", ".toml"}
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
    _, rest = follower.communicate(timeout=240)
    assert "stop the job too? [y/N]" in rest
    assert rest.splitlines()[-1] == "rayssl-my-run-1: stopped"
    assert follower.returncode == 1
    count = int((tmp_path / "my run/state").read_text())

    again = server.submit("--", "count", "--out", run)
    assert again.returncode == 0, again.stderr
    assert f"starts at {count}\n" in again.stderr
    assert again.stderr.splitlines()[-1] == "rayssl-my-run-2: succeeded"
