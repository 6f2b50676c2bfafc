"""A FAISS index over normalised embeddings: the inner product it searches by is the cosine.

An index that whitens maps its vectors and its queries by itself, and searches by the cosine of what comes out.

<folder>/index.faiss and <folder>/manifest.json, of a generation (see search.generations) or, as older versions wrote
it, alone. The embeddings are the truth: an index that is damaged or does not match them is refused and can always be
built again.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import MissingError, UserError
from rayssl.pipeline.base.files import replacing, sha256, write_json
from rayssl.pipeline.base.lease import settled
from rayssl.pipeline.base.seals import digest, forget
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.features.whitening import Whitening
from rayssl.pipeline.search.factory import auto_factory, built_as, cannot_build
from rayssl.pipeline.search.generations import (
    Generation,
    following,
    has_generations,
    read_generation,
    read_index_manifest,
    remedy_of,
)
from rayssl.pipeline.search.items import floats, ints
from rayssl.pipeline.search.live import LiveIndex

SCHEMA = 1
MAPPED = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY


Floats = NDArray[np.float32]


Ints = NDArray[np.int64]


_limits = threading.Lock()  # FAISS keeps its reading limits per process
_TABLE_BYTES = 2 << 30  # FAISS' own bound on the table that it computes while it reads an IVF-PQ index
LEAST_RECALL = 0.9  # of the ten nearest: an index that finds fewer is told
_EPSILON = 1e-6  # similarities this close are a tie: float32 rounding of a sum of D products


def build_index(vectors: Floats, ids: Ints, factory: str = "auto", whitening: Whitening | None = None) -> faiss.Index:
    """An index that finds `ids` (N,) by the cosine of `vectors` (N, D), or of normalised and then whitened ones.

    Raises UserError like `trained_index`, and for ids that are not as many.
    """
    index, points = trained_index(vectors, ids, factory, whitening)
    index.add_with_ids(points, ids)
    return index


def trained_index(
    vectors: Floats, ids: Ints, factory: str = "auto", whitening: Whitening | None = None
) -> tuple[faiss.Index, Floats]:
    """An index that is trained on vectors and holds none yet, and the vectors (N, D) as it takes them.

    Raises UserError for a factory string that FAISS does not know or cannot train on these vectors, for ids that are
    not as many, and for vectors that are not finite.
    """
    if vectors.ndim != 2 or ids.shape != (len(vectors),):
        raise UserError(f"vectors have the shape {vectors.shape} and ids {ids.shape}: (N, D) and (N,) are needed")
    if not np.isfinite(vectors).all():
        raise UserError("the embeddings hold NaN or infinity: the encoder's training diverged, train it again")
    points = normalise(vectors)
    name = auto_factory(len(points)) if factory == "auto" else built_as(factory)
    try:
        index = faiss.index_factory(points.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        if not isinstance(index, faiss.IndexIVF | faiss.IndexIDMap):
            index = faiss.IndexIDMap2(index)
        if whitening is not None:
            index = _behind_whitening(index, whitening)
        index.train(points)
    except RuntimeError as error:
        raise cannot_build(factory, f"{len(points)} vectors", points.shape[1], error) from None
    _set_effort(index)
    return index, points


def _behind_whitening(index: faiss.Index, whitening: Whitening) -> faiss.Index:
    """The index behind a linear map and a normalisation, which FAISS applies to all that is added or searched."""
    linear = faiss.LinearTransform(index.d, index.d, True)
    faiss.copy_array_to_vector(whitening.matrix.T.ravel(), linear.A)
    faiss.copy_array_to_vector(-whitening.mean @ whitening.matrix, linear.b)
    linear.is_trained = True
    whitened = faiss.IndexPreTransform(index)
    whitened.prepend_transform(faiss.NormalizationTransform(index.d, 2.0))
    whitened.prepend_transform(linear)
    return whitened


def _searched(index: faiss.Index, points: Floats) -> Floats:
    """Normalised vectors as the index compares them."""
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        for place in range(chain.size()):
            points = faiss.downcast_VectorTransform(chain.at(place)).apply(points)
    return points


def _set_effort(index: faiss.Index) -> None:
    """How much of an approximate index a search looks at; kept in its file.

    1/64 of the lists: recall@10 of 0.97 over a million vectors in 4,096 lists (measured). Ten times as many as are
    asked for are compared again where the index keeps the vectors for that (RFlat); else it would change nothing.
    """
    for part in _layers(index):
        if isinstance(part, faiss.IndexIVF):
            part.nprobe = min(part.nlist, max(16, part.nlist // 64))
        elif isinstance(part, faiss.IndexHNSW):
            part.hnsw.efSearch = 128
        elif isinstance(part, faiss.IndexRefine):
            part.k_factor = 10.0


def _layers(index: faiss.Index) -> Iterator[faiss.Index]:
    """An index and those behind it: of a map of ids, a transform, a second comparison."""
    while True:
        index = faiss.downcast_index(index)
        yield index
        if isinstance(index, faiss.IndexRefine):
            index = index.base_index
        elif isinstance(index, faiss.IndexPreTransform | faiss.IndexIDMap):
            index = index.index
        else:
            return


def _inner(index: faiss.Index | LiveIndex) -> faiss.Index:
    if isinstance(index, LiveIndex):
        index = index.base
    if isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index


def recall_warning(recall: float, factory: str, n: int) -> str | None:
    """What to say of an index that misses too much, and what would not; None of one that does not."""
    if recall >= LEAST_RECALL:
        return None
    others = [name for name in dict.fromkeys((auto_factory(n), "Flat")) if name != factory]
    return (
        f"--index.factory {factory} finds {recall:.1%} of the ten nearest, less than {LEAST_RECALL:.0%}: "
        f"--index.factory {' or '.join(others)} finds more, Flat all of them"
    )


def measure_recall(
    index: faiss.Index, vectors: Floats, ids: Ints, k: int = 10, sample: int = 1000, seed: int = 0
) -> float:
    """Share of the k nearest others that the index finds, over at most `sample` of its own vectors (0 … 1).

    A vector counts as found where its similarity reaches the k-th of exact search: ties are no misses.
    """
    points = normalise(vectors)
    k = min(k, len(points) - 1)
    if k < 1:
        return 1.0
    rows = np.sort(np.random.default_rng(seed).permutation(len(points))[:sample])
    _, found = index.search(points[rows], k + 1)
    points = _searched(index, points)
    exact, _ = search(_exact(points, ids), points[rows], k, [{int(own)} for own in ids[rows]])
    order = np.argsort(ids)
    position = order[np.searchsorted(ids, np.maximum(found, ids.min()), sorter=order)]
    similarity = np.einsum("qd,qkd->qk", points[rows], points[position])
    similarity[(found < 0) | (found == ids[rows][:, None])] = -np.inf
    hits = (similarity >= exact[:, -1:] - _EPSILON).sum(axis=1)
    return float(np.minimum(hits, k).mean() / k)


def _exact(points: Floats, ids: Ints) -> faiss.Index:
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(points.shape[1]))
    index.add_with_ids(points, ids)
    return index


def search(
    index: faiss.Index | LiveIndex,
    vectors: Floats,
    k: int,
    exclude: list[set[int]] | None = None,
    only: Ints | None = None,
) -> tuple[Floats, Ints]:
    """Cosines (Q, k) and ids (Q, k) of the k nearest to `vectors` (Q, D), best first.

    `exclude` holds for each query the ids that it must not find, such as its own; another vector with the same
    content stays. With `only`, no others than these ids are found; where there are fewer than k, the last ids are −1.
    Raises UserError where the index holds fewer than k others.
    """
    unwanted = exclude or [set() for _ in vectors]
    asked = k + max((len(ids) for ids in unwanted), default=0)
    if vectors.ndim != 2 or vectors.shape[1] != index.d:
        raise UserError(f"queries have the shape {vectors.shape}: the index holds vectors of {index.d} dimensions")
    if not 1 <= k <= index.ntotal:
        raise UserError(f"k is {k}: the index holds {index.ntotal} vectors, so it must be within 1 … {index.ntotal}")
    if only is not None:
        live = index if isinstance(index, LiveIndex) else LiveIndex(index)
        return _among(*live.search(normalise(vectors), min(asked, index.ntotal), only), unwanted, k)
    scores, ids = index.search(normalise(vectors), min(asked, index.ntotal))
    keep = [_first(row, drop, k) for row, drop in zip(ids, unwanted, strict=True)]
    fewest = min((len(columns) for columns in keep), default=k)
    if fewest < k:
        raise UserError(_too_few(index, k, fewest))
    columns = np.array(keep, dtype=np.int64).reshape(len(vectors), k)
    cosines = np.take_along_axis(scores, columns, axis=1).clip(-1, 1)  # beyond by what a quantised index is off
    return cosines, np.take_along_axis(ids, columns, axis=1)


def _among(scores: Floats, ids: Ints, unwanted: list[set[int]], k: int) -> tuple[Floats, Ints]:
    """The first k that are wanted; −1 where there are fewer."""
    for row, drop in zip(ids, unwanted, strict=True):
        row[np.isin(row, list(drop))] = -1
    order = np.argsort(ids < 0, axis=1, kind="stable")[:, :k]
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return np.where(ids < 0, -1, scores.clip(-1, 1)).astype(np.float32), ids


def _first(ids: Ints, drop: set[int], k: int) -> list[int]:
    """The first k columns whose id is wanted; FAISS fills up with −1 what it did not find."""
    return [column for column, found in enumerate(ids.tolist()) if found >= 0 and found not in drop][:k]


def _too_few(index: faiss.Index | LiveIndex, k: int, found: int) -> str:
    if isinstance(_inner(index), faiss.IndexFlat):
        return f"k is {k}: the index holds only {found} vectors besides the image itself"
    return f"k is {k}: this approximate index found only {found}; ask for fewer, or build it with --index.factory Flat"


def save_index(
    index: faiss.Index,
    folder: Path,
    *,
    encoder_hash: str,
    data_fingerprint: str,
    factory: str,
    recall: float,
    dim: int,
    count: int,
    whitened: bool = False,
    embeddings: Mapping[str, str] | None = None,
    **more: Any,
) -> None:
    """Write index.faiss, then manifest.json with its sha256: an index without a matching manifest is no index.

    `embeddings`: the sha256 of the files that it was built from, by path in the run; `more`: other keys of IndexFile.
    """
    forget(folder / "index.faiss", folder / "manifest.json")  # until both are there, neither is finished
    with replacing(folder / "index.faiss") as temporary:
        faiss.write_index(index, str(temporary))
    facts = {
        "schema": SCHEMA,
        "metric": "cosine",
        "factory": factory,
        "whitened": whitened,
        "recall": recall,
        "dim": dim,
        "count": count,
        "encoder_hash": encoder_hash,
        "data_fingerprint": data_fingerprint,
        "embeddings": dict(embeddings) if embeddings is not None else None,
        "sha256": sha256(folder / "index.faiss"),
        **more,
    }
    write_json(folder / "manifest.json", facts)


def load_index(folder: Path | str, *, mapped: bool = False) -> tuple[faiss.Index | LiveIndex, dict[str, Any]]:
    """The index and its manifest. The file's sha256 is compared before FAISS reads a byte of it.

    FAISS' own index where nothing was added or removed since it was built, else one that is searched like it.
    `mapped`: to be searched only, and where FAISS can it stays in its file, of which a search reads what it needs.
    Raises UserError where either is missing, damaged, of another schema, or does not fit the other.
    """
    found, manifest, _ = load_live(Path(folder), mapped=mapped)
    return (found.base if found.is_base else found), manifest


def load_live(folder: Path, *, mapped: bool = True) -> tuple[LiveIndex, dict[str, Any], Generation | None]:
    """Like `load_index`, with what came and went, and the generation; None where an older version wrote the index."""
    return settled(folder, lambda: _load_either(folder, mapped))


def _load_either(folder: Path, mapped: bool) -> tuple[LiveIndex, dict[str, Any], Generation | None]:
    if has_generations(folder):
        return following(folder, lambda name: _load_generation(folder, name, mapped))
    manifest = read_index_manifest(folder, remedy_of(folder))
    return LiveIndex(_load(folder / "index.faiss", manifest, mapped, remedy_of(folder))), manifest, None


def _load_generation(folder: Path, name: str, mapped: bool) -> tuple[LiveIndex, dict[str, Any], Generation]:
    found = read_generation(folder, name)
    base = _load(folder / found.base / "index.faiss", found.manifest, mapped, remedy_of(folder))
    vectors = floats(found.additions["vector"])
    if not np.isfinite(vectors).all():
        raise UserError(
            f"{folder / name}: the added vectors hold NaN or infinity: remove {folder}, and {remedy_of(folder)} builds "
            "it again"
        )
    points = normalise(vectors)
    return LiveIndex(base, found.gone, ints(found.additions["id"]), points), found.manifest, found


def _load(path: Path, manifest: dict[str, Any], mapped: bool, remedy: str) -> faiss.Index:
    if not path.is_file():
        raise MissingError(f"{path} does not exist: {remedy} writes it")
    _check_sum(path, manifest, remedy)
    try:
        with _reading_limits(path.stat().st_size):
            index = faiss.read_index(str(path), MAPPED if mapped else 0)
    except RuntimeError:
        raise UserError(f"{path} is damaged (FAISS cannot read it): {remedy} writes it again") from None
    if (index.d, index.ntotal) != (manifest["dim"], manifest["count"]):
        raise UserError(
            f"{path} holds {index.ntotal} vectors of {index.d} dimensions, its manifest says {manifest['count']} "
            f"of {manifest['dim']}: {remedy} writes it again"
        )
    _check_lists(index, path, remedy)
    _check_sum(path, manifest, remedy)  # it may have been replaced meanwhile
    return index


def _check_lists(index: faiss.Index, path: Path, remedy: str) -> None:
    """The lists of an IVF index, which FAISS follows into a mapped file, hold as much as it says."""
    core = faiss.try_extract_index_ivf(index)
    if core is None:
        return
    lists: Any = core.invlists
    sizes = sum(lists.list_size(one) for one in range(lists.nlist))
    if lists.nlist != core.nlist or sizes != core.ntotal or lists.code_size != core.code_size:
        raise UserError(f"{path} is damaged (its lists are not what it says of them): {remedy} writes it again")


def _check_sum(path: Path, manifest: dict[str, Any], remedy: str) -> None:
    if digest(path) != manifest["sha256"]:
        raise UserError(f"{path} is damaged (its sha256 is not the manifest's): {remedy} writes it again")


def check_matches(manifest: dict[str, Any], encoder_hash: str, data_fingerprint: str) -> None:
    """Raise UserError where an index was built by another encoder or over other data than these."""
    if manifest["encoder_hash"] != encoder_hash:
        raise UserError(
            f"the index was built with encoder {manifest['encoder_hash'][:12]}, the run's is {encoder_hash[:12]}: "
            "`rayssl embed RUN`, then `rayssl index RUN` build it again"
        )
    if manifest["data_fingerprint"] != data_fingerprint:
        raise UserError(
            f"the index was built over data {manifest['data_fingerprint'][:12]}, the embeddings are of "
            f"{data_fingerprint[:12]}: `rayssl index RUN` builds it again"
        )


def check_embeddings(manifest: dict[str, Any], run: Path) -> None:
    """Raise UserError where the embeddings that an index was built from have been written again since."""
    told: dict[str, str] = manifest.get("embeddings") or {}  # older ones do not tell
    for name, expected in told.items():
        if digest(run / name) != expected:
            raise UserError(f"{run / name} is not what the index was built from: `rayssl index {run}` builds it again")


@contextmanager
def _reading_limits(size: int) -> Iterator[None]:
    """No array and no loop in a file of `size` bytes may claim much more than that (facebookresearch/faiss#5400)."""
    with _limits:
        before = faiss.get_deserialization_loop_limit(), faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_loop_limit(size)
        faiss.set_deserialization_vector_byte_limit(size + _TABLE_BYTES)
        try:
            yield
        finally:
            faiss.set_deserialization_loop_limit(before[0])
            faiss.set_deserialization_vector_byte_limit(before[1])
