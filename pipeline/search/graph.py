"""The nearest neighbours of every image of a data set among the others: made once, kept with the index, made again.

index/<data>/graph.parquet has the columns id (int64), neighbor (fixed-size list of k int64, ids, best first) and cosine
(fixed-size list of k float32); the schema's metadata tell under `rayssl` which files of embeddings it was made from,
whether the search was exact, and what share of the neighbours it found. graph-last.parquet is the same of the last
stage where others are searched. Both can be deleted at any time.

Shapes: N images, D numbers, k neighbours.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayssl.pipeline.base.documents import DamagedError, fit, open_regular, parse
from rayssl.pipeline.base.errors import MissingError, UserError
from rayssl.pipeline.base.files import replacing
from rayssl.pipeline.base.schemas import GraphFacts
from rayssl.pipeline.base.seals import check
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.data.columns import read_bounded
from rayssl.pipeline.data.regular import largest

FILE, LAST_FILE = "graph.parquet", "graph-last.parquet"
SCHEMA = 1
K = 20  # neighbours
EXACT = 20_000  # images up to which all are compared with all
RECALL = 0.99  # of the neighbours that an approximate search has to find
SAMPLE = 500  # images that its effort is set by, and as many others that its recall is measured on
TRAINING = 39  # vectors a list that k-means is given: FAISS' own least (Clustering.h, min_points_per_centroid)
WORKSPACE = 64 << 20  # bytes at most, whatever N is, besides the vectors, their copy in an IVF index, and the graph
_EPSILON = 1e-6  # cosines this close are a tie: float32 rounding of a sum of D products

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Graph:
    """For each of N images its k nearest others by cosine, best first."""

    ids: Ints  # (N,)
    neighbors: Ints  # (N, k) rows
    cosines: Floats  # (N, k) in −1 … 1
    recall: float  # share of the nearest that were found; 1 where all were compared
    exact: bool

    @property
    def k(self) -> int:
        """Neighbours of an image."""
        return int(self.neighbors.shape[1])


def make_graph(vectors: Floats, ids: Ints, k: int = K, exact: int = EXACT) -> Graph:
    """The graph of vectors (N, D); fewer than k neighbours where there are fewer others.

    All are compared with all up to `exact` images; above it by FAISS' inverted lists, of which so many are looked at
    that a sample finds 99 % of its neighbours. `recall` is measured on another sample. An image is never its own
    neighbour; a copy of it is. Raises UserError for fewer than two images, and for vectors that are not finite.
    """
    if len(vectors) < 2:
        raise UserError(f"{len(vectors)} image has no neighbours: at least 2 are needed")
    if not np.isfinite(vectors).all():
        raise UserError("the embeddings hold NaN or infinity: the encoder's training diverged, train it again")
    points, k = normalise(vectors), min(k, len(vectors) - 1)
    if len(points) <= exact:
        neighbors, cosines = _search(points, np.arange(len(points)), k, lambda rows, n: _exactly(points, rows, n))
        return Graph(ids, neighbors, cosines, 1.0, True)
    index, recall = _tuned(points, k)
    neighbors, cosines = _search(points, np.arange(len(points)), k, lambda rows, n: index.search(points[rows], n))
    short = np.flatnonzero((neighbors < 0).any(axis=1))  # the lists that were looked at hold fewer
    if len(short):
        neighbors[short], cosines[short] = _search(points, short, k, lambda rows, n: _exactly(points, rows, n))
    return Graph(ids, neighbors, cosines, recall, False)


def save_graph(graph: Graph, path: Path, made_from: Mapping[str, str]) -> None:
    """Write the graph, whole or not at all; `made_from`: sha256 of the files of embeddings, by path in the run."""
    facts = {
        "schema": SCHEMA, "k": graph.k, "exact": graph.exact, "recall": graph.recall, "embeddings": dict(made_from)
    }  # fmt: skip
    columns = {
        "id": pa.array(graph.ids, pa.int64()),
        "neighbor": _lists(graph.ids[graph.neighbors], pa.int64()),
        "cosine": _lists(graph.cosines, pa.float32()),
    }
    table = pa.table(columns).replace_schema_metadata({"rayssl": json.dumps(facts)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def load_graph(path: Path) -> tuple[Graph, dict[str, Any]]:
    """What `save_graph` wrote, and what it tells of itself; raises UserError where it is missing or damaged."""
    remedy = "remove it, it is made again when it is needed"
    check(path, remedy)
    try:
        open_regular(path).close()
        with pa.OSFile(str(path)) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            facts = _facts_of(parquet, path.stat().st_size)
            table = read_bounded(parquet, str(path), ("id", "neighbor", "cosine"), largest())
        return _graph_of(table, facts), facts
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist: it is made when it is needed") from None
    except DamagedError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None
    except (OSError, MemoryError, ValueError, ArithmeticError, LookupError, TypeError, pa.ArrowException):
        raise UserError(f"{path} is damaged (not readable as parquet): {remedy}") from None


def _facts_of(parquet: pq.ParquetFile, size: int) -> dict[str, Any]:
    """Of a file whose columns are those of a graph; raises DamagedError."""
    facts: dict[str, Any] = parse(parquet.schema_arrow.metadata[b"rayssl"])
    fit(facts, GraphFacts)
    schema, k = parquet.schema_arrow, facts["k"]
    wanted = {"id": pa.int64(), "neighbor": pa.list_(pa.int64(), k), "cosine": pa.list_(pa.float32(), k)}
    for name, kind in wanted.items():
        if schema.names.count(name) != 1 or not _same_lists(schema.field(name).type, kind):
            raise DamagedError(f"its column {name} is not one of {kind}")
    if not 0 <= parquet.metadata.num_rows <= size:
        raise DamagedError(f"{parquet.metadata.num_rows:,} rows in {size:,} bytes")
    return facts


def _same_lists(found: Any, wanted: Any) -> bool:
    """Whether two types are the same, whatever the items of a list are called."""
    if not pa.types.is_fixed_size_list(wanted):
        return bool(found == wanted)
    is_list = pa.types.is_fixed_size_list(found)
    return bool(is_list and found.list_size == wanted.list_size and found.value_type == wanted.value_type)


def _graph_of(table: pa.Table, facts: Mapping[str, Any]) -> Graph:
    """Raises DamagedError for what is no graph: ids that there are not, given twice, cosines out of their range."""
    ids = _numbers(table["id"], 1).reshape(-1).astype(np.int64)
    named = _numbers(table["neighbor"], facts["k"]).astype(np.int64)
    cosines = _numbers(table["cosine"], facts["k"]).astype(np.float32)
    order = np.argsort(ids)
    if len(ids) <= facts["k"] or (np.diff(ids[order]) == 0).any():
        raise DamagedError("an id twice, or fewer images than neighbours")
    rows = order[np.searchsorted(ids, named, sorter=order).clip(max=len(ids) - 1)]
    if not (ids[rows] == named).all() or (rows == np.arange(len(ids))[:, None]).any():
        raise DamagedError("a neighbour that there is not, or an image that is its own")
    if not (np.abs(cosines) <= 1).all():  # nor for NaN
        raise DamagedError("a cosine out of −1 … 1")
    return Graph(ids, rows, cosines, float(facts["recall"]), bool(facts["exact"]))


def _numbers(column: pa.ChunkedArray, width: int) -> NDArray[Any]:
    """(N, width) of a column of numbers or of lists of them; raises DamagedError where some are missing."""
    array = column.combine_chunks()
    values = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    if values.null_count or len(values) != len(column) * width:
        raise DamagedError("rows without neighbours")
    return np.asarray(np.from_dlpack(values)).reshape(len(column), width)


def _lists(values: NDArray[Any], kind: Any) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1), kind), values.shape[1])


def _exactly(points: Floats, rows: Ints, k: int) -> tuple[Floats, Ints]:
    found: tuple[Floats, Ints] = faiss.knn(points[rows], points, k, metric=faiss.METRIC_INNER_PRODUCT)
    return found


def _search(points: Floats, rows: Ints, k: int, nearest: Any) -> tuple[Ints, Floats]:
    """Neighbours (Q, k) and cosines (Q, k) of some rows, without themselves, block by block."""
    neighbors, cosines = np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32)
    for block in _blocks(len(rows), 4 * points.shape[1] + 24 * (k + 1)):
        scores, found = nearest(rows[block], k + 1)
        keep = _others(found, rows[block])
        neighbors[block] = np.take_along_axis(found, keep, axis=1)
        cosines[block] = np.take_along_axis(scores, keep, axis=1).clip(-1, 1)
    return neighbors, cosines


def _others(found: Ints, rows: Ints) -> Ints:
    """(Q, k) columns of (Q, k + 1) without an image's own row, or, where copies crowd that out, without the last."""
    own = found == rows[:, None]
    own[:, -1] |= ~own.any(axis=1)
    columns = np.argsort(own, axis=1, kind="stable")[:, :-1]
    return np.asarray(columns, dtype=np.int64)


