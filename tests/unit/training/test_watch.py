"""A run that is heading for nothing says so, and trains the same bits as one that nobody looks at."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.methods import METHODS
from rayssl.pipeline.methods.losses import nt_xent_at_chance, nt_xent_of_views
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.stages import pretrain
from rayssl.pipeline.stages.pretrain import new_guard, new_watch
from rayssl.pipeline.stages.start import Prepared
from rayssl.pipeline.stages.story import run_worker_stages
from rayssl.pipeline.training import guard
from rayssl.pipeline.training.watch import Watch

STEPS = 200  # the losses of steps 20 … 29 are looked at
SIMCLR = {"train/loss": math.log(255)}
Prepare = Callable[..., Prepared]


def told_of(losses: list[float], chance: dict[str, float], chunk: int = 7) -> list[str]:
    told: list[str] = []
    watch = Watch(STEPS, chance, None, told.append)
    rows = [{"step": step, "train/loss": loss} for step, loss in enumerate(losses)]
    for first in range(0, len(rows), chunk):
        watch.see(rows[first : first + chunk])
    return told


@pytest.mark.parametrize("chunk", [1, 7, 200])
def test_a_loss_at_chance_is_told_once(chunk: int) -> None:
    (line,) = told_of([math.log(255)] * STEPS, SIMCLR, chunk)
    assert "after 30 of 200 steps the loss is 5.541, and guessing gives 5.541: nothing has been learned yet" in line
    assert "--train.learning-rate" in line


@pytest.mark.parametrize(("loss", "told"), [(5.52, True), (7.0, True), (5.4, False)])
def test_a_hair_below_chance_is_chance_and_above_it_no_better(loss: float, told: bool) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, STEPS)
    assert bool(told_of(list(loss + noise), SIMCLR)) == told


def test_only_the_steps_after_the_first_tenth_count() -> None:
    late = [math.log(255)] * 20 + [4.0 - 0.01 * step for step in range(STEPS)]
    assert told_of(late, SIMCLR) == []


def test_a_loss_that_does_not_change() -> None:
    (line,) = told_of([0.25] * STEPS, {})
    assert "the loss has been 0.25 for 10 steps" in line
    assert told_of([0.25 + 1e-4 * step for step in range(STEPS)], {}) == []


def test_a_run_that_goes_on_later_is_not_judged_by_a_part() -> None:
    told: list[str] = []
    watch = Watch(STEPS, SIMCLR, None, told.append)
    watch.see([{"step": step, "train/loss": math.log(255)} for step in range(25, STEPS)])
    assert told == []


def test_every_part_of_a_loss_has_its_chance() -> None:
    told: list[str] = []
    chance = {"train/contrast_loss": math.log(255), "train/rotation_loss": math.log(4)}
    watch = Watch(STEPS, chance, None, told.append)
    row = {"train/loss": 5.0, "train/contrast_loss": 4.0, "train/rotation_loss": 1.3862}
    watch.see([{"step": step, **row} for step in range(STEPS)])
    (line,) = told
    assert "the rotation loss is 1.386, and guessing gives 1.386" in line


@pytest.mark.parametrize(("now", "told"), [(40, True), (58, False), (60, False), (80, False)])
def test_half_way_below_the_untrained_network(now: int, told: bool) -> None:
    lines: list[str] = []

    def hits(right: int) -> Any:
        return (np.random.default_rng(right).permutation(100) < right).astype(float)

    watch = Watch(STEPS, {}, lambda: (hits(now), hits(60)), lines.append)
    assert [step for step in range(STEPS + 1) if watch.look_due(step)] == [100]
    watch.look(100)
    assert bool(lines) == told
    if told:
        assert "after 100 steps, validation kNN is 40.0 %, below the 60.0 % of the untrained network" in lines[0]
    assert not Watch(STEPS, {}, None, lines.append).look_due(100)


@pytest.mark.parametrize(("images", "views"), [(4, 2), (5, 3), (1, 2)])
def test_chance_is_the_loss_of_equal_projections(images: int, views: int) -> None:
    same = [torch.ones(images, 8) for _ in range(views)]
    assert float(nt_xent_of_views(same, 0.2)) == pytest.approx(nt_xent_at_chance(images, views), abs=1e-6)


class Told(Silent):
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def trained(run: Path, reporter: Silent) -> dict[str, torch.Tensor]:
    from rayssl.pipeline.models.export import load_encoder

    run_worker_stages(run, ["pretrain"], reporter)
    return load_encoder(run).state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_looking_changes_no_bit_of_the_training(
    method: str, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "FEWEST", 1)  # labelled images that a look needs
    looks: list[int] = []
    plain = Watch.look

    def look(self: Watch, step: int) -> None:
        modes = [module.training for module in methods[-1].modules()]
        state = torch.get_rng_state()
        plain(self, step)
        looks.append(step)
        assert torch.equal(state, torch.get_rng_state())
        assert modes == [module.training for module in methods[-1].modules()]

    methods: list[torch.nn.Module] = []
    made = pretrain.new_method
    monkeypatch.setattr(pretrain, "new_method", lambda *given: methods.append(made(*given)) or methods[-1])
    monkeypatch.setattr(Watch, "look", look)
    changes = {"train.steps": 12}
    with_looks = trained(prepared("with", method, changes).run, Silent())
    assert looks == [6]
    monkeypatch.setattr(Watch, "look_due", lambda self, step: False)
    without = trained(prepared("without", method, changes).run, Silent())
    assert looks == [6]
    assert all(torch.equal(value, without[name]) for name, value in with_looks.items())


def test_a_run_says_it(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "FEWEST", 1)
    figures = iter([np.zeros(5), np.ones(5)])  # of the encoder so far, of the untrained one
    monkeypatch.setattr(pretrain, "validation_knn", lambda *given, **named: next(figures))
    told = Told()
    trained(prepared("idle", "simclr", {"train.steps": 60, "train.learning_rate": 30.0}).run, told)
    assert sum("validation kNN is 0.0 %, below the 100.0 %" in line for line in told.lines) == 1


def test_the_guard_looks_instead(prepared: Prepare) -> None:
    run = prepared("guarded", "simclr", {"train.steps": 4, "train.guard": "yes"}).run
    work = Work.open(run, Silent())
    method = pretrain.new_method(work.config, work)
    found = new_guard(work, method, 4, 0, None)
    assert found is not None
    assert new_watch(work, method, 4, found).measure is None
