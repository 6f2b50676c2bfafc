"""The tables of docs/results.md are those of benchmarks/results/."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks/tables.py"))


def test_the_tables_are_what_the_script_writes() -> None:
    page = (ROOT / "docs/results.md").read_text()
    assert sorted(re.findall(r"<!-- table: (\S+) -->", page)) == sorted(SCRIPT["TABLES"])
    assert SCRIPT["filled"](page).splitlines() == page.splitlines()


def test_an_edited_figure_is_made_right() -> None:
    page = (ROOT / "docs/results.md").read_text()
    edited = page.replace("| found by Optuna | 58.5", "| found by Optuna | 85.5")
    assert edited != page
    assert SCRIPT["filled"](edited) == page


def test_halves_are_rounded_away_from_zero() -> None:
    assert [SCRIPT["rounded"](value, 1) for value in (46.25, -0.05, 0.04, 1533.2)] == ["46.3", "−0.1", "0.0", "1,533.2"]
