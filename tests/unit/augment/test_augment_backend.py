"""The pixels of every operation, against albumentations' public transforms or a closed form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest

from rayssl.pipeline.augment import Spec, albumentations_backend, apply_batch
from rayssl.pipeline.augment import albumentations_backend as backend
from rayssl.pipeline.augment.defaults import simclr_views
from rayssl.pipeline.augment.spec import (
    OPERATIONS,
    ColorJitter,
    Cutout,
    GaussianBlur,
    GaussianNoise,
    HorizontalFlip,
    Invert,
    QuarterTurn,
    RandomResizedCrop,
    Rotation,
    Solarize,
    Translation,
    VerticalFlip,
)
from rayssl.pipeline.data.decode import to_square

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def images(count: int, height: int, width: int, channels: int, seed: int = 0) -> list[Pixels]:
    """Smooth images with noise, so that no operation leaves them as they are."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 5, 6, channels), dtype=np.uint8)
    smooth = [cv2.resize(c, (width, height)).reshape(height, width, channels).astype(int) for c in coarse]
    return [np.clip(s + rng.integers(-20, 21, s.shape), 0, 255).astype(np.uint8) for s in smooth]


def apply(spec: Spec, batch: list[Pixels], size: int = 24, **key: int) -> Pixels:
    key = {"seed": 0, "epoch": 0, "view": 0} | key
    return apply_batch(spec, batch, size=size, ids=np.arange(1, len(batch) + 1), **key)


IMAGE = images(1, 24, 24, 3)[0]


@pytest.mark.parametrize(("height", "width", "size"), [(24, 24, 24), (40, 61, 24), (33, 20, 24), (8, 9, 24)])
@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_an_empty_spec_is_the_plain_image(height: int, width: int, size: int, channels: int) -> None:
    batch = images(3, height, width, channels)
    np.testing.assert_array_equal(apply(Spec(), batch, size), np.stack([to_square(image, size) for image in batch]))


@pytest.mark.parametrize(
    ("function", "transform", "tolerance"),
    [
        (lambda x: backend.horizontal_flip(x), A.HorizontalFlip(p=1), 0),
        (lambda x: backend.vertical_flip(x), A.VerticalFlip(p=1), 0),
        (lambda x: backend.rotation(x, 12.5), A.Rotate((12.5, 12.5), border_mode=cv2.BORDER_REFLECT_101, p=1), 0),
        (lambda x: backend.grayscale(x), A.ToGray(p=1), 0),
        (lambda x: backend.gaussian_blur(x, 1.3), A.GaussianBlur(sigma_limit=(1.3, 1.3), p=1), 0),
        (lambda x: backend.gaussian_blur(x, 0.2), A.GaussianBlur(sigma_limit=(0.2, 0.2), p=1), 0),
        (lambda x: backend.solarize(x, 0.4), A.Solarize(threshold_range=(0.4, 0.4), p=1), 0),
        (lambda x: backend.invert(x), A.InvertImg(p=1), 0),
        # albumentations cuts off where we round
        (lambda x: backend.correct_gamma(x, 1.2), A.RandomGamma((120, 120), p=1), 1),
        (
            lambda x: backend.color_jitter(x, 1.3, 1, 1, 0, [0, 1, 2, 3]),
            A.ColorJitter((1.3, 1.3), (1, 1), (1, 1), 0, p=1),
            1,
        ),
        (
            lambda x: backend.color_jitter(x, 1, 0.7, 1, 0, [0, 1, 2, 3]),
            A.ColorJitter((1, 1), (0.7, 0.7), (1, 1), 0, p=1),
            1,
        ),
        (
            lambda x: backend.color_jitter(x, 1, 1, 1.4, 0, [3, 1, 2, 0]),
            A.ColorJitter((1, 1), (1, 1), (1.4, 1.4), 0, p=1),
            0,
        ),
        (
            lambda x: backend.color_jitter(x, 1, 1, 1, 0.07, [3, 1, 2, 0]),
            A.ColorJitter((1, 1), (1, 1), (1, 1), (0.07, 0.07), p=1),
            0,
        ),
        (
            lambda x: backend.resized_crop(x, (3, 5, 10, 12), 24),
            A.Compose([A.Crop(5, 3, 17, 13), A.Resize(24, 24, interpolation=cv2.INTER_LINEAR)]),
            0,
        ),
        (
            lambda x: backend.resized_crop(x, (3, 5, 20, 19), 13),
            A.Compose([A.Crop(5, 3, 24, 23), A.Resize(13, 13, interpolation=cv2.INTER_LINEAR)]),
            0,
        ),
        (
            lambda x: backend.resized_crop(x, (3, 5, 20, 18), 12),
            A.Compose([A.Crop(5, 3, 23, 23), A.Resize(12, 12, interpolation=cv2.INTER_AREA)]),
            0,
        ),
    ],
)
def test_pixels_are_albumentations(function: Callable[[Pixels], Pixels], transform: Any, tolerance: int) -> None:
    ours, theirs = function(IMAGE.copy()), transform(image=IMAGE)["image"]
    assert ours.shape == theirs.shape
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= tolerance


