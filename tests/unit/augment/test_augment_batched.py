"""The batched backend against the one by albumentations, on the same drawn parameters, and against closed forms."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as reference

from rayssl.pipeline.augment import albumentations_backend, batched_backend
from rayssl.pipeline.augment.defaults import finetune_view, rotnet_views, simclr_views
from rayssl.pipeline.augment.spec import (
    OPERATIONS,
    ColorJitter,
    Cutout,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    HorizontalFlip,
    Invert,
    Operation,
    QuarterTurn,
    RandomResizedCrop,
    Rotation,
    Solarize,
    Spec,
    Table,
    Translation,
    VerticalFlip,
    standard_normal,
)

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

ROUNDING = (0.51, 0.5)  # the other backend rounds once
# Largest and mean absolute difference in units of 1 / 255, with OpenCV 4 and 5. OpenCV's bilinear resize rounds its
# weights, warpAffine of OpenCV 4 rounds coordinates to 1/32 of a pixel, and its hues are whole numbers of 2 degrees.
TOLERANCE: dict[str, tuple[float, float]] = {
    "random_resized_crop": (1.0, 0.35),
    "horizontal_flip": (0.01, 0.01),
    "vertical_flip": (0.01, 0.01),
    "quarter_turn": (0.01, 0.01),
    "rotation": (5.0, 0.6),
    "translation": (5.0, 0.6),
    "color_jitter": (24.0, 1.5),
    "grayscale": ROUNDING,
    "gaussian_blur": (1.0, 0.5),
    "solarize": (0.01, 0.01),
    "invert": (0.01, 0.01),
    "gamma": ROUNDING,
    "gaussian_noise": ROUNDING,
    "cutout": (0.51, 0.01),
}


def textures(count: int, height: int, width: int, channels: int, seed: int = 0) -> list[Pixels]:
    """A gradient, waves of two lengths and some noise, of other strengths in every channel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    images = []
    for _ in range(count):
        turns, phase, level = rng.uniform(-1, 1, (3, channels, 4))
        image = np.stack(
            [
                128 + 60 * (level[c, 0] + level[c, 1] * x + level[c, 2] * y)
                + 40 * np.sin(2 * np.pi * (3 * turns[c, 0] * x + 3 * turns[c, 1] * y + phase[c, 0]))
                + 15 * np.sin(2 * np.pi * (9 * turns[c, 2] * x + 9 * turns[c, 3] * y + phase[c, 1]))
                for c in range(channels)
            ],
            axis=2,
        )  # fmt: skip
        images.append(np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8))
    return images


def draw(spec: Spec, count: int) -> Table:
    return spec.draw(seed=0, epoch=0, ids=np.arange(1, count + 1), view=0)


def padded(images: list[Pixels]) -> tuple[torch.Tensor, np.ndarray[Any, np.dtype[np.int64]]]:
    """Images on one canvas full of other values, and their sizes."""
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    shape = (len(images), *sizes.max(axis=0), images[0].shape[2])
    canvas = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    for place, image in zip(canvas, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(canvas), sizes


def batched(spec: Spec, images: list[Pixels], size: int) -> Pixels:
    """(B, S, S, C) in units of 1 / 255."""
    canvas, sizes = padded(images)
    views = batched_backend.apply_table(spec, draw(spec, len(images)), canvas, size, sizes=sizes)
    return views.permute(0, 2, 3, 1).numpy() * 255


def differences(spec: Spec, images: list[Pixels], size: int) -> Any:
    """Absolute differences of the two backends, (B, S, S, C) in units of 1 / 255."""
    spec = spec.restricted(images[0].shape[2])
    other = albumentations_backend.apply_table(spec, draw(spec, len(images)), images, size)
    return np.abs(batched(spec, images, size) - other)


def cifar(shared_data: Path, count: int = 64) -> list[Pixels]:
    import pyarrow.parquet as pq
    from PIL import Image

    file = next((shared_data / "cifar10").rglob("*.parquet"))
    rows = next(pq.ParquetFile(file).iter_batches(count)).to_pylist()
    column = next(name for name, value in rows[0].items() if isinstance(value, dict))
    return [np.asarray(Image.open(io.BytesIO(row[column]["bytes"])).convert("RGB")) for row in rows]


def test_both_backends_know_every_operation() -> None:
    known = set(OPERATIONS.values()) - {RandomResizedCrop}
    assert set(albumentations_backend._APPLY) == known
    assert set(batched_backend._APPLY) | set(batched_backend._MAPS) == known


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("p", [0.6, 1.0])
def test_every_operation_agrees(name: str, channels: int, p: float) -> None:
    found = differences(Spec((OPERATIONS[name](p=p),)), textures(12, 24, 24, channels), 24)
    largest, mean = TOLERANCE[name]
    assert found.max() <= largest
    assert found.mean() <= mean


@pytest.mark.parametrize(
    ("operation", "largest", "mean"),
    [
        (ColorJitter(brightness=0.8, contrast=0, saturation=0, hue=0, p=1.0), 0.51, 0.5),
        (ColorJitter(brightness=0, contrast=0.8, saturation=0, hue=0, p=1.0), 1.0, 0.5),
        (ColorJitter(brightness=0, contrast=0, saturation=0.8, hue=0, p=1.0), 1.0, 0.5),
        (ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0, p=1.0), 3.0, 0.6),
        (ColorJitter(brightness=0, contrast=0, saturation=0, hue=0.5, p=1.0), 14.0, 1.5),
        (GaussianBlur(sigma=(0.0, 0.28), p=1.0), 0.01, 0.01),
        (GaussianBlur(sigma=(10.0, 40.0), p=1.0), 1.0, 0.5),
        (Rotation(degrees=(-180, 180), p=1.0), 5.0, 0.6),
        (Solarize(threshold=(0.0, 1.0), p=1.0), 0.01, 0.01),
        (Gamma(gamma=(0.2, 5.0), p=1.0), 0.51, 0.5),
        (GaussianNoise(sigma=(1.0, 1.0), p=1.0), 0.6, 0.5),
        (Cutout(size=(0.0, 1.0), p=1.0), 0.51, 0.5),
    ],
)
def test_strengths_other_than_the_defaults_agree(operation: Operation, largest: float, mean: float) -> None:
    found = differences(Spec((operation,)), textures(24, 24, 24, 3), 24)
    assert found.max() <= largest
    assert found.mean() <= mean


