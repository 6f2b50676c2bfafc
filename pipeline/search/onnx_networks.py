"""The networks that a run is searched by, as ONNX Runtime runs them: for queries, which then import no torch.

Shapes: N images, D numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.onnx_file import OnnxNetwork, can_run, has_onnx, load_onnx, read_described
from rayssl.pipeline.search.apply import Floats, Network, Progress, Squares, in_blocks, inside
from rayssl.pipeline.search.store import Search


@dataclass(frozen=True, eq=False)
class InOnnxRuntime:
    """A network that ONNX Runtime has loaded, for the few images of a query."""

    network: OnnxNetwork

    @property
    def image_size(self) -> int:
        """Pixels a side of what it sees."""
        return self.network.image_size

    def __call__(self, images: Squares, names: Sequence[str], progress: Progress | None) -> dict[str, Floats]:
        """Name (see features.pooled) → (N, D)."""
        found = [self.network(squares, names) for squares in in_blocks(images, self.image_size)]
        return {name: np.concatenate([one[name] for one in found]) for name in names}


def onnx_networks(run: Path, search: Search, channels: int) -> tuple[Network | None, ...] | None:
    """One a part; None where torch has to see: without ONNX Runtime, without a file, or with one of another encoder.

    Raises UserError for a file that is damaged.
    """
    wanted = names_by_hash(search)
    if wanted and not can_run():
        return None
    loaded: dict[str, Network] = {}
    for digest, names in wanted.items():
        folder = folder_of(run, search, digest)
        if folder is None or not has_onnx(folder) or encoder_hash(folder) != digest:
            return None
        if not fits(read_described(folder, remedy(run)), digest, names, channels):
            return None
        loaded[digest] = InOnnxRuntime(load_onnx(folder, remedy(run)))
    return in_parts(search, loaded)


def in_parts(search: Search, networks: Mapping[str, Network]) -> tuple[Network | None, ...]:
    """Networks by their hash, one a part; None where a part has none."""
    return tuple(networks[str(one.hash)] if one.kind == "network" else None for one in search.origins)


def names_by_hash(search: Search) -> dict[str, list[str]]:
    """Hash of every network that is searched by → the outputs that are (see features.pooled), each once."""
    found: dict[str, dict[str, None]] = {}
    for part, origin in zip(search.vectors.parts, search.origins, strict=True):
        if origin.kind == "network":
            found.setdefault(str(origin.hash), {})[part.seen.what or ""] = None
    return {digest: list(names) for digest, names in found.items()}


def folder_of(run: Path, search: Search, digest: str) -> Path | None:
    """Where a network's files are; None where its weights were not copied into the run. Raises UserError for a folder
    outside of it."""
    places = {origin.encoder for origin in search.origins if origin.hash == digest}
    place = next((one for one in places if one is not None), None)
    return None if place is None else inside(run, place)


def fits(told: Mapping[str, Any], digest: str, names: Sequence[str], channels: int) -> bool:
    """Whether a file was made from the encoder of that hash, gives all these outputs, and takes such images."""
    return told["encoder"] == digest and set(names) <= set(told["outputs"]) and told["channels"] == channels


def remedy(run: Path) -> str:
    """What writes the files again."""
    return f"`rayssl index {run}` writes it again"
