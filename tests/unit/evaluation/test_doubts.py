"""Training that learned nothing says so at its end, with what to try; training that learned says nothing."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.evaluation.doubts import doubts_of_figures, doubts_of_training, warnings_of
from rayssl.pipeline.methods import METHODS
from rayssl.pipeline.stages.start import Prepared
from rayssl.pipeline.stages.story import run_worker_stages

CHANCE = {"train/loss": math.log(511)}
Prepare = Callable[..., Prepared]


def rows_of(losses: "np.ndarray[Any, Any] | list[float]", spread: "list[float] | None" = None) -> list[dict[str, Any]]:
    spreads = spread or [1.0] * len(losses)
    return [
        {"step": step, "train/loss": float(loss), "health/std": float(std)}
        for step, (loss, std) in enumerate(zip(losses, spreads, strict=True))
    ]


def test_the_loss_of_2000_photos_that_ended_at_chance() -> None:
    falls_and_comes_back = np.concatenate([np.linspace(6.4, 5.0, 100), np.full(200, math.log(511) - 0.001)])
    (line,) = doubts_of_training(rows_of(falls_and_comes_back), CHANCE)
    assert line.startswith(
        "at the end, after 300 steps, the loss is 6.235, and guessing gives 6.236: nothing was learned"
    )
    assert "--train.learning-rate" in line


def test_a_loss_that_fell_says_nothing() -> None:
    assert doubts_of_training(rows_of(np.linspace(6.2, 3.0, 300)), CHANCE) == []
    assert doubts_of_training([], CHANCE) == []


def test_one_part_of_a_loss_at_chance() -> None:
    rows = [{**row, "train/rotation_loss": 1.3862} for row in rows_of(np.linspace(6.2, 3.0, 100))]
    (line,) = doubts_of_training(rows, {"train/rotation_loss": math.log(4)})
    assert "the rotation loss is 1.386, and guessing gives 1.386" in line


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([0.25] * 100, "has been 0.25 for 10 steps: nothing moves"),
        (list(np.linspace(0.2, 0.3, 100)), "the loss did not fall: 0.2045 at first, 0.2955 at the end"),
        (list(np.linspace(0.3, 0.2, 100)), None),
        ([0.2, 0.3, 0.25], None),  # too few steps to say
    ],
)
def test_a_loss_without_a_value_at_chance(losses: list[float], told: str | None) -> None:
    found = doubts_of_training(rows_of(losses), {})
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_a_loss_that_grows_by_intention_is_not_judged_where_its_reconstruction_falls() -> None:
    rows = [{**row, "train/reconstruction": 1 / (1 + row["step"])} for row in rows_of(np.linspace(1, 2, 100))]
    assert doubts_of_training(rows, {}) == []


@pytest.mark.parametrize(
    ("first", "last", "told"),
    [(1.0, 0.01, True), (0.05, 0.06, False), (1e-5, 1e-5, True), (0.9, 0.7, False)],
)
def test_features_that_have_come_together(first: float, last: float, told: bool) -> None:
    found = doubts_of_training(rows_of(np.linspace(2, 1, 50), list(np.linspace(first, last, 50))), {})
    assert bool(found) == told
    assert not told or "nearly the same" in found[0]


HEALTHY = {"health/std": 0.9, "health/rankme": 40.0, "knn/top1": 0.8, "baseline/raw-pixels/knn/top1": 0.7}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"health/std": 1e-4}, "nearly all the same (spread 0.0001"),
        ({"health/rankme": 1.01}, "one direction only (RankMe 1)"),
        ({"knn/top1": 0.6}, "60.0 %, below the 70.0 % of raw pixels: try milder views"),
        ({"baseline/random-init/knn/top1": 0.85}, "below the 85.0 % of the untrained network"),
        ({"reconstruct/mse": 0.099, "reconstruct/mean-image-mse": 0.1}, "than the mean image (0.1)"),
        ({"reconstruct/mse": 0.05, "reconstruct/mean-image-mse": 0.1}, None),
        # A network whose codes are close together before it is trained
        ({"health/std": 0.08, "baseline/random-init/health/std": 0.05}, None),
    ],
)
def test_figures_that_say_that_nothing_was_learned(changed: dict[str, float], told: str | None) -> None:
    found = doubts_of_figures({**HEALTHY, **changed})
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_learns_nothing_says_it_at_the_end_and_keeps_it(method: str, prepared: Prepare) -> None:
    told: list[str] = []

    class Told(Silent):
        def message(self, text: str) -> None:
            told.append(text)

    run = prepared("idle", method, {"train.steps": 24, "train.learning_rate": 1e-12, "train.warmup_epochs": 0}).run
    run_worker_stages(run, ["pretrain"], Told())
    kept = json.loads((run / "manifest.json").read_text())["stages"]["pretrain"]["warnings"]
    assert warnings_of(run) == kept
    assert [line for line in told if "warning: at the end" in line or "did not fall" in line] == [
        f"{run}: warning: {text}" for text in kept
    ]
    # SimCLR's views are more alike than chance before anything is learned; BYOL's loss has no level of chance.
    if method not in ("simclr", "byol"):
        assert kept


def test_no_run_has_no_warnings(tmp_path: Any) -> None:
    assert warnings_of(tmp_path) == []
