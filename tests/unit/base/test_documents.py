"""What the documents show works: commands parse, examples run, links lead somewhere, tables are those of the code."""

import dataclasses
import functools
import re
import shlex
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rayssl.jobs.cli import FLAGS, take_config_paths
from rayssl.jobs.main import VERBS, main
from rayssl.pipeline.augment import load_views, view_to_dict
from rayssl.pipeline.augment.spec import OPERATIONS, _parameters
from rayssl.pipeline.config import Config, method_config, override, to_dict
from rayssl.pipeline.data import open_dataset, sources
from rayssl.pipeline.methods import METHODS
from rayssl.pipeline.methods.base import Batch, Traits
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.recipes import RECIPES, build_recipe
from rayssl.pipeline.run.identity import flatten
from rayssl.pipeline.tune.search import TuneSettings, parse_settings
from rayssl.pipeline.tune.space import FAMILIES, Parameter, build_space, read_space

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# Flags of other programs, and of torchrun, Ray, pip and ruff
FOREIGN = {"--address", "--check", "--dashboard-host", "--follow", "--generate", "--head", "--no-deps"}
FOREIGN |= {"--nproc-per-node", "--num-cpus", "--python", "--runtime-env-json", "--strict", "--working-dir"}
FLAG = r"(?<![\w-])--?[a-z][\w.-]*\b(?!\.…)"  # not --finetune.…, which is a group


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `rayssl VERB …` in code blocks and between backquotes."""
    fenced = re.findall(r"^```(?:\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in fenced for line in re.split(r"\n|&&", block.replace("\\\n", " "))]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    for line in lines:
        if re.match(r"\s*(\S*/)?rayssl ", line):
            _, verb, *words = shlex.split(line.replace("…", ""), comments=True)
            if verb not in ("VERB", "--help"):
                yield [verb, *words]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_verbs_recipes_and_options_that_exist(document: Path) -> None:
    for verb, *words in commands(document.read_text()):
        if "--" in words:
            verb, *words = words[words.index("--") + 1 :]
        rest, changes = take_config_paths(words)
        assert verb in VERBS
        first = next((word for word in rest if not word.startswith("-")), None)
        if verb in ("run", "pretrain", "tune", "recipes") and first not in (None, "RECIPE"):
            assert first in RECIPES
        options = {word.split("=")[0] for word in rest if word.startswith("-")}
        assert options <= options_of(verb) | set(FLAGS), f"{document.name}: {verb} {words}"
        values = {path: value for path, value in changes.items() if value not in ("DIR", "N", "M")}
        parse_settings({path[5:]: value for path, value in values.items() if path.startswith("tune.")})
        values = {path: value for path, value in values.items() if not path.startswith("tune.")}
        override(build_recipe(first) if first in RECIPES else Config(method=method_config("simclr")), values)


@functools.cache
def options_of(verb: str) -> set[str]:
    """What the help of a command shows."""
    shown = StringIO()
    with redirect_stdout(shown), redirect_stderr(shown), suppress(SystemExit):
        main([verb, "--help"])
    return set(re.findall(FLAG, shown.getvalue()))


@functools.cache
def all_flags() -> set[str]:
    """Of all commands, of every path of a config, of the scripts and of the benchmarks."""
    paths = {path for name in METHODS for path in flatten(to_dict(Config(method=method_config(name))))}
    paths |= {f"tune.{field.name}" for field in dataclasses.fields(TuneSettings)}
    scripts = [
        *ROOT.glob("benchmarks/**/*.py"),
        *filter(Path.is_file, ROOT.glob("scripts/*")),
        ROOT / "tests/faults/all.py",
    ]
    told = set[str]().union(*(re.findall(FLAG, path.read_text()) for path in scripts))
    commands = set[str]().union(*(options_of(verb) for verb in VERBS))
    return commands | set(FLAGS) | {f"--{path.replace('_', '-')}" for path in paths} | told | FOREIGN


PAGES = [*DOCUMENTS, ROOT / "benchmarks/README.md"]


@pytest.mark.parametrize("document", PAGES, ids=relative)
def test_flags_exist(document: Path) -> None:
    code = " ".join(re.findall(r"```.*?```|`[^`\n]+`", without_examples(document), re.DOTALL))
    assert {flag for flag in re.findall(FLAG, code) if flag.startswith("--")} - all_flags() == set()


@pytest.mark.parametrize("document", PAGES, ids=relative)
def test_files_of_the_project_exist(document: Path) -> None:
    text = without_examples(document)
    named = re.findall(r"(?<![\w/])((?:pipeline|jobs|tests|benchmarks|scripts|docs)/[\w./-]*\w/?)(?![\w{*])", text)
    assert [name for name in named if not (ROOT / name).exists() and "FOLDER" not in name] == []


@pytest.mark.parametrize("document", PAGES, ids=relative)
def test_benchmarks_take_the_flags_that_they_are_given(document: Path) -> None:
    paths = set(flatten(to_dict(Config(method=method_config("simclr")))))
    for script, words in re.findall(r"python\s+(benchmarks/\w+\.py)([^`]*)`", document.read_text()):
        given = {flag for flag in re.findall(FLAG, words) if flag.startswith("--")}
        own = {flag for flag in given if flag[2:].replace("-", "_") not in paths and not flag.startswith("--method.")}
        source = (ROOT / script).read_text()
        assert [flag for flag in own if flag not in source] == [], script


@pytest.mark.parametrize("document", PAGES, ids=relative)
def test_keys_of_the_config_exist(document: Path) -> None:
    """`train.batch_size` and the like; names of files are none."""
    groups = "|".join(field.name for field in dataclasses.fields(Config) if "Config" in str(field.type))
    paths = {path for name in METHODS for path in flatten(to_dict(Config(method=method_config(name))))}
    named = re.findall(rf"`((?:{groups})\.[a-z_]+)`", document.read_text())
    files = {
        "encoder.json",
        "encoder.onnx",
        "encoder.safetensors",
        "search.json",
        "search.safetensors",
        "cluster.yaml",
        "index.faiss",
    }
    manifest = {"data.concluded", "data.duplicates", "data.started"}
    assert set(named) - paths - files - manifest - {"finetune.json", "train.parquet"} == set()


def without_examples(document: Path) -> str:
    """The text without code that is not there yet."""
    text = document.read_text()
    return re.sub(
        r"`pipeline/methods/barlow\.py`|`--method\.redundancy [^`]*`|<!-- example: method -->.*?^```$",
        "",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"\]\(([^)#]+)\)", text))
    [picture] = re.findall(r"!\[[^]]+\]\((docs/images/[^)]+)\)", text)
    assert (ROOT / picture).stat().st_size < 200_000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target


@pytest.mark.parametrize("number", [0, 1])
def test_the_json_of_the_augmentation_page_is_read(number: int, tmp_path: Path) -> None:
    text = (ROOT / "docs/augmentation.md").read_text()
    (tmp_path / "views.json").write_text(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[number])
    views = load_views(str(tmp_path / "views.json"), 2)
    assert len(views) == 2
    assert (view_to_dict(views[0]) == view_to_dict(views[1])) == (number == 0)


def test_the_table_of_operations_is_that_of_the_code() -> None:
    text = (ROOT / "docs/augmentation.md").read_text()
    table = text.partition("<!-- operations -->")[2].partition("<!-- end of operations -->")[0]
    shown: dict[str, dict[str, tuple[str, str]]] = {}
    name = ""
    for row in table.strip().splitlines()[2:]:
        first, parameter, default, within, _ = (cell.strip().strip("`") for cell in row.strip("|").split("|"))
        name = first or name
        shown.setdefault(name, {})[parameter] = (default, within)
    assert shown == {name: described(operation) for name, operation in OPERATIONS.items()}


def described(operation: Any) -> dict[str, tuple[str, str]]:
    """Default and limits of every parameter, as the table writes them."""
    found = {}
    for name, (_, limits) in _parameters(operation).items():
        default = getattr(operation(), name)
        text = f"[{default[0]:g}, {default[1]:g}]" if isinstance(default, tuple) else f"{default:g}"
        found[name] = (text, f"{limits.ge:g} to {limits.le:g}")
    return found


def test_the_albumentations_example_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/augmentation.md").read_text(), re.DOTALL):
        (tmp_path / "views.json").write_text('{"operations": []}')
        exec(code, {})
    [view] = load_views("pipeline.json", 1)
    assert [t["__class_fullname__"] for t in view_to_dict(view)["pipeline"]["transform"]["transforms"]] == [
        "RandomResizedCrop",
        "HorizontalFlip",
        "CLAHE",
        "ColorJitter",
    ]


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The named example of CONTRIBUTING.md as a module."""
    name = request.param
    text = (ROOT / "CONTRIBUTING.md").read_text().partition(f"<!-- example: {name} -->\n```python\n")[2]
    module = types.ModuleType(f"example_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look themselves up there
    exec(compile(text.partition("```")[0], f"CONTRIBUTING.md: {name}", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("example", ["method"], indirect=True)
def test_the_example_of_a_method_learns(example: types.ModuleType) -> None:
    torch.manual_seed(0)
    traits = Traits(image_size=8, channels=1, mirror=False)
    encoder = build_encoder("cnn-small", channels=1, image_size=8)
    method = example.BarlowTwins(example.BarlowTwinsConfig(projector_dim=32), encoder, traits)
    assert len(method.default_views(traits)) == 2
    images = torch.rand(32, 1, 8, 8)
    views = [images + 0.1 * torch.rand_like(images) for _ in range(2)]
    batch = Batch(views, torch.arange(1, 33), None, seed=0, epoch=0, step=0)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        output = method(batch)
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert output.features.shape == (64, encoder.dim)


@pytest.mark.parametrize("example", ["source"], indirect=True)
def test_the_example_of_a_source_reads_archives(
    example: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for number in range(20):
            data = BytesIO()
            Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(data, "PNG")
            archive.writestr(f"{'cat' if number < 10 else 'dog'}/{number}.png", data.getvalue())
    monkeypatch.setattr(
        sources, "SOURCES", (*sources.SOURCES, sources.Kind("zip archives", example.SUFFIXES, example.list_archives))
    )
    dataset = open_dataset(str(tmp_path), loader="stream")
    assert dataset.class_names == ("cat", "dog")
    train = dataset.train
    assert train.labels is not None
    for i, path in enumerate(train.paths):
        number = int(Path(path).stem)
        assert train.labels[i] == (number >= 10)
        assert np.array_equal(train[i][0, 0], [10 * number, 0, 0])


def test_constraints_pin_every_dependency_and_name_no_address() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.match(r"[A-Za-z0-9._-]+==\S+( ; .+)?$", line) for line in lines)
    pinned = {line.partition("==")[0].lower() for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    wanted = set(re.findall(r'^    "([A-Za-z0-9-]+)[\[<>=;"]', project, re.MULTILINE))
    assert {name.lower() for name in wanted} <= pinned


def test_the_table_of_searched_operations_is_that_of_the_code() -> None:
    text = (ROOT / "docs/tuning.md").read_text()
    table = text.partition("<!-- families -->")[2].partition("<!-- end of families -->")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.strip().splitlines()[2:]]
    assert rows == [
        [
            f"`{name}`",
            family.build(family.usual).name,
            ", ".join(searched(key, p) for key, p in family.parameters.items()),
        ]
        for name, family in FAMILIES.items()
    ]


def searched(key: str, parameter: Parameter) -> str:
    """A parameter's range or values, as the table writes them."""
    if parameter.values:
        return f"`{key}` {' or '.join(f'{value:g}' for value in parameter.values)}"
    return f"`{key}` {parameter.low:g} to {parameter.high:g}"


def test_the_json_of_the_tuning_page_is_a_space(tmp_path: Path) -> None:
    [text] = re.findall(r"```json\n(.*?)```", (ROOT / "docs/tuning.md").read_text(), re.DOTALL)
    (tmp_path / "space.json").write_text(text)
    names, settings = read_space(str(tmp_path / "space.json"))
    space = build_space(names, **settings)
    assert space.parameters["crop.scale"] == Parameter(0.1, 0.5)
    assert "blur.place" in space.parameters
    assert space.config_paths == ["method.temperature"]
