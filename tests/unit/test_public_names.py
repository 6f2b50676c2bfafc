"""`import rayssl`: its names are pinned, are those of the pipeline, and cost nothing until they are used."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rayssl

NAMES = [
    "Config",
    "Dataset",
    "Embeddings",
    "Encoder",
    "OpenIndex",
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
    "connect",
    "evaluate_embeddings",
    "export_encoder",
    "load_embeddings",
    "load_encoder",
    "load_index",
    "load_views",
    "open_dataset",
    "open_index",
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


def test_wherever_a_path_is_taken_text_is_too() -> None:
    for name in NAMES:
        value = getattr(rayssl, name)
        if inspect.isfunction(value):
            kinds = [str(parameter.annotation) for parameter in inspect.signature(value).parameters.values()]
            assert not [kind for kind in kinds if "Path" in kind and "str" not in kind], name


def test_a_run_is_read_by_its_name(finished: Path, images: Path, tmp_path: Path) -> None:
    run, out = str(finished), str(tmp_path / "out")
    one = str(next(images.rglob("*.png")))
    assert len(rayssl.query(run, [one], k=3)[0]["neighbors"]) == 3
    rayssl.export_encoder(rayssl.load_encoder(run), out)
    assert rayssl.load_encoder(out).dim == rayssl.load_encoder(finished).dim
    data = next((finished / "embeddings").iterdir()).name
    embeddings = rayssl.load_embeddings(f"{run}/embeddings/{data}/train.parquet")
    rayssl.save_embeddings(embeddings, f"{out}/train.parquet")
    assert rayssl.load_embeddings(f"{out}/train.parquet").paths == embeddings.paths
    assert rayssl.load_index(f"{run}/index/{data}")[1]["count"] > 0
    assert rayssl.read_evaluation(run)["flat"]
    rayssl.write_report([run], f"{out}/report.html")
    rayssl.write_comparison([run, finished], f"{out}/comparison.json")
    assert (tmp_path / "out" / "report.html").exists()


def test_type_checkers_see_the_names_that_python_finds() -> None:
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(rayssl))) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: str(node.module) for node in imports for alias in node.names}
    seen = {name: module for name, module in seen.items() if module not in ("typing", "rayssl.pipeline")}
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
