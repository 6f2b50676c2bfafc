"""Applies a spec's table to a whole batch at once with torch, on any device, in float32.

Parameters, kernels and borders are those of `albumentations_backend`; values are not rounded between the operations.
What depends on the table alone is computed by numpy and sent without waiting, so nothing here waits for the device.

Shapes: B images, N of them that an operation is applied to, C channels, S the side of the view. Values are 0 … 255
until the end. Views (N, C, S, S) lie in memory as (N, S, C, S), which is how the matrix products leave them. An
operation may change the images that it is given.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from rayssl.pipeline.augment import spec as operations
from rayssl.pipeline.augment.spec import AVERAGED_FROM, Draws, Operation, RandomResizedCrop, Spec, Table
from rayssl.pipeline.base.randomness_torch import uniform

Values = NDArray[Any]
Step = tuple[Operation, Draws]
Stage = tuple[NDArray[np.int64], Callable[[Tensor], Tensor]]  # (N,) rows, what is done to their images

_DTYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}


def apply_table(
    spec: Spec,
    table: Table,
    images: Tensor,
    size: int,
    *,
    sizes: NDArray[np.int64] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """B views (B, C, size, size) in [0, 1], channels last in memory, of uint8 images (B, H, W, C) on any device.

    `spec` must be restricted to the images' channels, and have drawn `table`. `sizes` (B, 2) are the true heights and
    widths of images that were padded at the bottom and the right to one canvas; None: all are H × W. The work is done
    in float32, with autocast or without, and `dtype` is that of the result.
    """
    shapes = np.broadcast_to(images.shape[1:3], (len(images), 2)) if sizes is None else sizes
    steps = list(zip(spec.operations, table.draws, strict=True))
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        windows, late = _windows(steps, shapes, size)
        views = _resample(images, windows, size)
        stages = [stage for stage in _stages(late, size) if len(stage[0])]
        sent = _send(images.device, *(rows for rows, _ in stages))
        for rows, (_, function) in zip(sent, stages, strict=True):
            views = _apply_to(rows, function, views)
        return views.mul_(1 / 255).clamp_(0, 1).to(dtype, memory_format=torch.channels_last)


def _stages(steps: Iterable[Step], size: int) -> Iterator[Stage]:
    """What is done after the resampling: neighbouring warps in one stage, every other operation in its own."""
    for warps, group in groupby(steps, key=lambda step: type(step[0]) in _MAPS):
        if warps:
            yield _warp_stage(list(group), size)
            continue
        for operation, draws in group:
            rows = np.flatnonzero(draws.applied)
            values = {name: value[rows] for name, value in draws.values.items()}
            yield rows, partial(_APPLY[type(operation)], **values)


def _apply_to(rows: Tensor, function: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
    if len(rows) == len(views):
        return function(views)
    return views.index_copy_(0, rows, function(_select(views, rows)))


def _select(images: Tensor, index: Tensor) -> Tensor:
    return images.transpose(1, 2).index_select(0, index).transpose(1, 2)  # whole blocks of memory, in the same order


def _send(device: torch.device, *arrays: Values) -> list[Tensor]:
    """int64 arrays, then float32 arrays, moved to the device in one copy that nobody waits for."""
    if not arrays:
        return []
    packed = pack(arrays)
    if device.type == "cuda":
        packed = packed.pin_memory()
    return unpack(packed.to(device, non_blocking=True), arrays)


def pack(arrays: Sequence[Values]) -> Tensor:
    """int64 arrays, then float32 arrays, in one piece (int32, on the CPU)."""
    return torch.from_numpy(
        np.concatenate([np.ascontiguousarray(array).reshape(-1).view(np.int32) for array in arrays])
    )


def unpack(packed: Tensor, arrays: Sequence[Values]) -> list[Tensor]:
    """Tensors of the arrays' types and shapes in the memory of what they were packed into, on any device."""
    parts = torch.split(packed, [array.nbytes // 4 for array in arrays])
    return [part.view(_DTYPES[array.dtype]).view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _per_image(device: torch.device, *values: Values) -> tuple[Tensor, ...]:
    """Numbers (N,) as float32 (N, 1, 1, 1) on the device."""
    (sent,) = _send(device, np.stack(values).astype(np.float32))
    return sent[..., None, None, None].unbind()


def _positions(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, dtype=torch.float32, device=device)


# Resampling: crop, resize and flips.


def _windows(steps: list[Step], shapes: NDArray[np.int64], size: int) -> tuple[Values, list[Step]]:
    """What part of its image every view shows, with the flips that come first, and the steps that are left.

    A window (5, B, 2) is in pixels along height and width: where the first output pixel begins, the step from one to
    the next, half the width of what is averaged for it, and the limits of what may be looked at.
    """
    windows = _square_windows(shapes, size)
    if steps and isinstance(crop := steps[0][0], RandomResizedCrop):
        boxes = crop.boxes(steps[0][1], shapes[:, 0], shapes[:, 1])
        windows = np.where(steps[0][1].applied[:, None], _box_windows(boxes, size), windows)
        steps = steps[1:]
    while steps and (axis := _FLIPPED.get(type(steps[0][0]))) is not None:
        start, step = windows[:2, :, axis]
        flipped = steps[0][1].applied
        windows[:2, :, axis] = np.where(flipped, [start + size * step, -step], [start, step])
        steps = steps[1:]
    return windows, steps


def _box_windows(boxes: NDArray[np.int64], size: int) -> Values:
    """Boxes (B, 4) of top, left, height, width: averaged where they shrink much in both directions, else bilinear."""
    start, length = boxes[:, :2], boxes[:, 2:]
    step = length / size
    half = np.where((length >= AVERAGED_FROM * size).all(axis=1, keepdims=True), step / 2, 0.5)
    return np.stack([start, step, half, start, start + length])


def _square_windows(shapes: NDArray[np.int64], size: int) -> Values:
    """`data.decode.to_square`: the shorter side resized, the longer in whole pixels, then the centre."""
    shorter = shapes.min(axis=1, keepdims=True)
    resized = np.maximum(size, np.rint(shapes * size / shorter))
    step = shapes / resized
    half = np.where(shorter > size, step / 2, 0.5)
    return np.stack([(resized - size) // 2 * step, step, half, np.zeros_like(step), shapes])


def _resample(images: Tensor, windows: Values, size: int) -> Tensor:
    """Views (B, C, S, S) of uint8 images (B, H, W, C)."""
    (sent,) = _send(images.device, windows.astype(np.float32))
    return _resample_windows(images, sent, size)


def _resample_windows(images: Tensor, windows: Tensor, size: int) -> Tensor:
    """The same of windows (5, B, 2) that are where the images are."""
    down = _resize_weights(windows[..., 0], size, images.shape[1])
    across = _resize_weights(windows[..., 1], size, images.shape[2])
    rows = images.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    return _separable(rows, down, across)


def _resize_weights(windows: Tensor, size: int, length: int) -> Tensor:
    """Weights (B, size, length) of input pixels in output pixels, of windows (5, B) along one side.

    OpenCV's INTER_AREA: a pixel's share of the interval that is averaged. INTER_LINEAR is the same for an interval of
    one pixel round a centre that stays inside.
    """
    start, step, half, low, high = windows[..., None].unbind()
    centre = (start + step * (_positions(size, windows.device) + 0.5)).clamp(low + half, high - half)
    # Limited once more, since a sum's rounding must not let in a share of what lies outside.
    begin, end = (centre - half).maximum(low)[..., None], (centre + half).minimum(high)[..., None]
    pixel = _positions(length, windows.device)
    return end.minimum(pixel + 1).sub_(begin.maximum(pixel)).clamp_(min=0).div_(2 * half[..., None])


def _separable(rows: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(N, C, S, T) of images (N, H, C, W) by weights `down` (N, S, H) and `across` (N, T, W).

    Where TF32 is allowed, its 10 bits leave the result within 0.4 of 255.
    """
    n, height, channels, width = rows.shape
    size = down.shape[1]
    resized = down.bmm(rows.reshape(n, height, channels * width)).view(n, size * channels, width)
    return resized.bmm(across.transpose(1, 2)).view(n, size, channels, -1).transpose(1, 2)


# Geometry after the crop.


def horizontal_flip(images: Tensor) -> Tensor:
    """Left and right change places."""
    return images.flip(3)


def vertical_flip(images: Tensor) -> Tensor:
    """Top and bottom change places."""
    return images.flip(2)


def quarter_turn(images: Tensor, turns: Values) -> Tensor:
    """Counter-clockwise by `turns` × 90 degrees."""
    (rows,) = _send(images.device, np.argsort(turns, kind="stable"))
    counts = np.bincount(turns, minlength=4).tolist()
    for number, index in enumerate(torch.split(rows, counts)):
        images.index_copy_(0, index, _select(images, index).rot90(number, (2, 3)))
    return images


def _warp_stage(steps: list[Step], size: int) -> Stage:
    rows = np.flatnonzero(np.any([draws.applied for _, draws in steps], axis=0))
    maps = np.stack([_inverse_map(operation, draws, size)[rows] for operation, draws in steps])
    return rows, partial(_warp, maps=maps)


def _inverse_map(operation: Operation, draws: Draws, size: int) -> Values:
    """(B, 2, 3): where a pixel (x, y, 1) of the result comes from; itself where nothing is applied."""
    maps = _MAPS[type(operation)](size, **draws.values)
    return np.where(draws.applied[:, None, None], maps, np.eye(2, 3))


def _rotation_map(size: int, degrees: Values) -> Values:
    """The inverse of OpenCV's getRotationMatrix2D: counter-clockwise, where y points down, round the middle."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    middle = (size - 1) / 2
    x, y = middle * (1 - cos + sin), middle * (1 - sin - cos)
    return np.stack([np.stack([cos, -sin, x], axis=1), np.stack([sin, cos, y], axis=1)], axis=1)


def _translation_map(size: int, x: Values, y: Values) -> Values:
    """To the right and down by shares of the side."""
    maps = np.tile(np.eye(2, 3), (len(x), 1, 1))
    maps[:, :, 2] = -size * np.stack([x, y], axis=1)
    return maps


def _warp(images: Tensor, maps: Values) -> Tensor:
    """One bilinear resampling for K inverse maps (K, N, 2, 3) in a row, mirrored at the border after each."""
    (sent,) = _send(images.device, maps.transpose(0, 2, 3, 1).astype(np.float32))
    return _warp_by(images, sent)


def _warp_by(images: Tensor, maps: Tensor) -> Tensor:
    """The same by maps (K, 2, 3, N) that are where the images are."""
    last = images.shape[-1] - 1
    pixel = _positions(last + 1, images.device)
    x, y = pixel[None, None, :], pixel[None, :, None]
    for number, rows in enumerate(reversed(maps[..., None, None].unbind())):
        if number > 0:
            x, y = _mirrored(x, last), _mirrored(y, last)
        x, y = (scale_x * x + (scale_y * y + shift) for scale_x, scale_y, shift in rows)
    grid = torch.stack([x, y], dim=-1).mul_(2 / max(last, 1)).sub_(1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def _mirrored(position: Tensor, last: int) -> Tensor:
    """Positions outside of 0 … last mirrored at the centres of the outer pixels, as often as needed."""
    return (position.abs().remainder(max(2 * last, 1)) - last).abs_().neg_().add_(last)


# Colour.


def color_jitter(
    images: Tensor, brightness: Values, contrast: Values, saturation: Values, hue: Values, order: Values
) -> Tensor:
    """Brightness, contrast, saturation (factors) and hue (turns), each image in its own order, numbered so from 0.

    The images are sorted by how many blends come before their hue. So those with a k-th blend before it, and those
    with it after it, are two slices, and the hue is turned once for all.
    """
    factors = np.stack([brightness, contrast, saturation])
    changing = np.flatnonzero((factors != 1).any(axis=1))
    blends, before = _blends(factors, order, changing, bool(hue.any()))
    rows = np.argsort(-before, kind="stable")
    arrays = (blends[..., rows].astype(np.float32), hue[rows].astype(np.float32))
    index, inverse, blends_sent, turns = _send(images.device, rows, np.argsort(rows), *arrays)
    images = _select(images, index)
    early = [int((before > k).sum()) for k in range(len(blends))]
    for blend, n in zip(blends_sent, early, strict=True):
        _blend_(images[:n], blend[:, :n])
    if hue.any():
        images = _turn_hue(images, turns)
    for blend, n in zip(blends_sent, early, strict=True):
        _blend_(images[n:], blend[:, n:])
    return _select(images, inverse)


def _blends(factors: Values, order: Values, changing: Values, turns_hue: bool) -> tuple[Values, NDArray[np.int64]]:
    """The blends (K, 3, N) of every image in its order, and how many of them come before its hue (N,).

    A blend says how much of a value, of the image's mean luma and of the pixel's luma is in the result. Of the
    adjustments with factors (3, N) only those numbered in `changing` (K,) are made.
    """
    is_blend = np.isin(order, changing)
    numbers = order[is_blend].reshape(len(order), len(changing)).T  # (K, N)
    kept = np.take_along_axis(factors, numbers, axis=0)
    blends = np.stack([kept, (1 - kept) * (numbers == 1), (1 - kept) * (numbers == 2)], axis=1)
    is_early = np.cumsum(order == 3, axis=1) == 0 if turns_hue else np.ones_like(is_blend)
    return blends, (is_blend & is_early).sum(axis=1)


def _blend_(images: Tensor, blend: Tensor) -> None:
    """Changes images (N, C, S, S) by a blend (3, N), clipped."""
    of_value, of_mean, of_luma = blend[..., None, None, None]
    luma = _luma(images)
    mean = luma.mean(dim=(2, 3), keepdim=True)
    torch.addcmul(luma.mul_(of_luma).addcmul_(mean, of_mean), images, of_value, out=images).clamp_(0, 255)


def _luma(images: Tensor) -> Tensor:
    """(N, 1, S, S): ITU-R BT.601 of red, green and blue, else the mean of all channels."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.unbind(1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """HSV (Smith 1978) and back with the hue moved by turns (N,).

    The way back has no cases: value − chroma × min(k, 4 − k, 1), not below 0, where k is the hue in sextants + 5, 3, 1
    for red, green, blue, modulo 6; and min(k, 4 − k) = 2 − |k − 2|.
    """
    red, green, blue = images.unbind(1)
    brightest = red.maximum(green).maximum(blue)
    chroma = brightest - red.minimum(green).minimum(blue)
    from_green = torch.where(green == brightest, blue - red + 2 * chroma, red - green + 4 * chroma)
    sextant = torch.where(red == brightest, green - blue, from_green).div_(chroma.clamp(min=1e-6))
    channel = 5 - 2 * _positions(3, images.device)[:, None, None]
    sextant = sextant.add_(6 * turns[:, None, None])[:, None]
    missing = ((sextant + channel).remainder_(6) - 2).abs_().neg_().add_(2).clamp_(0, 1)
    return torch.addcmul(brightest[:, None], missing, chroma[:, None], value=-1)


def grayscale(images: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) in all three channels."""
    return images.copy_(_luma(images))


def solarize(images: Tensor, threshold: Values) -> Tensor:
    """Inverts the values that, rounded, are at least `threshold` × 255."""
    return _solarize_from(images, *_per_image(images.device, np.ceil(threshold * 255)))


def _solarize_from(images: Tensor, lowest: Tensor) -> Tensor:
    """Inverts from a whole number (N, 1, 1, 1) on: the comparison is exact in float32 as well."""
    return torch.where(images.round() >= lowest, 255 - images, images)


def invert(images: Tensor) -> Tensor:
    """255 − value."""
    return images.neg_().add_(255)


def correct_gamma(images: Tensor, gamma: Values) -> Tensor:
    """Values as shares of 255 to the power of `gamma`."""
    return _power_(images, *_per_image(images.device, gamma))


def _power_(images: Tensor, exponent: Tensor) -> Tensor:
    return images.mul_(1 / 255).clamp_(0, 1).pow_(exponent).mul_(255)  # rounding may have left a value below 0


# Blur, noise and holes.


def gaussian_blur(images: Tensor, sigma: Values) -> Tensor:
    """Separable Gaussian of int(3.5 sigma) pixels to each side, mirrored at the border."""
    kernels = _gaussian_kernels(sigma)
    if kernels.shape[1] == 2:  # all are of one pixel
        return images
    return _blur_by(images, *_send(images.device, kernels.astype(np.float32)))


def _blur_by(images: Tensor, kernels: Tensor) -> Tensor:
    weights = _blur_weights(kernels, images.shape[-1])
    return _separable(images.transpose(1, 2), weights, weights)


def _gaussian_kernels(sigma: Values) -> Values:
    """(N, R + 2) weights by distance from the middle, for the widest's R; the last is 0."""
    reach = (3.5 * sigma).astype(np.int64)[:, None]
    distance = np.arange(reach.max() + 2)
    weights = np.exp(-0.5 * (distance / np.maximum(sigma, 1e-3)[:, None]) ** 2) * (distance <= reach)
    return np.asarray(weights / (2 * weights.sum(axis=1, keepdims=True) - weights[:, :1]))


def _blur_weights(kernels: Tensor, size: int) -> Tensor:
    """(N, S, S) from kernels (N, R + 2): what falls outside is added where the border mirrors it to."""
    reach = kernels.shape[1] - 2
    pixel = torch.arange(size, device=kernels.device)
    beyond = torch.arange(-reach, size + reach, device=kernels.device)
    distance = (beyond - pixel[:, None]).abs_().clamp_(max=reach + 1)
    folded = (_mirrored(beyond, size - 1)[:, None] == pixel).to(kernels.dtype)
    return kernels[:, distance] @ folded


def gaussian_noise(images: Tensor, sigma: Values, key: Values) -> Tensor:
    """Adds normal noise of sigma × 255, clipped: `augment.spec.standard_normal` of every image's key."""
    return _add_noise_(images, *_send(images.device, key, (255 * sigma).astype(np.float32)))


def _add_noise_(images: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    n, channels, size, _ = images.shape
    noise = _standard_normal(keys, size * size * channels).view(n, size, size, channels)
    return images.addcmul_(noise.permute(0, 3, 1, 2), scale[:, None, None, None]).clamp_(0, 255)


def _standard_normal(keys: Tensor, n: int) -> Tensor:
    """(N, n) of the same bits as `standard_normal`; only the uniform draws are in float64."""
    u = uniform([keys, "noise"], n + n % 2)
    radius = (1 - u[:, 0::2]).float().log_().mul_(-2).sqrt_()  # 1 − u is never 0, not even in float32
    angle = u[:, 1::2].float().mul_(2 * torch.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :n]


def cutout(images: Tensor, size: Values, x: Values, y: Values) -> Tensor:
    """Fills a square of side `size` (a share) with the image's rounded mean; x and y place it in the free room."""
    return _cut_square(images, *_per_image(images.device, *_squares(size, x, y, images.shape[-1])))


def _squares(size: Values, x: Values, y: Values, length: int) -> tuple[Values, Values, Values, Values]:
    """Top, bottom, left and right (N,) in images of `length` pixels."""
    side = np.rint(size * length)
    top, left = np.floor(y * (length - side + 1)), np.floor(x * (length - side + 1))
    return top, top + side, left, left + side


def _cut_square(images: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    across = _positions(images.shape[-1], images.device)
    down = across[:, None]
    inside = (down >= top) & (down < bottom) & (across >= left) & (across < right)
    return torch.where(inside, images.mean(dim=(2, 3), keepdim=True).round_(), images)


_FLIPPED: dict[type[Operation], int] = {operations.VerticalFlip: 0, operations.HorizontalFlip: 1}  # the window's axis

_MAPS: dict[type[Operation], Callable[..., Values]] = {
    operations.Rotation: _rotation_map,
    operations.Translation: _translation_map,
}

_APPLY: dict[type[Operation], Callable[..., Tensor]] = {
    operations.HorizontalFlip: horizontal_flip,
    operations.VerticalFlip: vertical_flip,
    operations.QuarterTurn: quarter_turn,
    operations.ColorJitter: color_jitter,
    operations.Grayscale: grayscale,
    operations.GaussianBlur: gaussian_blur,
    operations.Solarize: solarize,
    operations.Invert: invert,
    operations.Gamma: correct_gamma,
    operations.GaussianNoise: gaussian_noise,
    operations.Cutout: cutout,
}
