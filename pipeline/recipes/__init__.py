"""Complete named runs. A recipe is a function that returns a Config; its docstring is its manual.

The CPU's encoder is resnet-tiny; a GPU gets ResNet-18 or ResNet-50. `rayssl recipes` lists them all.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

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

T = TypeVar("T")

# What folder recipes leave open (pipeline/run/plan.py): the values that stand in them are for what is given beside.
HELD_OUT = ("data.val_fraction",)  # more where few labels are held out: every choice is made by them
LENGTH = (*HELD_OUT, "train.steps", "train.batch_size", "train.warmup_epochs")
TWO_VIEWS = (
    *LENGTH, "train.optimizer", "train.learning_rate", "train.weight_decay", "train.small_views",
    "augment.crop", "augment.color",
)  # fmt: skip
CONTRASTIVE = (*TWO_VIEWS, "method.temperature", "method.projector_layers")

DEFAULT_SUITE = ("simclr-scattered-digits", "rotnet-scattered-digits", "autoencoder-scattered-digits")


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA device, told without importing torch."""
    return os.path.exists("/dev/nvidia0") and os.environ.get("CUDA_VISIBLE_DEVICES", "0") != ""


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
    train = TrainConfig(epochs=_epochs(200, 6), learning_rate=_by_device(0.03, 0.06), batch_size=_by_device(512, 256))
    return _mnist(Config(method=method_config("simclr", temperature=0.5), train=train))


def rotnet_mnist() -> Config:
    """RotNet on MNIST."""
    return _mnist(Config(method=method_config("rotnet"), train=_rotnet_training()))


def autoencoder_mnist() -> Config:
    """A convolutional denoising autoencoder on MNIST."""
    return _mnist(Config(method=method_config("autoencoder", corruption="gaussian"), train=_autoencoder_training()))


def simclr_cifar10() -> Config:
    """SimCLR on CIFAR-10: `rayssl run simclr-cifar10` (downloads it) or with --data.path FOLDER.

    On two CPU cores: resnet-tiny, under 10 minutes for the whole run. On a GPU: ResNet-18, 200 epochs.
    """
    train = TrainConfig(
        epochs=_epochs(200, 11),
        batch_size=_by_device(512, 256),
        optimizer=_by_device("sgd", "muon"),
        learning_rate=_by_device(0.12, 0.06),
        weight_decay=_by_device(5e-4, 0.03),
        warmup_epochs=_by_device(0.0, 0.5),
        small_views=_by_device(0.0, 0.5),
        checkpoint_minutes=2.0,
    )
    method = method_config("simclr", temperature=_by_device(0.5, 0.1), projector_layers=_by_device(2, 3))
    return _cifar10(Config(method=method, train=train))


def essl_cifar10() -> Config:
    """SimCLR and rotation prediction together on CIFAR-10 (Dangovski et al., 2022): half as much again a step.

    On a GPU the settings that were measured there (docs/speed.md).
    """
    simclr = simclr_cifar10()
    method = method_config("essl", temperature=_by_device(0.3, 0.2), projector_layers=_by_device(3, 2))
    train = replace(
        simclr.train,
        epochs=_epochs(200, 7),
        optimizer="sgd",
        learning_rate=_by_device(0.12, 0.06),
        weight_decay=5e-4,
        warmup_epochs=_by_device(5.0, 0.0),
        small_views=0.0,
    )
    return replace(simclr, method=method, train=train)


def byol_cifar10() -> Config:
    """BYOL on CIFAR-10 (Grill et al., 2020): no image repels another, a moving average is predicted instead."""
    return replace(simclr_cifar10(), method=method_config("byol", momentum=0.99))


def rotnet_cifar10() -> Config:
    """RotNet on CIFAR-10: four turns of every image in one batch (Gidaris et al., 2018)."""
    return _cifar10(Config(method=method_config("rotnet"), train=_rotnet_training()))


def autoencoder_cifar10() -> Config:
    """A convolutional denoising autoencoder on CIFAR-10."""
    return _cifar10(Config(method=method_config("autoencoder"), train=_autoencoder_training()))


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
    return _folder(Config(method=method_config("rotnet"), train=_rotnet_training(), plan=LENGTH))


def distill_folder() -> Config:
    """A small network learns from a pretrained one on your own images: `rayssl run distill-folder --data.path DIR`.

    The teacher's weights must be on this machine (`rayssl weights` lists them); no label is used. On a CPU the student
    is resnet-tiny, twice as wide, at 128 px: docs/distillation.md.
    """
    config = _folder(
        Config(method=method_config("distill"), train=_distillation(), plan=(*LENGTH, "train.small_views"))
    )
    return replace(
        config,
        data=replace(config.data, image_size=_by_device(224, 128)),
        encoder=replace(config.encoder, width=_by_device(None, 2)),
    )


def autoencoder_folder() -> Config:
    """A convolutional denoising autoencoder on a folder of your own images."""
    return _folder(Config(method=method_config("autoencoder"), train=_autoencoder_training(), plan=LENGTH))


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
RECIPES |= autoencoder.recipes(lambda: has_gpu())


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
    encoder = EncoderConfig(name=_by_device("resnet18", "resnet-tiny"))
    return replace(config, data=DataConfig(path="mnist"), augment=AugmentConfig(mirror=False), encoder=encoder)


def _cifar10(config: Config) -> Config:
    encoder = EncoderConfig(name=_by_device("resnet18", "resnet-tiny"))
    return replace(
        config,
        data=DataConfig(path="cifar10"),
        encoder=encoder,
        probe=ProbeConfig(epochs=20),
        finetune=FinetuneConfig(epochs=_by_device(50, 10)),
    )


def _folder(config: Config) -> Config:
    encoder = EncoderConfig(name=_by_device("resnet50", "resnet-tiny"))
    return replace(config, data=DataConfig(path="", image_size=_by_device(224, 96)), encoder=encoder)


def _rotnet_training() -> TrainConfig:
    # Gidaris et al., 2018: rate 0.1 at a batch of 128, here scaled from a batch of 256.
    return TrainConfig(epochs=_epochs(100, 5), batch_size=128, learning_rate=0.2, nesterov=True)


def _distillation() -> TrainConfig:
    return TrainConfig(
        epochs=_epochs(300, 100), batch_size=128, optimizer="muon", learning_rate=0.05, weight_decay=0.03
    )


def _autoencoder_training() -> TrainConfig:
    # More epochs with less weight decay restore better and give worse features (measured on CIFAR-10, resnet-tiny).
    return TrainConfig(
        epochs=_epochs(100, 4),
        batch_size=128,
        optimizer="adamw",
        learning_rate=8e-3,
        weight_decay=0.05,
        warmup_epochs=0.2,
    )


def _epochs(gpu: int, cpu: int) -> int:
    return gpu if has_gpu() else cpu


def _by_device(gpu: T, cpu: T) -> T:
    return gpu if has_gpu() else cpu
