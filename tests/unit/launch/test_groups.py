"""Which runs train beside each other."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from rayssl.pipeline.config import Config, override
from rayssl.pipeline.launch.groups import grouped
from rayssl.pipeline.recipes import DEFAULT_SUITE, build_recipe
from rayssl.pipeline.run.plan import Machine
from rayssl.pipeline.stages.start import Prepared


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def suite(machine: Machine | None = None, **changes: Any) -> list[Prepared]:
    """The default run's three, of which the first takes the longest."""
    configs = [override(build_recipe(name), changes) for name in DEFAULT_SUITE]
    return [prepared(config, seconds, machine) for config, seconds in zip(configs, (90.0, 40.0, 30.0))]


def prepared(config: Config, seconds: float, machine: Machine | None = None) -> Prepared:
    run = Path(str(config.recipe))
    return Prepared(config, run, cast(Any, None), machine or Machine("cpu", 2), seconds=seconds)


def names(groups: list[list[Prepared]]) -> list[list[str]]:
    return [[p.run.name.split("-")[0] for p in group] for group in groups]


def test_two_cores_train_two_of_the_default_runs_at_a_time_and_both_are_busy_as_long_as_can_be() -> None:
    assert names(grouped(suite())) == [["simclr"], ["rotnet", "autoencoder"]]


def test_runs_of_unknown_length_are_spread_too() -> None:
    assert names(grouped([replace(p, seconds=0.0) for p in suite()])) == [["simclr", "autoencoder"], ["rotnet"]]


def test_one_core_trains_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert names(grouped(suite())) == [["simclr", "rotnet", "autoencoder"]]


@pytest.mark.parametrize(
    "changes",
    [{"train.threads": 2}, {"train.threads": None}, {"cluster.workers": 2}, {"cluster.cpu-per-worker": 2},
     {"cluster.address": "10.0.0.1:6379"}],
    ids=str,
)  # fmt: skip
def test_runs_that_want_more_than_a_core_or_take_what_is_there_have_the_machine_alone(changes: dict[str, Any]) -> None:
    assert len(grouped(suite(**changes))) == 1


def test_runs_on_a_gpu_have_it_alone() -> None:
    assert len(grouped(suite(Machine("cuda", 2)))) == 1
