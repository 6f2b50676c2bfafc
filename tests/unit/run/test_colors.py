"""Colours tell coloured squares apart, and not shapes of any colour; without labels nobody knows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayssl.pipeline.data import Dataset, open_dataset
from rayssl.pipeline.run.colors import colors_tell
from rayssl.pipeline.training import guard


def opened(folder: Path, kind: str, mode: str = "RGB") -> Dataset:
    """120 noisy images of two classes: red or blue squares; or stripes across or along, of any colour."""
    rng = np.random.default_rng(0)
    for c, name in enumerate(("a", "b")):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            color = np.array([200, 40, 40] if c == 0 else [40, 40, 200])
            if kind == "shapes":
                color = rng.integers(60, 255, 3)
            stripes = (np.arange(32) // 4 % 2)[:, None] * np.ones(32)
            if kind == "colors":
                stripes = rng.permuted(np.repeat([0, 1], 512)).reshape(32, 32)
            pixels = (stripes if c == 0 else stripes.T)[..., None] * color + rng.integers(0, 20, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode).save(folder / name / f"{number}.png")
    return open_dataset(str(folder), val_fraction=0.3, seed=0)


@pytest.mark.parametrize(("kind", "tell"), [("colors", True), ("shapes", False)])
def test_what_tells(kind: str, tell: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "FEWEST", 10)
    data = opened(tmp_path / "rgb", kind)
    assert colors_tell(data.train, data.val, 2, 0) is tell
    assert colors_tell(data.train, data.val, 0, 0) is None
    grey = opened(tmp_path / "grey", kind, "L")
    assert colors_tell(grey.train, grey.val, 2, 0) is None
