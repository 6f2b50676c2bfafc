"""What a trial of the search is measured on, and what it never keeps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config, override
from rayssl.pipeline.methods.base import Method
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.images import open_data
from rayssl.pipeline.run.resolve import open_and_resolve
from rayssl.pipeline.tune import objectives, trial
from rayssl.pipeline.tune.objectives import Material
from rayssl.pipeline.tune.trial import Course, run_trial

TINY = {
    "encoder.name": "cnn-small",
    "data.limit": 128,
    "train.batch-size": 64,
    "train.threads": 1,
    "train.steps": 2,
    "train.precision": "fp32",
}


@pytest.fixture(scope="module")
def config() -> Config:
    """Two steps on 128 digits."""
    found = override(build_recipe("simclr-digits"), TINY)
    return open_and_resolve(found, lambda text: None, lambda done, total: None)[0]


def test_a_trial_is_scored_on_held_out_images_alone(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    materials: list[Material] = []

    def watch(material: Material, names: Sequence[str]) -> dict[str, float]:
        materials.append(material)
        return objectives.measure(material, names)

    monkeypatch.setattr(trial, "measure", watch)
    reports = list(run_trial(config, Course("knn", 2, 60)))
    data = open_data(config)
    assert len(materials) == len(reports) == 2
    for material in materials:
        held_out, train = set(material.held_out.ids), set(material.train.ids)
        assert len(train) == 60
        assert train <= set(data.train.ids)
        assert held_out <= set(data.val.ids)
        assert len(held_out) == min(60, len(data.val))
        assert not held_out & train


def test_weights_that_are_not_finite_fail_a_trial_before_they_are_kept(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step is of the weights before it."""

    def ruin(self: Method[Any], step: int, total: int) -> None:
        if step == 1:
            with torch.no_grad():
                next(self.parameters()).fill_(torch.inf)

    monkeypatch.setattr(Method, "after_step", ruin)
    with pytest.raises(UserError, match="weights are not finite after step 2"):
        list(run_trial(config, Course("rotation", 1, 60), tmp_path / "checkpoints"))
    assert not (tmp_path / "checkpoints").exists()
