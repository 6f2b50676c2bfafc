"""`rayssl export` on a finished run."""

import json
from pathlib import Path

import pytest

from rayssl.jobs.main import run_verb


def test_the_files_and_the_card_are_written(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form, files in {"onnx": ["encoder.onnx"], "safetensors": ["encoder.safetensors", "encoder_module.py"]}.items():
        out = tmp_path / form
        assert run_verb("export", [str(finished), "--format", form, "--out", str(out), "--json"]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert sorted(path.name for path in out.iterdir()) == sorted([*files, "README.md"])
        assert told["files"] == [str(out / name) for name in (*files, "README.md")]
        assert 0 <= told["difference"] < 1e-4
        card = (out / "README.md").read_text()
        assert "- trained by: simclr" in card
        assert "| knn/top1 |" in card


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("torchvision", "no network of torchvision takes its weights"),
        ("timm", "can be exported as safetensors, onnx"),
        ("tflite", "'tflite' is not one of"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_writes_nothing(
    form: str, said: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb("export", [str(finished), "--format", form, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "mine.txt"):
        assert run_verb("export", [str(finished), "--format", "onnx", "--out", str(place)]) == 2
        assert "is there already: give a folder that is new or empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_that_is_not_evaluated_is_exported_too(finished_copy: Path, tmp_path: Path) -> None:
    (finished_copy / "evaluation.json").unlink()
    assert run_verb("export", [str(finished_copy), "--format", "safetensors", "--out", str(tmp_path / "out")]) == 0
    assert "has not been evaluated" in (tmp_path / "out" / "README.md").read_text()
