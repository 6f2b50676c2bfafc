"""What a trial of the search is measured on, and what it never keeps."""

from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import quiet

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import Config, override
from rayssl.pipeline.launch.opened import open_for_profile
from rayssl.pipeline.methods.base import Method
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run import auto
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.run.images import open_data
from rayssl.pipeline.run.resolve import open_and_resolve
from rayssl.pipeline.stages.start import prepare
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


def test_a_trial_a_profile_and_a_run_decide_by_the_same_function(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where compiling pays, a trial's network is compiled, as the run's would be."""
    opened = override(config, {"train.precision": "auto", "train.compile": "auto", "augment.backend": "auto"})
    seen: dict[str, tuple[str, ...]] = {}

    def see(config: Config, work: Work) -> tuple[str, str, str]:
        assert work.precision == config.train.precision
        return config.train.precision, config.train.compile, config.augment.backend

    def instead(method: Method[Any], config: Config, work: Work) -> bool:
        seen["trial"] = see(config, work)
        return False

    monkeypatch.setattr(auto, "compiling_pays", lambda work: True)
    monkeypatch.setattr(trial, "compile_or_capture", instead)
    next(run_trial(opened, Course("rotation", 1, 60)))
    profiled = open_for_profile(opened, quiet())
    seen["profile"] = see(profiled.config, profiled)
    run = prepare(opened, tmp_path / "run", command="", warn=pytest.fail, progress=lambda *_: None).run
    trained = auto.decide_and_keep(Work.open(run, Silent()))
    seen["run"] = see(configuration.load(run / "config.json"), trained)
    assert seen["trial"] == seen["profile"] == seen["run"]
    assert seen["run"][1:] == ("yes", "albumentations" if trained.device.type == "cpu" else "batched")
    assert seen["run"][0] in ("bf16", "fp32")


def test_a_run_that_is_opened_is_never_changed(config: Config) -> None:
    work = Work.begin(None, Silent(), config, open_data(config))
    with pytest.raises(FrozenInstanceError):
        work.precision = "fp64"  # type: ignore[misc]
    decided = auto.decide(work)
    assert work.config == config
    assert decided.config != config
    assert decided.features is work.features  # what was computed is not computed again
