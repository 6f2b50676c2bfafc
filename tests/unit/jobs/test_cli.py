"""Commands: help, exit codes, and one line for every kind of wrong input."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rayssl.jobs.cli import FLAGS, RUN_FLAGS, command_line, take_config_paths
from rayssl.jobs.main import VERBS, main, run_verb
from rayssl.pipeline.base.errors import OutsideError, UserError
from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.config import Config
from rayssl.pipeline.launch.plan import prepare_shown
from rayssl.pipeline.recipes import RECIPES
from rayssl.pipeline.stages.start import Prepared

Capture = pytest.CaptureFixture[str]
PROGRESS = re.compile(r"reading images: |\S+ (index|evaluate): …$")


def fails(argv: list[str], capsys: Capture) -> str:
    """The one line on stderr of a command that ends with exit code 2; progress may stand before it."""
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    lines = [line for line in err.splitlines() if not PROGRESS.match(line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("rayssl: ")
    return lines[0]


def succeeds(argv: list[str], capsys: Capture) -> str:
    """What a command that ends with exit code 0 writes to stdout."""
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# Help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_verbs(words: list[str], capsys: Capture) -> None:
    out = succeeds(words, capsys)
    for verb in VERBS:
        assert f"\n  {verb} " in out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_is_short(verb: str, capsys: Capture) -> None:
    assert main([verb, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert verb in out
    shown = re.split(r"\nOptions:|\noptions:", out)[1].split("\n\n")[0]
    options = [line for line in shown.splitlines() if line.startswith("  -")]
    assert 1 <= len(options) <= 20
    assert any("--json" in line for line in options)


def test_the_flags_that_people_need_are_shown(capsys: Capture) -> None:
    assert main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in RUN_FLAGS:
        assert f"  {flag} " in out


def test_every_flag_is_a_path_of_the_config(tiny_config: Callable[..., Config]) -> None:
    from rayssl.pipeline.config import to_dict
    from rayssl.pipeline.run.identity import flatten
    from rayssl.pipeline.tune.search import TuneSettings

    known = {*flatten(to_dict(tiny_config())), *(f"tune.{name}" for name in TuneSettings.__dataclass_fields__)}
    for flag in FLAGS:
        path = flag.removeprefix("--").replace("-", "_")
        assert path in known or path == "out"


def test_the_version(capsys: Capture) -> None:
    assert succeeds(["--version"], capsys).startswith("rayssl ")


# Parsing


def test_config_paths_are_split_off() -> None:
    argv = ["simclr-digits", "--train.epochs", "3", "--data.path=a=b.c", "--json", "--method.x", "-1", "--out", "a.b"]
    rest, changes = take_config_paths(argv)
    assert rest == ["simclr-digits", "--json", "--out", "a.b"]
    assert changes == {"train.epochs": "3", "data.path": "a=b.c", "method.x": "-1"}


def test_the_last_value_counts() -> None:
    assert take_config_paths(["--a.b", "1", "--a.b=2"])[1] == {"a.b": "2"}


def test_a_path_without_a_value() -> None:
    with pytest.raises(UserError, match=r"--train\.epochs has no value"):
        take_config_paths(["--train.epochs"])


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/rayssl", "run", "--data.path", "my images"])
    assert command_line() == "rayssl run --data.path 'my images'"


# Wrong input of `run`: one line, exit code 2, nothing written


@pytest.fixture
def places(images: Path, tmp_path: Path) -> dict[str, str]:
    """What the cases below speak of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    (tmp_path / "broken").mkdir()
    for i in range(4):
        (tmp_path / "broken" / f"{i}.png").write_bytes(b"not an image")
    (tmp_path / "one").mkdir()
    shutil.copy(images / "red" / "0.png", tmp_path / "one" / "0.png")
    pq.write_table(pa.table({"text": ["a", "b"], "number": [1, 2]}), tmp_path / "texts.parquet")
    (tmp_path / "labels.csv").write_text("name,class\nred/0.png,red\n")
    (tmp_path / "spec.json").write_text('{"operations": [{"name": "Spin"}]}')
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    (tmp_path / "file").write_text("a file")
    return {"tmp": str(tmp_path), "images": str(images), "out": str(tmp_path / "out")}


