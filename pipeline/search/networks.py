"""The networks that a run is searched by, loaded and checked: for the images of a query, or for a data set's.

Shapes: N images, D numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from rayssl.pipeline.base.device import to_float
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Images
from rayssl.pipeline.features.extract import PRECISION
from rayssl.pipeline.features.frozen import digest_of
from rayssl.pipeline.features.pooled import pick, pooled_stages
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.search.apply import Floats, Network, Progress, Squares, in_blocks, inside
from rayssl.pipeline.search.store import Origin, Search

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class InThisProcess:
    """An encoder on the CPU, for the few images of a query."""

    encoder: Encoder

    @property
    def image_size(self) -> int:
        """Pixels a side of what it sees."""
        return self.encoder.image_size

    def __call__(self, images: Squares, names: Sequence[str], progress: Progress | None) -> dict[str, Floats]:
        """Name (see features.pooled) → (N, D)."""
        blocks: dict[str, list[Floats]] = {name: [] for name in names}
        for squares in in_blocks(images, self.image_size):
            with torch.inference_mode():
                stages = self.encoder.stages(to_float(torch.from_numpy(squares), CPU, PRECISION))
            for name in names:
                blocks[name].append(pick(stages, name).numpy())
        return {name: np.concatenate(found) for name, found in blocks.items()}


@dataclass(frozen=True, eq=False)
class OverWorkers:
    """An encoder on the device, for a data set that the workers share."""

    encoder: Encoder
    device: torch.device

    @property
    def image_size(self) -> int:
        """Pixels a side of what it sees."""
        return self.encoder.image_size

    def __call__(self, images: Squares, names: Sequence[str], progress: Progress | None) -> dict[str, Floats]:
        """Name (see features.pooled) → (N, D)."""
        return pooled_stages(
            self.encoder, names, cast(Images, images), device=self.device, precision=PRECISION, progress=progress
        )


def query_networks(run: Path, search: Search, channels: int) -> tuple[Network | None, ...]:
    """One a part, for queries, by torch; raises UserError like `load_networks`."""
    loaded = load_networks(run, search, channels)
    ready: dict[Encoder, Network] = {encoder: InThisProcess(encoder) for encoder in loaded if encoder is not None}
    return tuple(None if encoder is None else ready[encoder] for encoder in loaded)


def data_set_networks(run: Path, search: Search, channels: int, device: torch.device) -> tuple[Network | None, ...]:
    """One a part, for a data set; raises UserError like `load_networks`."""
    loaded = load_networks(run, search, channels)
    ready: dict[Encoder, Network] = {
        encoder: OverWorkers(encoder.to(device), device) for encoder in loaded if encoder is not None
    }
    return tuple(None if encoder is None else ready[encoder] for encoder in loaded)


def load_networks(run: Path, search: Search, channels: int) -> tuple[Encoder | None, ...]:
    """The encoder of every part, None where it has none; equal ones are loaded once.

    Raises UserError where a file is missing, damaged, or an encoder is not the one that was chosen.
    """
    encoders: dict[str, Encoder] = {}
    for origin in search.origins:
        if origin.kind == "network" and str(origin.hash) not in encoders:
            encoders[str(origin.hash)] = _load_network(run, origin, channels).eval()
    return tuple(encoders.get(str(origin.hash)) if origin.kind == "network" else None for origin in search.origins)


def _load_network(run: Path, origin: Origin, channels: int) -> Encoder:
    if origin.encoder is not None:
        folder = inside(run, origin.encoder)
        if encoder_hash(folder) != origin.hash:
            raise UserError(f"{folder} holds another encoder than {run} is searched by: `rayssl index {run}`")
        return load_encoder(folder)
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(
            str(origin.name), channels=channels, image_size=origin.size, weights=origin.weights
        ).eval()
    if digest_of(encoder) != origin.hash:
        raise UserError(
            f"--encoder.weights {origin.weights} of {origin.name} are not those that {run} is searched by, which were "
            f"not copied into it: bring them back, or `rayssl index {run}` chooses again"
        )
    return encoder
