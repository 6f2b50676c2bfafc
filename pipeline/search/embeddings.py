"""The embeddings of one split as a parquet file that is readable without this project.

<run>/embeddings/<data>/<split>.parquet has the columns id (int64), path (text), label (int64 or null), embedding
(fixed-size list of float32) and, where an image has a file of its own, content (16 bytes, see data.content); the
schema's metadata tells which encoder and which data they come from.

Reading keeps away from what makes pyarrow import pandas where that is installed (`read_table`, `to_numpy`,
`fill_null`), and from `pyarrow.compute`: a query would wait for them longer than it searches.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayssl.pipeline.base.documents import DamagedError, OtherSchemaError, fit, open_regular, parse
from rayssl.pipeline.base.errors import MissingError, UserError
from rayssl.pipeline.base.files import listed, replacing
from rayssl.pipeline.base.schemas import EmbeddingsFacts
from rayssl.pipeline.base.seals import check, digest
from rayssl.pipeline.data.columns import read_bounded
from rayssl.pipeline.data.regular import largest
from rayssl.pipeline.run.folder import data_name

SCHEMA = 1
MOST_DIM = 1 << 16  # numbers of an embedding
MOST_EXPANDED = 64  # bytes in memory for one of the file, of a file whose content is larger than is read in one piece
COLUMNS = {"id": pa.int64(), "path": pa.string(), "label": pa.int64()}  # and embedding, whose type depends on D
CONTENT = pa.binary(16)  # may be missing: images in shards, and files that older versions wrote, have none
FACTS = ("class_names", "encoder_hash", "data_fingerprint", "split", "data", "data_path")


@dataclass(frozen=True)
class Embeddings:
    """N embeddings of D dimensions, as the encoder gives them (not normalised)."""

    ids: NDArray[np.int64]  # (N,) sample ids, unique
    paths: list[str]  # N paths or keys, as the data set shows them
    labels: NDArray[np.int64] | None  # (N,), -1 where an image has none; None where no image has one
    vectors: NDArray[np.float32]  # (N, D)
    class_names: tuple[str, ...] | None
    encoder_hash: str
    data_fingerprint: str
    split: str
    data: str = ""  # the data set's name
    data_path: str = ""  # absolute folder or URL that `paths` are relative to
    contents: NDArray[np.uint8] | None = None  # (N, 16) digests of the images' files


def save_embeddings(embeddings: Embeddings, path: Path | str) -> None:
    """Write a parquet file, whole or not at all. Pages carry checksums, so that damage is noticed on reading."""
    columns = {
        "id": pa.array(embeddings.ids, pa.int64()),
        "path": pa.array(embeddings.paths, pa.string()),
        "label": label_column(embeddings.labels, len(embeddings.ids)),
        "embedding": vector_column(embeddings.vectors),
    }
    if embeddings.contents is not None:
        columns["content"] = content_column(embeddings.contents)
    table = pa.table(columns).replace_schema_metadata(
        {"rayssl": json.dumps({"schema": SCHEMA, **{name: getattr(embeddings, name) for name in FACTS}})}
    )
    with replacing(Path(path)) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def load_embeddings(path: Path | str) -> Embeddings:
    """Read what `save_embeddings` wrote.

    Raises UserError where the file is missing, damaged, of another schema, or lacks a column.
    """
    path = Path(path)
    table, facts = read_columns(path)
    ids: NDArray[np.int64] = np.asarray(np.from_dlpack(table["id"].combine_chunks()), dtype=np.int64)
    if len(np.unique(ids)) != len(ids):
        raise _damaged(path, "an id twice")
    vectors = vectors_in(table["embedding"], path)
    labels = None if table["label"].null_count == len(table) else known_labels(table["label"], path)
    return Embeddings(
        ids=ids,
        paths=table["path"].to_pylist(),
        labels=labels,
        vectors=vectors,
        contents=contents_in(table),
        **{name: facts[name] for name in FACTS},
    )


def read_columns(path: Path, names: Sequence[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """The columns of these names, or all of them, and what the file tells of itself; other columns are not read.

    Raises UserError like `load_embeddings`.
    """
    check(path, f"{_remedy(path)} writes it again")
    # Arrow's own file: a thread of its that lets a Python object go while Python ends aborts the process.
    with _reading(path), pa.OSFile(str(path)) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        _check_columns(parquet.schema_arrow, path)
        size = path.stat().st_size
        if not 0 <= parquet.metadata.num_rows <= size:
            raise _damaged(path, f"{parquet.metadata.num_rows:,} rows in {size:,} bytes")
        wanted = (*COLUMNS, "embedding", *_more(parquet.schema_arrow)) if names is None else names
        table = read_bounded(parquet, str(path), wanted, max(largest(), MOST_EXPANDED * size))
    if table["id"].null_count or table["path"].null_count:
        raise _damaged(path, "rows without an id or path")
    try:
        table["path"].validate(full=True)
    except pa.ArrowInvalid:
        raise _damaged(path, "a path is not UTF-8") from None
    facts = _facts_of(parquet.schema_arrow.metadata, path)
    facts["class_names"] = None if facts["class_names"] is None else tuple(facts["class_names"])
    labels = known_labels(table["label"], path)
    if len(labels) and labels.max() >= len(facts["class_names"] or labels):
        raise _damaged(path, f"label {labels.max()} is of no class")
    return table, facts


def files_of(folder: Path) -> list[Path]:
    """The files of embeddings in a folder; what a killed writer of an older version left there begins with a dot."""
    return [path for path in listed(folder, "*.parquet") if not path.name.startswith(".")]


def digests(run: Path, name: str, part: str) -> dict[str, str]:
    """The sha256 of the embeddings of a data set that a stage reads, by path in the run."""
    return {str(file.relative_to(run)): digest(file) for file in files_of(run / "embeddings" / name / part)}


def read_facts(path: Path) -> dict[str, Any]:
    """What a file of embeddings tells of itself; raises UserError like `load_embeddings`, but reads no row."""
    with _reading(path):
        return _facts_of(pq.read_schema(path).metadata, path)


def name_in(run: Path, name: str, path: str) -> str:
    """What images at a path are called in a run: `name`, unless it has other images, or its own, of that name.

    Those that it has from this very path are replaced.
    """
    own = data_name(run)
    found = {file.parent.name: _data_path(file) for file in listed(run / "embeddings", "*/train.parquet")}
    others = {one: where for one, where in found.items() if one != own and where is not None}
    if path in others.values():
        return next(one for one, where in others.items() if where == path)
    taken = {one.casefold() for one in (own, *others)}  # there are file systems that do not tell a from A
    return f"{name}-{hashlib.sha256(path.encode()).hexdigest()[:6]}" if name.casefold() in taken else name


def _data_path(path: Path) -> str | None:
    try:
        return str(read_facts(path)["data_path"])
    except UserError:
        return None  # damaged: it is replaced


def label_column(labels: NDArray[np.int64] | None, n: int) -> pa.Array:
    return pa.nulls(n, pa.int64()) if labels is None else pa.array(labels, pa.int64(), mask=labels < 0)


def vector_column(vectors: NDArray[np.float32]) -> pa.Array:
    flat = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), vectors.shape[1])


def content_column(contents: NDArray[np.uint8]) -> pa.Array:
    """(N, 16) bytes as an Arrow column."""
    flat = np.ascontiguousarray(contents, dtype=np.uint8)
    return pa.Array.from_buffers(CONTENT, len(flat), [None, pa.py_buffer(flat.tobytes())])


def contents_in(table: pa.Table) -> NDArray[np.uint8] | None:
    """(N, 16) digests of the images' files; None where the column is missing, or an image has none."""
    if "content" not in table.column_names or table["content"].null_count:
        return None
    column = table["content"].combine_chunks()
    if not len(column):
        return np.zeros((0, 16), np.uint8)
    return np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, 16)[column.offset :][: len(column)]


