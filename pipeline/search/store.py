"""search.json and search.safetensors: what a run is searched by, readable and checked, and its application to images.

search.json         parts, stages, pools, sizes, the candidates and their figures, a hash over all that decides a vector
search.safetensors  the maps: part0.mean, part0.matrix, …, joint.mean, joint.matrix; and which validation images every
                    candidate named rightly
search/<name>/      encoders that are not the run's own: encoder.safetensors, encoder.json
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.documents import load, made_of
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import replacing, sha256, write_json
from rayssl.pipeline.base.lease import settled
from rayssl.pipeline.base.schemas import SearchFile
from rayssl.pipeline.base.seals import check, digest, forget
from rayssl.pipeline.search.choice import Candidate
from rayssl.pipeline.search.parts import Part, Seen, Vectors
from rayssl.pipeline.search.projection import Projection

FILE, TENSORS, FOLDER = "search.json", "search.safetensors", "search"
SCHEMA = 1
OWN = "."  # the run's own encoder

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Origin:
    """Where what a part is seen by comes from, and what it sees."""

    kind: str  # "descriptor", "pixels" or "network"
    size: int  # pixels a side of what is seen
    read: int  # for which images are read: the same, but for pixels, which are shrunk from what the run reads
    version: int | None = None  # of a descriptor
    encoder: str | None = None  # of a network: its folder in the run; None: weights that were not copied
    name: str | None = None  # of weights that were not copied, as --encoder.name and --encoder.weights take them
    weights: str | None = None
    hash: str | None = None  # of a network: what its features are decided by


@dataclass(frozen=True)
class Search:
    """What a run is searched by."""

    vectors: Vectors
    origins: tuple[Origin, ...]  # one a part
    hash: str
    dim: int
    facts: dict[str, Any] = field(default_factory=dict)  # how it was chosen: for people and reports


def write_search(
    run: Path,
    vectors: Vectors,
    origins: Sequence[Origin],
    dim: int,
    candidates: Sequence[Candidate],
    facts: Mapping[str, Any],
) -> Search:
    """Write both files, whole or not at all, search.json last; returns what they hold."""
    from safetensors.numpy import save

    tensors = _tensors(vectors)
    digest = _hash(vectors, origins, dim, tensors)
    told = {f"correct{i}": one.correct.astype(np.uint8) for i, one in enumerate(candidates)}
    forget(run / FILE, run / TENSORS)  # until both are there, neither is finished
    with replacing(run / TENSORS) as temporary:
        temporary.write_bytes(save({**tensors, **told}))
    values = {
        "schema": SCHEMA,
        "name": vectors.label,
        "dim": dim,
        "hash": digest,
        "parts": [_part(part, origin) for part, origin in zip(vectors.parts, origins, strict=True)],
        **facts,
        "candidates": [{key: value for key, value in asdict(one).items() if key != "correct"} for one in candidates],
        "sha256": sha256(run / TENSORS),
    }
    write_json(run / FILE, values)
    return Search(vectors, tuple(origins), digest, dim, values)


def has_search(run: Path) -> bool:
    """Whether a run is searched by anything but its last stage."""
    return os.path.lexists(run / FILE)


def search_hash(run: Path) -> str | None:
    """The hash that stands in embeddings and indices of the searched vectors; None: those of the last stage are."""
    return str(_read(run)["hash"]) if has_search(run) else None


def _both(run: Path) -> tuple[dict[str, Any], Any]:
    values = _read(run)
    return values, _load(run, values)


def read_search(run: Path) -> Search:
    """What `write_search` wrote; raises UserError where it is missing, damaged or of another schema."""
    values, tensors = settled(run, lambda: _both(run))
    try:
        parts = [
            Part(Seen(one["source"], one["what"]), bool(one["whitened"]), _projection(tensors, f"part{i}"))
            for i, one in enumerate(values["parts"])
        ]
        origins = tuple(made_of(Origin, one["origin"]) for one in values["parts"])
        joint = _projection(tensors, "joint") if len(parts) > 1 else None
        vectors, dim = Vectors(tuple(parts), joint), int(values["dim"])
    except (KeyError, TypeError, ValueError):
        raise _damaged(run, "its parts are not whole") from None
    if _hash(vectors, origins, dim, _tensors(vectors)) != values["hash"]:
        raise _damaged(run, "another hash than its parts have")
    return Search(vectors, origins, str(values["hash"]), dim, values)


def read_candidates(run: Path) -> list[Candidate]:
    """The candidates that were compared, with the validation images that each named rightly."""
    values, tensors = settled(run, lambda: _both(run))
    try:
        return [
            made_of(Candidate, {**one, "correct": tensors[f"correct{i}"].astype(bool)})
            for i, one in enumerate(values["candidates"])
        ]
    except (KeyError, TypeError):
        raise _damaged(run, "its candidates are not whole") from None


def _read(run: Path) -> dict[str, Any]:
    path, remedy = run / FILE, _remedy(run)
    values = load(path, SearchFile, f"{remedy} writes it again", f"{path} does not exist: {remedy} writes it")
    check(path, f"{remedy} writes it again")
    return values


def _load(run: Path, values: dict[str, Any]) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = run / TENSORS
    if not path.is_file():
        raise UserError(f"{path} does not exist: {_remedy(run)} writes it")
    if digest(path) != values["sha256"]:
        raise UserError(f"{path} is damaged (another sha256 than {FILE} has): {_remedy(run)} writes it again")
    try:
        return dict(load_file(path))
    except SafetensorError:
        raise UserError(f"{path} is damaged (no safetensors file): {_remedy(run)} writes it again") from None


def _part(part: Part, origin: Origin) -> dict[str, Any]:
    return {
        "source": part.seen.source,
        "what": part.seen.what,
        "whitened": part.whitened,
        "origin": asdict(origin),
    }


def _tensors(vectors: Vectors) -> dict[str, Floats]:
    named = {f"part{i}": part.projection for i, part in enumerate(vectors.parts)}
    if vectors.joint is not None:
        named["joint"] = vectors.joint
    found: dict[str, Floats] = {}
    for name, projection in named.items():
        if projection.mean is not None and projection.matrix is not None:
            found |= {
                f"{name}.mean": np.ascontiguousarray(projection.mean),
                f"{name}.matrix": np.ascontiguousarray(projection.matrix),
            }
    return found


def _projection(tensors: dict[str, NDArray[Any]], name: str) -> Projection:
    if f"{name}.matrix" not in tensors:
        return Projection(None, None)
    mean, matrix = tensors[f"{name}.mean"], tensors[f"{name}.matrix"]
    if mean.ndim != 1 or matrix.ndim != 2 or len(mean) != len(matrix) or not np.isfinite(matrix).all():
        raise ValueError(name)
    return Projection(mean, matrix)


def _hash(vectors: Vectors, origins: Sequence[Origin], dim: int, tensors: dict[str, Floats]) -> str:
    """Of all that decides a vector."""
    decided = []
    for part, origin in zip(vectors.parts, origins, strict=True):
        told = asdict(origin)
        for place in ("encoder", "name", "weights"):  # where it lies: its hash says what it is
            del told[place]
        decided.append([part.seen.source, part.seen.what, part.whitened, told])
    digest = hashlib.sha256(json.dumps([decided, dim], sort_keys=True).encode())
    for name, values in sorted(tensors.items()):
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _damaged(run: Path, how: str) -> UserError:
    return UserError(f"{run / FILE} is damaged ({how}): {_remedy(run)} writes it again")


def _remedy(run: Path) -> str:
    return f"`rayssl index {run}`"
