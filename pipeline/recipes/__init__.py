"""Complete named runs. A recipe is a function that returns a Config; its docstring is its manual.

A recipe has values for a CPU and, in `on_gpu`, those that differ on a GPU: which of them are taken is decided where
training runs. The CPU's encoder is resnet-tiny; a GPU gets ResNet-18 or ResNet-50. `rayssl recipes` lists them all.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rayssl.pipeline.base.errors import UserError, nearest
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
from rayssl.pipeline.recipes import autoencoder

# What folder recipes leave open (pipeline/run/plan.py): the values that stand in them are for what is given beside.
HELD_OUT = ("data.val_fraction",)  # more where few labels are held out: every choice is made by them
LENGTH = (*HELD_OUT, "train.steps", "train.batch_size", "train.warmup_epochs")
TWO_VIEWS = (
    *LENGTH, "train.optimizer", "train.learning_rate", "train.weight_decay", "train.small_views",
    "augment.crop", "augment.color",
)  # fmt: skip
CONTRASTIVE = (*TWO_VIEWS, "method.temperature", "method.projector_layers")

DEFAULT_SUITE = ("simclr-scattered-digits", "rotnet-scattered-digits", "autoencoder-scattered-digits")


def simclr_scattered_digits() -> Config:
    """SimCLR on scattered-digits: 24×24 px, a handwritten digit somewhere among fragments of others."""
    return _scattered_digits(
        Config(
            method=method_config("simclr", temperature=0.2),
            train=_muon(steps=500, batch_size=256, learning_rate=0.06, warmup_epochs=9, small_views=0.5),
            augment=AugmentConfig(crop=0.4, color=0.25),
        )
    )


def rotnet_scattered_digits() -> Config:
    """RotNet on scattered-digits: which way up is it?"""
    return _scattered_digits(
        Config(
            method=method_config("rotnet"),
            train=_muon(steps=150, batch_size=128, learning_rate=0.03, warmup_epochs=1),
        )
    )


def autoencoder_scattered_digits() -> Config:
    """A convolutional denoising autoencoder on scattered-digits."""
    return _scattered_digits(
        Config(
            method=method_config("autoencoder", corruption="gaussian"),
            train=TrainConfig(
                steps=200, batch_size=128, optimizer="adamw", learning_rate=2e-3, warmup_epochs=1, threads=1
            ),
        )
    )


def simclr_digits() -> Config:
    """SimCLR on the 8×8 digits that come with scikit-learn: a smoke test of the whole pipeline, about 20 s."""
    return _digits(
        Config(
            method=method_config("simclr", temperature=0.2),
            train=TrainConfig(epochs=40, batch_size=256, learning_rate=0.3, warmup_epochs=2, threads=1),
        )
    )


def rotnet_digits() -> Config:
    """RotNet on the 8×8 digits: which way up is it? About 15 s."""
    return _digits(
        Config(
            method=method_config("rotnet"),
            train=TrainConfig(epochs=25, batch_size=128, learning_rate=0.1, nesterov=True, threads=1),
        )
    )


def autoencoder_digits() -> Config:
    """A convolutional denoising autoencoder on the 8×8 digits, about 15 s."""
    return _digits(
        Config(
            method=method_config("autoencoder", corruption="gaussian"),
            train=TrainConfig(epochs=40, batch_size=128, optimizer="adamw", learning_rate=2e-3, threads=1),
        )
    )


def simclr_mnist() -> Config:
    """SimCLR on MNIST (downloaded, or --data.path of a folder with parquet files)."""
    train = TrainConfig(epochs=6, learning_rate=0.06, batch_size=256)
    on_gpu = {"train.epochs": 200, "train.learning_rate": 0.03, "train.batch_size": 512}
    return _mnist(Config(method=method_config("simclr", temperature=0.5), train=train, on_gpu=on_gpu))


def rotnet_mnist() -> Config:
    """RotNet on MNIST."""
    return _mnist(_rotnet())


def autoencoder_mnist() -> Config:
    """A convolutional denoising autoencoder on MNIST."""
    return _mnist(_autoencoder(corruption="gaussian"))


def simclr_cifar10() -> Config:
    """SimCLR on CIFAR-10: `rayssl run simclr-cifar10` (downloads it) or with --data.path FOLDER.

    On two CPU cores: resnet-tiny, under 10 minutes for the whole run. On a GPU: ResNet-18, 200 epochs.
    """
    train = TrainConfig(
        epochs=11,
        batch_size=256,
        optimizer="muon",
        learning_rate=0.06,
        weight_decay=0.03,
        warmup_epochs=0.5,
        small_views=0.5,
        checkpoint_minutes=2.0,
    )
    on_gpu = {
        "train.epochs": 200, "train.batch_size": 512, "train.optimizer": "sgd", "train.learning_rate": 0.12,
        "train.weight_decay": 5e-4, "train.warmup_epochs": 0.0, "train.small_views": 0.0,
        "method.temperature": 0.5, "method.projector_layers": 2,
    }  # fmt: skip
    method = method_config("simclr", temperature=0.1, projector_layers=3)
    return _cifar10(Config(method=method, train=train, on_gpu=on_gpu))


def essl_cifar10() -> Config:
    """SimCLR and rotation prediction together on CIFAR-10 (Dangovski et al., 2022): half as much again a step.

    On a GPU the settings that were measured there (docs/speed.md).
    """
    train = TrainConfig(
        epochs=7,
        batch_size=256,
        optimizer="sgd",
        learning_rate=0.06,
        weight_decay=5e-4,
        checkpoint_minutes=2.0,
    )
    on_gpu = {
        "train.epochs": 200, "train.batch_size": 512, "train.learning_rate": 0.12, "train.warmup_epochs": 5.0,
        "method.temperature": 0.3, "method.projector_layers": 3,
    }  # fmt: skip
    method = method_config("essl", temperature=0.2, projector_layers=2)
    return _cifar10(Config(method=method, train=train, on_gpu=on_gpu))


def byol_cifar10() -> Config:
    """BYOL on CIFAR-10 (Grill et al., 2020): no image repels another, a moving average is predicted instead."""
    config = simclr_cifar10()
    on_gpu = {path: value for path, value in config.on_gpu.items() if not path.startswith("method.")}
    return replace(config, method=method_config("byol", momentum=0.99), on_gpu=on_gpu)


def rotnet_cifar10() -> Config:
    """RotNet on CIFAR-10: four turns of every image in one batch (Gidaris et al., 2018)."""
    return _cifar10(_rotnet())


def autoencoder_cifar10() -> Config:
    """A convolutional denoising autoencoder on CIFAR-10."""
    return _cifar10(_autoencoder())


def simclr_folder() -> Config:
    """SimCLR on a folder of your own images: `rayssl run simclr-folder --data.path DIR`.

    On a GPU 224 px and ResNet-50; on a CPU 96 px and resnet-tiny. Steps, batch, rate, crops and colours are planned
    from the number of images and the machine when it starts, for about 10 minutes: docs/planning.md.
    """
    config = Config(method=method_config("simclr"), train=TrainConfig(clip_grad=5.0), plan=CONTRASTIVE)
    return _folder(config)


def essl_folder() -> Config:
    """SimCLR and rotation prediction together on a folder of your own images, where up is up; planned, too."""
    return _folder(Config(method=method_config("essl"), train=TrainConfig(clip_grad=5.0), plan=CONTRASTIVE))


def byol_folder() -> Config:
    """BYOL on a folder of your own images: no image repels another; planned, too."""
    return _folder(
        Config(method=method_config("byol", momentum=0.99), train=TrainConfig(clip_grad=5.0), plan=TWO_VIEWS)
    )


def rotnet_folder() -> Config:
    """RotNet on a folder of your own images, where up is up: not for cells or satellite images."""
    return _folder(replace(_rotnet(), plan=LENGTH))


def distill_folder() -> Config:
    """A small network learns from a pretrained one on your own images: `rayssl run distill-folder --data.path DIR`.

    The teacher's weights must be on this machine (`rayssl weights` lists them); no label is used. On a CPU the student
    is resnet-tiny, twice as wide, at 128 px: docs/distillation.md.
    """
    train = TrainConfig(epochs=100, batch_size=128, optimizer="muon", learning_rate=0.05, weight_decay=0.03)
    on_gpu = {"train.epochs": 300, "encoder.width": None}
    plan = (*LENGTH, "train.small_views")
    config = _folder(Config(method=method_config("distill"), train=train, plan=plan, on_gpu=on_gpu))
    return replace(config, data=replace(config.data, image_size=128), encoder=replace(config.encoder, width=2))


def autoencoder_folder() -> Config:
    """A convolutional denoising autoencoder on a folder of your own images."""
    return _folder(replace(_autoencoder(), plan=LENGTH))


RECIPES: dict[str, Callable[[], Config]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        simclr_scattered_digits,
        rotnet_scattered_digits,
        autoencoder_scattered_digits,
        simclr_digits,
        rotnet_digits,
        autoencoder_digits,
        simclr_mnist,
        rotnet_mnist,
        autoencoder_mnist,
        simclr_cifar10,
        essl_cifar10,
        byol_cifar10,
        rotnet_cifar10,
        autoencoder_cifar10,
        simclr_folder,
        essl_folder,
        byol_folder,
        rotnet_folder,
        distill_folder,
        autoencoder_folder,
    )
}
RECIPES |= autoencoder.RECIPES


def build_recipe(name: str) -> Config:
    """The Config of a recipe; raises UserError for an unknown name, with the nearest one."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe '{name}'{nearest(name, RECIPES)}: `rayssl recipes` lists them")
    return replace(RECIPES[name](), recipe=name)


