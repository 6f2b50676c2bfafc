"""What a candidate's encoder is worth, on validation images: with labels, and without any.

Shapes: N images, D features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from rayssl.pipeline.augment import apply_batch
from rayssl.pipeline.augment.defaults import finetune_view
from rayssl.pipeline.base.device import autocast, to_float
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.base.vectors import knn_classify
from rayssl.pipeline.data import Images
from rayssl.pipeline.evaluation import metrics
from rayssl.pipeline.evaluation.probe import probe
from rayssl.pipeline.features.extract import embed_images, extract
from rayssl.pipeline.methods.heads import TURNS, all_turns
from rayssl.pipeline.models.encoder import Encoder

NEED_LABELS = ("knn", "probe")
WITHOUT_LABELS = ("rotation", "rankme", "alignment-uniformity")
OBJECTIVES = (*NEED_LABELS, *WITHOUT_LABELS)
# What a candidate gets whose training failed: no encoder can be worse.
WORST = {"knn": 0.0, "probe": 0.0, "rotation": 0.0, "rankme": 0.0, "alignment-uniformity": -4.0}

K, TEMPERATURE = 20, 0.07  # of kNN
ROTATED = 2_000  # images whose four turns the rotation is learned from, and as many at most to test it on
RATES, DECAYS = (0.01, 0.03, 0.1, 0.3), (1e-3,)  # of the linear classifiers, the best on validation images counts
EPOCHS = 20


@dataclass(frozen=True)
class Material:
    """An encoder and the images that it is measured on."""

    encoder: Encoder
    train: Images  # what neighbours, and the images that a classifier learns from, are taken from
    held_out: Images
    classes: int  # 0: without labels
    seed: int
    device: torch.device
    precision: str

    @cached_property
    def train_features(self) -> NDArray[np.float32]:
        """(N, D) of `train`."""
        return self._features(self.train)

    @cached_property
    def held_out_features(self) -> NDArray[np.float32]:
        """(N, D) of `held_out`."""
        return self._features(self.held_out)

    def _features(self, images: Images) -> NDArray[np.float32]:
        return embed_images(self.encoder, images, device=self.device, precision=self.precision)


def measure(material: Material, names: Sequence[str]) -> dict[str, float]:
    """Every objective of `names`, higher is better."""
    return {name: _MEASURES[name](material) for name in names}


def measurable(classes: int, held_out: Images) -> list[str]:
    """The objectives that these images allow."""
    labelled = classes > 1 and len(held_out.labelled()[0]) > 0
    return [name for name in OBJECTIVES if labelled or name not in NEED_LABELS]


def check_objective(name: str, classes: int, held_out: Images, path: str) -> None:
    """Raises UserError for an objective that needs labels where there are none."""
    if name in NEED_LABELS and name not in measurable(classes, held_out):
        raise UserError(
            f"--tune.objective {name} needs labels and {path} has none: use {', '.join(WITHOUT_LABELS)}, or give "
            "every class a folder of its own"
        )


def at_most(images: Images, count: int, seed: int) -> Images:
    """`count` of the images, drawn by the seed, or all of them."""
    return images if len(images) <= count else images.select(permutation(len(images), seed, "objective")[:count])


def knn(material: Material) -> float:
    """Accuracy by the 20 nearest training images (cosine, T = 0.07), of validation images with a label."""
    (train, train_labels), (held_out, labels) = material.train.labelled(), material.held_out.labelled()
    found = knn_classify(
        material.train_features[train],
        train_labels,
        material.held_out_features[held_out],
        min(K, len(train)),
        TEMPERATURE,
        material.classes,
    )
    return float((found == labels).mean())


def linear(material: Material) -> float:
    """Accuracy of a linear classifier on the frozen features, of validation images with a label."""
    (train, train_labels), (held_out, labels) = material.train.labelled(), material.held_out.labelled()
    known = (material.train_features[train], train_labels)
    return _fit(material, known, (material.held_out_features[held_out], labels), material.classes)


def rotation(material: Material) -> float:
    """Accuracy of a linear classifier on the frozen features that tells by how many quarters an image is turned.

    Needs no labels, and orders augmentations much as labels do (Reed et al., "SelfAugment: Automatic augmentation
    policies for self-supervised learning", CVPR 2021, section 3.1). Learned on training images, measured on validation
    ones.
    """
    train, held_out = (
        _turned_features(material, at_most(images, ROTATED, material.seed))
        for images in (material.train, material.held_out)
    )
    return _fit(material, train, held_out, TURNS)


def rankme(material: Material) -> float:
    """Effective rank of the features of validation images (Garrido et al., ICML 2023): 1 … D."""
    return metrics.rankme(material.held_out_features)


def alignment_uniformity(material: Material) -> float:
    """Minus the sum of alignment and uniformity (Wang and Isola, ICML 2020, section 4.1) on validation images.

    The two views are always mild crops, whatever the candidate's are: with views of its own the candidate that
    changes nothing would be aligned best.
    """
    images = at_most(material.held_out, ROTATED, material.seed)
    first, second = (_view_features(material, images, view) for view in (0, 1))
    return -sum(metrics.alignment_uniformity(first, second))


_MEASURES: dict[str, Callable[[Material], float]] = {
    "knn": knn,
    "probe": linear,
    "rotation": rotation,
    "rankme": rankme,
    "alignment-uniformity": alignment_uniformity,
}


def _fit(
    material: Material,
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    held_out: tuple[NDArray[np.float32], NDArray[np.int64]],
    classes: int,
) -> float:
    found = probe(
        train,
        held_out,
        held_out,
        classes=classes,
        epochs=EPOCHS,
        batch_size=512,
        learning_rates=RATES,
        weight_decays=DECAYS,
        seed=material.seed,
        device=material.device,
    )
    return found.val_accuracy


def _turned_features(material: Material, images: Images) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(4N, D) features of the images in all four turns, and the turns (4N,)."""

    def features(x: torch.Tensor) -> dict[str, torch.Tensor]:
        # (B, 4, D): the rows that leave are those that came in.
        return {"turns": material.encoder(all_turns(x)[0]).unflatten(0, (TURNS, len(x))).transpose(0, 1)}

    found = extract(material.encoder, images, features, material.device, material.precision, None)["turns"]
    return found.reshape(-1, found.shape[-1]), np.tile(np.arange(TURNS), len(images))


def _view_features(material: Material, images: Images, view: int) -> NDArray[np.float32]:
    """(N, D) features of one draw of mild crops."""
    size, channels = int(material.encoder.image_size), images.channels
    spec = finetune_view(image_size=size, channels=channels, mirror=False)
    parts = []
    for start in range(0, len(images), 256):
        rows = range(start, min(start + 256, len(images)))
        pixels = apply_batch(
            spec, [images[row] for row in rows], size=size, seed=material.seed, epoch=0, ids=images.ids[rows], view=view
        )
        parts.append(_embed_pixels(material, pixels))
    return np.concatenate(parts)


def _embed_pixels(material: Material, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode(), autocast(material.device, material.precision):
        found = material.encoder.eval()(to_float(torch.from_numpy(pixels), material.device, material.precision))
    return np.asarray(found.float().cpu().numpy(), dtype=np.float32)
