"""What the documentation site is made of. `.ci/run` builds it."""

import re
import runpy
from pathlib import Path

import pytest

import rayssl

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts/site_pages.py"))


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("README.md", "[a](docs/data.md#splits)", "[a](data.md#splits)"),
        ("README.md", "![a](docs/images/search.png)", "![a](images/search.png)"),
        ("docs/data.md", "[a](run-folder.md)", "[a](run-folder.md)"),
        ("docs/speed.md", "[a](../benchmarks/README.md)", "[a](benchmarks.md)"),
        ("docs/speed.md", "[a](../benchmarks/results/scaling.json)", "a"),  # no page shows it
        ("docs/speed.md", "[a](https://example.org)", "[a](https://example.org)"),
        ("docs/speed.md", "[a](#loading)", "[a](#loading)"),
    ],
)
def test_links_lead_to_pages_of_the_site(source: str, text: str, expected: str) -> None:
    assert SCRIPT["relinked"](text, source) == expected


def test_the_menu_has_every_page_once() -> None:
    menu = re.findall(r"- ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert sorted(menu) == sorted([*pages, *SCRIPT["SHOWN"].values(), "reference.md"])


def test_the_reference_has_every_public_name() -> None:
    shown = re.findall(r"^::: rayssl\.(\w+)$", SCRIPT["reference"](), re.MULTILINE)
    assert set(shown) == {name for name in rayssl.__all__ if not name.startswith("_")}
