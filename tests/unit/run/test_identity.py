"""What decides whether a run folder is continued: it must not change under runs that exist."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config, override
from rayssl.pipeline.run.folder import read_manifest, stage_key, update_manifest
from rayssl.pipeline.run.identity import as_planned, check_trained, continue_run, identity
from rayssl.pipeline.stages.start import Prepared

WRITTEN = Path(__file__).with_name("config_of_a_simclr_run.json")  # by a version that told methods by their class


def test_a_config_of_before_is_read_and_written_alike() -> None:
    config = configuration.load(WRITTEN)
    assert configuration.method_name(config) == "simclr"
    before, found = json.loads(WRITTEN.read_text()), configuration.to_dict(config)
    found["index"] = {key: found["index"][key] for key in before["index"]}  # some were not there yet
    assert found == before
    assert continue_run(config, configuration.override(config, {"train.epochs": 500}), Path("run")).train.epochs == 500


def test_the_key_of_a_run_of_before_is_the_same() -> None:
    assert stage_key(identity(configuration.load(WRITTEN)), "") == "84ae1410007fbe94"


@pytest.mark.parametrize("left", ["checkpoints/step-000000004", "encoder.json"])
def test_a_run_has_learned_if_it_has_checkpoints_or_an_encoder(left: str, prepared: Callable[..., Prepared]) -> None:
    found = prepared("run")
    other = {**read_manifest(found.run)["data"], "fingerprint": "2:0"}
    update_manifest(found.run, {"data": other})
    check_trained(found.config, found.dataset, found.run)  # nothing was learned yet
    (found.run / left).mkdir(parents=True)
    with pytest.raises(UserError, match=r"has changed since .* was started"):
        check_trained(found.config, found.dataset, found.run)


def test_a_run_that_was_stopped_takes_no_fewer_steps(prepared: Callable[..., Prepared]) -> None:
    found = prepared("run")
    (found.run / "checkpoints" / "step-000000004").mkdir(parents=True)
    check_trained(override(found.config, {"train.steps": 4}), found.dataset, found.run)
    with pytest.raises(UserError, match="already been trained for 4 steps: 3 is less"):
        check_trained(override(found.config, {"train.steps": 3}), found.dataset, found.run)


def test_what_was_planned_for_another_method_is_planned_again(tiny_config: Callable[..., Config]) -> None:
    plan = ("method.temperature", "train.batch_size")
    before = override(tiny_config("simclr"), {"method.temperature": 0.9, "train.batch_size": 4})
    for method, kept in (("simclr", plan), ("essl", ("train.batch_size",))):
        config = replace(tiny_config(method), plan=plan)
        found = as_planned(config, before)
        assert found.train.batch_size == 4
        assert (found.method.temperature == 0.9) == ("method.temperature" in kept)
        assert set(found.plan) == set(plan) - set(kept)
