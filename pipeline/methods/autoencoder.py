"""Denoising convolutional autoencoder: corruption → encoder → bottleneck → decoder, each a part of its own.

Vincent et al., "Stacked denoising autoencoders", JMLR 2010. The loss always compares with the clean image.
Shapes: B images, C channels, H × W pixels; the encoder's last map is (B, D, h, w).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import randomness_torch
from pipeline.augment.defaults import autoencoder_views
from pipeline.augment.spec import Spec
from pipeline.encoders import Encoder
from pipeline.losses import at_least_float32
from pipeline.methods.base import Batch, Method, MethodOutput, Traits

Key = list[int | str | Tensor]  # parts of a random key

MIN_WIDTH = 16  # channels of the decoder's last and narrowest stage


@dataclass(frozen=True)
class AutoencoderConfig:
    """What is done to the input, and how narrow the way through the network is."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    corruption: Literal["gaussian", "masking", "none"] = "masking"
    noise: Annotated[float, Gt(0)] = 0.4  # gaussian: standard deviation, of pixels in [0, 1]
    share: Annotated[float, Gt(0), Le(1)] = (
        0.25  # masking: of the image set to 0 (Vincent et al., 2010: about the best)
    )
    patch: Annotated[int, Ge(1)] = 1  # masking: side in pixels of the squares that are masked
    latent_dim: Annotated[int, Gt(0)] | None = None  # a vector between encoder and decoder; None: the encoder's map


class Autoencoder(Method[AutoencoderConfig]):
    """Reconstruct the clean image from a corrupted one."""

    Config = AutoencoderConfig
    passes = 2  # the decoder costs about as much as the encoder
    any_size = False  # a code has so many numbers for one size

    def __init__(self, config: AutoencoderConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        self.config = config
        self.encoder = encoder
        depth, height, width = map_shape(encoder, traits.channels, traits.image_size)
        self.bottleneck = build_bottleneck((depth, height, width), config.latent_dim)
        self.decoder = Decoder(depth, traits.channels, stages=count_halvings(traits.image_size, height))

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        """One view: the clean image."""
        return autoencoder_views(image_size=traits.image_size, channels=traits.channels, mirror=traits.mirror)

    def forward(self, batch: Batch) -> MethodOutput:
        """Mean squared error between the reconstruction of the corrupted image and the clean image."""
        clean = batch.views[0]
        found = self.encoder.feature_map(self.corrupt(clean, batch.ids, batch.seed, batch.epoch))
        reconstruction = at_least_float32(self._decode(found, clean))
        return MethodOutput(
            loss=F.mse_loss(reconstruction, clean),
            features=found.detach().mean(dim=(2, 3)),
            logs={},
        )

    def corrupt(self, x: Tensor, ids: Tensor, seed: int, epoch: int) -> Tensor:
        """A corrupted copy of the images (B, C, H, W) in [0, 1], a function of (seed, epoch, id) alone."""
        key: Key = [seed, epoch, ids, 0, "corruption"]
        if self.config.corruption == "gaussian":
            return add_gaussian_noise(x, self.config.noise, key)
        if self.config.corruption == "masking":
            return mask_patches(x, self.config.share, self.config.patch, key)
        return x

    def reconstruct(self, x: Tensor) -> Tensor:
        """Encode and decode images (B, C, H, W) as they are: (B, C, H, W) in [0, 1]."""
        return self._decode(self.encoder.feature_map(x), x)

    def _decode(self, found: Tensor, image: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.bottleneck(found), image.shape[-2:])
        return decoded


class Decoder(nn.Module):
    """Mirror of an encoder that halves the image `stages` times: (B, D, h, w) → (B, C, H, W) in [0, 1], for any H × W.

    A stage is up-sampling to the exact size, a 3×3 convolution, BatchNorm and ReLU; the width halves with every stage.
    Resizing before convolving leaves no checkerboard (Odena et al., "Deconvolution and checkerboard artifacts", 2016).
    """

    def __init__(self, depth: int, channels: int, *, stages: int) -> None:
        super().__init__()
        widths = [depth] + [max(MIN_WIDTH, depth >> (stage + 1)) for stage in range(stages)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width_in, width_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.ReLU(inplace=True),
            )
            for width_in, width_out in pairwise(widths)
        )
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Decode to images of `size` (H, W)."""
        for number, stage in enumerate(self.stages):
            x = stage(F.interpolate(x, size=halved(size, len(self.stages) - 1 - number), mode="nearest"))
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="nearest")
        return torch.sigmoid(self.to_image(x))


def build_bottleneck(shape: tuple[int, int, int], latent_dim: int | None) -> nn.Module:
    """From the encoder's map (B, D, h, w) through a vector of `latent_dim` back to the shape; None: straight on."""
    if latent_dim is None:
        return nn.Identity()
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, latent_dim), nn.Linear(latent_dim, size), nn.Unflatten(1, shape))


def add_gaussian_noise(x: Tensor, strength: float, key: Key) -> Tensor:
    """x + strength · N(0, 1) for every pixel and channel, clipped to [0, 1]."""
    noise = randomness_torch.normal(key, x[0].numel(), dtype=x.dtype).view(x.shape)
    return (x + strength * noise).clamp_(0, 1)


def mask_patches(x: Tensor, share: float, patch: int, key: Key) -> Tensor:
    """Squares of `patch` × `patch` pixels set to 0 in all channels, each with probability `share`."""
    rows, columns = (-(-side // patch) for side in x.shape[-2:])
    kept = (randomness_torch.uniform(key, rows * columns) >= share).to(x.dtype).view(-1, 1, rows, columns)
    kept = kept.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    return x * kept[:, :, : x.shape[2], : x.shape[3]]


def map_shape(encoder: Encoder, channels: int, image_size: int) -> tuple[int, int, int]:
    """(D, h, w) of the encoder's last map, found by a dry run in eval mode."""
    training = encoder.training
    like = next(encoder.parameters())
    blank = torch.zeros((1, channels, image_size, image_size), dtype=like.dtype, device=like.device)
    with torch.no_grad():
        found = encoder.eval().feature_map(blank)
    encoder.train(training)
    depth, height, width = found.shape[1:]
    return depth, height, width


def halved(size: tuple[int, int], times: int) -> tuple[int, int]:
    """What a stride of 2 leaves of (H, W) after so many times, rounding up."""
    return -(-size[0] // 2**times), -(-size[1] // 2**times)


def count_halvings(size: int, target: int) -> int:
    """How often `size` must be halved, rounding up, to be at most `target`."""
    times = 0
    while size > target:
        size, times = -(-size // 2), times + 1
    return times
