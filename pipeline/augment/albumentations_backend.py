"""Applies a spec's table to one image after the other with albumentations' pixel operations, on the CPU, in uint8.

Nothing is drawn here. albumentations' transforms and Compose are passed by, since drawing, checking and copying cost
more than the pixels of a small image; what is called are the functions that they call. Where those stop at three
channels or cut off instead of rounding, OpenCV is called as they do.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.augment import spec as operations
from rayssl.pipeline.augment.spec import (
    AVERAGED_FROM,
    Draws,
    Operation,
    RandomResizedCrop,
    Spec,
    Table,
    standard_normal,
)

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version

import cv2
from albumentations.augmentations.blur import functional as fblur
from albumentations.augmentations.dropout import functional as fdropout
from albumentations.augmentations.geometric import functional as fgeometric
from albumentations.augmentations.pixel import functional as fpixel

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]

cv2.setNumThreads(0)  # the parallelism is one process a core; more threads only get in each other's way


def apply_table(spec: Spec, table: Table, images: Sequence[Image], size: int) -> Image:
    """B views (B, size, size, C) of B images (H, W, C) with the parameters that `spec` drew for them.

    `spec` must be restricted to the images' channels.
    """
    boxes = _crop_boxes(spec, table, images)
    steps = [
        (_APPLY[type(operation)], draws.applied.tolist(), _rows(draws))
        for operation, draws in zip(spec.operations, table.draws, strict=True)
        if not isinstance(operation, RandomResizedCrop)
    ]
    out = np.empty((len(images), size, size, images[0].shape[2]), dtype=np.uint8)
    for i, (image, box) in enumerate(zip(images, boxes, strict=True)):
        view = _to_square(image, size) if box is None else resized_crop(image, box, size)
        for function, applied, rows in steps:
            if applied[i]:
                view = function(view, *rows[i])
        out[i] = view
    return out


def _crop_boxes(spec: Spec, table: Table, images: Sequence[Image]) -> list[Box | None]:
    if not spec.operations or not isinstance(crop := spec.operations[0], RandomResizedCrop):
        return [None] * len(images)
    shapes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    boxes = crop.boxes(table.draws[0], shapes[:, 0], shapes[:, 1]).tolist()
    return [tuple(box) if used else None for box, used in zip(boxes, table.draws[0].applied.tolist(), strict=True)]


def _rows(draws: Draws) -> list[tuple[Any, ...]]:
    # Python numbers: reading them one by one from arrays would cost more than some of the operations.
    if not draws.values:
        return [()] * len(draws.applied)
    return list(zip(*(values.tolist() for values in draws.values.values()), strict=True))


def _to_square(image: Image, size: int) -> Image:
    from rayssl.pipeline.data.decode import to_square

    return to_square(image, size)


def resized_crop(image: Image, box: Box, size: int) -> Image:
    """The box (top, left, height, width) resized to size × size: averaged where it shrinks much, else bilinear."""
    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    averaged = min(height, width) >= AVERAGED_FROM * size  # OpenCV averages areas five times as slowly
    return _resize(part, size, cv2.INTER_AREA if averaged else cv2.INTER_LINEAR)


def _resize(image: Image, size: int, interpolation: int) -> Image:
    if image.shape[2] > 4:  # OpenCV resizes at most four channels at a time
        return np.asarray(fgeometric.resize(image, (size, size), interpolation))
    return _with_channels(cv2.resize(image, (size, size), interpolation=interpolation))


def _with_channels(image: Any) -> Image:
    # OpenCV drops the axis of a single channel.
    restored: Image = image if image.ndim == 3 else image[..., None]
    return restored


def horizontal_flip(image: Image) -> Image:
    """Left and right change places."""
    return _with_channels(cv2.flip(image, 1))


def vertical_flip(image: Image) -> Image:
    """Top and bottom change places."""
    return _with_channels(cv2.flip(image, 0))


def quarter_turn(image: Image, turns: int) -> Image:
    """Counter-clockwise by `turns` × 90 degrees."""
    return np.ascontiguousarray(fgeometric.rot90(image, turns))


def rotation(image: Image, degrees: float) -> Image:
    """Counter-clockwise round the centre, mirrored at the border."""
    return _affine(image, degrees, 0.0, 0.0)


def translation(image: Image, x: float, y: float) -> Image:
    """To the right and down by shares of the sides, mirrored at the border."""
    return _affine(image, 0.0, x * image.shape[1], y * image.shape[0])


def _affine(image: Image, degrees: float, x: float, y: float) -> Image:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(fgeometric.center((height, width)), degrees, 1.0)
    matrix[:, 2] += np.array([x, y])
    if image.shape[2] > 4:  # OpenCV 4 warps at most four channels at a time
        square, border = np.vstack([matrix, [0.0, 0.0, 1.0]]), cv2.BORDER_REFLECT_101
        return np.asarray(fgeometric.warp_affine(image, square, cv2.INTER_LINEAR, 0, border, (height, width)))
    return _with_channels(cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101))


def color_jitter(
    image: Image, brightness: float, contrast: float, saturation: float, hue: float, order: list[int]
) -> Image:
    """Brightness, contrast, saturation (factors) and hue (turns) in the given order, numbered so from 0."""
    steps = ((adjust_brightness, brightness), (adjust_contrast, contrast), (_saturate, saturation), (_turn_hue, hue))
    for number in order:
        function, value = steps[number]
        image = function(image, value)
    return image


def adjust_brightness(image: Image, factor: float) -> Image:
    """Every value times a factor, rounded and clipped; any number of channels."""
    return _scale_and_shift(image, factor, 0.0)


def adjust_contrast(image: Image, factor: float) -> Image:
    """The distance from the mean luma (the mean, unless there are three channels) times a factor."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] if image.shape[2] == 3 else float(image.mean())
    return _scale_and_shift(image, factor, mean * (1.0 - factor))


