"""The batched backend in tensors whose shapes no draw changes, so that a GPU can repeat it as one recorded graph.

Every operation is done to all images and kept where it was drawn. On a GPU that costs less than to ask for the several
hundred small pieces of work that `batched_backend` is made of; on a CPU it would cost more.

Shapes: B images, C channels, S the side of the view, K operations that are done together.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayssl.pipeline.augment import batched_backend as batched
from rayssl.pipeline.augment import spec as operations
from rayssl.pipeline.augment.spec import Draws, Operation, RandomResizedCrop, Spec, Table

Values = NDArray[Any]

NO_BLEND = np.array([1.0, 0.0, 0.0])[:, None]  # the value as it is


def arrays_of(spec: Spec, table: Table, shapes: NDArray[np.int64], size: int) -> list[Values]:
    """What `apply_arrays` needs: float32 and int64 arrays (B, …), as many and of the same shapes whatever was drawn.

    `shapes` (B, 2): heights and widths of the images; `size`: S.
    """
    steps = list(zip(spec.operations, table.draws, strict=True))
    windows, late = batched._windows(steps, shapes, size)
    found = [windows.transpose(1, 0, 2)]
    for group in _groups([operation for operation, _ in late]):
        done, late = late[: len(group)], late[len(group) :]
        found.append(np.any([draws.applied for _, draws in done], axis=0))
        if type(group[0]) in batched._MAPS:
            found.append(np.stack([batched._inverse_map(*step, size) for step in done], axis=1))
        else:
            found += _arrays(group[0], done[0][1], size)
    return [array if array.dtype == np.int64 else array.astype(np.float32) for array in found]


def apply_arrays(spec: Spec, arrays: Iterator[Tensor], images: Tensor, size: int) -> Tensor:
    """B views (B, C, S, S) in [0, 1], channels last in memory, of uint8 images (B, H, W, C).

    `arrays` are those of `arrays_of`, on the images' device; what comes after them is left there. The result is that of
    `batched_backend.apply_table`, up to rounding.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        views = batched._resample_windows(images, next(arrays).transpose(0, 1), size)
        for group in _groups(_late(spec)):
            applied = _each(next(arrays)) > 0
            views = torch.where(applied, _changed(group, views.clone(), arrays), views)
        return views.mul_(1 / 255).clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def _late(spec: Spec) -> list[Operation]:
    """The operations that are no part of the windows: see `batched_backend._windows`."""
    late = list(spec.operations)
    if late and isinstance(late[0], RandomResizedCrop):
        late = late[1:]
    while late and type(late[0]) in batched._FLIPPED:
        late = late[1:]
    return late


def _groups(late: Sequence[Operation]) -> Iterator[list[Operation]]:
    """Neighbouring warps together, every other operation by itself."""
    for warps, group in groupby(late, key=lambda operation: type(operation) in batched._MAPS):
        if warps:
            yield list(group)
        else:
            yield from ([operation] for operation in group)


def _changed(group: list[Operation], images: Tensor, parts: Iterator[Tensor]) -> Tensor:
    """All images changed by operations that are done together; takes their arrays from `parts`."""
    kind = type(group[0])
    if kind in batched._MAPS:
        return batched._warp_by(images, next(parts).permute(1, 2, 3, 0))
    if kind is operations.ColorJitter:
        return _jitter(images, next(parts), next(parts), next(parts))
    function, count = _CHANGES[kind]
    return function(images, *(next(parts) for _ in range(count)))


# What is sent for an operation: of every image, whether it is applied there or not.


def _blends(operation: Any, draws: Draws) -> list[Values]:
    """Blends before and after the turn of the hue (B, K, 3), where the others' change nothing, and turns (B,)."""
    values = draws.values
    factors = np.stack([values["brightness"], values["contrast"], values["saturation"]])
    strengths = (operation.brightness, operation.contrast, operation.saturation)
    changing = np.flatnonzero(strengths)
    blends, before = batched._blends(factors, values["order"], changing, operation.hue > 0)
    is_early = (np.arange(len(changing))[:, None] < before)[:, None]  # (K, 1, B)
    early, late = np.where(is_early, blends, NO_BLEND), np.where(is_early, NO_BLEND, blends)
    return [early.transpose(2, 0, 1), late.transpose(2, 0, 1), values["hue"]]


def _kernels(operation: Any, draws: Draws) -> Values:
    """(B, R + 2), as wide as the largest sigma that can be drawn needs."""
    kernels = batched._gaussian_kernels(draws.values["sigma"])
    width = int(3.5 * operation.sigma[1]) + 2
    return np.pad(kernels, ((0, 0), (0, width - kernels.shape[1])))


def _arrays(operation: Operation, draws: Draws, size: int) -> list[Values]:
    values = draws.values
    match operation:
        case operations.QuarterTurn():
            return [values["turns"].astype(np.float32)]
        case operations.ColorJitter():
            return _blends(operation, draws)
        case operations.GaussianBlur():
            return [_kernels(operation, draws)]
        case operations.Solarize():
            return [np.ceil(values["threshold"] * 255)]
        case operations.Gamma():
            return [values["gamma"]]
        case operations.GaussianNoise():
            return [values["key"], 255 * values["sigma"]]
        case operations.Cutout():
            return list(batched._squares(values["size"], values["x"], values["y"], size))
    return []


# What is done with it. Numbers are (B,).


def _turn(images: Tensor, turns: Tensor) -> Tensor:
    for number in (1, 2, 3):
        images = torch.where(_each(turns) == number, images.rot90(number, (2, 3)), images)
    return images


def _jitter(images: Tensor, early: Tensor, late: Tensor, hue: Tensor) -> Tensor:
    for blend in early.unbind(1):
        batched._blend_(images, blend.T)
    if images.shape[1] == 3:
        images = batched._turn_hue(images, hue)
    for blend in late.unbind(1):
        batched._blend_(images, blend.T)
    return images


def _each(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]


# Operation: function of images and arrays, and how many arrays it takes.
_CHANGES: dict[type[Operation], tuple[Callable[..., Tensor], int]] = {
    operations.HorizontalFlip: (batched.horizontal_flip, 0),
    operations.VerticalFlip: (batched.vertical_flip, 0),
    operations.QuarterTurn: (_turn, 1),
    operations.Grayscale: (batched.grayscale, 0),
    operations.GaussianBlur: (batched._blur_by, 1),
    operations.Solarize: (lambda images, lowest: batched._solarize_from(images, _each(lowest)), 1),
    operations.Invert: (batched.invert, 0),
    operations.Gamma: (lambda images, gamma: batched._power_(images, _each(gamma)), 1),
    operations.GaussianNoise: (batched._add_noise_, 2),
    operations.Cutout: (lambda images, *sides: batched._cut_square(images, *map(_each, sides)), 4),
}
