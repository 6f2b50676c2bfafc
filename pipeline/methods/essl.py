"""E-SSL: Dangovski et al., "Equivariant self-supervised learning", ICLR 2022: SimCLR and, on small crops, RotNet.

What SimCLR's views are made invariant to leaves the features; how an image is turned must stay in them.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict
from torch.nn import functional as F

from rayssl.pipeline.augment.defaults import rotation_view, simclr_views
from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.methods.base import Batch, Method, MethodConfig, MethodOutput, Traits
from rayssl.pipeline.methods.heads import TURNS, all_turns, build_projector, positive_similarity
from rayssl.pipeline.methods.losses import at_least_float32, nt_xent_at_chance, nt_xent_of_views
from rayssl.pipeline.models.encoder import Encoder


@dataclass(frozen=True)
class ESSLConfig(MethodConfig):
    """SimCLR's loss and head, and those of the rotations."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str = "essl"
    temperature: Annotated[float, Gt(0)] = 0.5
    projector_hidden: Annotated[int, Gt(0)] | None = None  # None: twice the encoder's dimensions
    projector_dim: Annotated[int, Gt(0)] = 128
    projector_layers: Annotated[int, Ge(2), Le(3)] = 2
    views: Annotated[int, Ge(2), Le(16)] = 2  # of every image, for SimCLR's half
    rotation_weight: Annotated[float, Ge(0)] = 0.4  # λ of equation 2; the paper's value for CIFAR-10 (§4.1)
    rotation_hidden: Annotated[int, Gt(0)] | None = None  # None: four times the encoder's dimensions


class ESSL(Method[ESSLConfig]):
    """Two views or more of an image attract each other, and four turns of one more, at half the size, are told apart.

    The four turns cost as much as one view.
    """

    Config = ESSLConfig
    smallest_batch = 2
    smallest_view = 0.5
    deterministic = True

    def __init__(self, config: ESSLConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        check_half_size(encoder)
        self.temperature = config.temperature
        self.views = config.views
        self.rotation_weight = config.rotation_weight
        self.encoder = encoder
        self.projector = build_projector(
            encoder.dim,
            config.projector_hidden or 2 * encoder.dim,
            config.projector_dim,
            layers=config.projector_layers,
        )
        self.predictor = build_projector(encoder.dim, config.rotation_hidden or 4 * encoder.dim, TURNS, layers=2)

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        """SimCLR's two views, and a small crop that is not turned."""
        given = traits.for_views()
        return (*simclr_views(**given), rotation_view(**given))

    @classmethod
    def views_for(cls, config: ESSLConfig, traits: Traits) -> tuple[Spec, ...]:
        """As many for SimCLR as the config says, and the one that is turned."""
        view, _, turned = cls.default_views(traits)
        return (*[view] * config.views, turned)

    def chance(self, images: int) -> dict[str, float]:
        """All views as alike, and four turns as likely."""
        return {
            "train/contrast_loss": nt_xent_at_chance(images, self.views),
            "train/rotation_loss": math.log(TURNS),
        }

    def forward(self, batch: Batch) -> MethodOutput:
        """NT-Xent of all views but the last, plus the weighted cross-entropy of the turns of that one."""
        *alike, turned = batch.views
        features = self.encoder(torch.cat(alike))
        projections = self.projector(features).chunk(len(alike))
        contrast = nt_xent_of_views(projections, self.temperature)
        images, turns = all_turns(F.avg_pool2d(turned, 2))
        logits = at_least_float32(self.predictor(self.encoder(images)))
        rotation = F.cross_entropy(logits, turns)
        return MethodOutput(
            loss=contrast + self.rotation_weight * rotation,
            features=features.detach(),
            logs={
                "train/positive_similarity": positive_similarity(*(z.detach() for z in projections[:2])),
                "train/contrast_loss": contrast.detach(),
                "train/rotation_loss": rotation.detach(),
                "train/rotation_accuracy": (logits.detach().argmax(dim=1) == turns).float().mean(),
            },
        )


def check_half_size(encoder: Encoder) -> None:
    """Raises UserError where the encoder cannot see the small images."""
    half = encoder.image_size // 2
    try:
        encoder.output_shape(lambda x: encoder(F.avg_pool2d(x, 2)))
    except (RuntimeError, AssertionError, ValueError):
        raise UserError(
            f"essl also shows the encoder images of {half} pixels: {encoder.name} built for "
            f"{encoder.image_size} cannot take them; use --encoder.name resnet-tiny, or larger images"
        ) from None