def test_color_steps_follow_the_order() -> None:
    bright_first = backend.color_jitter(IMAGE, 1.4, 0.6, 1, 0, [0, 1, 2, 3])
    by_hand = backend.adjust_contrast(backend.adjust_brightness(IMAGE, 1.4), 0.6)
    np.testing.assert_array_equal(bright_first, by_hand)
    assert (bright_first != backend.color_jitter(IMAGE, 1.4, 0.6, 1, 0, [1, 0, 2, 3])).any()


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_brightness_and_contrast_in_closed_form(channels: int) -> None:
    image = images(1, 24, 24, channels)[0]
    mean = float((image @ [0.299, 0.587, 0.114]).mean() if channels == 3 else image.mean())
    bright = np.clip(image * 1.3, 0, 255)
    assert np.abs(backend.adjust_brightness(image, 1.3) - bright).max() <= 0.51
    # the mean luma is taken of rounded values
    flat = np.clip(mean + 0.6 * (image - mean), 0, 255)
    assert np.abs(backend.adjust_contrast(image, 0.6) - flat).max() <= 0.6
    grey = np.clip(mean, 0, 255)
    assert np.abs(backend.adjust_contrast(image, 0.0) - grey).max() <= 0.6


def test_contrast_may_need_a_negative_shift() -> None:
    image = np.array([[[10], [200]]], dtype=np.uint8)
    np.testing.assert_array_equal(backend.adjust_contrast(image, 2.0), [[[0], [255]]])


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_rotation_by_ninety_degrees_is_a_quarter_turn(channels: int) -> None:
    image = images(1, 9, 9, channels)[0]
    np.testing.assert_array_equal(backend.rotation(image, 90.0), np.rot90(image))
    np.testing.assert_array_equal(backend.quarter_turn(image, 1), np.rot90(image))


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_translation_by_whole_pixels(channels: int) -> None:
    image = images(1, 10, 10, channels)[0]
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(backend.translation(image, 0.2, -0.3), padded[6:16, 1:11])


def test_solarize_leaves_what_is_below_the_threshold() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    expected = np.where(image >= 0.5 * 255, 255 - image, image)
    np.testing.assert_array_equal(backend.solarize(image, 0.5), expected)


def test_gamma_of_one_changes_nothing() -> None:
    np.testing.assert_array_equal(backend.correct_gamma(IMAGE, 1.0), IMAGE)


def test_noise_has_its_sigma_and_its_key() -> None:
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    noisy = backend.gaussian_noise(grey, 0.05, 9).astype(float)
    assert abs(noisy.mean() - 128) < 0.5
    assert abs(noisy.std() - 0.05 * 255) < 0.3
    np.testing.assert_array_equal(noisy, backend.gaussian_noise(grey, 0.05, 9))
    assert (noisy != backend.gaussian_noise(grey, 0.05, 10)).any()


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (0.999, 0.0), (0.5, 0.999)])
def test_cutout_fills_one_square_with_the_mean(x: float, y: float) -> None:
    before = IMAGE.copy()
    result = backend.cutout(IMAGE, 0.25, x, y)
    np.testing.assert_array_equal(IMAGE, before)
    top, left = int(y * 19), int(x * 19)
    np.testing.assert_array_equal(
        result[top : top + 6, left : left + 6],
        np.broadcast_to(IMAGE.mean(axis=(0, 1)).round().astype(np.uint8), (6, 6, 3)),
    )
    outside = np.ones((24, 24), dtype=bool)
    outside[top : top + 6, left : left + 6] = False
    np.testing.assert_array_equal(result[outside], IMAGE[outside])


