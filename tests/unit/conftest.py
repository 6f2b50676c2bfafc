"""One tiny finished run for the tests that need one, made once a session in this process, without Ray."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_run import NEEDED, quiet

from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import Config, override
from rayssl.pipeline.launch.plan import prepare_shown
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.stages.start import Prepared

CLASSES = ("blue", "green", "red")
A_CLASS = 20
TINY = {
    "data.image_size": 16, "augment.backend": "albumentations", "encoder.name": "cnn-small", "train.epochs": 1,
    "train.batch_size": 8, "train.threads": 1,
    "train.precision": "fp32", "train.warmup_epochs": 0, "train.clip_grad": None, "data.processes": 0,
    "probe.epochs": 2, "finetune.epochs": 1, "finetune.draws": 2, "finetune.batch_size": 4, "wandb": "disabled",
}  # fmt: skip


def draw_images(folder: Path, classes: tuple[str, ...] = CLASSES, a_class: int = A_CLASS) -> None:
    """Noise around one colour a class, 16 × 16."""
    rng = np.random.default_rng(0)
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(a_class):
            pixels = rng.integers(0, 128, (16, 16, 3))
            pixels[:, :, c % 3] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


@pytest.fixture(autouse=True)
def no_pretrained_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run is compared with does not depend on what lies on the machine of whoever runs the tests."""
    monkeypatch.setattr("rayssl.pipeline.stages.search_networks.available", list)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("RAYSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 3 classes: 43 train, 5 validation, 12 test."""
    folder = tmp_path_factory.mktemp("images") / "colours"
    draw_images(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_config(images: Path) -> Callable[..., Config]:
    """A config that trains in a second; changes are dotted paths."""

    def make(method: str = "simclr", changes: dict[str, Any] | None = None) -> Config:
        recipe = replace(build_recipe(f"{method}-folder"), plan=())
        return override(recipe, {**TINY, **NEEDED.get(method, {}), "data.path": str(images), **(changes or {})})

    return make


@pytest.fixture
def prepared(tiny_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Prepared]:
    """Prepare a tiny run folder of this name; again with other changes continues it."""

    def make(name: str, method: str = "simclr", changes: dict[str, Any] | None = None) -> Prepared:
        return prepare_shown(tiny_config(method, changes), tmp_path / name, "rayssl pretrain", quiet())

    return make


@pytest.fixture(scope="session")
def finished(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that all stages but the report have ended; not to be changed: see `finished_copy`."""
    from rayssl.pipeline.stages.evaluate import run_evaluate
    from rayssl.pipeline.stages.index import run_index
    from rayssl.pipeline.stages.story import run_worker_stages

    run = tmp_path_factory.mktemp("finished") / "simclr-folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSSL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr("rayssl.pipeline.stages.search_networks.available", list)
        prepare_shown(tiny_config(), run, "rayssl run", quiet())
        run_worker_stages(run, ["pretrain", "probe", "finetune", "embed", "search"], Silent())
        run_index(run)
        run_evaluate(run)
    return run


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run, one's own to damage."""
    run = tmp_path / "copied-run"
    shutil.copytree(finished, run)
    return run
