"""Searched vectors of any images: of a data set's, or of the files of a query, by the same function.

Shapes: N images of S × S pixels and C channels, d numbers in a vector.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Images
from rayssl.pipeline.features.frozen import digest_of
from rayssl.pipeline.features.pooled import pooled_stages
from rayssl.pipeline.models.descriptors import DESCRIPTORS, describe
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.export import encoder_hash, load_encoder
from rayssl.pipeline.search.parts import Seen
from rayssl.pipeline.search.store import OWN, Origin, Search, read_search

BLOCK = 512  # images that are seen at a time by what is not a network
PIXEL_VALUES = 1024  # of an image at most: 32 × 32 grey, 18 × 18 in colour

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]


class Squares(Protocol):
    """Images by position that can be had as squares."""

    def __len__(self) -> int: ...

    def square(self, indices: Any, size: int) -> NDArray[np.uint8]: ...


def pixel_side(image_size: int, channels: int) -> int:
    """Side of the images that pixels are compared of."""
    return min(image_size, math.isqrt(PIXEL_VALUES // channels))


def described(images: Squares, size: int, describe_block: Callable[[NDArray[np.uint8]], Floats], dim: int) -> Floats:
    """(N, dim) of squares of `size` pixels, block by block."""
    found = np.empty((len(images), dim), dtype=np.float32)
    for start in range(0, len(images), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(images)))
        found[rows] = describe_block(images.square(rows, size))
    return found


def flat_pixels(squares: NDArray[np.uint8]) -> Floats:
    """(B, S, S, C) to (B, S² · C) in [0, 1]."""
    return np.divide(squares.reshape(len(squares), -1), 255, dtype=np.float32)


@dataclass(frozen=True)
class Searcher:
    """A run's search with the encoders that it sees by, ready for images."""

    search: Search
    encoders: tuple[Encoder | None, ...]  # one a part; None: no network
    channels: int
    device: torch.device
    precision: str

    @property
    def hash(self) -> str:
        """What stands in embeddings and indices of these vectors."""
        return self.search.hash

    def __call__(self, images_at: Callable[[int], Squares], progress: Progress | None = None) -> Floats:
        """(N, d) of the images, which `images_at` gives read for a number of pixels a side."""
        raw: dict[int, Floats] = {}
        for encoder in dict.fromkeys(self.encoders):  # a network that is seen twice by is run once
            parts = [i for i, one in enumerate(self.encoders) if one is encoder]
            if encoder is None:
                raw |= {i: self._plain(i, images_at) for i in parts}
                continue
            names = [self.search.vectors.parts[i].seen.what or "" for i in parts]
            images = cast(Images, images_at(encoder.image_size))
            found = pooled_stages(
                encoder, list(dict.fromkeys(names)), images, device=self.device, precision=self.precision,
                progress=progress,
            )  # fmt: skip
            raw |= {i: found[name] for i, name in zip(parts, names, strict=True)}
        return self.search.vectors([raw[i] for i in range(len(raw))])

    def _plain(self, part: int, images_at: Callable[[int], Squares]) -> Floats:
        origin, source = self.search.origins[part], self.search.vectors.parts[part].seen.source
        images = images_at(origin.read)
        if origin.kind == "pixels":
            return described(images, origin.size, flat_pixels, origin.size**2 * self.channels)
        return described(images, origin.size, lambda block: describe(source, block), DESCRIPTORS[source].dim)


def load_searcher(run: Path, channels: int, device: torch.device, precision: str) -> Searcher:
    """The run's; raises UserError where a file is missing, damaged, or an encoder is not the one that was chosen."""
    search = read_search(run)
    encoders: dict[str, Encoder] = {}
    found: list[Encoder | None] = []
    for part, origin in zip(search.vectors.parts, search.origins, strict=True):
        _check(run, part.seen, origin)
        if origin.kind != "network":
            found.append(None)
            continue
        key = str(origin.hash)
        if key not in encoders:
            encoders[key] = _load_network(run, origin, channels).to(device).eval()
        found.append(encoders[key])
    return Searcher(search, tuple(found), channels, device, precision)


def _check(run: Path, seen: Seen, origin: Origin) -> None:
    if origin.kind == "descriptor":
        known = DESCRIPTORS.get(seen.source)
        if known is None or (known.version, known.size) != (origin.version, origin.size):
            raise UserError(
                f"{run} is searched by version {origin.version} of {seen.source}, which is not this one's: "
                f"`rayssl index {run}` chooses again"
            )


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


def check_own_encoder(run: Path, search: Search) -> None:
    """Raises UserError where the run's own encoder has been trained on since it was chosen."""
    if any(origin.encoder == OWN and origin.hash != encoder_hash(run) for origin in search.origins):
        raise UserError(f"the encoder of {run} is not the one that it is searched by: `rayssl index {run}`")


def inside(run: Path, place: str) -> Path:
    """A folder of the run; raises UserError for one that lies elsewhere."""
    folder = (run / place).resolve()
    if not folder.is_relative_to(run.resolve()):
        raise UserError(f"{run}/search.json names an encoder outside the run ({place!r}): `rayssl index {run}`")
    return run / place
