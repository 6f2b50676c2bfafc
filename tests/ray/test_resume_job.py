"""A real run as a job: submitted, followed, stopped in the middle, submitted again."""

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from job_server import Server
from small_run import arguments, encoder_digest, losses, pretrain_here

from pipeline.checkpoint import list_checkpoints

pytestmark = pytest.mark.ray

LONG = {"train__epochs": 40}


def stop_in_the_middle(server: Server, run: Path) -> tuple[list[str], int]:
    """Submit, follow until training is shown, press Ctrl-C and answer yes: what was told, and the exit code."""
    terminal, stdin = pty.openpty()
    follower = subprocess.Popen(
        server.command("--", *arguments(run, **LONG)),
        cwd=server.project,
        env=server.environment,
        stdin=stdin,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stderr is not None
    told = []
    for line in follower.stderr:
        told.append(line)
        if "loss" in line and "images/s" in line:
            follower.send_signal(signal.SIGINT)
            os.write(terminal, b"y\n")
            break
    _, rest = follower.communicate(timeout=90)
    return [*told, *rest.splitlines(keepends=True)], follower.returncode


def test_stopped_job_is_submitted_again_and_ends_as_if_undisturbed(server: Server, tmp_path: Path) -> None:
    run = tmp_path / "job"
    told, code = stop_in_the_middle(server, run)
    assert code == 1, "".join(told)
    assert told[-1] == "rayssl-job-1: stopped\n", "".join(told)
    done = len(losses(run))
    [newest, *_] = list_checkpoints(run / "checkpoints")
    assert 0 < done < 280
    assert newest.name == f"step-{done:09d}"  # the stop left time for a checkpoint

    again = server.submit("--", *arguments(run, **LONG))
    assert again.returncode == 0, again.stderr
    assert f"continues after step {done}" in again.stderr
    assert again.stderr.splitlines()[-1] == "rayssl-job-2: succeeded"

    undisturbed = pretrain_here(tmp_path / "undisturbed", **LONG)
    assert losses(run) == losses(undisturbed)
    assert encoder_digest(run) == encoder_digest(undisturbed)
