"""The loop can be stopped anywhere and goes on as if nothing had been."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import StopAt, pretrain
from torch import Tensor, nn

from rayssl.pipeline import config as configuration
from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.base.device import resolve_precision, to_float
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import Config
from rayssl.pipeline.methods import METHODS
from rayssl.pipeline.methods.base import Batch, Method, MethodOutput, Traits
from rayssl.pipeline.run import auto
from rayssl.pipeline.run.build import compile_or_capture, new_method
from rayssl.pipeline.run.context import Stopped, Work
from rayssl.pipeline.run.folder import read_manifest
from rayssl.pipeline.run.identity import FREE, identity
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.stages import pretrain as pretrain_stage
from rayssl.pipeline.stages.start import Prepared
from rayssl.pipeline.training import loop
from rayssl.pipeline.training.batches import RawBatch
from rayssl.pipeline.training.checkpoint import find_checkpoint, list_checkpoints
from rayssl.pipeline.training.loop import Hooks, Loop, collapse_indicator
from rayssl.pipeline.training.optimizers import learning_rate_at, set_learning_rate
from rayssl.pipeline.training.step import Step, to_batch

CPU = torch.device("cpu")
PLANNED = 40  # steps of the plan that the toy's steps are a part of
Prepare = Callable[..., Prepared]


class Toy(Method[None]):
    """One weight w that learns to multiply by 2; the loss of step `breaks` is not a number."""

    def __init__(self, breaks: int | None = None) -> None:
        nn.Module.__init__(self)
        self.encoder = nn.Identity()
        self.weight = nn.Parameter(torch.ones(1))
        self.breaks = breaks
        self.ended: list[tuple[int, int]] = []
        self.plans: list[int] = []  # what its batches say of it

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        return ()

    def forward(self, batch: Batch) -> MethodOutput:
        self.plans.append(batch.planned)
        x = batch.views[0].flatten(1)
        loss = ((self.weight - 2) * x).square().mean()
        if batch.step == self.breaks:
            loss = loss * math.nan
        return MethodOutput(loss, x.detach(), {"train/weight": self.weight.detach().mean()})

    def after_step(self, step: int, total_steps: int) -> None:
        self.ended.append((step, total_steps))


class Recorder:
    """Hooks that keep all they were told."""

    def __init__(self, stop_at_poll: int | None = None, checkpoint_at: tuple[int, ...] = ()) -> None:
        self.rows: list[dict[str, Any]] = []
        self.shown: list[dict[str, Any]] = []
        self.checkpoints: list[int] = []
        self.polls = 0
        self.stop_at_poll, self.checkpoint_at = stop_at_poll, checkpoint_at

    def hooks(self) -> Hooks:
        return Hooks(
            self.rows.extend,
            self.shown.append,
            self.checkpoints.append,
            lambda step: step in self.checkpoint_at,
            self.should_stop,
        )

    def should_stop(self) -> bool:
        self.polls += 1
        return self.polls == self.stop_at_poll


def batches(start: int = 0, stop: int = 100) -> Iterator[RawBatch]:
    for step in range(start, stop):
        view = torch.full((4, 1, 1, 1), 255, dtype=torch.uint8)
        yield RawBatch([view], torch.arange(1, 5), None, step // 5, step)


def run(
    toy: Toy,
    recorder: Recorder,
    start: int = 0,
    stop: int = 20,
    *,
    stage: str = "toy",
    learning_rate: Callable[[int], float] = lambda step: 0.1,
    **changes: Any,
) -> int:
    step = Step(toy, torch.optim.SGD(toy.parameters(), lr=99.0), CPU, "fp32", seed=0, planned=PLANNED)
    toys = Loop(replace(step, **changes), stage, 5, learning_rate, recorder.hooks())
    return toys.run(batches(start, stop), start, stop)


@pytest.fixture
def poll_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)


@pytest.fixture
def poll_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "POLL_SECONDS", 1e9)


@pytest.mark.parametrize("poll", ["poll_every_step", "poll_at_the_end"])
def test_every_step_is_logged_with_its_own_figures(poll: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(poll)
    toy, recorder = Toy(), Recorder()
    assert run(toy, recorder, learning_rate=lambda step: 0.01 * (step + 1)) == 20
    assert [row["step"] for row in recorder.rows] == list(range(20))
    assert [row["epoch"] for row in recorder.rows] == [step // 5 for step in range(20)]
    weight = 1.0
    for step, row in enumerate(recorder.rows):
        assert row["stage"] == "toy"
        assert row["train/lr"] == pytest.approx(0.01 * (step + 1))
        assert row["train/loss"] == pytest.approx((weight - 2) ** 2, rel=1e-5)
        weight -= 0.01 * (step + 1) * 2 * (weight - 2)
    assert toy.weight.item() == pytest.approx(weight, rel=1e-5)
    assert toy.ended == [(step, PLANNED) for step in range(20)]  # of the plan, not of the part that was run
    assert toy.plans == [PLANNED] * 20
    last = recorder.rows[-1]
    assert last["perf/images_per_s"] > 0
    assert 0 <= last["perf/data_wait"] <= 1
    assert {"stop": 20, "steps_per_epoch": 5}.items() <= recorder.shown[-1].items()
    assert recorder.checkpoints == [20]
    json.dumps(recorder.rows, allow_nan=False)


def test_the_gradient_is_clipped() -> None:
    toy = Toy()
    run(toy, Recorder(), stop=1, clip_grad=0.5)
    assert toy.weight.item() == pytest.approx(1.0 + 0.1 * 0.5, rel=1e-4)  # the gradient is −2


@pytest.mark.usefixtures("poll_every_step")
def test_a_stop_leaves_a_checkpoint_of_the_steps_done() -> None:
    recorder = Recorder(stop_at_poll=7)
    assert run(Toy(), recorder) == 7
    assert recorder.checkpoints == [7]
    assert [row["step"] for row in recorder.rows] == list(range(7))


@pytest.mark.usefixtures("poll_every_step")
def test_a_stop_at_the_last_step_still_leaves_a_checkpoint() -> None:
    recorder = Recorder(stop_at_poll=20)
    assert run(Toy(), recorder) == 20
    assert recorder.checkpoints == [20]


@pytest.mark.usefixtures("poll_every_step")
def test_checkpoints_when_they_are_due() -> None:
    recorder = Recorder(checkpoint_at=(5, 15, 20))
    run(Toy(), recorder)
    assert recorder.checkpoints == [5, 15, 20]


def test_nothing_to_do() -> None:
    recorder = Recorder()
    assert run(Toy(), recorder, start=20, stop=20) == 20
    assert (recorder.rows, recorder.checkpoints) == ([], [])


@pytest.mark.parametrize("poll", ["poll_every_step", "poll_at_the_end"])
def test_a_loss_that_is_no_number_ends_the_run(poll: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(poll)
    recorder = Recorder()
    with pytest.raises(UserError) as error:
        run(Toy(breaks=6), recorder)
    message = str(error.value)
    assert "\n" not in message
    for part in ("toy", "nan", "step 6", "epoch 1", "0.1", "--train.learning-rate", "--train.clip-grad"):
        assert part in message
    assert [row["step"] for row in recorder.rows] == list(range(6))
    assert recorder.checkpoints == []  # what is broken is not kept


def test_fine_tuning_that_breaks_names_its_own_learning_rate() -> None:
    with pytest.raises(UserError, match=r"lower --finetune\.learning-rate$"):
        run(Toy(breaks=6), Recorder(), stage="finetune/0")


def test_a_rate_that_is_too_high_is_noticed() -> None:
    with pytest.raises(UserError, match=r"--train\.learning-rate"):
        run(Toy(), Recorder(), stop=100, learning_rate=lambda step: 1e4)


def test_the_spread_of_features() -> None:
    torch.manual_seed(0)
    assert collapse_indicator(torch.randn(4096, 128)) == pytest.approx(1.0, abs=0.02)
    assert collapse_indicator(torch.ones(64, 128)) == pytest.approx(0.0, abs=1e-6)
    assert collapse_indicator(torch.randn(64, 1) * torch.ones(1, 128)) < 1.01
    one_line = torch.rand(256, 1) * torch.randn(1, 32)  # positive multiples of one vector
    assert collapse_indicator(one_line) == pytest.approx(0.0, abs=1e-5)


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bf16", "fp32", "fp64"):
        assert resolve_precision(name, CPU) == name
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert resolve_precision("auto", CPU) == "bf16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert resolve_precision("auto", CPU) == "fp32"
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert resolve_precision("auto", CPU) == "fp32"
    for supported, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert resolve_precision("auto", torch.device("cuda")) == expected


def test_pixels_become_floats() -> None:
    pixels = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 3)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.float32), ("fp64", torch.float64)):
        images = to_float(pixels, CPU, precision)
        assert images.shape == (2, 3, 3, 4)
        assert images.dtype == dtype
        assert torch.equal(images[1, 2, 0, 3], pixels[1, 0, 3, 2].to(dtype) / 255)
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_keeps_its_keys() -> None:
    raw = RawBatch([torch.zeros(2, 1, 1, 3, dtype=torch.uint8)], torch.tensor([5, 6]), torch.tensor([1, 0]), 3, 17)
    batch = to_batch(raw, CPU, "fp32", seed=9)
    assert (batch.seed, batch.epoch, batch.step) == (9, 3, 17)
    assert batch.ids.tolist() == [5, 6]
    assert isinstance(batch.labels, Tensor)
    assert batch.labels.tolist() == [1, 0]


def test_the_rate_reaches_every_group() -> None:
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 2.0}])
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


# A whole pre-training on a few images: 43 training images, batches of 8, so 5 steps an epoch.


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to the last bit is promised for one kind of processor."""
    for module in ("run.context", "stages.embed"):
        monkeypatch.setattr(f"rayssl.pipeline.{module}.choose_device", lambda: CPU)


