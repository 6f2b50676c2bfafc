"""What may import what."""

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Callable, Container, Iterator
from pathlib import Path

import pytest

from rayssl.jobs.main import VERBS
from rayssl.pipeline.methods import METHODS, load_method
from rayssl.pipeline.methods.base import Method

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/*.py")])
# A folder, or a module beside them, imports from itself and from those above it in this list.
FLOORS = (
    "base", "models", "data", "features", "augment", "methods", "training", "config", "recipes", "run", "search",
    "evaluation", "curation", "report", "generate", "stages", "tune", "race", "verify", "service", "cluster", "launch",
)  # fmt: skip


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Read once for all the tests of this file."""
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> tuple[str, ...]:
    """Names of the modules that a file imports anywhere in it, with the names taken from them.

    `rayssl.` in front of the project's own is left out: the names are those of the folders.
    """
    return tuple(imported(path))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("rayssl.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = f"{node.module}.".removeprefix("rayssl.")
            yield from (f"{module}{alias.name}" for alias in node.names)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_ray_is_imported_in_one_place(path: Path) -> None:
    if not relative(path).startswith("pipeline/cluster/"):
        assert [name for name in imports(path) if is_in(name, "ray")] == []


def floor(name: str) -> int:
    """How high a module lies."""
    return FLOORS.index(name.split(".")[1])


@pytest.mark.parametrize("path", [path for path in SOURCES if relative(path).count("/") > 1], ids=relative)
def test_a_folder_imports_from_the_floors_below(path: Path) -> None:
    own = floor(relative(path).replace("/", "."))
    found = [name for name in imports(path) if is_in(name, "pipeline") and name.count(".") > 1]
    assert [name for name in found if floor(name) > own] == []


def needs() -> dict[str, set[str]]:
    """Folder → the folders that it imports from."""
    found: dict[str, set[str]] = {name: set() for name in FLOORS}
    for path in SOURCES:
        if relative(path).count("/") > 1 or relative(path) == "pipeline/config.py":
            own = relative(path).removesuffix(".py").split("/")[1]
            names = (name for name in imports(path) if is_in(name, "pipeline") and name.count("."))
            found[own] |= {name.split(".")[1] for name in names} & set(FLOORS) - {own}
    return found


def test_the_drawing_is_the_code() -> None:
    """docs/architecture.md draws every import between folders that does not follow from others."""
    direct = needs()
    below = dict[str, set[str]]()  # all that a folder needs, in the end
    for name in FLOORS:
        below[name] = direct[name].union(*(below[other] for other in direct[name]))
    arrows = {
        f"{name} --> {other}"
        for name in FLOORS
        for other in direct[name]
        if not any(other in below[between] for between in direct[name] - {other})
    }
    text = (ROOT / "docs/architecture.md").read_text()
    drawn = text.partition("```mermaid")[2].partition("```")[0].splitlines()
    assert sorted(line.strip() for line in drawn if "-->" in line) == sorted(arrows)
    listed = [
        line.split("`")[1].rstrip("/").removesuffix(".py") for line in text.splitlines() if line.startswith("| `")
    ]
    assert tuple(listed) == FLOORS


def test_every_folder_is_a_floor() -> None:
    found = {path.stem for path in ROOT.glob("pipeline/*") if any(path.glob("*.py")) or path.suffix == ".py"}
    assert found - {"__init__", "__pycache__"} == set(FLOORS)


def test_no_module_needs_itself() -> None:
    """No circle of imports, those within functions and for type checkers included."""
    modules = {relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in SOURCES}
    left = {
        name: {own for own in map(module_of(modules), imports(path)) if own and own != name}
        for name, path in modules.items()
    }
    while free := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert left == {}


def module_of(modules: Container[str]) -> Callable[[str], str | None]:
    """The module that an imported name is, or is taken from."""
    return lambda name: next((one for one in (name, name.rpartition(".")[0]) if one in modules), None)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_pipeline_does_not_know_its_commands(path: Path) -> None:
    if relative(path).startswith("pipeline/"):
        assert [name for name in imports(path) if is_in(name, "jobs")] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_are_listed_moved_and_locked_in_one_place(path: Path) -> None:
    """`base/` is where another kind of store will answer; data sets are found by `data/storage.py`."""
    if relative(path).startswith("pipeline/base/") or relative(path) == "pipeline/data/storage.py":
        return
    assert [name for name in imports(path) if name.split(".")[0] in ("fcntl", "glob")] == []
    own_ways = {"glob", "rglob", "iterdir", "rename", "renames", "rmtree", "scandir", "listdir"}
    called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    found = [func for func in called if isinstance(func, ast.Attribute)]
    assert [ast.unparse(func) for func in found if func.attr in own_ways or ast.unparse(func) == "os.replace"] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_unpickled(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports(path) if name != "pickle.UnpicklingError"}
    assert not packages & {"pickle", "cloudpickle", "dill", "joblib"}
    for node in ast.walk(parsed(path)):
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
    assert "ray" not in loaded_after("import rayssl.pipeline.stages.story, rayssl.pipeline.launch.runs")


def test_help_costs_neither_torch_nor_ray() -> None:
    code = "\n".join(
        [
            "from rayssl.jobs.main import VERBS, main",
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
    module = importlib.import_module(f"rayssl.jobs.{verb}")
    assert callable(module.main)
    assert (ROOT / "jobs" / f"{verb}.py").is_file()
    assert '__name__ == "__main__"' in (ROOT / "jobs" / f"{verb}.py").read_text()  # python -m rayssl.jobs.VERB


def test_every_entry_point_is_a_verb() -> None:
    helpers = {"__init__", "main", "cli", "start", "decoding", "curation"}
    assert {path.stem for path in ROOT.glob("jobs/*.py")} - helpers == set(VERBS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_file_and_one_line(name: str) -> None:
    method = load_method(name)
    assert issubclass(method, Method)
    assert method.__module__ == f"rayssl.pipeline.methods.{name}"
    others = [path for path in SOURCES if path.stem != name and relative(path) != "pipeline/methods/__init__.py"]
    assert [
        relative(path)
        for path in others
        if any(is_in(i, method.__module__.removeprefix("rayssl.")) for i in imports(path))
    ] == []


def test_no_test_is_given_methods_by_hand() -> None:
    """`parametrize` takes them from METHODS, so that a new one is tested by what is there."""
    listed = [
        f"{relative(path)}:{node.lineno}"
        for path in sorted(ROOT.glob("tests/**/*.py"))
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("parametrize")
        for values in node.args[1:2]
        if isinstance(values, ast.List | ast.Tuple) and len(values.elts) > 1
        if {getattr(value, "value", None) for value in values.elts} <= set(METHODS)
    ]
    assert listed == []
