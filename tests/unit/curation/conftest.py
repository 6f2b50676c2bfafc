"""A folder of photographs with planted copies, and a run over it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from photographs import KINDS, copied, pieces
from PIL import Image
from small_run import quiet


@pytest.fixture(scope="session")
def photographs() -> dict[str, list[Image.Image]]:
    return pieces()


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, list[Image.Image]]) -> Path:
    """A folder of two classes with near copies of four kinds, an exact copy, and a flat, a dark and an odd picture."""
    folder = tmp_path_factory.mktemp("planted") / "photographs"
    for name, pictures in photographs.items():
        (folder / name).mkdir(parents=True)
        for number, picture in enumerate(pictures):
            picture.save(folder / name / f"{number:02d}.png")
        for number, kind in enumerate(KINDS):
            copied(pictures[number * 3], kind, folder / name / f"{number * 3:02d}-{kind}")
    photographs["china"][16].save(folder / "china" / "16-exact.png")
    Image.new("RGB", (96, 96), (90, 90, 90)).save(folder / "flower" / "flat.png")
    noise = np.random.default_rng(0).integers(0, 14, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "flower" / "dark.png")
    photographs["flower"][16].resize((400, 400)).save(folder / "flower" / "large.png")
    return folder


@pytest.fixture(scope="session")
def embedded(planted: Path, tiny_config: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of one epoch over them; not to be changed."""
    from rayssl.pipeline.base.reporter import Silent
    from rayssl.pipeline.launch.plan import prepare_shown
    from rayssl.pipeline.stages.story import run_worker_stages

    run = tmp_path_factory.mktemp("embedded") / "run"
    changes = {"data.path": str(planted), "data.image_size": 48, "search.vectors": "last"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSSL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr("rayssl.pipeline.stages.search_networks.available", list)
        prepare_shown(tiny_config("simclr", changes), run, "rayssl run", quiet())
        run_worker_stages(run, ["pretrain", "embed", "search"], Silent())
        yield run
