"""Columns of a table of one's own, CSV or parquet, joined by path to the images of an index: for `where`."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from rayssl.pipeline.base.documents import DamagedError, open_regular
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.columns import read_bounded
from rayssl.pipeline.data.matching import match_paths
from rayssl.pipeline.data.regular import check_size, largest
from rayssl.pipeline.search.items import Items
from rayssl.pipeline.search.where import OWN

PATH = "path"  # the column that names an image


def columns_of(items: Items, place: Path, file: Path) -> tuple[pa.Table, list[str]]:
    """id, ascending, and the table's other columns, for images of the index; and what is to be said of it.

    Columns that hold neither numbers, texts nor dates, and those that an index has itself, are left out. Raises
    UserError for what is no such table, has no column "path", or names an image twice.
    """
    table = _read(file)
    if PATH not in table.column_names:
        raise UserError(f"{file} has no column 'path', only {', '.join(map(str, table.column_names[:20]))}")
    names = [str(one) if one is not None else "" for one in table[PATH].to_pylist()]
    if not names:
        raise UserError(f"{file} has no rows")
    match = match_paths(str(file), names, items.paths.to_pylist(), str(place))
    known = [(image, row) for row, image in enumerate(match.positions) if image is not None]
    images, rows = np.array(known, dtype=np.int64).T
    if len(np.unique(images)) < len(images):
        twice = items.path(int(images[np.flatnonzero(np.diff(np.sort(images)) == 0)[0]]))
        raise UserError(f"{file} names an image twice, e.g. {twice}")
    order = np.argsort(items.ids[images])
    found = {"id": pa.array(items.ids[images][order])}
    kept = [name for name in table.column_names if name not in OWN and _is_simple(table.schema.field(name).type)]
    found |= {name: table[name].take(pa.array(rows[order])).combine_chunks() for name in kept}
    left = [name for name in table.column_names if name not in (PATH, *kept)]
    told = [f"columns {', '.join(kept) or 'none'} of {len(images):,} images of {len(items):,}"]
    told += [f"left out: {', '.join(left)}"] if left else []
    told += [f"{len(names) - len(images):,} rows name no image of the index"] if len(names) > len(images) else []
    return pa.table(found), [*told, *(note.text for note in match.notes)]


def _read(file: Path) -> pa.Table:
    try:
        open_regular(file).close()
        check_size(file.stat().st_size, str(file), largest())
        if file.suffix.lower() == ".parquet":
            with pa.OSFile(str(file)) as opened:
                parquet = pq.ParquetFile(opened)
                table = read_bounded(parquet, str(file), parquet.schema_arrow.names, largest())
        else:
            table = csv.read_csv(str(file))
    except FileNotFoundError:
        raise UserError(f"--columns {file} does not exist") from None
    except (DamagedError, OSError, ValueError, MemoryError, ArithmeticError, LookupError, pa.ArrowException) as error:
        first = (str(error).strip() or "not readable").splitlines()[0]
        raise UserError(f"--columns {file} cannot be read as CSV or parquet: {first}") from None
    if len(set(table.column_names)) < table.num_columns:
        raise UserError(f"--columns {file} has two columns of one name")
    return pa.table({name: _decoded(table[name]) for name in table.column_names})


def _decoded(column: Any) -> Any:
    """Without a dictionary, and with texts of one kind."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        kind = pa.string()
    return column.cast(kind) if kind != column.type else column


def _is_simple(kind: pa.DataType) -> bool:
    types = pa.types
    checks = (
        types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_decimal, types.is_date,
        types.is_timestamp, types.is_time,
    )  # fmt: skip
    return any(check(kind) for check in checks)