def has_contents(path: Path) -> bool:
    """Whether a file of embeddings tells what the images' files hold."""
    with _reading(path):
        return bool(_more(pq.read_schema(path)))


def _more(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name == "content" and schema.field(name).type == CONTENT]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A regular file that is there is read in the block; raises UserError where it is none, or no parquet."""
    try:
        open_regular(path).close()
        yield
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist: {_remedy(path)} writes it") from None
    except DamagedError as error:
        raise _damaged(path, str(error)) from None
    except (OSError, MemoryError, ValueError, ArithmeticError, LookupError, pa.ArrowException):
        raise _damaged(path, "not readable as parquet") from None


def _check_columns(schema: pa.Schema, path: Path) -> None:
    names = (*COLUMNS, "embedding")
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}: {_remedy(path)} writes it again")
    if any(schema.names.count(name) > 1 for name in names):
        raise _damaged(path, "a column twice")
    for name, kind in COLUMNS.items():
        if schema.field(name).type != kind:
            raise _damaged(path, f"{name} is {schema.field(name).type}, not {kind}")
    kind = schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32() or not 0 < kind.list_size <= MOST_DIM:
        raise _damaged(path, f"embedding is {kind}, not a fixed-size list of float32, 1 to {MOST_DIM:,}")


def _facts_of(metadata: Any, path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = parse(metadata[b"rayssl"])
        fit(facts, EmbeddingsFacts)
    except (TypeError, KeyError):
        raise UserError(f"{path} does not tell its encoder and data: {_remedy(path)} writes it again") from None
    except OtherSchemaError as error:
        raise UserError(f"{path} {error}: {_remedy(path)} writes it again") from None
    except DamagedError as error:
        raise _damaged(path, str(error)) from None
    return facts


def vectors_in(column: pa.ChunkedArray, path: Path) -> NDArray[np.float32]:
    values = column.combine_chunks().flatten()  # a row that is null has none
    if values.null_count or len(values) != len(column) * column.type.list_size:
        raise _damaged(path, "rows without an embedding")
    flat: NDArray[np.float32] = np.asarray(np.from_dlpack(values), dtype=np.float32)
    return flat.reshape(-1, column.type.list_size)


def known_labels(column: pa.ChunkedArray, path: Path) -> NDArray[np.int64]:
    """(N,) with -1 where there is none."""
    array = column.combine_chunks()
    known, values = array.buffers()
    if values is None or array.null_count == len(array):
        return np.full(len(array), -1)
    labels: NDArray[np.int64] = np.frombuffer(values, np.int64)[array.offset :][: len(array)].copy()
    unknown = None
    if known is not None and array.null_count:  # a bit an image
        bits = np.unpackbits(np.frombuffer(known, np.uint8), bitorder="little")
        unknown = bits[array.offset :][: len(array)] == 0
        labels[unknown] = 0  # whatever stands there
    if len(labels) and labels.min() < 0:
        raise _damaged(path, "a label below zero")
    if unknown is not None:
        labels[unknown] = -1
    return labels


def _damaged(path: Path, how: str) -> UserError:
    return UserError(f"{path} is damaged ({how}): {_remedy(path)} writes it again")


def _remedy(path: Path) -> str:
    """The command that writes this file: it lies in <run>/embeddings/<data>/."""
    return f"`rayssl embed {path.parents[2] if len(path.parents) > 2 else 'RUN'}`"
