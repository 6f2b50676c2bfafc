"""Views from files and from a saved config, what importing costs, and the gallery."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
from pydantic import TypeAdapter

from rayssl.pipeline.augment import Spec, UserPipeline, View, gallery, load_views, view_from_dict, view_to_dict
from rayssl.pipeline.augment.defaults import simclr_views
from rayssl.pipeline.augment.spec import GaussianBlur, HorizontalFlip, RandomResizedCrop
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import AugmentConfig
from rayssl.pipeline.data.decode import to_square

FLIP = Spec((RandomResizedCrop(), HorizontalFlip(p=0.25)))
BLUR = Spec((GaussianBlur(p=1.0),))


def write(path: Path, values: Any) -> str:
    path.write_text(json.dumps(values))
    return str(path)


def test_one_spec_serves_every_view(tmp_path: Path) -> None:
    assert load_views(write(tmp_path / "a.json", FLIP.to_dict()), 2) == (FLIP, FLIP)
    assert load_views(write(tmp_path / "b.json", {"views": [FLIP.to_dict()]}), 2) == (FLIP, FLIP)
    assert load_views(write(tmp_path / "c.json", view_to_dict(FLIP)), 1) == (FLIP,)


def test_a_spec_a_view(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"views": [FLIP.to_dict(), view_to_dict(BLUR)]})
    assert load_views(path, 2) == (FLIP, BLUR)


@pytest.mark.parametrize("data_format", ["json", "yaml"])
def test_a_file_of_albumentations(tmp_path: Path, data_format: Any) -> None:
    path = tmp_path / f"mine.{data_format}"
    compose = A.Compose([A.HorizontalFlip(p=0.5), A.OneOf([A.ToGray(p=0.5), A.Blur(blur_limit=(3, 5))])])
    A.save(compose, path, data_format=data_format)
    first, second = load_views(str(path), 2)
    assert isinstance(first, UserPipeline)
    assert first.to_dict() == json.loads(json.dumps(UserPipeline(compose).to_dict()))
    assert second.to_dict() == first.to_dict()


@pytest.mark.parametrize("view", [FLIP, Spec(), UserPipeline(A.Compose([A.HorizontalFlip(p=0.5), A.Blur()]))])
def test_round_trip_through_the_config(view: View) -> None:
    config = AugmentConfig(views=(view_to_dict(view),))
    text = TypeAdapter(AugmentConfig).dump_json(config)
    read = TypeAdapter(AugmentConfig).validate_json(text)
    assert read.views is not None
    assert view_to_dict(view_from_dict(read.views[0])) == view_to_dict(view)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a.json: not JSON: "),
        ("[]", "a.json: augmentation is []: it must be"),
        (
            '{"views": [{"operations": []}, {"operations": []}, {"operations": []}]}',
            "views is 3: must be a list of 1 or 2",
        ),
        ('{"views": 5}', "views is 5: must be a list of 1 or 2"),
        (
            '{"operations": [{"name": "gauss_blur"}]}',
            "a.json: unknown augmentation 'gauss_blur' (did you mean 'gaussian_blur'?)",
        ),
    ],
)
def test_unusable_files_are_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_views(str(path), 2)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: no such file or directory: give a JSON or YAML file"):
        load_views(str(tmp_path / "none.json"), 1)
    (tmp_path / "image.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=r"image\.json: not text"):
        load_views(str(tmp_path / "image.json"), 1)
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"bad\.yaml: not YAML"):
        load_views(str(tmp_path / "bad.yaml"), 1)


def test_importing_and_drawing_need_numpy_alone() -> None:
    code = (
        "import sys, numpy as np, rayssl.pipeline.augment, rayssl.pipeline.augment.defaults as d\n"
        "d.simclr_views(image_size=32, channels=3, mirror=True)[0].draw(seed=0, epoch=0, ids=np.arange(3), view=0)\n"
        "print([m for m in ('torch', 'albumentations', 'cv2', 'ray', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("channels", "size", "side"), [(1, 8, 64), (3, 32, 64), (4, 48, 96), (3, 100, 100)])
def test_gallery(channels: int, size: int, side: int) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (size, size + 5, channels), dtype=np.uint8) for _ in range(3)]
    views = simclr_views(image_size=size, channels=channels, mirror=True)
    sheet = gallery(images, views, size=size, seed=0, n_draws=4)
    assert sheet.shape == (3 * (side + 2) - 2, 5 * (side + 2) - 2, 3)
    factor = side // size
    plain = to_square(images[1], size)
    shown = sheet[side + 2 : 2 * side + 2 : factor, 0:side:factor]
    np.testing.assert_array_equal(shown, np.broadcast_to(plain, (size, size, 3)) if channels == 1 else plain[..., :3])
    tiles = [sheet[:side, column * (side + 2) :][:, :side] for column in range(5)]
    assert all((tiles[a] != tiles[b]).any() for a in range(5) for b in range(a))
