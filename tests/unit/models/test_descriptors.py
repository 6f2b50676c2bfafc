"""Classical descriptors: closed forms, and what must not change them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rayssl.pipeline.models.descriptors import DESCRIPTORS, color_histogram, describe, hog

Bytes = NDArray[np.uint8]
COLOURS = 108


def noise(n: int, side: int, channels: int = 3, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def plain(color: tuple[int, int, int], side: int = 96) -> Bytes:
    return np.broadcast_to(np.array(color, dtype=np.uint8), (1, side, side, 3))


def cells(images: Bytes) -> NDArray[np.float32]:
    """(B, 2, 2, 12, 3, 3) of a histogram."""
    return color_histogram(images).reshape(-1, 2, 2, 12, 3, 3)


def blocks(images: Bytes) -> NDArray[np.float32]:
    """(B, 7, 7, 2, 2, 9) of HOG at 64 pixels."""
    return hog(images).reshape(-1, 7, 7, 2, 2, 9)


@pytest.mark.parametrize("name", DESCRIPTORS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_any_channels_and_any_number_of_images(name: str, channels: int) -> None:
    chosen = DESCRIPTORS[name]
    images = noise(40, chosen.size, channels)
    together = describe(name, images)
    assert together.shape == (40, chosen.dim)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    one_by_one = np.concatenate([describe(name, images[i : i + 1]) for i in range(40)])
    np.testing.assert_array_equal(together, one_by_one)
    assert describe(name, images[:0]).shape == (0, chosen.dim)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_a_single_channel_is_grey(name: str) -> None:
    grey = noise(3, DESCRIPTORS[name].size, 1)
    np.testing.assert_array_equal(describe(name, grey), describe(name, np.repeat(grey, 3, axis=3)))


def test_of_many_channels_colours_are_the_first_three_and_of_two_the_second_counts_twice() -> None:
    five = noise(2, 96, 5)
    np.testing.assert_array_equal(color_histogram(five), color_histogram(five[..., :3]))
    np.testing.assert_array_equal(color_histogram(five[..., :2]), color_histogram(five[..., [0, 1, 1]]))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), side=st.integers(2, 97))
def test_the_squares_of_every_quarter_sum_to_one(seed: int, side: int) -> None:
    sums = (cells(noise(2, side, seed=seed)) ** 2).sum(axis=(3, 4, 5))
    np.testing.assert_allclose(sums, 1, rtol=1e-5)


# Hue, saturation and value by hand. A bin begins where its fraction is reached: 85 of 255 is a third.
@pytest.mark.parametrize(
    ("color", "bin_"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((255, 255, 255), (0, 0, 2)),
        ((84, 84, 84), (0, 0, 0)),
        ((85, 85, 85), (0, 0, 1)),
        ((170, 170, 170), (0, 0, 2)),
        ((255, 0, 0), (0, 2, 2)),
        ((200, 99, 0), (0, 2, 2)),  # just under 30 degrees
        ((200, 100, 0), (1, 2, 2)),  # 30 degrees
        ((255, 255, 0), (2, 2, 2)),
        ((0, 255, 0), (4, 2, 2)),
        ((0, 255, 255), (6, 2, 2)),
        ((0, 0, 255), (8, 2, 2)),
        ((255, 0, 255), (10, 2, 2)),
        ((255, 0, 1), (11, 2, 2)),
        ((255, 171, 171), (0, 0, 2)),
        ((255, 170, 170), (0, 1, 2)),  # saturation a third
        ((255, 85, 85), (0, 2, 2)),  # and two thirds
        ((3, 1, 1), (0, 2, 0)),
    ],
)
def test_bins_of_plain_colours(color: tuple[int, int, int], bin_: tuple[int, int, int]) -> None:
    found = cells(plain(color))[0]
    np.testing.assert_array_equal(found[:, :, *bin_], np.ones((2, 2), dtype=np.float32))
    assert found.sum() == 4


def test_a_histogram_says_how_much_and_in_which_quarter() -> None:
    images = np.zeros((1, 96, 96, 3), dtype=np.uint8)
    images[0, :12, :48] = (255, 0, 0)  # a quarter of the upper left
    found = cells(images)[0]
    assert found[0, 0, 0, 2, 2] == pytest.approx(0.5)
    assert found[0, 0, 0, 0, 0] == pytest.approx(np.sqrt(0.75))
    np.testing.assert_allclose(cells(np.rot90(images, axes=(1, 2)))[0], np.rot90(found), rtol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), turns=st.integers(1, 3))
def test_turned_images_have_turned_quarters(seed: int, turns: int) -> None:
    images = noise(1, 96, seed=seed)
    turned = np.ascontiguousarray(np.rot90(images, turns, axes=(1, 2)))
    np.testing.assert_array_equal(cells(turned), np.rot90(cells(images), turns, axes=(1, 2)))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_where_a_quarter_has_its_pixels_does_not_matter(seed: int) -> None:
    image = noise(1, 96, seed=seed)
    mixed = image.copy()
    corner = mixed[0, :48, :48].reshape(-1, 3)
    np.random.default_rng(seed).shuffle(corner)
    mixed[0, :48, :48] = corner.reshape(48, 48, 3)
    np.testing.assert_array_equal(color_histogram(mixed), color_histogram(image))


def test_hog_of_a_plain_image_is_zero() -> None:
    assert not hog(plain((10, 200, 30), 64)).any()


# Levels that rise along one direction: every inner gradient is this one.
@pytest.mark.parametrize(
    ("down", "right", "orientation"), [(0, 1, 0), (1, 0, 4), (1, 1, 2), (-1, 1, 6), (1, 2, 1), (-1, 2, 7), (0, -1, 0)]
)
def test_hog_of_a_ramp_has_one_orientation(down: int, right: int, orientation: int) -> None:
    y, x = np.mgrid[:64, :64]
    ramp = (down * y + right * x).astype(np.int64)
    image = (ramp - ramp.min()).astype(np.uint8)[None, :, :, None]
    inner = blocks(image)[0, 1:-1, 1:-1]  # without the border, whose gradients point along it
    np.testing.assert_allclose(inner[..., orientation], 0.5, rtol=1e-5)  # four equal numbers of length one
    assert np.delete(inner, orientation, axis=-1).max() == 0


def test_blocks_have_length_one_and_no_number_outweighs() -> None:
    found = blocks(noise(4, 64)).reshape(4, 49, 36)
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, rtol=1e-5)
    assert found.max() < 0.5


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), light=st.integers(1, 100))
def test_hog_does_not_see_light_or_which_side_is_bright(seed: int, light: int) -> None:
    images = np.random.default_rng(seed).integers(0, 128, (1, 64, 64, 1), dtype=np.uint8)
    np.testing.assert_array_equal(hog(images + np.uint8(light)), hog(images))
    np.testing.assert_array_equal(hog(255 - images), hog(images))
    np.testing.assert_allclose(hog(2 * images), hog(images), atol=1e-5)  # but for the ε of a block's length


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_hog_of_a_mirrored_image_has_mirrored_cells_and_orientations(seed: int) -> None:
    """Left and right change places, and an orientation φ becomes 180° − φ: the bins in reverse."""
    # Brighter downwards everywhere: a gradient straight to the right would stay in the first bin.
    rising = np.random.default_rng(seed).integers(0, 6, (1, 64, 64, 1)) + 3 * np.arange(64)[:, None, None]
    images = rising.astype(np.uint8)
    mirrored, found = blocks(images[:, :, ::-1]), blocks(images)
    np.testing.assert_allclose(mirrored[0, 1:-1], found[0, 1:-1, ::-1, :, ::-1, ::-1], atol=1e-5)


def test_hog_of_an_image_moved_by_a_cell_is_moved() -> None:
    wide = noise(1, 80, 1)
    here, moved = wide[:, 8:72, 8:72], wide[:, 8:72, 0:64]
    # Cells at the border lack a gradient across it: without the outer blocks they are the same numbers.
    np.testing.assert_array_equal(blocks(here)[0, 1:-1, 1:-2], blocks(moved)[0, 1:-1, 2:-1])
