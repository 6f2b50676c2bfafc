"""A real run as a job: submitted, followed, stopped in the middle, submitted again."""

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from job_server import Server
from small_run import arguments, encoder_digest, epochs_for, losses, pretrain_here, wait_for

from rayssl.pipeline.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.ray


def stop_in_the_middle(server: Server, run: Path, epochs: int) -> tuple[str, int]:
    """Submit, follow, press Ctrl-C when training is under way and answer yes: what was told, and the exit code."""
    terminal, stdin = pty.openpty()
    follower = subprocess.Popen(
        server.command("--", *arguments(run, train__epochs=epochs)),
        cwd=server.project,
        env=server.environment,
        stdin=stdin,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: follower.poll() is not None or losses(run), "a step of training", seconds=400)
    follower.send_signal(signal.SIGINT)
    os.write(terminal, b"y\n")
    _, told = follower.communicate(timeout=240)
    return told, follower.returncode


def test_stopped_job_is_submitted_again_and_ends_as_if_undisturbed(server: Server, tmp_path: Path) -> None:
    run = tmp_path / "job"
    epochs = epochs_for(8, tmp_path)
    told, code = stop_in_the_middle(server, run, epochs)
    assert code == 1, told
    assert told.splitlines()[-1] == "rayssl-job-1: stopped", told
    done = len(losses(run))
    [newest, *_] = list_checkpoints(run / "checkpoints")
    assert 0 < done < 7 * epochs
    assert newest.name == f"step-{done:09d}"  # the stop left time for a checkpoint

    again = server.submit("--", *arguments(run, train__epochs=epochs))
    assert again.returncode == 0, again.stderr
    assert f"continues after step {done}" in again.stderr
    assert again.stderr.splitlines()[-1] == "rayssl-job-2: succeeded"

    undisturbed = pretrain_here(tmp_path / "undisturbed", train__epochs=epochs)
    assert losses(run) == losses(undisturbed)
    assert encoder_digest(run) == encoder_digest(undisturbed)
