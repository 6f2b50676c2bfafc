"""A short selection of the faults and damages that tests/faults/all.py tries."""

import random
import shutil
from collections.abc import Iterator

import pytest
from harness import Faults, Outcome, prepared

FAULTS, DAMAGES = 8, 6
GOOD = ("whole", "repaired", "refused")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """A run that nothing happened to, and the process that runs others."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler, which the faults need")
    with prepared(tmp_path_factory.mktemp("faults")) as found:
        yield found


def test_a_fault_at_any_file_operation_costs_nothing(faults: Faults) -> None:
    drawn = random.Random(0).sample(sorted(faults.faults(), key=lambda fault: fault.name), FAULTS)
    outcomes = {fault.name: faults.tried(fault) for fault in drawn}
    assert {name: outcome for name, outcome in outcomes.items() if outcome.result not in GOOD} == {}
    assert any(outcome.result == "repaired" for outcome in outcomes.values())


def test_damage_is_seen_and_told_in_a_line(faults: Faults) -> None:
    drawn = random.Random(0).sample(sorted(faults.damages(4), key=lambda damage: damage.name), DAMAGES)
    outcomes = {damage.name: faults.suffered(damage) for damage in drawn}
    assert {name: outcome for name, outcome in outcomes.items() if outcome.result not in GOOD} == {}
    assert Outcome("refused") in outcomes.values()
