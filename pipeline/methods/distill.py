"""Distillation: from a part of an image the encoder learns to tell what a frozen teacher says of the whole of it.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, with vectors instead of class scores: no
label is seen. The teacher is a pretrained network, a run's encoder, or a classical descriptor. It sees every image
once and its vectors are kept by content; it is in no checkpoint and in no export.

Shapes: B images on this worker, N training images, D dimensions of the targets.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from pydantic import ConfigDict
from torch import Tensor
from torch.nn import functional as F

from rayssl.pipeline.augment.defaults import distill_views
from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.features.whitening import covariance
from rayssl.pipeline.methods.base import Batch, Before, Method, MethodConfig, MethodOutput, Traits
from rayssl.pipeline.methods.heads import build_projector
from rayssl.pipeline.methods.losses import at_least_float32
from rayssl.pipeline.models.descriptors import DESCRIPTORS
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.pretrained import taught_by
from rayssl.pipeline.models.teachers import build_teacher, choose_teacher


@dataclass(frozen=True)
class DistillConfig(MethodConfig):
    """The teacher, its targets, and the projection head, which is thrown away after training."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str = "distill"
    teacher: str | None = None  # an encoder's name, or a descriptor's; None: the best on this machine
    teacher_weights: str | None = None  # as --encoder.weights; of a run folder the name need not be given
    dim: Annotated[int, Gt(0)] = 256  # of the targets: the teacher's principal directions, whitened
    shrinkage: Annotated[float, Gt(0)] = 1.0  # of the whitening, in units of the mean variance
    projector_hidden: Annotated[int, Gt(0)] = 512
    projector_layers: Annotated[int, Ge(2), Le(3)] = 2


class Distill(Method[DistillConfig]):
    """The cosine between what the projector makes of a view and the teacher's whitened vector of the image."""

    Config = DistillConfig
    deterministic = True
    ids: Tensor  # (N,) int64, sorted
    targets: Tensor  # (N, D) of unit length, in the order of `ids`

    def __init__(self, config: DistillConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        self.config = config
        self.encoder = encoder
        self.projector = build_projector(
            encoder.dim, config.projector_hidden, config.dim, layers=config.projector_layers
        )
        # They go where the method goes, and are in no state_dict.
        self.register_buffer("ids", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("targets", torch.empty(0, config.dim), persistent=False)

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        """One view: most of the image, mirrored where that means the same."""
        return distill_views(**traits.for_views())

    @classmethod
    def settle(cls, config: DistillConfig, before: DistillConfig | None = None) -> DistillConfig:
        """A config that names its teacher and the weights: as `before` does, else those on this machine."""
        if config.teacher_weights is not None and os.path.exists(config.teacher_weights):
            config = replace(config, teacher_weights=str(Path(config.teacher_weights).absolute()))
        if config.teacher_weights is not None or config.teacher in DESCRIPTORS:
            return config
        if before is not None and config.teacher in (None, before.teacher):
            return replace(config, teacher=before.teacher, teacher_weights=before.teacher_weights)
        teacher, weights = choose_teacher(config.teacher)
        return replace(config, teacher=teacher, teacher_weights=weights)

    def prepare(self, before: Before) -> None:
        """Let the teacher see the images, and keep what it says of them as targets."""
        config, encoder = self.config, self.encoder
        teacher = build_teacher(
            config.teacher, config.teacher_weights, channels=encoder.channels, image_side=encoder.image_size
        )
        if isinstance(teacher, Encoder):
            encoder.origins += taught_by(teacher)
        order = np.argsort(before.ids)
        targets = targets_of(before.features(teacher), config.dim, config.shrinkage)[order]
        self.ids = torch.from_numpy(before.ids[order])
        # Rank 0's: processors differ in the last bit of a decomposition.
        self.targets = torch.from_numpy(collectives.broadcast_object(targets))

    def forward(self, batch: Batch) -> MethodOutput:
        """The mean over the images of 1 − cosine; a function of the views and ids."""
        features = self.encoder(batch.views[0])
        predicted = at_least_float32(self.projector(features))
        similarity = F.cosine_similarity(predicted, self.targets_for(batch.ids), dim=1)
        return MethodOutput(
            loss=1 - similarity.mean(),
            features=features.detach(),
            logs={"train/teacher_similarity": similarity.detach().mean()},
        )

    def chance(self, images: int) -> dict[str, float]:
        """The best that can be said without looking is as near to one target as to the opposite."""
        return {"train/loss": 1.0}

    def targets_for(self, ids: Tensor) -> Tensor:
        """(B, D) targets of the images with these ids (B,)."""
        return self.targets[torch.searchsorted(self.ids, ids)]


def targets_of(features: NDArray[np.float32], dim: int, shrinkage: float) -> NDArray[np.float32]:
    """(N, D) float32 of unit length: features in their principal directions, every one of which varies about alike.

    The variance λ of a direction becomes λ / (λ + shrinkage · mean λ), as in `features.whitening`. Features of
    fewer than `dim` numbers leave the last ones at zero.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    # By torch, whose threads are those that training was given.
    found = torch.linalg.eigh(torch.from_numpy(covariance(features, mean)))
    variances, directions = found[0].numpy().clip(min=0)[::-1], found[1].numpy()[:, ::-1][:, :dim]
    # A direction and its opposite are as good: the one whose largest part is positive.
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    scales = np.sign(largest) / np.sqrt(variances[:dim] + shrinkage * variances.mean() + np.finfo(np.float32).tiny)
    matrix = (directions * scales).astype(np.float32)
    targets = np.zeros((len(features), dim), np.float32)
    targets[:, : matrix.shape[1]] = np.matmul(features - mean.astype(np.float32), matrix)
    return normalise(targets)