FOLDER = ["run", "simclr-folder", "--out", "{out}", "--data.path"]
WITH_IMAGES = [*FOLDER, "{images}", "--train.batch-size", "8"]
WRONG = [
    (["rum"], ["'rum'", "did you mean 'run'"]),
    (["run", "simclr-digit", "--out", "{out}"], ["'simclr-digit'", "did you mean 'simclr-digits'"]),
    (["run", "simclr-digits", "extra", "--out", "{out}"], ["extra"]),
    (["run", "simclr-digits", "--ouy", "{out}"], ["--ouy", "--out"]),
    (["run", "simclr-digits", "--out"], ["--out"]),
    ([*WITH_IMAGES, "--train.epohcs", "3"], ["--train.epohcs", "'train.epochs'"]),
    ([*WITH_IMAGES, "--train.epochs", "0"], ["--train.epochs", "'0'", "greater than 0"]),
    ([*WITH_IMAGES, "--train.epochs", "ten"], ["--train.epochs", "'ten'", "integer"]),
    ([*WITH_IMAGES, "--train.epochs"], ["--train.epochs has no value"]),
    ([*WITH_IMAGES, "--train.learning-rate", "nan"], ["learning_rate", "nan"]),
    ([*WITH_IMAGES, "--train.learning-rate", "inf"], ["learning_rate", "inf"]),
    ([*WITH_IMAGES, "--train.batch-size", "-1"], ["batch_size", "-1"]),
    ([*WITH_IMAGES, "--method.name", "rotnet"], ["--method.name"]),
    ([*WITH_IMAGES, "--method.temprature", "1"], ["'method.temperature'"]),
    ([*WITH_IMAGES, "--wandb", "maybe"], ["wandb", "'maybe'", "'offline'"]),
    ([*WITH_IMAGES, "--encoder.name", "resnet-tinny"], ["resnet-tinny", "resnet-tiny"]),
    ([*WITH_IMAGES, "--encoder.weights", "{tmp}/weights.safetensors"], ["weights.safetensors"]),
    ([*WITH_IMAGES, "--encoder.weights", "efficientnet"], ["efficientnet is not a file", "or a name for"]),
    ([*WITH_IMAGES, "--encoder.name", "resnet18", "--encoder.weights", "DEFAULT"], ["`rayssl weights resnet18`"]),
    ([*WITH_IMAGES, "--encoder.name", "timm/hf-hub:a/b"], ["timm/hf-hub:a/b", "give timm/NETWORK"]),
    (["weights", "resnet99"], ["'resnet99'", "timm/NAME"]),
    (["weights", "resnet18", "V9"], ["V9", "IMAGENET1K_V1"]),
    ([*WITH_IMAGES, "--augment.spec", "{tmp}/spec.json"], ["Spin"]),
    ([*WITH_IMAGES, "--augment.spec", "{tmp}/none.json"], ["none.json"]),
    ([*WITH_IMAGES, "--data.labels", "{tmp}/labels.csv"], ["labels.csv", "path"]),
    ([*WITH_IMAGES, "--data.labels", "{tmp}/none.csv"], ["none.csv"]),
    ([*WITH_IMAGES, "--data.limit", "1"], ["limit", "1"]),
    ([*WITH_IMAGES, "--data.channels", "7"], ["7"]),
    ([*WITH_IMAGES, "--data.loader", "quick"], ["loader", "'quick'", "'stream'"]),
    ([*WITH_IMAGES, "--cluster.workers", "3", "--train.batch-size", "10"], ["10", "3 workers", "use 9 or 12"]),
    (["run", "simclr-folder", "--out", "{out}"], ["--data.path"]),
    ([*FOLDER, "{tmp}/nowhere"], ["nowhere"]),
    ([*FOLDER, "{tmp}/empty"], ["empty", "no images"]),
    ([*FOLDER, "{tmp}/texts"], ["texts", "no images"]),
    ([*FOLDER, "{tmp}/broken"], ["broken", "4"]),
    ([*FOLDER, "{tmp}/one"], ["one"]),
    ([*FOLDER, "{tmp}/file"], ["file"]),
    ([*FOLDER, "{tmp}/texts.parquet"], ["texts.parquet", "image"]),
    ([*FOLDER, "cifar11"], ["cifar11", "cifar10"]),
    (["pretrain", "--out", "{out}"], ["RECIPE"]),
    (["pretrain", "rotnet", "--out", "{out}"], ["'rotnet'"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), WRONG, ids=[" ".join(words[1:])[-60:] for words, _ in WRONG])
def test_wrong_input_is_one_line(
    words: list[str], says: list[str], places: dict[str, str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.chdir(places["tmp"])
    before = contents(Path(places["tmp"]))
    line = fails([word.format(**places) for word in words], capsys)
    for part in says:
        assert part in line
    assert contents(Path(places["tmp"])) == before
    assert not Path(places["out"]).exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cluster.workers", "20", "--train.batch-size", "40"], ["--cluster.workers is 20", "2 cores"]),
        (["--cluster.gpu-per-worker", "99"], ["99", "GPU"]),
        (["--cluster.cpu-per-worker", "99"], ["99", "2 cores"]),
    ],
)
def test_more_than_this_machine_has(
    words: list[str], says: list[str], places: dict[str, str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    line = fails([*(word.format(**places) for word in WITH_IMAGES), *words], capsys)
    for part in says:
        assert part in line
    assert not Path(places["out"]).exists()


def test_out_with_something_else_in_it(places: dict[str, str], capsys: Capture) -> None:
    out = Path(places["tmp"]) / "texts"
    words = ["run", "simclr-folder", "--data.path", places["images"], "--train.batch-size", "8", "--out", str(out)]
    line = fails(words, capsys)
    assert "is not empty and is not a run folder" in line
    assert [path.name for path in out.iterdir()] == ["a.txt"]


def test_out_is_a_file(places: dict[str, str], capsys: Capture) -> None:
    out = Path(places["tmp"]) / "file"
    words = ["run", "simclr-folder", "--data.path", places["images"], "--train.batch-size", "8", "--out", str(out)]
    assert str(out) in fails(words, capsys)
    assert out.read_text() == "a file"


# Wrong input of the verbs on a run

DECODING = ["reconstruct", "interpolate", "sample", "anomalies"]
CURATION = ["duplicates", "outliers", "mislabelled", "cluster"]
ON_A_RUN = ["probe", "finetune", "embed", "index", "evaluate", "report", "verify", *DECODING, *CURATION]


@pytest.mark.parametrize("verb", [*ON_A_RUN, "query"])
def test_a_run_that_is_not_there(verb: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nowhere" in fails([verb, "nowhere", *(["x.png"] if verb == "query" else [])], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [*(v for v in ON_A_RUN if v != "verify"), "query"])
def test_a_folder_that_is_no_run(verb: str, tmp_path: Path, capsys: Capture) -> None:
    line = fails([verb, str(tmp_path), *(["x.png"] if verb == "query" else [])], capsys)
    assert "is not a run folder" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [*(v for v in ON_A_RUN if v != "embed"), "query"])
def test_no_run_named(verb: str, capsys: Capture) -> None:
    assert "rayssl" in fails([verb], capsys)


@pytest.mark.parametrize("flag", ["--jsno", "--data.pth", "--nonsense.path"])
@pytest.mark.parametrize("verb", [*ON_A_RUN, "query", "recipes"])
def test_a_misspelt_flag(verb: str, flag: str, finished_copy: Path, images: Path, capsys: Capture) -> None:
    before = contents(finished_copy)
    words = {"query": [str(finished_copy), str(images / "red" / "0.png")], "recipes": []}.get(
        verb, [str(finished_copy)]
    )
    line = fails([verb, *words, flag, "1"] if "." in flag else [verb, *words, flag], capsys)
    assert flag in line
    assert contents(finished_copy) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["probe", "--probe.epochs", "0"], ["probe.epochs", "'0'"]),
        (["probe", "--train.epochs", "5"], ["--train.epochs cannot be changed", "probe.*"]),
        (["finetune", "--label-fraction", "0"], ["label_fraction", "'0'"]),
        (["finetune", "--label-fraction", "1.5"], ["label_fraction", "'1.5'"]),
        (["finetune", "--labels-per-class", "x"], ["labels_per_class", "'x'"]),
        (["index", "--index.factory", "IVFnonsense"], ["IVFnonsense"]),
        (["evaluate", "--evaluate.k", "0"], ["evaluate.k", "'0'"]),
        (["embed", "--data.path", "/no/such/folder"], ["/no/such/folder"]),
    ],
)
def test_a_wrong_value_leaves_the_run_alone(
    words: list[str], says: list[str], finished_copy: Path, capsys: Capture
) -> None:
    before = contents(finished_copy)
    line = fails([words[0], str(finished_copy), *words[1:]], capsys)
    for part in says:
        assert part in line
    assert contents(finished_copy) == before


