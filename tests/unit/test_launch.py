"""Runs that are killed and started again, and what launching does around the stages, all without Ray."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_run import encoder_digest, losses, prepare_run, pretrain_here

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import OutsideError, UserError
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import override
from rayssl.pipeline.launch import runs
from rayssl.pipeline.launch.plan import Plan
from rayssl.pipeline.launch.runs import start
from rayssl.pipeline.launch.torchrun import under_torchrun
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.images import open_data
from rayssl.pipeline.stages.story import pending, run_worker_stages
from rayssl.pipeline.training import checkpoint, loop
from rayssl.pipeline.training.checkpoint import list_checkpoints

STEPS = 35  # five epochs of seven steps
CHANGES = {"train__epochs": 5}
PRELOAD = [
    "rayssl.pipeline.stages.story",
    "rayssl.pipeline.methods.simclr",
    "sklearn.datasets",
    "albumentations",
    "small_run",
]


class KilledAt(Silent):
    """Dies, as by `kill -9`, as soon as it hears of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def progress(self, row: dict[str, Any]) -> None:
        """Die at the step."""
        if row.get("step", -1) >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def die_at_step(run: str, step: int) -> None:
    """Continue the run and die after the rows of a step are logged, before its checkpoint."""
    loop.POLL_SECONDS = 0.0
    run_worker_stages(Path(run), ["pretrain"], KilledAt(step))


def die_while_writing(run: str, step: int) -> None:
    """Continue the run and die inside the writing of the first checkpoint from a step on."""
    loop.POLL_SECONDS = 0.0
    write = checkpoint._write_manifest

    def dying(folder: Path, at: int) -> None:
        if at >= step:
            (folder / "optimizer.safetensors").write_bytes(b"cut off")
            os.kill(os.getpid(), signal.SIGKILL)
        write(folder, at)

    checkpoint._write_manifest = dying
    run_worker_stages(Path(run), ["pretrain"], Silent())


def die_before_the_mark(run: str, _: int) -> None:
    """Continue the run and die when everything is written but the note that it is done."""
    from rayssl.pipeline.stages import done

    done.mark_stage = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    run_worker_stages(Path(run), ["pretrain"], Silent())


def run_and_die(function: Callable[[str, int], None], run: Path, step: int = 0) -> None:
    """Call a function in a process of its own that is expected to be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=function, args=(str(run), step))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a crash."""
    return pretrain_here(tmp_path_factory.mktemp("undisturbed") / "run", **CHANGES)


@pytest.mark.parametrize(
    ("function", "step", "left"),
    [(die_at_step, 0, 0), (die_at_step, 17, 14), (die_while_writing, 14, 7), (die_before_the_mark, 0, STEPS)],
)
def test_killed_and_started_again_ends_with_the_same_bytes(undisturbed: Path, tmp_path, function, step, left):
    run = prepare_run(tmp_path / "run", **CHANGES)
    run_and_die(function, run, step)
    steps = [int(path.name.removeprefix("step-")) for path in list_checkpoints(run / "checkpoints")]
    assert max(steps, default=0) == left
    pretrain_here(run, **CHANGES)
    assert not list((run / "checkpoints").glob(".writing-*"))
    assert losses(run) == losses(undisturbed)
    assert len(losses(run)) == STEPS
    assert encoder_digest(run) == encoder_digest(undisturbed)


def test_many_deaths_in_a_row(undisturbed: Path, tmp_path):
    run = prepare_run(tmp_path / "run", **CHANGES)
    for function, step in ((die_at_step, 9), (die_while_writing, 20), (die_at_step, 33)):
        run_and_die(function, run, step)
    pretrain_here(run, **CHANGES)
    assert losses(run) == losses(undisturbed)
    assert encoder_digest(run) == encoder_digest(undisturbed)


def test_epochs_get_their_checkpoints_although_the_loop_looks_only_now_and_then(tmp_path, monkeypatch):
    written = []
    save = checkpoint.save_checkpoint
    monkeypatch.setattr(
        "rayssl.pipeline.stages.pretrain.save_checkpoint", lambda *a, **k: written.append(k["step"]) or save(*a, **k)
    )
    monkeypatch.setattr(loop.Meter, "time_to_poll", lambda self, step: (step + 1) % 4 == 0 or step + 1 == self.stop)
    pretrain_here(tmp_path / "run", **CHANGES)
    assert written == [8, 16, 24, 28, 35]


