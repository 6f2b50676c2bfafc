"""Pretrained networks that are compared with a run: which of those on this machine, and at which size."""

import os
from dataclasses import dataclass

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config
from rayssl.pipeline.features import LAST
from rayssl.pipeline.features.pooled import names_of
from rayssl.pipeline.models.encoder import Encoder, describe
from rayssl.pipeline.models.pretrained import ENLARGED, FROZEN_MOST, available, pretrained_encoder
from rayssl.pipeline.run.context import Work

# Operations that one of them may take: of a core, some minutes; a GPU does as much as so many.
FROZEN_FLOPS, GPU_TIMES = 2e13, 200
ENLARGED_LESS = 4  # times the images' side, where ENLARGED takes too long


@dataclass(frozen=True)
class Given:
    """A pretrained network as --encoder.name and --encoder.weights name it."""

    name: str
    weights: str

    @property
    def label(self) -> str:
        """Among the candidates, and in the names of baselines."""
        return self.name.replace("/", "-")


def frozen_networks(work: Work) -> list[tuple[Given, Encoder]]:
    """At most two pretrained networks that are on this machine, frozen: those that the run names first.

    One that would take too long over these images is left out, and said.
    """
    found: dict[str, tuple[Given, Encoder]] = {}
    for given in named_networks(work.config) + [Given(one.name, one.weights) for one in available()]:
        if len(found) == FROZEN_MOST or given.label in found or is_own(given, work.config):
            continue
        encoder = frozen_one(given, work)
        if encoder is not None:
            found[given.label] = given, encoder
    return list(found.values())


def named_networks(config: Config) -> list[Given]:
    """What a run starts from, and what it is taught by."""
    method = config.method
    pairs_ = [
        (config.encoder.name, config.encoder.weights),
        (getattr(method, "teacher", None), getattr(method, "teacher_weights", None)),
    ]
    return [Given(name, weights) for name, weights in pairs_ if name is not None and weights is not None]


def is_own(given: Given, config: Config) -> bool:
    """Whether a network is the run's own, as it came."""
    return config.method is None and (given.name, given.weights) == (config.encoder.name, config.encoder.weights)


def frozen_one(given: Given, work: Work) -> Encoder | None:
    """The network in eval mode at a size that suits the images; None, and said, where that cannot be or lasts.

    Smaller where its own size would take too long.
    """
    data = work.dataset
    images = sum(len(part) for part in (data.train, data.val, data.test) if part is not None)
    most = FROZEN_FLOPS * (GPU_TIMES if work.device.type == "cuda" else (os.cpu_count() or 1))
    for enlarged in (ENLARGED, ENLARGED_LESS):
        try:
            encoder = pretrained_encoder(given, channels=data.channels, image_side=data.image_size, enlarged=enlarged)
        except UserError as error:
            work.reporter.message(f"{given.name} is not compared: {error}")
            return None
        if images * describe(encoder)["flops"] <= most:
            return encoder
    work.reporter.message(f"{given.name} is not compared: {images:,} images would take it too long on this machine")
    return None


def frozen_names(encoder: Encoder) -> tuple[str, ...]:
    """Of a pretrained network the features, and two ways to pool its last map."""
    last_map = [name for name in names_of(encoder) if name.endswith((":gem", ":2x2"))][-2:]
    return (*last_map, LAST)
