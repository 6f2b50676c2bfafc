"""Ray Train around the stages: workers that die, wrong input inside a worker, Ctrl-C and SIGTERM."""

import os
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import command, encoder_digest, epochs_for, losses, prepare_run, pretrain_here, read_rows, wait_for

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.cluster.train import CONTROL, Job, Resources, run_jobs
from rayssl.pipeline.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.ray

STEPS = 120  # some seconds of training: time to be killed in
EXACT: dict[str, Any] = {"train__steps": STEPS, "train__precision": "fp64"}


def writer_of(run: Path) -> int:
    """The process that holds the lock of a run folder."""
    return int((run / ".lock").read_text().split()[1])


@dataclass
class Story:
    """One worker group of two: a run whose rank 0 is killed, then a run that cannot work."""

    good: Path
    wrong: Path
    out: Path
    killed: list[int] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Told once: starting a worker group takes long."""
    out = tmp_path_factory.mktemp("story")
    good = prepare_run(out / "good", **EXACT)
    wrong = prepare_run(out / "wrong", train__epochs=20, train__learning_rate=1e30)
    found = Story(good, wrong, out)

    def kill_in_the_middle() -> None:
        wait_for(lambda: len(losses(good)) >= 30, "30 steps of training")
        found.killed.append(writer_of(good))
        os.kill(found.killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_middle, daemon=True)
    killer.start()
    jobs = [Job(str(good), ["pretrain"]), Job(str(wrong), ["pretrain"])]
    try:
        run_jobs([jobs], out, Resources(2, 0, 1, None, max_failures=2), found.rows.append)
    except BaseException as error:
        found.error = error
    killer.join(1)
    return found


def test_two_workers_one_of_them_killed_give_the_curve_of_one_process(story: Story, tmp_path: Path) -> None:
    assert story.killed
    starts = [row for row in story.rows if row == {"run": "good", "stage": "pretrain"}]
    assert len(starts) == 2  # killed once, started again by Ray
    assert any("good: continues after step" in row.get("message", "") for row in story.rows)
    alone = pretrain_here(tmp_path / "alone", **EXACT)
    steps, values = zip(*losses(story.good))
    assert steps == tuple(range(STEPS))
    np.testing.assert_allclose(values, [loss for _, loss in losses(alone)], rtol=1e-6, atol=0)
    np.testing.assert_allclose(values[:50], [loss for _, loss in losses(alone)[:50]], rtol=1e-9, atol=0)
    assert (story.good / "encoder.safetensors").exists()


def test_wrong_input_inside_a_worker_is_told_and_not_tried_again(story: Story) -> None:
    assert isinstance(story.error, UserError)
    assert "learning rate" in str(story.error)
    assert len([row for row in story.rows if row == {"run": "wrong", "stage": "pretrain"}]) == 1
    assert not (story.wrong / "encoder.safetensors").exists()


def test_nothing_of_ray_is_left_beside_the_runs(story: Story) -> None:
    assert not list(story.out.glob(f"{CONTROL}*"))


def test_more_workers_than_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cluster\.workers is 4096: this machine has"):
        run_jobs([[Job(str(tmp_path), ["pretrain"])]], tmp_path, Resources(4096, 0, 1, None, 0), lambda _: None)


def test_groups_beside_each_other_train_as_alone_also_where_one_ends_by_wrong_input(tmp_path: Path) -> None:
    good = prepare_run(tmp_path / "good", train__epochs=3, train__threads=1)
    wrong = prepare_run(tmp_path / "wrong", train__epochs=20, train__learning_rate=1e30, train__threads=1)
    rows: list[dict[str, Any]] = []
    groups = [[Job(str(run), ["pretrain"])] for run in (wrong, good)]
    with pytest.raises(UserError, match="learning rate"):
        run_jobs(groups, tmp_path, Resources(1, 0, None, None, max_failures=0), rows.append)
    alone = pretrain_here(tmp_path / "alone", train__epochs=3, train__threads=1)
    assert losses(good) == losses(alone)
    assert encoder_digest(good) == encoder_digest(alone)
    assert {row["group"] for row in rows if row.get("run") == "good"} == {1}
    assert sorted(row["group"] for row in rows if row.get("ended")) == [0, 1]


def interrupt(run: Path, number: int, epochs: int) -> tuple[int, str, int]:
    """Start or continue the run as a command, send it a signal in the middle: exit code, stderr, last checkpoint."""
    before = len(losses(run))
    words = command(run, train__epochs=epochs)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    try:
        wait_for(lambda: process.poll() is not None or len(losses(run)) > before, "a new step")
        # A terminal sends Ctrl-C to every process of the command, Ray's own among them.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, told = process.communicate(timeout=240)
    finally:
        process.kill()
    steps = [int(path.name.removeprefix("step-")) for path in list_checkpoints(run / "checkpoints")]
    return process.returncode, told, max(steps, default=0)


def test_signals_write_a_checkpoint_first_and_the_same_command_continues(tmp_path: Path) -> None:
    run = tmp_path / "run"
    epochs = epochs_for(8, tmp_path)
    code, told, first = interrupt(run, signal.SIGINT, epochs)
    assert code == 130, told
    assert "the same command continues from the checkpoint" in told
    assert first == len(losses(run)) > 0  # not one step is lost

    code, told, second = interrupt(run, signal.SIGTERM, epochs)
    assert code == 143, told
    assert f"continues after step {first}" in told
    assert first < second == len(losses(run)) < 7 * epochs

    undisturbed = pretrain_here(tmp_path / "undisturbed", train__epochs=epochs)
    pretrain_here(run, train__epochs=epochs)
    assert losses(run) == losses(undisturbed)
    assert encoder_digest(run) == encoder_digest(undisturbed)
    assert all("perf/images_per_s" not in row or row["perf/images_per_s"] > 0 for row in read_rows(run))
