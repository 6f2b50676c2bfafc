"""What a recipe leaves open, as a function of the number of images, their size, the method and the machine.

No clock and no image is looked at, so the same command gives the same run. Why the table is as it is, and what lost:
docs/planning.md.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from rayssl.pipeline.base.errors import UserError

Optimizer = Literal["sgd", "adamw", "lars", "muon"]

MINUTES = 10.0  # of pre-training that are planned
LONGEST = 1000  # epochs: beyond that the images are known by heart
FEWEST = 50  # steps
WARMUP = 0.05  # share of the steps
# Rates for the estimate. The CPU's were measured on cores with bf16 instructions, resnet-tiny at 32 and 96 pixels; the
# GPU's is a guess.
CPU_FLOPS = 100e9  # a core, forward and backward
GPU_FLOPS = 40e12
# Of a core, forward and backward, a number that a depthwise convolution gives, times the side of its kernel: it waits
# for memory. From efficientnet_lite0 at 96 pixels, which takes four times as long as its operations say.
DEPTHWISE_SECONDS = 9e-9
VIEW_SECONDS = 25e-6  # to augment a view of 32 × 32 pixels on one core


@dataclass(frozen=True)
class Machine:
    """Where it runs: cores of a CPU, or GPUs, and among how many workers a batch is shared."""

    device: Literal["cpu", "cuda"]
    cores: int
    workers: int = 1


@dataclass(frozen=True)
class Sizes:
    """What an image costs: side in pixels, operations of the encoder forward, views of it in a step, passes of the
    method over a view, and what depthwise convolutions give (see `rayssl.pipeline.models.encoder.describe`)."""

    image_size: int
    flops: float
    views: int = 2
    passes: float = 1
    depthwise: float = 0.0


@dataclass(frozen=True)
class Settings:
    """The part of a plan that is looked up."""

    batch_size: int
    optimizer: Optimizer
    learning_rate: float  # as train.learning_rate has it: at a batch of 256 where the optimiser is scaled
    weight_decay: float
    temperature: float = 0.2  # here and below: of the methods that have it
    projector_layers: int = 2
    crop: float = 0.2  # smallest share of the area that a view shows
    small_views: float = 0.0


@dataclass(frozen=True)
class Plan(Settings):
    """Values for what a recipe leaves open."""

    color: float = field(kw_only=True)  # strength of the colour jitter, 1 is SimCLR's
    steps: int = field(kw_only=True)
    warmup_epochs: float = field(kw_only=True)


SGD, ADAMW = 0.06, 2e-3  # learning rates that suit them
GENTLE = 1e-4  # AdamW's, for weights that were learned elsewhere: at the others what they know is soon lost
TABLE: dict[tuple[str, str], Settings] = {
    ("simclr", "cpu"): Settings(128, "muon", 0.06, 0.03, small_views=0.5),
    ("essl", "cpu"): Settings(128, "muon", 0.06, 0.03),
    ("simclr", "cuda"): Settings(256, "sgd", SGD, 5e-4),
    ("essl", "cuda"): Settings(256, "sgd", SGD, 5e-4),
    ("byol", "cpu"): Settings(128, "muon", 0.06, 0.03, small_views=0.5),
    ("byol", "cuda"): Settings(256, "sgd", SGD, 5e-4),
    ("rotnet", "cpu"): Settings(128, "sgd", 0.2, 5e-4, crop=0.6),
    ("rotnet", "cuda"): Settings(128, "sgd", 0.2, 5e-4, crop=0.6),
    ("autoencoder", "cpu"): Settings(128, "adamw", 8e-3, 0.05),
    ("autoencoder", "cuda"): Settings(128, "adamw", 8e-3, 0.05),
    ("distill", "cpu"): Settings(128, "muon", 0.05, 0.03, crop=0.35, small_views=0.5),
    ("distill", "cuda"): Settings(256, "muon", 0.05, 0.03, crop=0.35),
}
# Of the colour jitter: where colours tell images apart, where shapes do, where nothing is known.
STRENGTHS = {True: 0.0, False: 0.5, None: 0.25}
OTHERS = Settings(128, "adamw", ADAMW, 0.05)  # methods that are not in the table
TINY, TINY_CROP = 16, 0.6  # below this side a crop of a fifth of the area is a handful of pixels


def plan_for(
    count: int,
    sizes: Sizes,
    kind: str,
    machine: Machine,
    *,
    batch_size: int | None = None,
    small_views: float | None = None,
    weights: bool = False,
    colors_tell: bool | None = None,
) -> Plan:
    """The plan for `count` training images, a method's name `kind` and a machine.

    Where a batch (of all workers) or a share of small views is given, the steps are planned for those. `weights`: the
    network does not start from scratch. `colors_tell`: see `rayssl.pipeline.run.colors.colors_tell`.
    """
    settings = settings_for(kind, machine.device, sizes.image_size)
    if weights:
        settings = replace(settings, optimizer="adamw", learning_rate=GENTLE, weight_decay=0.05, small_views=0.0)
    batch = min(batch_size, count) if batch_size else fitting_batch(count, settings.batch_size, machine.workers)
    small = settings.small_views if small_views is None else small_views
    per_epoch = max(1, count // batch)
    steps = fitting_steps(step_seconds(sizes, machine, batch, small), per_epoch)
    return Plan(
        **{**vars(settings), "batch_size": batch, "small_views": small},
        color=STRENGTHS[colors_tell],
        steps=steps,
        warmup_epochs=round(WARMUP * steps / per_epoch, 2),
    )


def settings_for(kind: str, device: str, image_size: int) -> Settings:
    """The line of the table, with milder crops of images that are a handful of pixels."""
    found = TABLE.get((kind, device), OTHERS)
    return replace(found, crop=max(found.crop, TINY_CROP)) if image_size < TINY else found


def fitting_batch(count: int, most: int, workers: int) -> int:
    """The largest power of two times the workers that is at most `most` and `count`; all images where there is none.

    Raises UserError for fewer than two images a worker.
    """
    if count < 2 * workers:
        raise UserError(f"there are {count} training images: at least 2 a worker are needed")
    return int(workers * 2 ** int(math.log2(max(2, min(most, count) // workers))))


def fitting_steps(seconds: float, per_epoch: int) -> int:
    """The steps, of so many seconds each, that MINUTES have room for: two digits, because it is an estimate."""
    room = 60 * MINUTES / seconds
    digits = max(0, int(math.log10(max(room, 1))) - 1)
    return max(FEWEST, min(int(round(room, -digits)), LONGEST * per_epoch))


def step_seconds(sizes: Sizes, machine: Machine, batch_size: int, small_views: float) -> float:
    """What a step takes, roughly: within a factor of about two on a CPU. Small views have a quarter of the pixels."""
    augment = VIEW_SECONDS * (sizes.image_size / 32) ** 1.5 / machine.cores
    pixels = 1 - 0.75 * small_views
    view: float = sizes.passes * image_seconds(sizes, machine) + augment
    return pixels * batch_size * sizes.views * view


def image_seconds(sizes: Sizes, machine: Machine) -> float:
    """What the encoder takes for a view, forward and backward."""
    if machine.device == "cuda":
        return 3 * sizes.flops / (GPU_FLOPS * machine.workers)
    return (3 * sizes.flops / CPU_FLOPS + DEPTHWISE_SECONDS * sizes.depthwise) / machine.cores


# What a stage takes beside training, on one core or however many: seconds of its own, and times that it sees every
# image by the encoder, forward alone. Measured with a few hundred images, which are mostly the former.
START_SECONDS = 60.0  # Ray, its workers, the libraries in each, and the first step
STAGES = {
    "probe": (5.0, 2.0), "finetune": (6.0, 14.0), "embed": (4.0, 2.0), "search": (1.0, 2.0), "index": (1.0, 0.0),
    "evaluate": (4.0, 0.0), "report": (5.0, 0.0),
}  # fmt: skip
DESCRIBED_SECONDS = 3e-3  # of a core, to describe an image without a network, which the evaluation compares with
FROZEN_SECONDS = 2e-2  # of a core, to embed an image of 96 pixels or more by efficientnet_lite0
CHOSEN_SECONDS = 5e-3  # an image, to compare some forty candidates on


def stages_seconds(sizes: Sizes, machine: Machine, images: int, stages: Collection[str], frozen: int = 0) -> float:
    """What the stages take that follow the training steps, of so many images, with so many frozen networks beside."""
    of_96 = min(1.0, (sizes.image_size / 96) ** 2)
    seconds = ("embed" in stages) * frozen * images * of_96 * FROZEN_SECONDS / machine.cores
    seconds += ("search" in stages) * images * CHOSEN_SECONDS
    for stage, (own, passes) in STAGES.items():
        if stage in stages:
            seconds += own + passes * images * image_seconds(sizes, machine) / 3
    return seconds + ("evaluate" in stages) * (images * DESCRIBED_SECONDS / machine.cores)