def losses(path: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in MetricsLog(path).rows() if row["stage"] == "pretrain"]


def encoder_bytes(path: Path) -> bytes:
    return (path / "encoder.safetensors").read_bytes()


@pytest.mark.usefixtures("poll_every_step")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(method: str, prepared: Prepare) -> None:
    changes = {"train.epochs": 3, "train.checkpoint_epochs": 1}
    undisturbed = prepared("whole", method, changes).run
    pretrain(undisturbed)
    stopped = prepared("stopped", method, changes).run
    for poll, step in ((7, 7), (1, 8), (5, 13)):
        with pytest.raises(Stopped, match=f"stopped after step {step} of 15"):
            pretrain(stopped, StopAt(poll))
        assert not (stopped / "encoder.safetensors").exists()
        found = find_checkpoint(stopped / "checkpoints")
        assert found is not None
        assert found.name == f"step-{step:09d}"
    pretrain(stopped)
    assert [step for step, _ in losses(undisturbed)] == list(range(15))
    assert losses(stopped) == losses(undisturbed)
    assert encoder_bytes(stopped) == encoder_bytes(undisturbed)


@pytest.mark.usefixtures("poll_every_step")
def test_rows_and_steps_after_the_last_checkpoint_are_done_again(
    prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train.epochs": 3, "train.checkpoint_epochs": 1}
    undisturbed, crashed = prepared("whole", "simclr", changes).run, prepared("crashed", "simclr", changes).run
    pretrain(undisturbed)

    class Crash(StopAt):
        def should_stop(self) -> bool:
            if super().should_stop():
                raise MemoryError("killed")
            return False

    with pytest.raises(MemoryError):
        pretrain(crashed, Crash(9))
    with (crashed / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "pretrain", "st')  # a line that the crash cut off
    assert len(losses(crashed)) == 9
    found = find_checkpoint(crashed / "checkpoints")
    assert found is not None
    assert found.name == "step-000000005"
    pretrain(crashed)
    assert losses(crashed) == losses(undisturbed)
    assert encoder_bytes(crashed) == encoder_bytes(undisturbed)


def test_more_epochs_extend_a_finished_run(prepared: Prepare) -> None:
    first = prepared("run", "rotnet", {"train.epochs": 2})
    pretrain(first.run)
    before = list(MetricsLog(first.run).rows())
    again = prepared("run", "rotnet", {"train.epochs": 4})
    pretrain(again.run)
    rows = list(MetricsLog(again.run).rows())
    assert rows[:10] == before
    assert [row["step"] for row in rows] == list(range(20))
    peak = again.config.train.learning_rate * 8 / 256
    for row in rows:
        planned = 10 if row["step"] < 10 else 20
        assert row["train/lr"] == pytest.approx(learning_rate_at(row["step"], planned, 0, peak), rel=1e-12)
    assert rows[10]["train/lr"] > rows[9]["train/lr"]
    assert read_manifest(again.run)["stages"]["pretrain"]["steps"] == 20


def test_a_finished_run_does_nothing(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder = prepared("run").run
    pretrain(run_folder)
    monkeypatch.setattr(pretrain_stage, "Loop", None)
    pretrain(run_folder)


def test_fewer_epochs_than_done_are_refused(prepared: Prepare) -> None:
    pretrain(prepared("run", "simclr", {"train.epochs": 2}).run)
    with pytest.raises(UserError, match="has already been trained for 10 steps: 5 is less"):
        prepared("run", "simclr", {"train.epochs": 1})


@pytest.mark.usefixtures("poll_every_step")
def test_checkpoints_are_written_by_the_epoch_and_pruned(prepared: Prepare) -> None:
    changes = {"train.epochs": 4, "train.checkpoint_epochs": 1, "train.keep_checkpoints": 3}
    run_folder = prepared("run", "rotnet", changes).run
    pretrain(run_folder)
    names = [path.name for path in list_checkpoints(run_folder / "checkpoints")]
    assert names == ["step-000000020", "step-000000015", "step-000000010"]


def steps_of(path: Path) -> int | None:
    return configuration.load(path / "config.json").train.steps


def test_minutes_become_steps_once(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "measure_speed", lambda work, small, timed: 4.0)
    run_folder = prepared("run", "rotnet", {"train.minutes": 0.05}).run
    assert steps_of(run_folder) is None
    pretrain(run_folder)
    assert steps_of(run_folder) == 12  # 3 s at 4 steps a second
    assert len(losses(run_folder)) == 12
    monkeypatch.setattr(auto, "measure_speed", lambda work, small, timed: 400.0)
    again = prepared("run", "rotnet", {"train.minutes": 0.05}).run
    pretrain(again)
    assert steps_of(run_folder) == 12
    assert len(losses(run_folder)) == 12


def test_a_budget_with_small_views_is_spent_on_both(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "measure_speed", lambda work, small, timed: 16.0 if small else 4.0)
    run_folder = prepared("run", "rotnet", {"train.minutes": 0.05, "train.small_views": 2 / 3}).run
    pretrain(run_folder)
    assert steps_of(run_folder) == 24  # 16 of them in one second, 8 in two


def test_the_clock_chooses_no_backend_unless_it_is_asked(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"albumentations": 2e-6, "batched": 1e-6}
    monkeypatch.setattr(auto, "seconds_a_view", lambda work, name: quick[name])
    for asked, expected in (("auto", "albumentations"), ("fastest", "batched")):
        run_folder = prepared(asked, "simclr", {"augment.backend": asked}).run
        pretrain(run_folder)
        assert configuration.load(run_folder / "config.json").augment.backend == expected
        prepared(asked, "simclr", {"augment.backend": asked})  # the same command goes on


def test_a_longer_budget_is_measured_again(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "measure_speed", lambda work, small, timed: 4.0)
    pretrain(prepared("run", "rotnet", {"train.minutes": 0.05}).run)
    longer = prepared("run", "rotnet", {"train.minutes": 0.1}).run
    pretrain(longer)
    assert steps_of(longer) == 24
    assert len(losses(longer)) == 24


@pytest.mark.parametrize("method", METHODS)
def test_measuring_the_speed_leaves_no_trace(method: str, prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = prepared("plain", method, {"train.steps": 7}).run
    pretrain(plain)
    measured = []

    def measure(
        work: Work, small: float, timed: int, real: Callable[[Work, float, int], float] = auto.measure_speed
    ) -> float:
        measured.append(real(work, small, timed))
        return 7.0

    monkeypatch.setattr(auto, "measure_speed", measure)
    budget = prepared("budget", method, {"train.minutes": 1 / 60}).run
    pretrain(budget)
    assert measured[0] > 0
    assert losses(budget) == losses(plain)
    assert encoder_bytes(budget) == encoder_bytes(plain)


def test_another_seed_is_another_run(prepared: Prepare) -> None:
    first, second = (prepared(f"run{seed}", "simclr", {"train.seed": seed}).run for seed in (0, 1))
    pretrain(first)
    pretrain(second)
    assert losses(first) != losses(second)
    assert encoder_bytes(first) != encoder_bytes(second)


def test_double_precision(prepared: Prepare) -> None:
    single, double = (prepared(p, "simclr", {"train.precision": p}).run for p in ("fp32", "fp64"))
    pretrain(single)
    pretrain(double)
    pairs = list(zip(losses(single), losses(double)))
    assert all(one != other for one, other in pairs)
    assert all(one[1] == pytest.approx(other[1], rel=1e-3) for one, other in pairs)


def test_images_that_changed_are_refused(
    tiny_config: Callable[..., Config], images: Path, tmp_path: Path, prepared: Prepare
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    run_folder = prepared("run", "simclr", {"data.path": str(copy)}).run
    (copy / "red" / "0.png").unlink()
    with pytest.raises(UserError, match=r"has changed since .* was started"):
        Work.open(run_folder, Silent())


# Compiling.


def test_auto_is_decided_once_and_kept(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for number, (pays, told) in enumerate([(True, "yes"), (False, "no")]):
        monkeypatch.setattr(auto, "compiling_pays", lambda work, pays=pays: pays)
        run = prepared(f"run-{number}", "simclr", {"train.epochs": 1}).run
        work = auto.decide_and_keep(Work.open(run, Silent()))
        kept.append((work.config.train.compile, configuration.load(work.run / "config.json").train.compile))
        assert kept[-1] == (told, told)
        monkeypatch.setattr(auto, "compiling_pays", lambda work, pays=pays: not pays)
        assert auto.decide_and_keep(Work.open(run, Silent())).config == auto.decide_and_keep(work).config == work.config


def test_only_a_long_run_whose_step_can_be_recorded_is_compiled(
    prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pays(**changes: Any) -> bool:
        values = {f"train.{name}": value for name, value in changes.items()}
        return auto.compiling_pays(Work.open(prepared(f"run-{len(values)}-{changes}", "simclr", values).run, Silent()))

    assert not pays(steps=auto.COMPILED_FROM)  # on a CPU nothing is recorded
    monkeypatch.setattr(auto, "can_be_recorded", lambda method, optimizer, resident: optimizer == "sgd")
    monkeypatch.setattr(auto, "has_compiler", lambda: True)
    assert pays(steps=auto.COMPILED_FROM)
    assert not pays(steps=auto.COMPILED_FROM - 1)
    assert pays(minutes=auto.COMPILED_FROM_MINUTES)
    assert not pays(minutes=auto.COMPILED_FROM_MINUTES / 2)
    assert not pays(steps=auto.COMPILED_FROM, optimizer="adamw")
    monkeypatch.setattr(auto, "has_compiler", lambda: False)
    assert not pays(steps=auto.COMPILED_FROM + 1)


def test_the_width_that_is_asked_for_is_the_networks(prepared: Prepare) -> None:
    changes = {"encoder.name": "resnet-tiny"}
    plain, wide = (
        Work.open(prepared(str(width), "simclr", {**changes, "encoder.width": width}).run, Silent())
        for width in (None, 2)
    )
    assert new_method(wide.config, wide).encoder.dim == 2 * new_method(plain.config, plain).encoder.dim
    # Runs that were made before there was a width are still known.
    assert {**identity(plain.config), "encoder.width": 2} == identity(wide.config)
    assert "encoder.width" not in identity(plain.config)


def test_a_run_that_does_not_say_how_images_are_read_is_still_known(
    tiny_config: Callable[..., Config],
) -> None:
    now = identity(tiny_config())
    before = configuration.to_dict(tiny_config())
    for name in ("splits", "key", "image_column", "label_column", "range", "background"):
        del before["data"][name]
    before["data"]["labels"] = None
    found = identity(configuration.from_dict(before))
    assert found == now
    assert {key for key in found if key.startswith("data.")} == {f"data.{name}" for name in before["data"]} - FREE
    assert found["data.labels"] is None


def test_the_network_is_compiled_where_it_is_asked_for(prepared: Prepare) -> None:
    for value, expected in (("yes", True), ("no", False)):
        work = Work.open(prepared(value, "simclr", {"train.compile": value}).run, Silent())
        method = new_method(work.config, work)
        assert not compile_or_capture(method, work.config, work)  # a CPU has no graphs
        assert (method.encoder.net._compiled_call_impl is not None) is expected


def test_a_time_budget_of_a_compiled_step_becomes_steps(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)
    work = Work.open(prepared("run", "simclr", {"train.minutes": 0.1, "train.compile": "yes"}).run, Silent())
    with torch.compiler.set_stance("force_eager"):
        work = auto.decide_and_keep(work)
    assert work.config.train.steps is not None
    assert work.config.train.steps > 10
