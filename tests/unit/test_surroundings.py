"""The user's terminal, locale and folders, whatever they are: no traceback."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from rayssl.jobs.main import check_surroundings, write_anything
from rayssl.pipeline.base.errors import UserError

ROOT = Path(__file__).parents[2]


def rayssl(*words: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    place = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-m", "rayssl.jobs.main", *words], cwd=cwd, env=place, capture_output=True)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_names_that_the_terminal_has_no_letters_for(errors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors=errors))
    write_anything()
    print("läufe/\udce4")  # a letter, and a byte that is no UTF-8
    sys.stdout.flush()
    assert written.getvalue() == b"l\\xe4ufe/\\udce4\n"


def test_what_the_user_says_of_errors_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace"))
    write_anything()
    assert sys.stdout.errors == "replace"


def test_an_ascii_terminal_gets_one_line(tmp_path: Path) -> None:
    done = rayssl("query", "läufe", "ä.png", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"rayssl: run folder l\\xe4ufe does not exist")


def test_a_locale_without_the_letters_of_a_path(tmp_path: Path) -> None:
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = rayssl("query", "läufe", "ä.png", cwd=tmp_path, **old)
    assert done.returncode == 2
    assert b"set PYTHONUTF8=1" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_locale_without_the_letters_of_an_image(tmp_path: Path) -> None:
    for name in ("a", "猫"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "0.png")
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = rayssl("data", "photos", "--sheet", "none", cwd=tmp_path, **old)
    assert done.returncode == 2
    assert b"set PYTHONUTF8=1" in done.stderr


def test_a_current_folder_that_was_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(UserError, match=r"the current folder cannot be used \(No such file or directory\): cd to"):
        check_surroundings([])