def test_finished_run_does_nothing_again(undisturbed: Path):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")}
    pretrain_here(undisturbed, **CHANGES)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")} == before


def test_start_gives_the_workers_what_there_is_to_do(tmp_path, monkeypatch, undisturbed: Path):
    asked = []
    monkeypatch.setattr(
        "rayssl.pipeline.cluster.train.run_jobs",
        lambda groups, folder, resources, show: asked.append((groups, folder, resources)),
    )
    new = prepare_run(tmp_path / "new", **CHANGES)
    folders = [new, undisturbed]
    configs = [configuration.load(run / "config.json") for run in folders]
    rows: list[dict[str, Any]] = []
    plan = Plan(configs, folders, ("pretrain",), tmp_path, "rayssl pretrain")
    monkeypatch.setattr("rayssl.pipeline.run.estimate.training_seconds", lambda *facts: 100.0)
    monkeypatch.setattr("rayssl.pipeline.run.estimate.START_SECONDS", 60.0)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # else both are trained at the same time
    start(plan, rows.append)  # type: ignore[arg-type]
    [(groups, folder, resources)] = asked
    jobs = [(job.run, job.stages) for group in groups for job in group]
    assert jobs == [(str(new), ["pretrain"]), (str(undisturbed), [])]
    assert folder == tmp_path
    assert resources.workers == 1
    told = [row["message"] for row in rows if "message" in row]
    assert any("starting Ray" in line for line in told)
    assert "expected of all 2 runs: about 4.5 min in all (a guess" in "\n".join(told)  # 260 s
    assert not any("to start" in line for line in told)  # which both share


def test_pending_leaves_out_what_needs_labels(undisturbed: Path):
    config = configuration.load(undisturbed / "config.json")
    dataset = open_data(config)
    names = ["pretrain", "probe", "finetune", "embed"]
    assert pending(undisturbed, names, config, dataset) == ["probe", "finetune", "embed"]
    unlabelled = replace(dataset, class_names=None)
    assert pending(undisturbed, names, config, unlabelled) == ["embed"]


def test_another_run_in_the_same_folder_is_refused(undisturbed: Path):
    with pytest.raises(UserError, match=r"method\.temperature is 0\.2 there and 0\.3 here"):
        prepare_run(undisturbed, **CHANGES, method__temperature=0.3)


def test_torchrun_is_told_by_its_environment(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not under_torchrun()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert under_torchrun()


def prepared_but(error: Exception, monkeypatch: pytest.MonkeyPatch, *folders: Path, writes: str = "") -> None:
    def run_on_ray(prepared: list[Any], *rest: Any) -> None:
        if writes:
            (prepared[0].run / writes).write_text("")
        raise error

    monkeypatch.setattr(runs, "check_resources", lambda config: None)
    monkeypatch.setattr(runs, "run_on_ray", run_on_ray)
    config = override(build_recipe("simclr-digits"), {"data.limit": 40, "train.batch_size": 8})
    with pytest.raises(type(error)):
        start(Plan([config] * len(folders), list(folders), ("pretrain",), folders[0].parent, ""), shown)


def shown(row: dict[str, Any]) -> None:
    """Nothing."""


@pytest.mark.parametrize("error", [UserError("no cluster"), OutsideError("too busy")])
def test_a_cluster_that_is_not_there_leaves_no_folder_behind(error, tmp_path, monkeypatch):
    prepared_but(error, monkeypatch, tmp_path / "runs" / "a", tmp_path / "runs" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_stays_where_it_was_there_before_or_something_was_computed(tmp_path, monkeypatch):
    prepared_but(UserError("no"), monkeypatch, tmp_path / "a", tmp_path / "b", writes="metrics.jsonl")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        ".lock", "config.json", "manifest.json", "metrics.jsonl",
    ]  # fmt: skip
    assert not (tmp_path / "b").exists()
    prepared_but(UserError("no"), monkeypatch, tmp_path / "a")
    assert (tmp_path / "a" / "config.json").exists()
    prepared_but(KeyboardInterrupt(), monkeypatch, tmp_path / "c")
    assert (tmp_path / "c" / "config.json").exists()
