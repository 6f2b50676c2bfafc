"""PixelCNN: van den Oord et al., "Conditional image generation with PixelCNN decoders", NeurIPS 2016.

p(x) = Π p(x_i | x_<i), pixels row by row, colours in order within a pixel. Shapes: B images, C channels, H × W pixels,
L levels of a value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.pipeline.augment.defaults import autoencoder_views
from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.base import randomness_torch
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.methods.autoencoders.reconstruction import binarise, told_of_binarisation
from rayssl.pipeline.methods.base import Batch, Key, Method, MethodConfig, MethodOutput, Traits
from rayssl.pipeline.methods.losses import at_least_float32
from rayssl.pipeline.models.backbones import MaskedConv2d, PixelCnn
from rayssl.pipeline.models.encoder import Encoder


@dataclass(frozen=True)
class PixelCNNConfig(MethodConfig):
    """How finely a pixel's value is told."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str = "pixelcnn"
    levels: Annotated[int, Ge(2), Le(256)] = 256  # values a pixel may have; 256: all of them
    binarize: Literal["none", "static", "dynamic"] = "none"  # of the images; then there are two levels


class PixelCNN(Method[PixelCNNConfig]):
    """The exact likelihood of every value of an image, given those before it."""

    Config = PixelCNNConfig
    exports_decoder = True

    def __init__(self, config: PixelCNNConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        if not isinstance(encoder.net, PixelCnn):
            raise UserError(f"PixelCNN needs a masked encoder, not {encoder.name}: use --encoder.name pixelcnn")
        self.config = config
        self.reach: int = encoder.net.reach
        self.levels = 2 if config.binarize != "none" else config.levels
        self.likelihood_protocol = f"{told_of_binarisation(config.binarize)}, exact for {self.levels} levels"
        self.encoder = encoder
        self.traits = traits
        width, colours = encoder.dim, traits.channels
        self.head = nn.Sequential(
            nn.ReLU(),
            MaskedConv2d("B", width, width, 1, colours),
            nn.ReLU(),
            MaskedConv2d("B", width, colours * self.levels, 1, colours),
        )

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        """One view: the clean image."""
        return autoencoder_views(image_size=traits.image_size, channels=traits.channels, mirror=traits.mirror)

    def forward(self, batch: Batch) -> MethodOutput:
        """Bits a value, mean over values and images."""
        values = self.quantise(batch.views[0], [batch.seed, batch.epoch, batch.ids, 0])
        logits, features = self.predict(values)
        loss = F.cross_entropy(logits, values) / math.log(2)
        nats = loss.detach() * math.log(2) * values[0].numel()
        return MethodOutput(loss, features.detach().mean(dim=(2, 3)), {"train/nats": nats})

    def quantise(self, x: Tensor, key: Key) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to values 0 … L − 1, int64; dynamic binarisation draws by `key`."""
        seen = binarise(x, self.config.binarize, key)
        return (seen * self.levels).long().clamp_(0, self.levels - 1)

    def to_images(self, values: Tensor) -> Tensor:
        """Values (B, C, H, W) in 0 … L − 1 to floats in [0, 1]."""
        return values.to(self.encoder.mean.dtype) / (self.levels - 1)

    def predict(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, L, C, H, W) of every value given those before it, and the last map (B, D, H, W)."""
        found = self.encoder.feature_map(self.to_images(values))
        logits = at_least_float32(self.head(found))
        by_colour = logits.view(len(logits), self.traits.channels, self.levels, *logits.shape[2:])
        return by_colour.transpose(1, 2), found

    def nats(self, x: Tensor, key: Key) -> Tensor:
        """−log p(x) of images (B, C, H, W), (B,), exact for their values."""
        values = self.quantise(x, key)
        logits, _ = self.predict(values)
        return F.cross_entropy(logits, values, reduction="none").double().flatten(1).sum(dim=1)

    @torch.inference_mode()
    def sample(self, count: int, seed: int, progress: Callable[[int, int], None]) -> Tensor:
        """`count` images (count, C, H, W) in [0, 1], value by value; a function of the seed.

        A value costs a pass over the rows that it can see. `progress` counts rows.
        """
        size, channels, device = self.traits.image_size, self.traits.channels, self.encoder.mean.device
        values = torch.zeros((count, channels, size, size), dtype=torch.int64, device=device)
        ids = torch.arange(1, count + 1, device=device)
        drawn = randomness_torch.uniform([seed, "sample", ids], channels * size * size)
        drawn = drawn.view(count, channels, size, size)
        for row in range(size):
            first = max(0, row - self.reach)
            for column in range(size):
                for colour in range(channels):
                    logits, _ = self.predict(values[:, :, first : row + 1])
                    chances = logits[:, :, colour, row - first, column].double().softmax(dim=1).cumsum(dim=1)
                    below = chances < drawn[:, colour, row, column, None]
                    values[:, colour, row, column] = below.sum(dim=1).clamp_(max=self.levels - 1)
            progress(row + 1, size)
        return self.to_images(values)
