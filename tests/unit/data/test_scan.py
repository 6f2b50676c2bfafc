"""What is said of a data set is true of all of its images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.data.formats import marks
from rayssl.pipeline.data.listing import Store
from rayssl.pipeline.data.scan import is_flat, look

pytestmark = pytest.mark.usefixtures("cache")


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


class Bytes(Store):
    """Encoded images in memory."""

    def __init__(self, images: list[bytes]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> bytes:
        return self.images[i]


GREY, COLOUR = png(Image.new("L", (32, 32))), png(Image.new("RGB", (32, 32)))


def looked(store: Store) -> Any:
    found = look(store, np.arange(len(store)), None)
    assert found is not None
    return found


@pytest.mark.parametrize("place", [0, 20_999])
def test_one_image_among_many_thousand_counts(place: int) -> None:
    images = [GREY] * 21_000
    assert looked(Bytes(images)).grey
    assert looked(Bytes(images)).image_size == 32
    for other, changed in {
        COLOUR: {"grey": False, "bands": (1, 3)},
        png(Image.new("L", (32, 40))): {"image_size": 224, "largest": (40, 32)},
        png(Image.fromarray(np.zeros((32, 32), np.uint16))): {"wide": 1, "grey": True},
        png(Image.new("LA", (32, 32))): {"transparent": 1, "grey": True},
        png(Image.new("L", (32, 4000))): {"long": 1},
    }.items():
        images[place] = other
        found = looked(Bytes(images))
        assert {name: getattr(found, name) for name in changed} == changed


def test_of_a_table_whose_first_rows_are_grey_the_colours_stay(tmp_path: Path) -> None:
    rows = [{"bytes": GREY, "path": f"{i}.png"} for i in range(20_000)]
    rows += [{"bytes": COLOUR, "path": f"{i}.png"} for i in range(20_000, 21_000)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet", row_group_size=1000)
    assert open_dataset(tmp_path, limit=20_000).channels == 3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["L", "LA", "RGB", "RGBA", "I;16", "no"]), min_size=1, max_size=30))
def test_headers_are_counted_as_they_are(kinds: list[str]) -> None:
    wide = png(Image.fromarray(np.zeros((32, 32), np.uint16)))
    known = {"no": b"no image", "I;16": wide} | {m: png(Image.new(m, (32, 32))) for m in ("L", "LA", "RGB", "RGBA")}
    found = look(Bytes([known[kind] for kind in kinds]), np.arange(len(kinds)), None)
    images = [kind for kind in kinds if kind != "no"]
    if not images:
        assert found is None
        return
    assert found is not None
    assert found.grey == (not {"RGB", "RGBA"} & set(images))
    assert (found.wide, found.transparent) == (images.count("I;16"), images.count("LA") + images.count("RGBA"))


def test_pictures_that_were_made_to_be_looked_at_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    before = open_dataset(folder)
    for kind in ("PNG", "JPEG"):
        Image.new("RGB", (500, 300), "red").save(folder / f"found.{kind.lower()}", kind, **marks(kind))
    dataset = open_dataset(folder)
    assert (dataset.channels, dataset.image_size, dataset.fingerprint) == (1, 32, before.fingerprint)
    assert dataset.passed_over == (("pictures that rayssl wrote", 2),)
    assert dataset.train.paths == before.train.paths
    Image.new("RGB", (500, 300), "red").save(folder / "found.webp", "WEBP", **marks("WEBP"))
    dataset = open_dataset(folder)
    assert dict(dataset.unreadable) == {"found.webp": "a picture that rayssl wrote"}
    assert "found.webp" not in dataset.train.join(dataset.val, dataset.test).paths


def test_an_image_that_cannot_be_what_the_others_are_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    for number in range(12):
        bands = 5 if number == 7 else 6
        np.save(folder / f"{number}.npy", np.random.default_rng(number).integers(0, 256, (8, 8, bands), dtype=np.uint8))
    dataset = open_dataset(folder, channels=6)
    assert dataset.unreadable == (("7.npy", "it has 5 channels, not 6"),)


@pytest.mark.parametrize(
    ("value", "flat"),
    [(np.zeros, True), (lambda shape: np.full(shape, 255), True), (lambda shape: np.indices(shape)[0] % 16, True),
     (lambda shape: np.indices(shape)[1] * 9 % 256, False), (lambda shape: np.indices(shape)[2] * 80, False)],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(8, 8, 3), (32, 32, 3), (224, 224, 3), (256, 300, 3), (37, 53, 3)])
def test_an_image_is_flat_where_there_is_next_to_nothing_to_see(shape: tuple[int, ...], value: Any, flat: bool) -> None:
    assert is_flat(value(shape).astype(np.uint8)) == flat
