"""RotNet: Gidaris, Singh and Komodakis, "Unsupervised representation learning by predicting image rotations", 2018."""

from dataclasses import dataclass

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.augment.defaults import rotnet_views
from pipeline.augment.spec import Spec
from pipeline.encoders import Encoder
from pipeline.losses import at_least_float32
from pipeline.methods.base import Batch, Method, MethodOutput, Traits

TURNS = 4


@dataclass(frozen=True)
class RotNetConfig:
    """Nothing to choose: four turns, one linear classifier."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


class RotNet(Method[RotNetConfig]):
    """Every image is turned by 0°, 90°, 180° and 270°; the network tells by how much."""

    Config = RotNetConfig
    passes = TURNS

    def __init__(self, config: RotNetConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.dim, TURNS)

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        """One view, upright: mild crops and no turns but this method's own."""
        return rotnet_views(image_size=traits.image_size, channels=traits.channels, mirror=traits.mirror)

    def forward(self, batch: Batch) -> MethodOutput:
        """Cross-entropy of the turn; the four turns of an image are in one batch (§2.2 of the paper), which is 4B."""
        images, turns = all_turns(batch.views[0])
        features = self.encoder(images)
        logits = at_least_float32(self.classifier(features))
        accuracy = (logits.detach().argmax(dim=1) == turns).to(logits.dtype).mean()
        return MethodOutput(
            loss=F.cross_entropy(logits, turns),
            features=features.detach(),
            logs={"train/rotation_accuracy": accuracy},
        )


def all_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, S, S) → (4B, C, S, S) and (4B,): all images turned by k · 90° counter-clockwise, and k, for k = 0 … 3."""
    turned = torch.cat([torch.rot90(images, k, dims=(2, 3)) for k in range(TURNS)])
    turns = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
    # A turned view has other strides, so `cat` would lose the layout that convolutions are fastest in.
    return turned.contiguous(memory_format=torch.channels_last), turns
