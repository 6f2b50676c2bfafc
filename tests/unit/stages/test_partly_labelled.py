"""Images without a label take part in everything but what is measured by labels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import Config
from rayssl.pipeline.evaluation.probe import ProbeResult
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.search.embeddings import load_embeddings
from rayssl.pipeline.search.query import query
from rayssl.pipeline.stages.evaluate import run_evaluate
from rayssl.pipeline.stages.features import split_of
from rayssl.pipeline.stages.index import run_index
from rayssl.pipeline.stages.labels import require_labels
from rayssl.pipeline.stages.probe import probe_stages
from rayssl.pipeline.stages.report import run_report
from rayssl.pipeline.stages.start import Prepared, announce, prepare
from rayssl.pipeline.stages.story import pending, run_worker_stages

# 60 images, of which 30 have a label: 6 of these are for testing and 2 are held out.
TRAIN, VAL, TEST, LABELLED_TRAIN = 52, 2, 6, 22
CLASSES = ("blue", "green", "red")
WORKER_STAGES = ["pretrain", "probe", "finetune", "embed"]

Make = Callable[..., Config]


def label_some(path: Path, a_class: int) -> Path:
    """A CSV that labels the first images of every class."""
    rows = [f"{name}/{i}.png,{name}" for name in CLASSES for i in range(a_class)]
    path.write_text("path,label\n" + "\n".join(rows))
    return path


def prepare_quietly(config: Config, run: Path) -> Prepared:
    """A run with nothing done in it."""
    return prepare(config, run, command="rayssl run", warn=pytest.fail, progress=lambda done, total: None)


def prepare_with(tiny_config: Make, folder: Path, a_class: int) -> Prepared:
    """A run whose images are partly labelled: so many of every class."""
    labels = label_some(folder / "labels.csv", a_class)
    config = tiny_config(changes={"data.labels": str(labels)})
    return prepare_quietly(config, folder / "run")


@pytest.fixture(scope="module")
def run(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on partly labelled images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSSL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        prepared = prepare_with(tiny_config, tmp_path_factory.mktemp("partly"), 10)
        assert pending(prepared.run, WORKER_STAGES, prepared.config, prepared.dataset) == WORKER_STAGES
        run_worker_stages(prepared.run, WORKER_STAGES, Silent())
        run_index(prepared.run)
        run_evaluate(prepared.run, prepared.dataset)
        run_report([prepared.run], prepared.run)
    return prepared.run


def test_every_image_is_trained_on_and_embedded(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    data = manifest["data"]
    assert (data["train"], data["val"], data["test"], data["labelled"]) == (TRAIN, VAL, TEST, 30)
    assert manifest["unreadable"] == []
    assert manifest["stages"]["pretrain"]["steps"] == TRAIN // 8
    train, test = (load_embeddings(run / "embeddings" / "colours" / f"{split}.parquet") for split in ("train", "test"))
    assert len(train.ids) == TRAIN + VAL
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels >= 0).sum() == LABELLED_TRAIN + VAL
    assert (train.labels < 0).sum() == 30
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    for path, label in zip(train.paths, train.labels):
        folder, name = path.split("/")
        assert label == (CLASSES.index(folder) if int(Path(name).stem) < 10 else -1)


def test_figures_are_measured_on_labelled_images_alone(run: Path) -> None:
    records = {record["metric"]: record for record in json.loads((run / "evaluation.json").read_text())["records"]}
    for metric in ("probe/top1", "baseline/raw-pixels/probe/top1", "finetune@10%/top1", "knn/top1", "cluster/acc"):
        assert records[metric]["n"] == TEST
        assert (records[metric]["value"] * TEST * 2) % 1 == pytest.approx(0)  # a mean of two draws, or of one
    assert f"votes of {LABELLED_TRAIN + VAL} images of train" in records["knn/top1"]["protocol"]
    assert records["health/rankme"]["protocol"].find(f"of {TRAIN + VAL} images of train") > 0
    assert records["baseline/raw-pixels/probe/top1"]["value"] > 0.9  # the colours tell the classes


def test_the_probe_sees_labelled_images_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "rayssl.pipeline.stages.probe.probe", lambda *s, **_: seen.extend(s) or ProbeResult(1.0, 1.0, TEST, 0.1, 0)
    )
    monkeypatch.setattr("rayssl.pipeline.stages.probe.record", lambda *_: None)
    work = Work.open(run, Silent())
    splits = [split_of(work, name) for name in ("train", "val", "test")]
    probe_stages(work, "", {"ids": [part.ids[:, None] for part in splits]})
    assert [len(labels) for _, labels in seen] == [LABELLED_TRAIN, VAL, TEST]
    for (vectors, labels), part in zip(seen, splits, strict=True):
        assert part.labels is not None
        assert np.array_equal(vectors[:, 0], part.ids[part.labels >= 0])
        assert np.array_equal(labels, part.labels[part.labels >= 0])


def test_unlabelled_images_are_found_without_a_label(run: Path, images: Path) -> None:
    [found] = query(run, [str(images / "red" / "15.png")], TRAIN + VAL + TEST - 1)
    labels = {neighbor["path"]: neighbor["label"] for neighbor in found["neighbors"]}
    assert labels["red/16.png"] is None
    assert labels["red/3.png"] == "red"
    assert sum(label is None for label in labels.values()) == 29


def test_what_is_said_of_the_labels(run: Path, tiny_config: Make, tmp_path: Path) -> None:
    lines: list[str] = []
    announce(prepare_with(tiny_config, tmp_path, 10), lines.append)
    assert "3: blue, green, red, 30 of 60 images labelled" in "\n".join(lines)
    assert "3, 30 of 60 images labelled" in (run / "report.html").read_text()
    lines.clear()
    announce(prepare_quietly(tiny_config(), tmp_path / "all"), lines.append)
    assert "labelled" not in "\n".join(lines)


def test_rows_of_no_image_are_counted(tiny_config: Make, tmp_path: Path) -> None:
    labels = label_some(tmp_path / "labels.csv", 10)
    labels.write_text(labels.read_text() + "\nred/99.png,red\nred/98.png,red\n./red/98.png,red\n")
    lines: list[str] = []
    config = tiny_config(changes={"data.labels": str(labels)})
    prepare(config, tmp_path / "run", command="rayssl run", warn=lines.append, progress=lambda done, total: None)
    assert lines == [f"paths in {labels} that match no image: 3, e.g. './red/98.png'"]


def test_too_few_labels(tiny_config: Make, tmp_path: Path) -> None:
    prepared = prepare_with(tiny_config, tmp_path, 1)
    arguments: tuple[Any, ...] = (prepared.run, WORKER_STAGES, prepared.config, prepared.dataset)
    assert pending(*arguments) == ["pretrain", "embed"]
    with pytest.raises(
        UserError, match=r"needs labels and \S+ has too few \(of 2 training, 0 validation and 1 test im"
    ):
        require_labels(prepared.dataset, "probe")