def _scale_and_shift(image: Image, factor: float, shift: float) -> Image:
    return _with_channels(cv2.addWeighted(image, factor, image, 0.0, shift))


def _saturate(image: Image, factor: float) -> Image:
    return image if factor == 1.0 else np.asarray(fpixel.adjust_saturation_torchvision(image, factor))


def _turn_hue(image: Image, turns: float) -> Image:
    return image if turns == 0.0 else np.asarray(fpixel.adjust_hue_torchvision(image, turns))


def grayscale(image: Image) -> Image:
    """Luma (ITU-R BT.601) in all three channels."""
    return np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def gaussian_blur(image: Image, sigma: float) -> Image:
    """Separable Gaussian of int(3.5 sigma) pixels to each side."""
    if sigma < 1 / 3.5:  # a kernel of one pixel
        return image
    return _with_channels(fpixel.separable_convolve(image, fblur.create_gaussian_kernel_1d(sigma, 0)))


def solarize(image: Image, threshold: float) -> Image:
    """Inverts the values of at least `threshold` × 255."""
    return np.asarray(fpixel.solarize(image, threshold))


def invert(image: Image) -> Image:
    """255 − value."""
    return np.asarray(fpixel.invert(image))


def correct_gamma(image: Image, exponent: float) -> Image:
    """Values as shares of 255 to the power of `exponent`, rounded."""
    levels = np.rint((np.arange(256) / 255) ** exponent * 255).astype(np.uint8)
    return _with_channels(cv2.LUT(image, levels))


def gaussian_noise(image: Image, sigma: float, key: int) -> Image:
    """Adds normal noise of sigma × 255, a function of the key, rounded and clipped."""
    noise = standard_normal(key, image.size).reshape(image.shape) * np.float32(255.0 * sigma)
    return _with_channels(cv2.add(image, noise, dtype=cv2.CV_8U))


def cutout(image: Image, size: float, x: float, y: float) -> Image:
    """Fills a square of side `size` (a share) with the image's mean; x and y place it in the free room."""
    height, width = image.shape[:2]
    side = round(size * min(height, width))
    left, top = int(x * (width - side + 1)), int(y * (height - side + 1))
    hole = np.array([[left, top, left + side, top + side]])
    fill = image.mean(axis=(0, 1)).round().astype(np.uint8)
    return np.asarray(fdropout.fill_holes_with_value(image.copy(), hole, fill))


_APPLY: dict[type[Operation], Callable[..., Image]] = {
    operations.HorizontalFlip: horizontal_flip,
    operations.VerticalFlip: vertical_flip,
    operations.QuarterTurn: quarter_turn,
    operations.Rotation: rotation,
    operations.Translation: translation,
    operations.ColorJitter: color_jitter,
    operations.Grayscale: grayscale,
    operations.GaussianBlur: gaussian_blur,
    operations.Solarize: solarize,
    operations.Invert: invert,
    operations.Gamma: correct_gamma,
    operations.GaussianNoise: gaussian_noise,
    operations.Cutout: cutout,
}
