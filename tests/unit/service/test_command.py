"""`rayssl serve`: which runs, at which address, and that a token is asked for wherever others can come."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rayssl.jobs.main import main
from rayssl.pipeline.service import server
from rayssl.pipeline.service.server import listening


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Doors of the applications that would have been served; nothing waits for a signal."""
    doors: list[Any] = []

    class Ends:
        def run(self, sockets: list[Any]) -> None:
            doors.append(sockets[0].getsockname())

    monkeypatch.delenv("RAYSSL_TOKEN", raising=False)
    monkeypatch.setattr(server, "server_of", lambda app: Ends())
    monkeypatch.setattr(server, "create_app", lambda runs, names, door: doors.append(door))
    return doors


def test_without_a_run_those_that_are_here_are_named(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve"]) == 2
    assert "runs/photos" in capsys.readouterr().err
    shutil.copytree(finished, tmp_path / "runs" / "mine")
    (tmp_path / "runs" / "suite").mkdir()
    (tmp_path / "runs" / "suite" / "comparison.json").write_text("{}")
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "rayssl: no run to serve: give one of runs/mine, runs/suite\n"


def test_the_address_is_told_to_programs(finished: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(finished), "--port", "0", "--json"]) == 0
    told = capsys.readouterr()
    door, (host, port) = asked
    assert json.loads(told.out) == {"url": f"http://{host}:{port}", "runs": ["simclr-folder"]}
    assert (door, host) == (None, "127.0.0.1")


def test_others_need_a_token_which_is_told_once(
    finished: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(finished), "--port", "0", "--host", "0.0.0.0"]) == 0
    told = capsys.readouterr()
    token = told.err.split("token")[1].split()[0]
    assert asked[0].is_token(token)
    assert told.err.count(token) == 1
    assert token not in told.out


def test_a_token_that_is_given_is_asked_for_and_not_told(
    finished: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("abcdefghijklmnop")
    assert main(["serve", str(finished), "--port", "0", "--token-file", str(tmp_path / "token")]) == 0
    assert asked[0].is_token("abcdefghijklmnop")
    assert "abcdefghijklmnop" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--host", "no.such.host.invalid"], ["--host", "192.0.2.1"], ["--host", "a" * 300]])
def test_an_address_that_cannot_be_had_is_one_line(
    finished: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(finished), "--port", "0", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_port_that_is_taken_is_one_line(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening("127.0.0.1", 0) as taken:
        assert main(["serve", str(finished), "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another port" in capsys.readouterr().err
