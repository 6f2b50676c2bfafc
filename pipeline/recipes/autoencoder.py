"""The recipes of the autoencoder family: every system on MNIST, on CIFAR-10 and on a folder of your own images.

A system is an encoder, a corruption, a bottleneck and a reconstruction loss; every other combination is a flag away.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rayssl.pipeline.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EncoderConfig,
    FinetuneConfig,
    ProbeConfig,
    TrainConfig,
    method_config,
)

CODE = {"mnist": 32, "cifar10": 128, "folder": 128}
NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "folder": "a folder of your own images"}


@dataclass(frozen=True)
class System:
    """What a recipe is made of; `encoder` empty: mlp on MNIST and conv elsewhere, with a code of the data's size."""

    summary: str
    method: dict[str, Any]
    encoder: str = ""
    latent_dim: int | None = None
    train: dict[str, Any] = field(default_factory=dict)
    by_data: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the method, for some data
    name: str = "autoencoder"


SYSTEMS: dict[str, System] = {
    "linear": System(
        "A linear autoencoder without any non-linearity: it can do what PCA does.",
        {"corruption": "none", "output": "none"},
        "linear",
        train={"learning_rate": 5e-3, "weight_decay": 0.0},
    ),
    "deep": System("A deep autoencoder: three fully connected layers each way.", {"corruption": "none"}, "deep"),
    "conv": System(
        "A convolutional autoencoder: strided convolutions down, transposed ones up.", {"corruption": "none"}, "conv"
    ),
    "denoising-gaussian": System(
        "A denoising autoencoder: Gaussian noise of 0.4 on the input.", {"corruption": "gaussian", "noise": 0.4}
    ),
    "denoising-salt-and-pepper": System(
        "A denoising autoencoder: a quarter of the pixels black or white.",
        {"corruption": "salt-and-pepper", "share": 0.25},
    ),
    "denoising-masking": System(
        "A denoising autoencoder: a quarter of the pixels missing.", {"corruption": "masking", "share": 0.25}
    ),
    "sparse-kl": System(
        "A sparse autoencoder: mean activities near 0.05 by the KL penalty.",
        {"corruption": "none", "bottleneck": "sparse", "sparsity": "kl", "penalty": 1e-3},
    ),
    "sparse-log": System(
        "A sparse autoencoder: the penalty log(1 + p²) on mean activities.",
        {"corruption": "none", "bottleneck": "sparse", "sparsity": "log", "penalty": 1e-3},
    ),
    "sparse-l1": System(
        "A sparse autoencoder: the sum of activities as penalty.",
        {"corruption": "none", "bottleneck": "sparse", "sparsity": "l1", "penalty": 3e-4},
    ),
    "contractive": System(
        "A contractive autoencoder: the Jacobian of the encoder as penalty.",
        {"corruption": "none", "bottleneck": "contractive", "penalty": 1e-4},
    ),
    "vae": System(
        "A variational autoencoder with the Bernoulli likelihood.",
        {"corruption": "none", "bottleneck": "variational", "reconstruction": "bce", "kl_warmup_epochs": 2},
        by_data={"mnist": {"binarize": "dynamic"}},  # as the published likelihoods have it
    ),
    "cvae": System(
        "A variational autoencoder that is given the label and can draw a class.",
        # The KL counts from the start: what it keeps out of the code, the label has to tell.
        {"corruption": "none", "bottleneck": "conditional", "reconstruction": "bce"},
    ),
    "pixelcnn": System(
        "A gated PixelCNN: the exact likelihood of every pixel given those before it.",
        {"levels": 256},
        "pixelcnn",
        train={"batch_size": 64, "learning_rate": 2e-3, "clip_grad": 1.0},
        by_data={"mnist": {"binarize": "dynamic"}},
        name="pixelcnn",
    ),
}
LARGER = {"conv": {"mnist": 64}}  # the code of the notes' reference


def build(system: System, key: str, data: str) -> Config:
    """The Config of a system on a data set."""
    encoder = system.encoder or ("mlp" if data == "mnist" else "conv")
    code = None if encoder == "pixelcnn" else LARGER.get(key, {}).get(data, CODE[data])
    train = {
        "epochs": 10, "batch_size": 128, "optimizer": "adamw", "learning_rate": 1e-3,
        "weight_decay": 1e-5, "warmup_epochs": 0.2, "clip_grad": 100.0, **system.train,
    }  # fmt: skip
    return Config(
        method=method_config(system.name, **{**system.method, **system.by_data.get(data, {})}),
        data=DataConfig(path="" if data == "folder" else data, image_size=96 if data == "folder" else None),
        augment=AugmentConfig(mirror=False) if data == "mnist" else AugmentConfig(),
        encoder=EncoderConfig(name=encoder, latent_dim=code),
        train=TrainConfig(**train),
        probe=ProbeConfig(epochs=20),
        finetune=FinetuneConfig(epochs=10),
        plan=("train.steps",) if data == "folder" else (),
        on_gpu={"train.epochs": 100},
    )


def _recipe(system: System, key: str, data: str) -> Callable[[], Config]:
    def built() -> Config:
        return build(system, key, data)

    built.__doc__ = f"{system.summary[:-1]}, on {NAMES[data]}."
    return built


# Name → function with a docstring, as in rayssl.pipeline.recipes.
RECIPES = {f"{key}-{data}": _recipe(system, key, data) for data in NAMES for key, system in SYSTEMS.items()}