@pytest.mark.parametrize("size", [1, 7, 24, 33, 64])
@pytest.mark.parametrize("crops", [True, False])
def test_any_size_is_resized_as_by_opencv(size: int, crops: bool) -> None:
    shapes = [(24, 24), (31, 80), (90, 33), (7, 6), (25, 24), (64, 65)]
    images = [textures(1, *shape, 3, seed)[0] for seed, shape in enumerate(shapes)] * 4
    spec = Spec((RandomResizedCrop(scale=(0.05, 1.0), p=0.8),) if crops else ())
    assert differences(spec, images, size).max() <= 1.0


@pytest.mark.parametrize("first", [(), (RandomResizedCrop(p=0.7),), (Invert(),)])
def test_flips_and_turns_in_a_row_agree(first: tuple[Operation, ...]) -> None:
    flips = (HorizontalFlip(), VerticalFlip(), HorizontalFlip(p=0.3), QuarterTurn(), VerticalFlip())
    assert differences(Spec((*first, *flips)), textures(32, 30, 24, 3), 24).max() <= 1.0


def test_two_warps_are_one_resampling_of_the_same_places() -> None:
    # A quarter turn and whole pixels need no interpolation, so only what is mirrored where is compared.
    whole = (Rotation(degrees=(90, 90), p=0.6), Translation(share=(0.75, 0.75), p=0.6))
    assert differences(Spec(whole), textures(24, 24, 24, 3), 24).max() <= 0.01
    assert differences(Spec(whole[::-1]), textures(24, 24, 24, 3), 24).max() <= 0.01
    y, x = np.mgrid[:48, :48]
    smooth = (2 * x + 3 * y)[:, :, None].astype(np.uint8)
    assert differences(Spec((Rotation(p=1.0), Translation(p=1.0))), [smooth] * 16, 48).max() <= 4.0


def test_hue_is_torchvisions() -> None:
    images = textures(16, 24, 24, 3)
    spec = Spec((ColorJitter(brightness=0, contrast=0, saturation=0, hue=0.5, p=1.0),))
    found = batched(spec, images, 24)
    turns = draw(spec, 16).draws[0].values["hue"].tolist()
    for image, turn, view in zip(images, turns, found, strict=True):
        expected = reference.adjust_hue(torch.from_numpy(image).permute(2, 0, 1) / 255, turn)
        np.testing.assert_allclose(view, expected.permute(1, 2, 0) * 255, atol=0.01)


def test_noise_is_that_of_the_spec() -> None:
    keys = [0, 5, 2**53 - 1]
    found = batched_backend._standard_normal(torch.tensor(keys), 4001)
    np.testing.assert_allclose(found, [standard_normal(key, 4001) for key in keys], atol=1e-4)


