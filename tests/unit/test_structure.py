"""What may import what."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.main import VERBS
from pipeline.methods import METHODS, load_method
from pipeline.methods.base import Method

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/*.py")])
# They put the parts together, so they read the config; all others take plain arguments.
BUILDERS = {"config", "recipes", "recipes_autoencoder", "prepare", "stages", "launch", "verify", "query", "trained"}
BUILDERS |= {"choices", "choose", "search", "trial", "tune", "work", "candidates", "end", "own", "places"}


def imports(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports anywhere in it, with the names taken from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_ray_is_imported_in_one_place(path: Path) -> None:
    if not relative(path).startswith("pipeline/cluster/"):
        assert [name for name in imports(path) if is_in(name, "ray")] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_leaf_code_does_not_know_the_config(path: Path) -> None:
    name = relative(path)
    if name.startswith("jobs/") or path.stem in BUILDERS:
        return
    assert [found for found in imports(path) if is_in(found, "pipeline.config")] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_pipeline_does_not_know_its_commands(path: Path) -> None:
    if relative(path).startswith("pipeline/"):
        assert [name for name in imports(path) if is_in(name, "jobs")] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_unpickled(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports(path) if name != "pickle.UnpicklingError"}
    assert not packages & {"pickle", "cloudpickle", "dill", "joblib"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert given.get("weights_only") == "True" or given.get("allow_pickle", "False") == "False"
            assert ast.unparse(node.func) != "torch.load" or given.get("weights_only") == "True"


def loaded_after(code: str) -> set[str]:
    """Names of the modules that are there after some code has run in a process of its own."""
    program = f"import sys\nsys.argv = ['rayssl']\n{code}\nprint(chr(0), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split("\0")[1].split())


def test_the_stages_leave_ray_alone() -> None:
    assert "ray" not in loaded_after("import pipeline.stages, pipeline.launch")


def test_help_costs_neither_torch_nor_ray() -> None:
    code = "\n".join(
        [
            "from jobs.main import VERBS, main",
            "assert main(['--help']) == 0",
            "assert main([]) == 0",
            "assert main(['--version']) == 0",
            "assert main(['rum']) == 2",
            "for verb in VERBS:",
            "    try: main([verb, '--help'])",
            "    except SystemExit as end: assert end.code == 0, verb",
        ]
    )
    assert not {"torch", "ray", "numpy", "torchvision", "albumentations", "wandb"} & loaded_after(code)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_module_with_a_main(verb: str) -> None:
    module = importlib.import_module(f"jobs.{verb}")
    assert callable(module.main)
    assert (ROOT / "jobs" / f"{verb}.py").is_file()
    assert '__name__ == "__main__"' in (ROOT / "jobs" / f"{verb}.py").read_text()  # python -m jobs.VERB


def test_every_entry_point_is_a_verb() -> None:
    helpers = {"__init__", "main", "cli", "start", "decoding"}
    assert {path.stem for path in ROOT.glob("jobs/*.py")} - helpers == set(VERBS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_file_and_one_line(name: str) -> None:
    method = load_method(name)
    assert issubclass(method, Method)
    assert method.__module__ == f"pipeline.methods.{name}"
    others = [path for path in SOURCES if path.stem != name and relative(path) != "pipeline/methods/__init__.py"]
    assert [relative(path) for path in others if any(is_in(i, method.__module__) for i in imports(path))] == []