def _blocks(n: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, WORKSPACE // 2 // row_bytes)  # the other half is what FAISS takes for a block
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _tuned(points: Floats, k: int) -> tuple[Any, float]:
    """An index by inverted lists, 4 √N of them as in FAISS' guidelines, that finds enough, and its recall."""
    lists = int(2 ** np.round(np.log2(4 * np.sqrt(len(points)))))
    index: Any = faiss.index_factory(points.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = TRAINING
    index.train(points)
    index.add(points)
    drawn = np.random.default_rng(0).permutation(len(points))
    tuning, measured = np.sort(drawn[:SAMPLE]), np.sort(drawn[SAMPLE : 2 * SAMPLE])
    index.nprobe = 8
    while index.nprobe < lists and _recall(index, points, tuning, k) < RECALL:
        index.nprobe = min(2 * index.nprobe, lists)
    return index, _recall(index, points, measured, k)


def _recall(index: Any, points: Floats, rows: Ints, k: int) -> float:
    """Share of the k nearest that are found; one as near as the k-th counts, so that ties are no misses."""
    _, exact = _search(points, rows, k, lambda some, n: _exactly(points, some, n))
    neighbors, found = _search(points, rows, k, lambda some, n: index.search(points[some], n))
    hits = (neighbors >= 0) & (found >= exact[:, -1:] - _EPSILON)
    return float(np.mean(hits))