def describe_recipe(name: str) -> str:
    """The docstring of a recipe."""
    return inspect.cleandoc(RECIPES[name].__doc__ or "")


def _scattered_digits(config: Config) -> Config:
    return replace(
        config,
        data=DataConfig(path="scattered-digits"),
        augment=replace(config.augment, mirror=False),
        probe=ProbeConfig(epochs=20, batch_size=256),
        finetune=FinetuneConfig(epochs=10, batch_size=32),
    )


def _muon(**values: Any) -> TrainConfig:
    return TrainConfig(optimizer="muon", weight_decay=0.03, threads=1, **values)


def _digits(config: Config) -> Config:
    return replace(
        config,
        data=DataConfig(path="digits"),
        augment=AugmentConfig(mirror=False),
        probe=ProbeConfig(epochs=60, batch_size=256),
        finetune=FinetuneConfig(epochs=30, batch_size=32),
    )


def _mnist(config: Config) -> Config:
    return replace(
        config,
        data=DataConfig(path="mnist"),
        augment=AugmentConfig(mirror=False),
        encoder=EncoderConfig(name="resnet-tiny"),
        on_gpu={**config.on_gpu, "encoder.name": "resnet18"},
    )


def _cifar10(config: Config) -> Config:
    return replace(
        config,
        data=DataConfig(path="cifar10"),
        encoder=EncoderConfig(name="resnet-tiny"),
        probe=ProbeConfig(epochs=20),
        finetune=FinetuneConfig(epochs=10),
        on_gpu={**config.on_gpu, "encoder.name": "resnet18", "finetune.epochs": 50},
    )


def _folder(config: Config) -> Config:
    return replace(
        config,
        data=DataConfig(path="", image_size=96),
        encoder=EncoderConfig(name="resnet-tiny"),
        on_gpu={**config.on_gpu, "encoder.name": "resnet50", "data.image_size": 224},
    )


def _rotnet() -> Config:
    # Gidaris et al., 2018: rate 0.1 at a batch of 128, here scaled from a batch of 256.
    train = TrainConfig(epochs=5, batch_size=128, learning_rate=0.2, nesterov=True)
    return Config(method=method_config("rotnet"), train=train, on_gpu={"train.epochs": 100})


def _autoencoder(**values: Any) -> Config:
    # More epochs with less weight decay restore better and give worse features (measured on CIFAR-10, resnet-tiny).
    train = TrainConfig(
        epochs=4,
        batch_size=128,
        optimizer="adamw",
        learning_rate=8e-3,
        weight_decay=0.05,
        warmup_epochs=0.2,
    )
    return Config(method=method_config("autoencoder", **values), train=train, on_gpu={"train.epochs": 100})
