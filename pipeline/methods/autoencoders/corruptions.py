"""What is done to the input of an autoencoder; the loss always compares with the clean image.

A corruption is a function of (seed, epoch, sample id) alone. Shapes: images (B, C, H, W) in [0, 1]. A new one is one
class here and one line in CORRUPTIONS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rayssl.pipeline.base import randomness_torch
from rayssl.pipeline.base.errors import UserError

Key = list[int | str | Tensor]  # parts of a random key


class Corruption(Protocol):
    """Images (B, C, H, W) and a key of their ids (B,) to a corrupted copy."""

    def __call__(self, x: Tensor, key: Key) -> Tensor: ...


@dataclass(frozen=True)
class Clean:
    """Nothing is done."""

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        return x


@dataclass(frozen=True)
class GaussianNoise:
    """x + noise · N(0, 1) for every pixel and channel, clipped to [0, 1]."""

    noise: float

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        drawn = randomness_torch.normal(key, x[0].numel(), dtype=x.dtype).view(x.shape)
        return (x + self.noise * drawn).clamp_(0, 1)


@dataclass(frozen=True)
class SaltAndPepper:
    """A share of the pixels set to 0 or 1, in all channels, as likely to either (Vincent et al., JMLR 2010, §4.3)."""

    share: float

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        drawn = randomness_torch.uniform(key, x.shape[2] * x.shape[3]).view(-1, 1, *x.shape[2:])
        spoilt = (drawn < self.share / 2).to(x.dtype)  # the first half of the share becomes 1, the second 0
        return torch.where(drawn < self.share, spoilt, x)


@dataclass(frozen=True)
class Masking:
    """Squares of `patch` × `patch` pixels set to 0 in all channels, each with probability `share`."""

    share: float
    patch: int = 1

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        rows, columns = (-(-side // self.patch) for side in x.shape[-2:])
        kept = (randomness_torch.uniform(key, rows * columns) >= self.share).to(x.dtype).view(-1, 1, rows, columns)
        kept = kept.repeat_interleave(self.patch, dim=2).repeat_interleave(self.patch, dim=3)
        return x * kept[:, :, : x.shape[2], : x.shape[3]]


CORRUPTIONS: dict[str, Callable[[float, float, int], Corruption]] = {
    "none": lambda noise, share, patch: Clean(),
    "gaussian": lambda noise, share, patch: GaussianNoise(noise),
    "salt-and-pepper": lambda noise, share, patch: SaltAndPepper(share),
    "masking": lambda noise, share, patch: Masking(share, patch),
}


def build_corruption(name: str, *, noise: float, share: float, patch: int, image_size: int) -> Corruption:
    """A corruption by name; raises UserError for a patch that is larger than the image."""
    if patch > image_size:
        raise UserError(f"--method.patch is {patch}: images have {image_size} pixels a side, give at most as many")
    return CORRUPTIONS[name](noise, share, patch)
