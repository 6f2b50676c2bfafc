"""Searched vectors of any images: of a data set's, or of the files of a query, by the same function.

Shapes: N images of S × S pixels and C channels, d numbers in a vector.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.features import LAST
from rayssl.pipeline.models.descriptors import DESCRIPTORS, describe
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.identity import read_manifest as read_export
from rayssl.pipeline.search.parts import Part, Seen, Vectors
from rayssl.pipeline.search.projection import Projection
from rayssl.pipeline.search.store import OWN, Origin, Search, has_search, read_search

BLOCK = 512  # images of a query, or for what is no network, that are seen at a time
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


def in_blocks(images: Squares, size: int) -> Iterator[NDArray[np.uint8]]:
    """The images as squares of `size` pixels, (B, size, size, C) of so many at a time."""
    for start in range(0, len(images), BLOCK):
        yield images.square(np.arange(start, min(start + BLOCK, len(images))), size)


class Network(Protocol):
    """What sees images for some parts of a search; it needs no torch."""

    @property
    def image_size(self) -> int: ...

    def __call__(self, images: Squares, names: Sequence[str], progress: Progress | None) -> dict[str, Floats]: ...


@dataclass(frozen=True)
class Searcher:
    """A run's search with the networks that it sees by, ready for images."""

    search: Search
    networks: tuple[Network | None, ...]  # one a part; None: no network
    channels: int

    @property
    def hash(self) -> str:
        """What stands in embeddings and indices of these vectors."""
        return self.search.hash

    def __call__(self, images_at: Callable[[int], Squares], progress: Progress | None = None) -> Floats:
        """(N, d) of the images, which `images_at` gives read for a number of pixels a side."""
        raw: dict[int, Floats] = {}
        for network in dict.fromkeys(self.networks):  # a network that is seen twice by is run once
            parts = [i for i, one in enumerate(self.networks) if one is network]
            if network is None:
                raw |= {i: self._plain(i, images_at) for i in parts}
                continue
            names = [self.search.vectors.parts[i].seen.what or "" for i in parts]
            found = network(images_at(network.image_size), list(dict.fromkeys(names)), progress)
            raw |= {i: found[name] for i, name in zip(parts, names, strict=True)}
        return self.search.vectors([raw[i] for i in range(len(raw))])

    def _plain(self, part: int, images_at: Callable[[int], Squares]) -> Floats:
        origin, source = self.search.origins[part], self.search.vectors.parts[part].seen.source
        images = images_at(origin.read)
        if origin.kind == "pixels":
            return described(images, origin.size, flat_pixels, origin.size**2 * self.channels)
        return described(images, origin.size, lambda block: describe(source, block), DESCRIPTORS[source].dim)


def searched_by(run: Path) -> Search:
    """What was chosen, or the run's last stage; raises UserError for a descriptor of another version."""
    if not has_search(run):
        return last_stage(run)
    search = read_search(run)
    for part, origin in zip(search.vectors.parts, search.origins, strict=True):
        _check(run, part.seen, origin)
    return search


def last_stage(run: Path) -> Search:
    """The features of the run's own encoder, as they are."""
    manifest, digest = read_export(run), encoder_hash(run)
    size = int(manifest["image_size"])
    origin = Origin("network", size, size, encoder=OWN, hash=digest)
    part = Part(Seen(str(manifest["name"]), LAST), False, Projection(None, None))
    return Search(Vectors((part,)), (origin,), digest, int(manifest.get("dim") or 0))


def _check(run: Path, seen: Seen, origin: Origin) -> None:
    if origin.kind == "descriptor":
        known = DESCRIPTORS.get(seen.source)
        if known is None or (known.version, known.size) != (origin.version, origin.size):
            raise UserError(
                f"{run} is searched by version {origin.version} of {seen.source}, which is not this one's: "
                f"`rayssl index {run}` chooses again"
            )


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
