"""Fine-tuning: the encoder and a new linear head trained together on few labelled images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rayssl.pipeline.augment.defaults import finetune_view
from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.methods.base import Batch, Method, MethodOutput, Traits
from rayssl.pipeline.methods.losses import at_least_float32
from rayssl.pipeline.models.encoder import Encoder


@dataclass(frozen=True)
class ClassifierConfig:
    """The classifier's only hyper-parameter is its number of classes."""

    classes: int


class Classifier(Method[ClassifierConfig]):
    """Encoder and linear head under cross-entropy: what the training loop sees when it fine-tunes."""

    Config = ClassifierConfig

    def __init__(self, config: ClassifierConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, config.classes)
        nn.init.zeros_(self.head.weight)  # the first gradients come from the data, not from a random head
        nn.init.zeros_(self.head.bias)

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        return (finetune_view(image_size=traits.image_size, channels=traits.channels, mirror=traits.mirror),)

    def forward(self, batch: Batch) -> MethodOutput:
        """Mean cross-entropy of this worker's slice."""
        assert batch.labels is not None
        features = self.encoder(batch.views[0])
        scores = self.head(features)
        loss = nn.functional.cross_entropy(at_least_float32(scores), batch.labels)
        accuracy = (scores.argmax(dim=1) == batch.labels).float().mean()
        return MethodOutput(loss, features.detach(), {"train/accuracy": accuracy.detach()})


def draw_labelled(
    labels: NDArray[np.int64], *, fraction: float, per_class: int | None, seed: int, draw: int
) -> NDArray[np.int64]:
    """Positions of a stratified random subset, at least one image of every class.

    Raises UserError where a class has fewer than `per_class` images.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(members))) if per_class is None else per_class
        if count > len(members):
            raise UserError(
                f"--finetune.labels-per-class is {per_class}: class {label} has only {len(members)} training images"
            )
        chosen.append(members[permutation(len(members), seed, "labelled", draw, int(label))[:count]])
    return np.sort(np.concatenate(chosen))


@torch.inference_mode()
def predict(classifier: Classifier, pixels: Any) -> NDArray[np.int64]:
    """Predicted classes (B,) of images (B, C, H, W) in [0, 1]."""
    classifier.eval()
    features = classifier.encoder(pixels).to(classifier.head.weight.dtype)
    return classifier.head(features).argmax(dim=1).cpu().numpy()  # type: ignore[no-any-return]