@pytest.fixture
def unlabelled(tiny_config: Callable[..., Config], images: Path, tmp_path: Path) -> Path:
    """A trained run on images without labels."""
    from rayssl.pipeline.base.reporter import Silent
    from rayssl.pipeline.stages.story import run_worker_stages

    folder = tmp_path / "plain-images"
    folder.mkdir()
    for i, path in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(path, folder / f"{i}.png")
    run = tmp_path / "unlabelled"
    prepare_shown(tiny_config(changes={"data.path": str(folder)}), run, "rayssl run", Display(Console(quiet=True)))
    run_worker_stages(run, ["pretrain"], Silent())
    return run


@pytest.mark.parametrize("verb", ["probe", "finetune"])
def test_what_needs_labels_says_so(verb: str, unlabelled: Path, capsys: Capture) -> None:
    line = fails([verb, str(unlabelled)], capsys)
    assert f"`{verb}` needs labels" in line
    assert "plain-images" in line


def test_stages_in_the_wrong_order(prepared: Callable[..., Prepared], images: Path, capsys: Capture) -> None:
    run = prepared("untrained").run
    for words in (["embed", str(run)], ["index", str(run)], ["evaluate", str(run)], ["query", str(run), "x.png"]):
        line = fails(words, capsys)
        assert str(run) in line, words


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema": 99}', b"\xff\xfe"])
@pytest.mark.parametrize("file", ["config.json", "manifest.json"])
@pytest.mark.parametrize("verb", ["evaluate", "index"])
def test_a_damaged_run(verb: str, file: str, damage: bytes, finished_copy: Path, capsys: Capture) -> None:
    (finished_copy / file).write_bytes(damage)
    assert file in fails([verb, str(finished_copy)], capsys)


