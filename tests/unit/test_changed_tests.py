"""Which tests `scripts/check --quick` runs."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts/changed_tests"))
ALWAYS = set(SCRIPT["ALWAYS"])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("tests/unit/run/test_plan.py", {"tests/unit/run/test_plan.py"}),
        ("tests/ray/test_tune.py", set()),  # it starts a cluster
        ("docs/speed.md", {"tests/unit/base/test_documents.py"}),
        ("benchmarks/runs.py", set()),
    ],
)
def test_the_tests_nearest_to_a_change(changed: str, expected: set[str]) -> None:
    assert set(SCRIPT["tests_of"]([changed])) == expected | ALWAYS


@pytest.mark.parametrize(
    ("changed", "test", "other"),
    [
        ("pipeline/run/identity.py", "run/test_identity.py", "run/test_colors.py"),  # something is taken from it
        ("pipeline/evaluation/metrics.py", "evaluation/test_metrics.py", "evaluation/test_probe.py"),  # it is taken
    ],
)
def test_of_a_folder_those_that_import_what_was_changed(changed: str, test: str, other: str) -> None:
    found = SCRIPT["tests_of"]([changed])
    assert f"tests/unit/{test}" in found
    assert f"tests/unit/{other}" not in found


def test_a_module_that_no_test_of_its_folder_imports_has_all_of_them() -> None:
    folder = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/unit/run/test_*.py")}
    assert set(SCRIPT["tests_of"](["pipeline/run/not_there.py"])) == folder | ALWAYS


def test_every_source_has_tests_beside_it() -> None:
    sources = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("pipeline/**/*.py")]
    assert [source for source in sources if not SCRIPT["nearest"](source)] == []
    assert all((ROOT / test).is_file() for test in SCRIPT["tests_of"](sources))
