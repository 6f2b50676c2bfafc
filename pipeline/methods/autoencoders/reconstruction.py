"""How far a reconstruction is from the clean image, one figure an image.

Shapes: `logits` (B, C, H, W) are what the decoder's last layer gives; `x` (B, C, H, W) in [0, 1]; results (B,).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from rayssl.pipeline.base import randomness_torch

Output = Callable[[Tensor], Tensor]  # the decoder's last non-linearity
Reconstruction = Callable[[Tensor, Tensor], Tensor]

OUTPUTS: dict[str, Output] = {"sigmoid": torch.sigmoid, "none": lambda logits: logits}
# Logarithms of a probability, so that they bound the likelihood once the KL is added; the others are means over pixels.
LIKELIHOODS = ("bce", "gaussian")


def build_reconstruction(name: str, output: str, sigma: float) -> Reconstruction:
    """The loss of each image, by name; `sigma` is the Gaussian's standard deviation, of pixels in [0, 1]."""
    to_image = OUTPUTS[output]
    if name == "bce":
        return bernoulli
    return partial({"mse": mean_squares, "rmse": root_mean_squares, "gaussian": gaussian(sigma)}[name], to_image)


def mean_squares(to_image: Output, logits: Tensor, x: Tensor) -> Tensor:
    """mean (x̂ − x)² over an image's pixels."""
    return (to_image(logits) - x).square().flatten(1).mean(dim=1)


def root_mean_squares(to_image: Output, logits: Tensor, x: Tensor) -> Tensor:
    """√ mean (x̂ − x)² over an image's pixels; the tiny constant keeps the gradient finite at a perfect image."""
    return (mean_squares(to_image, logits, x) + 1e-12).sqrt()


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """−log p(x | x̂) for pixels that are probabilities: binary cross-entropy summed over an image's pixels, in nats."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(dim=1)


def gaussian(sigma: float) -> Callable[[Output, Tensor, Tensor], Tensor]:
    """−log N(x; x̂, σ²) summed over an image's pixels, in nats."""
    constant = 0.5 * math.log(2 * math.pi) + math.log(sigma)

    def loss(to_image: Output, logits: Tensor, x: Tensor) -> Tensor:
        squares = (to_image(logits) - x).square().flatten(1)
        return squares.sum(dim=1) / (2 * sigma**2) + constant * squares.shape[1]

    return loss


def told_of_binarisation(how: str) -> str:
    """For records of a likelihood."""
    return f"{'no' if how == 'none' else how} binarisation"


def binarise(x: Tensor, how: str, key: list[int | str | Tensor]) -> Tensor:
    """Images (B, C, H, W) of 0 and 1. static: what is at least ½ is 1. dynamic: 1 with probability x, drawn by `key`.

    none: as they are. Salakhutdinov and Murray, "On the quantitative analysis of deep belief networks", ICML 2008,
    draw dynamically.
    """
    if how == "none":
        return x
    if how == "static":
        return (x >= 0.5).to(x.dtype)
    drawn = randomness_torch.uniform([*key, "binarize"], x[0].numel()).view(x.shape)
    return (drawn.to(x.dtype) < x).to(x.dtype)
