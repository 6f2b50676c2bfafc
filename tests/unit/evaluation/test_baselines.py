"""Raw pixels and classical descriptors beside a run's figures: complete, never stale, measured once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.evaluation.baselines import VERSIONS, Pictures, part_of
from rayssl.pipeline.evaluation.measure import read_evaluation, write_evaluation
from rayssl.pipeline.features.frozen import describe_here
from rayssl.pipeline.models.descriptors import DESCRIPTORS, describe
from rayssl.pipeline.run.folder import read_manifest, update_manifest
from rayssl.pipeline.stages.evaluate import run_evaluate
from rayssl.pipeline.stages.story import run_worker_stages

EVALUATED = ("knn/top1", "knn-whitened/top1", "cluster/nmi", "retrieval/map@r", "health/rankme")


def flat_of(run: Path) -> dict[str, float]:
    found: dict[str, float] = read_evaluation(run)["flat"]
    return found


def beginning(run: Path, prefix: str) -> dict[str, float]:
    return {name: value for name, value in flat_of(run).items() if name.startswith(prefix)}


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("measured again")


def edit_stages(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the manifest says of the stages that are done."""
    stages = read_manifest(run)["stages"]
    change(stages)
    update_manifest(run, {"stages": stages})


def test_every_baseline_has_the_figures_of_a_run(finished: Path) -> None:
    own = {name for name in flat_of(finished) if name.startswith(("knn", "cluster", "retrieval", "health"))}
    assert set(EVALUATED) <= own
    for name in VERSIONS:
        found = {metric.removeprefix(f"baseline/{name}/") for metric in beginning(finished, f"baseline/{name}/")}
        assert found == own | {"probe/top1"}
    assert flat_of(finished)["baseline/color-histogram/knn/top1"] == 1  # the classes are colours
    records = {one["metric"]: one for one in read_evaluation(finished)["records"]}
    assert {records[f"baseline/{name}/knn/top1"]["checkpoint"] for name in VERSIONS} == {
        records["knn/top1"]["checkpoint"]
    }


def test_another_run_on_the_same_images_is_told_the_same_without_measuring_again(
    finished_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = beginning(finished_copy, "baseline/")
    (finished_copy / "evaluation.json").unlink()
    monkeypatch.setattr("rayssl.pipeline.evaluation.baselines.evaluate_embeddings", refuse)
    monkeypatch.setattr("rayssl.pipeline.evaluation.baselines.Pictures.vectors", refuse)
    edit_stages(finished_copy, lambda stages: stages.pop("probe"))
    run_worker_stages(finished_copy, ["probe"], Silent())
    run_evaluate(finished_copy)
    after = beginning(finished_copy, "baseline/")
    assert after == {name: value for name, value in before.items() if "finetune" not in name}


def test_other_settings_are_measured_anew(finished_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((finished_copy / "config.json").read_text())
    config["evaluate"]["k"] = 3
    write_json(finished_copy / "config.json", config)
    run_evaluate(finished_copy)
    protocols = [one["protocol"] for one in read_evaluation(finished_copy)["records"] if "/knn/" in one["metric"]]
    assert protocols
    assert all("k = 3," in text for text in protocols if "choice" not in text)


def test_a_run_from_before_gets_them_and_keeps_nothing_stale(finished_copy: Path) -> None:
    expected = flat_of(finished_copy)
    old = read_evaluation(finished_copy)["records"]
    stale = [
        {**old[0], "metric": f"baseline/{name}/top1", "value": 0.5}
        for name in ("raw-pixels/probe/pixels", "pretrained-gone/knn")
    ]
    descriptors = tuple(f"baseline/{name}/" for name in DESCRIPTORS)
    write_evaluation(finished_copy, stale, keep=lambda one: not one["metric"].startswith(descriptors))

    def as_before(stages: dict[str, Any]) -> None:
        for name in ("probe", "evaluate"):
            stages[name]["key"] = "0" * 16

    edit_stages(finished_copy, as_before)
    run_worker_stages(finished_copy, ["probe"], Silent())
    run_evaluate(finished_copy)
    assert flat_of(finished_copy) == expected


def test_networks_that_come_and_go_are_evaluated(finished_copy: Path) -> None:
    before = flat_of(finished_copy)
    (folder,) = (finished_copy / "embeddings").glob("*/baseline/random-init")
    shutil.copytree(folder, folder.parent / "pretrained-timm-net")
    run_evaluate(finished_copy)
    now = beginning(finished_copy, "baseline/pretrained-timm-net/")
    assert now["baseline/pretrained-timm-net/knn/top1"] == before["baseline/random-init/knn/top1"]
    shutil.rmtree(folder.parent / "pretrained-timm-net")
    run_evaluate(finished_copy)
    assert flat_of(finished_copy) == before


def test_images_are_described_at_the_descriptors_size_and_kept(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(images, image_size=16)
    pictures = Pictures(dataset, lambda size: open_dataset(images, image_size=size))
    for name, descriptor in DESCRIPTORS.items():
        sized = open_dataset(images, image_size=descriptor.size)
        test = part_of(sized, "test")
        expected = describe(name, test.square(np.arange(len(test)), descriptor.size))
        np.testing.assert_array_equal(pictures.vectors(name, "test"), expected)
        with monkeypatch.context() as patch:
            patch.setattr("rayssl.pipeline.features.frozen.describe", refuse)
            np.testing.assert_array_equal(describe_here(name, test, sized.fingerprint), expected)


def test_no_images_have_no_vectors(images: Path) -> None:
    dataset = open_dataset(images, image_size=16)
    nothing = dataset.train.select(np.arange(0))
    for name, descriptor in DESCRIPTORS.items():
        assert describe_here(name, nothing, "none").shape == (0, descriptor.dim)
