"""Teachers: what a student learns from. A pretrained network, the encoder of a run, or a classical descriptor."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.memory import free_memory
from rayssl.pipeline.base.progress import format_bytes
from rayssl.pipeline.models.descriptors import DESCRIPTORS
from rayssl.pipeline.models.pretrained import available, pretrained_encoder

if TYPE_CHECKING:
    from rayssl.pipeline.models.encoder import Encoder

HELPFUL = "timm/vit_small_patch14_dinov2.lvd142m"  # what is named where there is nothing
LARGEST_ON_CPU = 110_000_000  # bytes of weights that are chosen without being asked for: a ResNet-50's
ROOM = 2  # times their bytes that weights take while they are read


class Teacher(NamedTuple):
    """A network with weights, as --encoder.name and --encoder.weights name them."""

    name: str
    weights: str


def choose_teacher(name: str | None = None) -> Teacher:
    """A teacher that is on this machine; `name`: weights of that network.

    Among several the largest, beside a CPU the largest that sees some thousand images within a minute or two. UserError
    where there is none.
    """
    found = [one for one in available() if name is None or one.name == name]
    if not found and name is not None:
        return Teacher(name, "DEFAULT")  # which tells how to fetch them
    if not found:
        raise UserError(
            "distillation learns from a pretrained network, and no weights are on this machine: "
            f"`rayssl weights {HELPFUL}` fetches some; or give --method.teacher NAME --method.teacher-weights FILE, or "
            f"a descriptor, --method.teacher {next(iter(DESCRIPTORS))}"
        )
    quick = found if torch.cuda.is_available() else [one for one in found if one.bytes <= LARGEST_ON_CPU]
    chosen = max(quick, key=lambda one: one.bytes) if quick else min(found, key=lambda one: one.bytes)
    return Teacher(chosen.name, chosen.weights)


def build_teacher(name: str | None, weights: str | None, *, channels: int, image_side: int) -> "Encoder | str":
    """A frozen network, or the name of a descriptor; for images of `channels` that a student sees at `image_side`.

    UserError where it is not there, takes other images, or is larger than this machine's free memory.
    """
    if name in DESCRIPTORS and name is not None:
        if weights is not None:
            raise UserError(f"--method.teacher-weights {weights}: the descriptor {name} has none: leave it out")
        return name
    if weights is not None and os.path.isdir(weights):
        return _of_run(name, Path(weights), channels)
    if name is None or weights is None:
        raise UserError(f"--method.teacher-weights {weights} without --method.teacher: name the network too")
    _check_room(name, _bytes_of(name, weights))
    try:
        return pretrained_encoder(Teacher(name, weights), channels=channels, image_side=image_side)
    except UserError as error:
        raise UserError(f"the teacher {name} cannot be had: {as_teacher(str(error))}") from None


def _of_run(name: str | None, folder: Path, channels: int) -> "Encoder":
    """The encoder of a run folder."""
    from rayssl.pipeline.models.export import load_encoder

    encoder = load_encoder(folder)
    if name is not None and name != encoder.name:
        raise UserError(f"--method.teacher is {name}: the encoder of {folder} is {encoder.name}; leave it out")
    if encoder.channels != channels:
        raise UserError(
            f"the teacher of {folder} takes {encoder.channels} channels and these images have {channels}: "
            f"use --data.channels {encoder.channels}, or another teacher"
        )
    return encoder


def _bytes_of(name: str, weights: str) -> int:
    """The size of the file of weights; 0 where it is not known."""
    if os.path.isfile(weights):
        return os.path.getsize(weights)
    return next((one.bytes for one in available() if (one.name, one.weights) == (name, weights)), 0)


def _check_room(name: str, weighs: int) -> None:
    free = free_memory()
    if free is not None and ROOM * weighs > free:
        raise UserError(
            f"the teacher {name} needs about {format_bytes(ROOM * weighs)} of memory and {format_bytes(free)} are "
            "free: choose a smaller one"
        )


def as_teacher(text: str) -> str:
    """A message about an encoder's options in the words of a teacher's."""
    return text.replace("--encoder.weights", "--method.teacher-weights").replace("--encoder.name", "--method.teacher")
