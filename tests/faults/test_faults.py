"""A short selection of the faults and damages that tests/faults/all.py tries."""

import random
import shutil
from collections.abc import Iterator

import pytest
from harness import Damage, Fault, Faults, Outcome, prepared

FAULTS, DAMAGES = 8, 6
GOOD = ("whole", "repaired", "dropped", "refused")


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
    assert any(outcome.result == "repaired" for outcome in outcomes.values())


def test_a_reader_that_answers_from_damaged_bytes_is_wrong(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.start_damaged(Damage("report.html", "delete"))
    assert faults.read_wrongly(query := faults.readers()[0]) is None
    monkeypatch.setitem(faults.answers, "query", "[]")
    assert faults.read_wrongly(query) == Outcome("wrong", "query answers something else")


def test_a_fault_that_never_struck_is_wrong(faults: Faults) -> None:
    assert faults.tried(Fault("W", "/no such file", 1, "EIO")).result == "wrong"


def test_what_nothing_makes_again_is_dropped(faults: Faults) -> None:
    assert faults.suffered(Damage("metrics.jsonl", "flip")).result == "dropped"


def test_what_only_the_user_can_restore_is_refused(faults: Faults) -> None:
    assert faults.suffered(Damage("config.json", "cut")).result == "refused"
    assert faults.suffered(Damage("encoder.safetensors", "cut")).result == "repaired"


@pytest.mark.parametrize(
    ("path", "way"),
    [
        ("finetuned/encoder_module.py", "flip"),
        ("search.json", "replace by a folder"),
        ("embeddings/*/train.parquet", "delete"),
    ],
)
def test_what_can_be_made_again_is_repaired(path: str, way: str, faults: Faults) -> None:
    [file] = faults.whole.glob(path)
    outcome = faults.suffered(Damage(str(file.relative_to(faults.whole)), way))
    assert outcome.result == "repaired", outcome.why


def test_a_manifest_that_is_gone_is_told(faults: Faults) -> None:
    assert faults.suffered(Damage("manifest.json", "delete")).result == "refused"
