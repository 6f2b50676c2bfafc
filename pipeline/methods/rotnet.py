"""RotNet: Gidaris, Singh and Komodakis, "Unsupervised representation learning by predicting image rotations", 2018."""

import math
from dataclasses import dataclass

from pydantic import ConfigDict
from torch import nn
from torch.nn import functional as F

from rayssl.pipeline.augment.defaults import rotnet_views
from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.methods.base import Batch, Method, MethodConfig, MethodOutput, Traits
from rayssl.pipeline.methods.heads import TURNS, all_turns
from rayssl.pipeline.methods.losses import at_least_float32
from rayssl.pipeline.models.encoder import Encoder


@dataclass(frozen=True)
class RotNetConfig(MethodConfig):
    """Nothing to choose: four turns, one linear classifier."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str = "rotnet"


class RotNet(Method[RotNetConfig]):
    """Every image is turned by 0°, 90°, 180° and 270°; the network tells by how much."""

    Config = RotNetConfig
    encoder_passes = TURNS
    deterministic = True

    def __init__(self, config: RotNetConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.dim, TURNS)

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        """One view, upright: mild crops and no turns but this method's own."""
        return rotnet_views(
            image_size=traits.image_size, channels=traits.channels, mirror=traits.mirror, crop=traits.crop
        )

    def chance(self, images: int) -> dict[str, float]:
        """Four turns are as likely."""
        return {"train/loss": math.log(TURNS)}

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
