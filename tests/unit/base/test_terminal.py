"""Text from elsewhere is shown, and steers no terminal."""

import ast
import io
import json
import unicodedata
from pathlib import Path

import pytest
from data_files import write_images
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from rayssl.jobs.main import run_verb
from rayssl.jobs.query import show
from rayssl.pipeline.base.progress import Display, PlainConsole
from rayssl.pipeline.base.terminal import plain, plain_lines

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = "\x1b]0;PWN\x07\x1b[2J\rforged\n\x9b31m\u202egnp.\u2028\x7f[red][/]:smile:"
NAME = HOSTILE.replace("/", "").replace("\x9b", "")  # as a file may be called


def is_safe(text: str) -> bool:
    """Whether nothing but lines and letters is there."""
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return not any(
        (unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") and letter != "\n")
        or unicodedata.bidirectional(letter) in turning
        for letter in text
    )


@given(st.text(st.characters(codec=None)))
def test_any_text_is_one_safe_line(text: str) -> None:
    assert is_safe(plain(text))
    assert "\n" not in plain(text)
    assert plain(plain(text)) == plain(text)


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"])))
def test_letters_of_every_script_are_as_they_were(text: str) -> None:
    assert plain(text) == text


def test_lines_stay_lines() -> None:
    assert plain_lines("one\ntwo\x1b[2J") == "one\ntwo\\x1b[2J"


def drawn(capsys: pytest.CaptureFixture[str]) -> str:
    text: str = capsys.readouterr().err
    assert is_safe(text)
    return text


def test_messages_and_progress_are_safe(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display({"message": HOSTILE})
        display({"run": HOSTILE, "stage": "embed", "done": 1, "total": 2})
    text = drawn(capsys)
    assert len(text.splitlines()) == 2
    assert "[red][/]:smile:" in text


def test_tables_are_safe(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", HOSTILE)
    table.add_row("x", HOSTILE)
    PlainConsole().print(table, crop=False)
    lines = drawn(capsys).splitlines()
    assert len({len(line) for line in lines}) == 1  # cells are as wide as what they show
    assert "[red]" in "".join(lines)


def test_a_live_line_on_a_terminal_keeps_only_the_controls_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = PlainConsole()
    console.file = io.StringIO()
    console._force_terminal = console.is_interactive = True
    with Display(console) as display:
        display({"run": HOSTILE, "stage": "embed", "done": 1, "total": 2})
        assert display._live is not None
        display._live.refresh()
    text = console.file.getvalue()
    assert "\\x1b]0;PWN" in text
    assert "\x1b]0;" not in text
    assert "\x07" not in text


def test_neighbours_are_safe(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"rank": 1, "score": 0.5, "path": HOSTILE, "label": HOSTILE}
    show([{"query": HOSTILE, "neighbors": [found]}, {"query": "x", "error": HOSTILE, "neighbors": []}])
    out, err = capsys.readouterr()
    assert is_safe(out)
    assert is_safe(err)
    assert (len(out.splitlines()), len(err.splitlines())) == (3, 1)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    write_images(tmp_path / f"images {NAME}", [f"{kind} {NAME}/{n} {NAME}.png" for kind in "ab" for n in range(4)])
    (tmp_path / f"images {NAME}" / f"a {NAME}" / f"broken {NAME}.png").write_bytes(b"nothing")
    return tmp_path / f"images {NAME}"


def test_what_is_said_of_hostile_names_is_safe_and_json_is_exact(
    hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb("data", [str(hostile), "--sheet", "none", "--json"]) == 0
    out, err = capsys.readouterr()
    assert is_safe(err)
    assert "\\x1b]0;PWN" in err
    assert all(line.startswith("  ") or line.startswith("reading images") for line in err.splitlines())
    (line,) = out.splitlines()
    assert is_safe(line)
    said = json.loads(line)
    assert said["path"] == str(hostile)
    assert said["classes"]["first"] == [f"a {NAME}", f"b {NAME}"]


@pytest.mark.parametrize("words", [["data", "{}/x", "--sheet", "none"], ["report", "{}"], ["verify", "{}/x"]])
def test_errors_are_one_safe_line(hostile: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    verb, *rest = (word.format(hostile) for word in words)
    assert run_verb(verb, rest) == 2
    text = drawn(capsys)
    assert text.startswith("rayssl: ")
    assert text.count("\n") == 1


def test_a_folder_whose_only_file_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "\x1b]0;PWN\x07.png").write_bytes(b"nothing")
    assert run_verb("data", [str(tmp_path), "--sheet", "none"]) == 2
    assert "\\x1b]0;PWN\\x07.png" in drawn(capsys)


def test_every_line_of_a_command_is_made_safe() -> None:
    """Commands print JSON, their own words, or what went through `plain`."""
    own = {"main.py", "recipes.py", "submit.py"}  # which print nothing from elsewhere but by `say`
    for path in sorted(ROOT.glob("jobs/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "print" or path.name in own:
                continue
            assert ast.unparse(node.args[0]).startswith("json.dumps("), f"{path}:{node.lineno}"
    for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/*.py")]:
        if path.name != "progress.py":
            assert "Console(stderr" not in path.read_text(), path
