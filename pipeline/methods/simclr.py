"""SimCLR: Chen, Kornblith, Norouzi and Hinton, "A simple framework for contrastive learning", ICML 2020."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict

from rayssl.pipeline.augment.defaults import simclr_views
from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.methods.base import Batch, Method, MethodConfig, MethodOutput, Traits
from rayssl.pipeline.methods.heads import build_projector, positive_similarity
from rayssl.pipeline.methods.losses import nt_xent_at_chance, nt_xent_of_views
from rayssl.pipeline.models.encoder import Encoder


@dataclass(frozen=True)
class SimCLRConfig(MethodConfig):
    """The loss and the projection head, which is thrown away after training."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str = "simclr"
    temperature: Annotated[float, Gt(0)] = 0.5
    projector_hidden: Annotated[int, Gt(0)] | None = None  # None: twice the encoder's dimensions
    projector_dim: Annotated[int, Gt(0)] = 128
    projector_layers: Annotated[int, Ge(2), Le(3)] = 2  # 3: SimCLR v2 (Chen et al., 2020, §2)
    views: Annotated[int, Ge(2), Le(16)] = 2  # of every image; a step costs as much as with fewer images and two views


class SimCLR(Method[SimCLRConfig]):
    """The views of an image, usually two, attract each other and repel those of all others of the global batch."""

    Config = SimCLRConfig
    smallest_batch = 2
    deterministic = True

    def __init__(self, config: SimCLRConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        self.temperature = config.temperature
        self.views = config.views
        self.encoder = encoder
        self.projector = build_projector(
            encoder.dim,
            config.projector_hidden or 2 * encoder.dim,
            config.projector_dim,
            layers=config.projector_layers,
        )

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        """Two draws of the same strong augmentation."""
        return simclr_views(**traits.for_views())

    @classmethod
    def views_for(cls, config: SimCLRConfig, traits: Traits) -> tuple[Spec, ...]:
        """As many draws as the config says."""
        return cls.default_views(traits)[:1] * config.views

    def chance(self, images: int) -> dict[str, float]:
        """All views as alike."""
        return {"train/loss": nt_xent_at_chance(images, self.views)}

    def forward(self, batch: Batch) -> MethodOutput:
        """NT-Xent of all views."""
        features = self.encoder(torch.cat(batch.views))
        projections = self.projector(features).chunk(len(batch.views))
        return MethodOutput(
            loss=nt_xent_of_views(projections, self.temperature),
            features=features.detach(),
            logs={"train/positive_similarity": positive_similarity(*(z.detach() for z in projections[:2]))},
        )
