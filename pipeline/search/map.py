"""A map of a data set: every image of an index at a place in the plane, images that are alike near each other.

<run>/index/<data>/map.parquet has the columns id (int64), x and y (float32); its metadata tells what it was made from.
It is made once, and again where the index has changed since.

Shapes: N images, d numbers in a vector.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayssl.pipeline.base.documents import DamagedError, fit, open_regular, parse
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import replacing
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.base.schemas import MapFacts
from rayssl.pipeline.base.seals import check
from rayssl.pipeline.data.columns import read_bounded
from rayssl.pipeline.search.query import OpenIndex
from rayssl.pipeline.search.stored import Stored

SCHEMA = 1
FILE = "map.parquet"
FITTED = 20_000  # images at most that are laid out by t-SNE; the rest is placed among them
COMPONENTS = 50  # of PCA before it (van der Maaten, Hinton, 2008, section 4)
PERPLEXITY = 30.0  # openTSNE's; it has to be below a third of the images
FEWEST = 4  # images that t-SNE lays out
MANY = 2000  # images from which interpolation (Linderman et al., 2019) is quicker than Barnes and Hut's tree
NEIGHBORS = 10  # among which an image is placed
BYTES_AN_IMAGE = 16  # of a row
SEED = 0

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Map:
    """Places of images."""

    ids: Ints  # (N,)
    places: Floats  # (N, 2), −1 … 1


def made_of(opened: OpenIndex) -> str:
    """A hash of what decides a map."""
    ids = np.sort(opened.items.ids)
    told = [SCHEMA, FITTED, opened.hash, opened.items.data_fingerprint, hashlib.sha256(ids.tobytes()).hexdigest()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def read_map(opened: OpenIndex) -> Map | None:
    """The map that is kept; None where there is none, it is damaged, or of another index."""
    path = opened.run / "index" / opened.name / FILE
    try:
        check(path, "it is made again")
        open_regular(path).close()
        with pa.OSFile(str(path)) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            facts: dict[str, Any] = parse((parquet.schema_arrow.metadata or {})[b"rayssl"])
            fit(facts, MapFacts)
            if facts["made_of"] != made_of(opened) or parquet.metadata.num_rows != len(opened.items.ids):
                return None
            most = 2 * BYTES_AN_IMAGE * len(opened.items.ids) + (1 << 16)
            table = read_bounded(parquet, str(path), ("id", "x", "y"), most)
        ids, *places = (np.asarray(table[name].combine_chunks()) for name in ("id", "x", "y"))
    except (OSError, DamagedError, UserError, LookupError, ValueError, TypeError, pa.ArrowException):
        return None
    found = Map(ids.astype(np.int64), np.stack(places, axis=1).astype(np.float32))
    return found if _fits(found, opened) else None


def _fits(found: Map, opened: OpenIndex) -> bool:
    whole = np.isfinite(found.places).all() and np.abs(found.places).max(initial=0) <= 1
    return bool(whole) and np.array_equal(np.sort(found.ids), np.sort(opened.items.ids))


def make_map(opened: OpenIndex) -> Map:
    """Lay out the images of an index, and keep the map where nobody else writes the run meanwhile."""
    ids = opened.items.ids
    order = np.argsort(ids)  # by a hash, so that the first are like any others
    ids = ids[order]
    found = Map(ids, laid_out(Stored(opened)(ids)))
    try:
        with writer_lock(opened.run, wait_s=0):
            _write(found, opened)
    except (UserError, OSError):  # it is written by another, or cannot be: the next server makes it again
        pass
    return found


def _write(found: Map, opened: OpenIndex) -> None:
    facts = {"schema": SCHEMA, "made_of": made_of(opened), "fitted": min(FITTED, len(found.ids))}
    table = pa.table({"id": found.ids, "x": found.places[:, 0], "y": found.places[:, 1]})
    with replacing(opened.run / "index" / opened.name / FILE) as temporary:
        pq.write_table(
            table.replace_schema_metadata({"rayssl": json.dumps(facts)}), temporary, write_page_checksum=True
        )


def laid_out(vectors: Floats) -> Floats:
    """(N, 2) within −1 … 1: PCA, t-SNE of the first vectors (N, d), the others at the median of their neighbours."""
    if vectors.shape[1] < 2:
        vectors = np.pad(vectors, ((0, 0), (0, 1)))
    alike = np.ptp(vectors, axis=0).max() == 0
    places = vectors[:, :2] if alike or len(vectors) < FEWEST else _tsne(_components(vectors))
    places = places - (places.max(axis=0) + places.min(axis=0)) / 2
    scaled: Floats = (places / max(float(np.abs(places).max(initial=0)), 1e-12)).astype(np.float32)
    return scaled


def _components(vectors: Floats) -> Floats:
    from sklearn.decomposition import PCA

    some = vectors[:FITTED]
    pca = PCA(min(COMPONENTS, *some.shape), svd_solver="covariance_eigh").fit(some)
    found: Floats = pca.transform(vectors).astype(np.float32)
    return found


def _tsne(points: Floats) -> NDArray[np.float64]:
    import openTSNE

    perplexity = min(PERPLEXITY, (min(FITTED, len(points)) - 1) / 3)
    many = len(points) > MANY
    tsne = openTSNE.TSNE(
        perplexity=perplexity,
        negative_gradient_method="fft" if many else "bh",
        initialization="pca",
        random_state=SEED,
        n_jobs=-1 if many else 1,
    )
    fitted = tsne.fit(points[:FITTED])
    if len(points) <= FITTED:
        return np.asarray(fitted)
    placed = fitted.prepare_partial(points[FITTED:], initialization="median", k=NEIGHBORS)
    return np.concatenate([np.asarray(fitted), np.asarray(placed)])