NO_CHANGE = (
    HorizontalFlip(p=0.0),
    VerticalFlip(p=0.0),
    QuarterTurn(p=0.0),
    Rotation(degrees=(0, 0), p=1.0),
    Translation(share=(0, 0), p=1.0),
    ColorJitter(brightness=0, contrast=0, saturation=0, hue=0, p=1.0),
    GaussianBlur(sigma=(0.0, 0.2), p=1.0),
    Invert(p=0.0),
    Solarize(threshold=(1.0, 1.0), p=0.0),
    GaussianNoise(sigma=(0, 0), p=1.0),
    Cutout(size=(0, 0), p=1.0),
    RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0)),
)


@pytest.mark.parametrize("operation", NO_CHANGE, ids=lambda operation: operation.name)
@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_strength_zero_changes_nothing(operation: Any, channels: int) -> None:
    batch = images(4, 24, 24, channels)
    np.testing.assert_array_equal(apply(Spec((operation,)), batch), np.stack(batch))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_every_operation_on_any_channels(name: str, channels: int) -> None:
    spec = Spec((OPERATIONS[name](p=1.0),))
    batch = images(4, 24, 24, channels)
    before = [image.copy() for image in batch]
    views = apply(spec, batch)
    assert views.shape == (4, 24, 24, channels)
    assert (views != np.stack(batch)).any() == bool(spec.restricted(channels).operations)
    np.testing.assert_array_equal(batch, before)


def test_every_operation_has_pixels() -> None:
    assert set(albumentations_backend._APPLY) | {RandomResizedCrop} == set(OPERATIONS.values())


def test_a_view_depends_on_its_key_alone() -> None:
    spec = simclr_views(image_size=96, channels=3, mirror=True)[0]
    batch = images(6, 40, 40, 3)
    ids = np.array([5, 9, 2**62, 17, 3, 1])
    whole = apply_batch(spec, batch, size=24, seed=1, epoch=2, ids=ids, view=1)
    order = [4, 1, 2]
    part = apply_batch(spec, [batch[i] for i in order], size=24, seed=1, epoch=2, ids=ids[order], view=1)
    np.testing.assert_array_equal(whole[order], part)
    for other in ({"seed": 2}, {"epoch": 3}, {"view": 0}):
        key = {"seed": 1, "epoch": 2, "view": 1} | other
        assert (whole != apply_batch(spec, batch, size=24, ids=ids, **key)).any()


def test_a_crop_that_is_not_applied_is_the_central_square() -> None:
    batch = images(40, 30, 40, 3)
    spec = Spec((RandomResizedCrop(p=0.5),))
    used = spec.draw(seed=0, epoch=0, ids=np.arange(1, 41), view=0).draws[0].applied
    plain = (apply(spec, batch) == apply(Spec(), batch)).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(plain, ~used)


def test_images_of_different_sizes_in_a_batch() -> None:
    batch = [images(1, h, w, 3)[0] for h, w in ((24, 24), (31, 80), (90, 33), (7, 6))]
    spec = simclr_views(image_size=32, channels=3, mirror=True)[0]
    together = apply(spec, batch)
    for i, image in enumerate(batch):
        alone = apply_batch(spec, [image], size=24, seed=0, epoch=0, ids=np.array([i + 1]), view=0)
        np.testing.assert_array_equal(together[i], alone[0])


def test_real_photographs_keep_their_brightness(shared_data: Path) -> None:
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    file = next((shared_data / "cifar10").rglob("*.parquet"))
    table = next(pq.ParquetFile(file).iter_batches(64)).to_pylist()
    column = next(name for name, value in table[0].items() if isinstance(value, dict))
    batch = [np.asarray(Image.open(io.BytesIO(row[column]["bytes"])).convert("RGB")) for row in table]
    views = apply(simclr_views(image_size=32, channels=3, mirror=True)[0], batch, size=32)
    plain = np.stack(batch)
    assert (views != plain).any(axis=(1, 2, 3)).all()
    assert abs(views.mean() - plain.mean()) < 12
    assert 0.7 < views.std() / plain.std() < 1.3