def test_queries_that_cannot_be_answered(finished: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    image = str(images / "red" / "0.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    cases = [
        ([image, "-k", "1000"], ["1000", "60"]),
        ([image, "-k", "0"], ["0"]),
        ([image, "-k", "ten"], ["ten"]),
        ([str(tmp_path / "text.png")], ["text.png"]),
        ([str(tmp_path / "none.png")], ["none.png", "does not exist"]),
        ([str(tmp_path / "empty")], ["empty holds no images"]),
        ([image, "--data", "nosuch"], ["--data nosuch", "there is", images.name]),
        ([image, "--save", str(tmp_path / "x.docx")], ["--save", "x.docx", ".png, .jpg"]),
    ]
    for words, says in cases:
        line = fails(["query", str(finished), *words], capsys)
        for part in says:
            assert part in line, words


def test_a_gallery_where_nothing_can_be_written(finished: Path, images: Path, capsys: Capture) -> None:
    words = [str(finished), str(images / "red" / "0.png"), "--save", "/proc/none/x.png"]
    assert "/proc/none" in fails(["query", *words], capsys)


def test_embed_without_a_run_or_an_encoder(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--encoder.name" in fails(["embed"], capsys)
    assert list(tmp_path.iterdir()) == []


# What is right


def test_recipes(capsys: Capture) -> None:
    names = [line.split()[0] for line in succeeds(["recipes"], capsys).splitlines()]
    assert names == list(RECIPES)
    assert list(json.loads(succeeds(["recipes", "--json"], capsys))) == names
    shown = json.loads(succeeds(["recipes", "simclr-digits"], capsys))
    assert shown["recipe"] == "simclr-digits"
    assert shown["method"]["name"] == "simclr"
    assert json.loads(succeeds(["recipes", "simclr-digits", "--json"], capsys)) == shown


def test_a_query_as_json_and_as_text(finished: Path, images: Path, capsys: Capture) -> None:
    image = str(images / "red" / "0.png")
    (result,) = json.loads(succeeds(["query", str(finished), image, "-k", "3", "--json"], capsys))
    assert result["query"] == image
    neighbors = result["neighbors"]
    assert [found["rank"] for found in neighbors] == [1, 2, 3]
    assert set(neighbors[0]) == {"rank", "id", "id_str", "path", "label", "score"}
    assert neighbors[0]["label"] in ("blue", "green", "red")
    assert [found["score"] for found in neighbors] == sorted((found["score"] for found in neighbors), reverse=True)
    text = succeeds(["query", str(finished), image, "-k", "3"], capsys)
    assert all(found["path"] in text for found in neighbors)


def test_a_query_of_which_a_part_is_answered(finished: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    image, save = str(images / "red" / "0.png"), str(tmp_path / "x.jpg")
    words = ["query", str(finished), "none.png", image, "-k", "2"]
    assert main([*words, "--json", "--save", save]) == 3
    missing, found = json.loads(capsys.readouterr().out)
    assert "none.png does not exist" in missing["error"]
    assert len(found["neighbors"]) == 2
    with Image.open(save) as picture:
        assert picture.format == "JPEG"
    assert main(words) == 3
    assert "none.png does not exist" in capsys.readouterr().err


def test_a_gallery(finished: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    image = str(images / "red" / "0.png")
    succeeds(["query", str(finished), image, "-k", "3", "--save", str(tmp_path / "x.png")], capsys)
    with Image.open(tmp_path / "x.png") as picture:
        assert np.asarray(picture).std() > 0


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["probe"], "probe/top1"),
        (["finetune"], "finetune@10%/top1"),
        (["evaluate"], "knn/top1"),
        (["evaluate"], "baseline/raw-pixels/knn/top1"),
        (["evaluate"], "baseline/random-init/health/rankme"),
    ],
)
def test_stages_that_are_done_print_their_figures(
    words: list[str], wanted: str, finished: Path, capsys: Capture
) -> None:
    before = contents(finished)
    shown = json.loads(succeeds([words[0], str(finished), "--json"], capsys).splitlines()[-1])
    assert shown["run"] == str(finished)
    assert wanted in shown["flat"]
    assert set(contents(finished)) == set(before)


def test_the_index_and_the_files_of_a_run(finished_copy: Path, capsys: Capture) -> None:
    shown = json.loads(succeeds(["index", str(finished_copy), "--json"], capsys).splitlines()[-1])
    assert (shown["indices"]["colours"]["vectors"], shown["indices"]["colours"]["recall"]) == (60, 1.0)
    findings = json.loads(succeeds(["verify", str(finished_copy), "--json"], capsys).splitlines()[-1])
    assert all(finding["fault"] is None for finding in findings)


def test_a_damaged_file_is_exit_code_2(finished_copy: Path, capsys: Capture) -> None:
    (finished_copy / "encoder.safetensors").write_bytes(b"")
    assert main(["verify", str(finished_copy)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert any(line.startswith("DAMAGED") and "encoder.safetensors" in line for line in err)
    assert err[-1].startswith("rayssl: ")


def test_embeddings_of_other_images(finished_copy: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other"
    shutil.copytree(images / "red", other)
    succeeds(["embed", str(finished_copy), "--data.path", str(other)], capsys)
    assert (finished_copy / "embeddings" / "other" / "train.parquet").exists()
    succeeds(["index", str(finished_copy)], capsys)
    assert (finished_copy / "index" / "other" / "CURRENT").exists()
    succeeds(["verify", str(finished_copy)], capsys)


def test_embedding_without_training(finished: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    words = ["--encoder.name", "cnn-small", "--data.path", str(images), "--data.image-size", "16", "--out", str(out)]
    assert "--encoder.weights is not given" in fails(["embed", *words], capsys)
    words += ["--encoder.weights", str(finished)]
    succeeds(["embed", *words], capsys)
    assert (out / "index" / "colours" / "CURRENT").exists()


def test_weights_on_this_machine(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("rayssl.pipeline.models.pretrained.package_weights", list)
    assert main(["weights"]) == 0
    assert "no pretrained weights on this machine" in capsys.readouterr().out
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "squeezenet1_1-b8a52dc0.pth").write_bytes(bytes(200_000))
    assert main(["weights"]) == 0
    assert "--encoder.name squeezenet1_1 --encoder.weights IMAGENET1K_V1" in capsys.readouterr().out
    assert main(["weights", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["weights"]
    assert [(one["name"], one["bytes"], one["source"]) for one in found] == [
        ("squeezenet1_1", 200_000, "torchvision cache")
    ]
    assert main(["weights", "squeezenet1_1"]) == 0  # is there: nothing to fetch
    out, err = capsys.readouterr()
    assert out == "--encoder.name squeezenet1_1 --encoder.weights DEFAULT\n"
    assert "licence" in err.splitlines()[0]


def test_a_command_is_written_down_as_one_would_type_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("/x/bin/rayssl", "/x/jobs/main.py"):
        monkeypatch.setattr("sys.argv", [program, "pretrain", "simclr-digits", "--out", "a b"])
        assert command_line() == "rayssl pretrain simclr-digits --out 'a b'"
    monkeypatch.setattr("sys.argv", ["/x/jobs/pretrain.py", "simclr-digits"])
    assert command_line() == "rayssl pretrain simclr-digits"


# Names that no file can have


@pytest.mark.parametrize("name", ["a" * 5000, "/".join(["b" * 200] * 40), "a\0b"])
@pytest.mark.parametrize(
    "words",
    [
        ["verify", "NAME"],
        ["report", "NAME"],
        ["query", "NAME", "x.png"],
        ["data", "NAME"],
        ["run", "simclr-folder", "--data.path", "NAME"],
        ["pretrain", "simclr-digits", "--out", "NAME"],
        ["pretrain", "simclr-digits", "--augment.spec", "NAME"],
        ["pretrain", "simclr-digits", "--encoder.weights", "NAME"],
        ["NAME"],
    ],
)
def test_a_name_that_no_file_can_have_is_one_short_line(words: list[str], name: str, capsys: Capture) -> None:
    told = fails([name if word == "NAME" else word for word in words], capsys)
    assert len(told) < 1000


# The ends of a process


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("two\nlines"), 2, "rayssl: two lines"),
        (KeyboardInterrupt(), 130, "rayssl: stopped"),
        (ValueError("odd"), 1, "internal error (ValueError): this is a bug in rayssl"),
        (
            OSError(errno.ENOSPC, "full", "/x"),
            1,
            "rayssl: No space left on device: /x: what is finished is kept; free some, and the same",
        ),
        (
            RuntimeError("workers: [Errno 28] No space left on device"),
            1,
            "rayssl: No space left on device: what is finished is kept; free some",
        ),
        (OutsideError("Ray did not start"), 1, "rayssl: Ray did not start\n"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, says: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rayssl.jobs.recipes

    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(rayssl.jobs.recipes, "main", fail)
    assert run_verb("recipes", []) == code
    told = capsys.readouterr().err
    assert says in told
    assert ("Traceback" in told) == isinstance(error, ValueError)


@pytest.mark.parametrize("number", [2, 15])
def test_a_stopped_run_tells_how_to_go_on(number: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import rayssl.jobs.recipes
    from rayssl.pipeline.base.reporter import Interrupted

    def fail(argv: list[str]) -> Any:
        raise Interrupted(number)

    monkeypatch.setattr(rayssl.jobs.recipes, "main", fail)
    assert run_verb("recipes", []) == 128 + number
    assert "the same command continues" in capsys.readouterr().err


def test_images_come_and_go_and_the_folder_is_compared(
    finished_copy: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    run, new = str(finished_copy), tmp_path / "new"
    for i in range(3):
        (new / "red").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)).save(new / "red" / f"{i}.png")
    (new / "broken.png").write_bytes(b"\x89PNG broken")

    def told(words: list[str]) -> Any:
        return json.loads(succeeds([*words, "--json"], capsys).splitlines()[-1])

    added = told(["index", run, "--add", str(new), str(images / "red" / "0.png")])
    assert (len(added["added"]), added["unchanged"]) == (3, 1)
    assert [path for path, _ in added["unreadable"]] == [str(new / "broken.png")]
    (result,) = told(["query", run, str(new / "red" / "0.png"), "-k", "62", "--where", "split = 'added'"])
    assert {one["path"] for one in result["neighbors"]} == {str(new / "red" / f"{i}.png") for i in (1, 2)}
    assert told(["sync", run])["unchanged"] == 63
    gone = told(["index", run, "--remove", f"{new}/*/[01].png"])
    assert (len(gone["removed"]), gone["unchanged"]) == (2, 61)
    assert told(["index", run])["indices"]["colours"]["vectors"] == 61
    table = tmp_path / "table.csv"
    table.write_text("path,year\nred/0.png,1999\ngreen/1.png,2020\n")
    succeeds(["index", run, "--columns", str(table)], capsys)
    (result,) = told(["query", run, str(new / "red" / "0.png"), "--where", "year > 2000"])
    assert [one["path"] for one in result["neighbors"]] == ["green/1.png"]
    succeeds(["verify", run], capsys)
    for words, why in [
        (["index", run, "--add"], "--add has no value"),
        (["index", run, "--add", str(new), "--index.factory", "Flat"], "--index.factory builds an index"),
        (["index", run, "--add", str(tmp_path / "nowhere")], "nowhere does not exist: give folders or image files"),
        (["index", run, "--remove", "nothing"], "nothing is no id, path or pattern of the 61 images"),
        (["index", run, "--columns", "none.csv"], "none.csv does not exist"),
        (["sync", run, "--data", "none"], "--data none"),
        (["sync", run, "--data.path", str(tmp_path / "away")], "60 of 61 images are gone"),
        (["query", run, str(new / "red" / "0.png"), "--where", "yaer > 1"], "did you mean 'year'"),
    ]:
        assert why in fails(words, capsys)
