"""Installed, the project is one name, `rayssl`: files of the same name in the working folder are nobody's business."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import pkgutil, importlib, sys
from pathlib import Path
import rayssl.jobs, rayssl.pipeline
for package in (rayssl.jobs, rayssl.pipeline):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
own = {name: module for name, module in sys.modules.items() if getattr(module, "__file__", None)}
files = [str(Path(module.__file__).resolve()) for name, module in own.items() if name.startswith("rayssl")]
foreign = [name for name in own if name.split(".")[0] in ("pipeline", "jobs", "train", "config")]
print(len(files), len(set(files)), foreign)
"""
TRAPS = ("pipeline.py", "jobs.py", "train.py", "config.py", "run.py", "base.py", "index.py")


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A working folder with modules that must not be imported."""
    for name in TRAPS:
        (tmp_path / name).write_text("raise SystemExit(f'{__name__} of the working folder was imported')")
    return tmp_path


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)


def test_every_module_has_one_name(trapped: Path) -> None:
    done = run([sys.executable, "-c", PROGRAM], trapped)
    assert done.returncode == 0, done.stderr
    loaded, files, foreign = done.stdout.split(maxsplit=2)
    assert int(loaded) > 200
    assert loaded == files  # nothing is loaded twice
    assert foreign.strip() == "[]"


@pytest.mark.parametrize("start", [["-m", "rayssl.jobs.main"], [str(Path(sys.executable).with_name("rayssl"))]])
def test_a_command_leaves_the_working_folder_alone(trapped: Path, start: list[str]) -> None:
    words = [sys.executable, *start] if start[0] == "-m" else start
    done = run([*words, "recipes"], trapped)
    assert done.returncode == 0, done.stderr
    assert "simclr-digits" in done.stdout


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-c", "from pipeline.config import Config"], "rayssl.pipeline"),
        (["-c", "import pipeline"], "rayssl.pipeline"),
        (["-m", "jobs.pretrain", "simclr-digits"], "rayssl.jobs"),
    ],
)
def test_the_old_names_say_the_new_one(words: list[str], name: str) -> None:
    """In a clone, where the folders lie in the working folder."""
    done = run([sys.executable, *words], ROOT)
    assert done.returncode != 0
    assert f"is {name} now" in done.stderr.strip().splitlines()[-1]