DEFAULTS = {
    "simclr, tiny": (simclr_views(image_size=8, channels=3, mirror=True)[0], 48.0, 1.5),
    "simclr, small": (simclr_views(image_size=32, channels=3, mirror=True)[0], 24.0, 1.5),
    "simclr, large": (simclr_views(image_size=96, channels=3, mirror=True)[0], 32.0, 1.5),
    "rotnet": (rotnet_views(image_size=32, channels=3, mirror=True)[0], 1.0, 0.35),
    "finetune": (finetune_view(image_size=32, channels=3, mirror=True), 1.0, 0.35),
}


@pytest.mark.parametrize(("spec", "largest", "mean"), DEFAULTS.values(), ids=DEFAULTS)
def test_default_views_agree(spec: Spec, largest: float, mean: float) -> None:
    found = differences(spec, textures(64, 32, 32, 3), 32)
    assert found.max() <= largest
    assert found.mean() <= mean


@pytest.mark.parametrize(("spec", "largest", "mean"), DEFAULTS.values(), ids=DEFAULTS)
def test_default_views_agree_on_photographs(shared_data: Path, spec: Spec, largest: float, mean: float) -> None:
    found = differences(spec, cifar(shared_data), 32)
    assert found.max() <= largest
    assert found.mean() <= mean


ALL = Spec(tuple(operation(p=0.7) for operation in OPERATIONS.values()))


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_padding_changes_nothing(channels: int) -> None:
    shapes = [(24, 24), (31, 80), (90, 33), (7, 6), (20, 20)]
    images = [textures(1, *shape, channels)[0] for shape in shapes]
    spec = ALL.restricted(channels)
    together = batched(spec, images, 20)
    for i, image in enumerate(images):
        table = draw(spec, len(images))[np.array([i])]
        alone = batched_backend.apply_table(spec, table, torch.from_numpy(image[None]), 20)
        np.testing.assert_allclose(together[i], alone[0].permute(1, 2, 0) * 255, atol=255e-5)


def test_a_view_does_not_depend_on_the_batch() -> None:
    images, table = torch.from_numpy(np.stack(textures(8, 30, 26, 3))), draw(ALL, 8)
    whole = batched_backend.apply_table(ALL, table, images, 24)
    for i in range(8):
        alone = batched_backend.apply_table(ALL, table[np.array([i])], images[i : i + 1], 24)
        assert_close(alone[0], whole[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_result_has_its_dtype_and_channels_last(dtype: torch.dtype, channels: int) -> None:
    images, spec = torch.from_numpy(np.stack(textures(4, 30, 26, channels))), ALL.restricted(channels)
    before = images.clone()
    views = batched_backend.apply_table(spec, draw(spec, 4), images, 24, dtype=dtype)
    assert views.shape == (4, channels, 24, 24)
    assert views.dtype == dtype
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert views.min() >= 0
    assert views.max() <= 1
    assert torch.equal(images, before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(batched_backend.apply_table(spec, draw(spec, 4), images, 24, dtype=dtype), views, atol=0, rtol=0)


def test_nothing_is_drawn() -> None:
    images = torch.from_numpy(np.stack(textures(4, 30, 26, 3)))
    before = torch.get_rng_state()
    batched_backend.apply_table(ALL, draw(ALL, 4), images, 24)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_number_is_read_back_and_nothing_stays_on_another_device(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fake tensors have a device and a shape but no values: reading one raises, and so does mixing devices.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    table = draw(ALL, 8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty((8, 30, 26, 3), dtype=torch.uint8, device=device)
        views = batched_backend.apply_table(ALL, table, images, 24)
    assert views.device.type == device
    assert views.shape == (8, 3, 24, 24)


NO_CHANGE = (
    Rotation(degrees=(0, 0), p=1.0),
    Translation(share=(0, 0), p=1.0),
    ColorJitter(brightness=0, contrast=0, saturation=0, hue=0, p=1.0),
    GaussianBlur(sigma=(0.0, 0.2), p=1.0),
    Gamma(gamma=(1.0, 1.0), p=1.0),
    GaussianNoise(sigma=(0, 0), p=1.0),
    Cutout(size=(0, 0), p=1.0),
    RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0)),
)


@pytest.mark.parametrize("operation", NO_CHANGE, ids=lambda operation: operation.name)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_strength_zero_changes_nothing(operation: Operation, channels: int) -> None:
    images, spec = textures(4, 24, 24, channels), Spec((operation,)).restricted(channels)
    np.testing.assert_allclose(batched(spec, images, 24), np.stack(images), atol=0.01)
