"""BYOL: Grill et al., "Bootstrap your own latent: a new approach to self-supervised learning", NeurIPS 2020."""

import copy
import math
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rayssl.pipeline.augment.defaults import simclr_views
from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.methods.base import Batch, Method, MethodConfig, MethodOutput, Traits
from rayssl.pipeline.methods.heads import build_projector, positive_similarity
from rayssl.pipeline.methods.losses import at_least_float32
from rayssl.pipeline.models.encoder import Encoder


@dataclass(frozen=True)
class BYOLConfig(MethodConfig):
    """The heads, which are thrown away after training, and the moving average."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str = "byol"
    momentum: Annotated[float, Ge(0), Le(1)] = 0.996  # τ of the first step; it grows to 1
    hidden: Annotated[int, Gt(0)] | None = None  # of projector and predictor; None: twice the encoder's dimensions
    projector_dim: Annotated[int, Gt(0)] = 256


class BYOL(Method[BYOLConfig]):
    """From one view of an image, predict what a moving average of the network makes of the other.

    The average is a target without gradients, whose BatchNorm normalises by its own batches as the network's does.
    """

    Config = BYOLConfig
    encoder_passes = 4 / 3  # the target has no backward pass, which is two thirds of a step
    smallest_batch = 2
    deterministic = True

    def __init__(self, config: BYOLConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        self.momentum = config.momentum
        hidden = config.hidden or 2 * encoder.dim
        self.encoder = encoder
        self.projector = build_projector(encoder.dim, hidden, config.projector_dim, layers=2)
        self.predictor = build_projector(config.projector_dim, hidden, config.projector_dim, layers=2)
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        """SimCLR's, of which the paper's differ by a solarised view and the share that is blurred."""
        return simclr_views(**traits.for_views())

    def train(self, mode: bool = True) -> Self:
        """Where a part of the encoder keeps its statistics, so does that of the target."""
        super().train(mode)
        if mode:
            for own, followed in zip(self.target_encoder.modules(), self.encoder.modules(), strict=True):
                own.training = followed.training
        return self

    def forward(self, batch: Batch) -> MethodOutput:
        """Equation 2 of two views, both ways."""
        images = torch.cat(batch.views[:2])
        features = self.encoder(images)
        predictions = at_least_float32(self.predictor(self.projector(features))).chunk(2)
        with torch.no_grad():
            targets = at_least_float32(self.target_projector(self.target_encoder(images))).chunk(2)
        loss = normalised_error(predictions[0], targets[1]) + normalised_error(predictions[1], targets[0])
        return MethodOutput(
            loss=loss,
            features=features.detach(),
            logs={"train/positive_similarity": positive_similarity(*(p.detach() for p in predictions))},
        )

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        """The target moves towards the network: ξ ← τξ + (1 − τ)θ."""
        average = get_ema_multi_avg_fn(momentum_at(step, total_steps, self.momentum))  # type: ignore[no-untyped-call]
        target = [*self.target_encoder.parameters(), *self.target_projector.parameters()]
        average(target, [*self.encoder.parameters(), *self.projector.parameters()], None)


def normalised_error(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of (B, D) scaled to unit length, 2 − 2 cos: 0 … 4. Equation 2."""
    return 2 - 2 * F.cosine_similarity(prediction, target, dim=1).mean()


def momentum_at(step: int, total_steps: int, base: float) -> float:
    """τ after a step, 0 … total_steps − 1: from `base` to 1 along a half cosine. Section 3.3."""
    return 1 - (1 - base) * (math.cos(math.pi * step / total_steps) + 1) / 2
