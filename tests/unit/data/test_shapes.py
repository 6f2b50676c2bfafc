"""Images of any shape are read within a bound that the image size sets."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rayssl.pipeline.augment import Spec, apply_batch
from rayssl.pipeline.data import Dataset, open_dataset, to_square
from rayssl.pipeline.data.decode import LONGEST, decode, kept_size, load_size_of

SIZE = 64
SHAPES = [
    (60_000, 1), (1, 60_000), (2, 65_535), (65_535, 2), (10_000, 3), (3, 10_000), (1, 1), (1, 7), (10_000, 40),
    (40, 10_000), (500, 80), (80, 500), (64, 64), (300, 200), (2_000, 100), (73, 292), (73, 293),
]  # fmt: skip
BOUND = 64e6  # bytes, for some of the shapes above at once; a square of the longest would need 700 MB

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (height, width) in enumerate(SHAPES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.{'jpg' if number % 3 == 1 else 'png'}")
    return folder


def peak(work: Callable[[], Any]) -> int:
    """Bytes that are allocated at once, beyond those before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def every_image(dataset: Dataset) -> Any:
    return dataset.train.join(dataset.val, dataset.test)


@pytest.mark.parametrize("loader", ["resident", "stream"])
def test_no_shape_takes_more_memory_than_the_size_allows(loader: str, photos: Path) -> None:
    assert peak(lambda: open_dataset(photos, image_size=SIZE, loader=loader)) < BOUND
    dataset = open_dataset(photos, image_size=SIZE, loader=loader)
    images = every_image(dataset)
    assert len(images) == len(SHAPES)
    everything = np.arange(len(images))
    longest = LONGEST * load_size_of(SIZE)
    assert all(max(images[int(i)].shape[:2]) <= longest for i in everything)
    assert peak(lambda: images.square(everything, SIZE)) < BOUND
    assert peak(lambda: images.padded(everything)) < BOUND
    assert peak(lambda: apply_batch(Spec(), [images[int(i)] for i in everything], size=SIZE, seed=0, epoch=0,
                                    ids=images.ids, view=0)) < BOUND  # fmt: skip
    assert images.square(everything, SIZE).shape == (len(SHAPES), SIZE, SIZE, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_of_a_query_is_read_within_the_bound(shape: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")

    def read() -> None:
        assert to_square(decode(tmp_path / "a.png", 3, load_size_of(224)), 224).shape == (224, 224, 3)

    assert peak(read) < BOUND


def test_arrays_are_read_within_the_bound(tmp_path: Path) -> None:
    for shape in SHAPES:
        np.save(tmp_path / "a.npy", np.zeros((*shape, 3), np.uint8))
        assert peak(lambda: to_square(decode(tmp_path / "a.npy", 3, 256), 224)) < BOUND


def test_what_is_told_of_long_images(photos: Path) -> None:
    notes = [note.text for note in open_dataset(photos, image_size=SIZE).notes]
    assert "of 11 images that are very long for their width the middle is used" in notes


def test_of_a_long_image_the_middle_is_kept() -> None:
    ramp = np.broadcast_to(np.arange(1000, dtype=np.uint16)[None], (10, 1000))
    bytes_ = (ramp % 256).astype(np.uint8)
    path_free = to_square(np.repeat(bytes_[:, :, None], 3, axis=2), 10)
    assert np.array_equal(path_free[0, :, 0], bytes_[0, 495:505])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([8, 64, 100]))
def test_the_kept_size_is_what_decoding_gives(height: int, width: int, load_size: int) -> None:
    from io import BytesIO

    file = BytesIO()
    Image.new("L", (width, height), 7).save(file, "BMP")
    found = decode(file.getvalue(), 1, load_size)
    assert found.shape[:2] == kept_size(height, width, load_size)
    assert (found == 7).all()
    if max(height, width) <= LONGEST * min(height, width):
        assert abs(found.shape[0] * width - found.shape[1] * height) <= max(height, width)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 64))
def test_a_square_is_the_middle_of_every_shape(height: int, width: int, size: int) -> None:
    image = np.full((height, width, 1), 200, np.uint8)
    image[: height // 4] = 0 if height > 4 * width else 200  # far from the middle, also of one pixel of a high image
    square = to_square(image, size)
    assert square.shape == (size, size, 1)
    assert (square == 200).all()
