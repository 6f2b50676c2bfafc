"""`import rayssl`: its names are pinned, are those of the pipeline, and cost nothing until they are used."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import rayssl

NAMES = [
    "Config",
    "Dataset",
    "Embeddings",
    "Encoder",
    "Parameter",
    "Space",
    "Spec",
    "TuneSettings",
    "UserError",
    "__version__",
    "build_encoder",
    "build_index",
    "build_recipe",
    "build_space",
    "evaluate_embeddings",
    "export_encoder",
    "load_embeddings",
    "load_encoder",
    "load_index",
    "load_views",
    "open_dataset",
    "override",
    "query",
    "read_evaluation",
    "run",
    "save_embeddings",
    "search",
    "tune",
    "write_comparison",
    "write_report",
]


def test_the_public_names_are_these() -> None:
    assert sorted(rayssl.__all__) == sorted(NAMES)
    assert dir(rayssl) == sorted(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_a_name_is_the_pipelines_own(name: str) -> None:
    assert getattr(rayssl, name) is getattr(importlib.import_module(rayssl._NAMES[name]), name)


def test_type_checkers_see_the_names_that_python_finds() -> None:
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(rayssl))) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: str(node.module) for node in imports for alias in node.names}
    seen = {name: module for name, module in seen.items() if module not in ("typing", "pipeline")}
    assert seen == rayssl._NAMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_encodr"):
        rayssl.load_encodr  # noqa: B018


def test_the_import_brings_nothing_heavy() -> None:
    code = (
        "import sys, rayssl; rayssl.UserError; rayssl.override(rayssl.Config(), {});"
        "print(*({'torch', 'torchvision', 'ray', 'faiss', 'albumentations', 'pyarrow', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
