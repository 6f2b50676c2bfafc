"""The field's terms: words that documents, help and messages once had in their place do not come back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
SOURCES = sorted(path for folder in ("pipeline", "jobs") for path in (ROOT / folder).rglob("*.py"))
# What is not to be written → what is.
TERMS = {
    r"held-out": "validation (or test)",
    r"\banew\b": "again",
    r"piece by piece": "eager, kernel by kernel",
    r"by the stopwatch": "wall-clock",
    r"numbers in a code": "latent dimensions",
    r"a fault of rayssl": "internal error",
    r"\bis no (?:folder|run folder|regular file|file|search|race|network|class|directory)\b": "is not a …",
    r"number of workers changes the speed and not": "equal curves hold in double precision only",
}


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_terms_of_the_field(path: Path) -> None:
    text = path.read_text()
    written = [" ".join(text.split())] if path.suffix == ".md" else list(strings(text))
    found = {f"{words}: {instead}" for words, instead in TERMS.items() for one in written if re.search(words, one)}
    assert not found


def strings(source: str) -> Iterator[str]:
    """Every text of a module: messages, help, docstrings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield " ".join(node.value.split())


def test_a_term_is_found_in_messages_and_docstrings() -> None:
    found = list(strings('def f():\n    """Made\n    anew."""\n    raise ValueError(f"{f} is no file: held-out")\n'))
    assert sum(bool(re.search(words, one)) for words in TERMS for one in found) == 3
