"""Which images an expression is true of: `label = 'cat' and path like 'photos/%'`.

SQLite evaluates it, in memory, over the columns that it names. Whatever it says, it can read these and call functions:
no file, no setting and no other table is within its reach, and its time and memory are bounded.
"""

import datetime
import decimal
import re
import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.search.items import Items

LONGEST = 10_000  # letters of an expression
_LARGEST = 1 << 20  # bytes of a text that it may make
_DEEPEST = 200  # levels of it
_STEPS, _STEPS_AN_IMAGE = 20_000_000, 1_000  # of SQLite's machine, beyond which it is stopped
_LOOKS = 10_000  # steps from one look at their number to the next
OWN = ("id", "path", "label", "split")
_FORBIDDEN = ("load_extension", "randomblob", "zeroblob")

_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?P<name>(?:[^"]|"")*)\"""")  # a text, or a name

Ints = NDArray[np.int64]


def matching(items: Items, expression: str, columns: pa.Table | None = None) -> Ints:
    """The ids of the images that an expression is true of, ascending.

    `columns`: id and what else is known of images. Raises UserError for what is no expression over these columns.
    """
    if len(expression) > LONGEST:
        raise UserError(f"--where has {len(expression):,} letters: at most {LONGEST:,}")
    kinds = kinds_of(columns)
    _check_names(expression, kinds)
    used = _used(expression, kinds)
    table = _joined(items, columns, used)
    connection = _table(kinds, used)
    try:
        connection.executemany(f"insert into items values ({', '.join('?' * len(used))})", zip(*table, strict=True))
        rows = _select(connection, expression, kinds, len(items))
    finally:
        connection.close()
    rows = rows[(rows >= 0) & (rows < len(items))]
    return np.sort(items.ids[np.unique(rows)])


def _check_names(expression: str, kinds: dict[str, str]) -> None:
    """Raises UserError for a name in double quotes that is no column: SQLite would take it for a text, in silence."""
    known = {name.casefold() for name in kinds}
    for found in _QUOTED.finditer(expression):
        name = found["name"]
        if name is not None and name.replace('""', '"').casefold() not in known:
            raise _refused(expression, f"no such column: {name}", kinds)


def kinds_of(columns: pa.Table | None) -> dict[str, str]:
    """The kind of every column that an expression may name, in SQLite's words."""
    kinds = {"id": "integer", "path": "text", "label": "", "split": "text"}
    for field in columns.schema if columns is not None else []:
        if field.name not in kinds:
            kinds[field.name] = _kind(field.type)
    return kinds


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "integer"
    return "real" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "text"


def _used(expression: str, kinds: dict[str, str]) -> list[str]:
    """The columns that an expression reads; it is tried on no image."""
    connection = _table(kinds, list(kinds))
    used: dict[str, None] = {}
    try:
        _select(connection, expression, kinds, 0, used)
    finally:
        connection.close()
    return [name for name in kinds if name in used] or ["id"]


def _table(kinds: dict[str, str], names: Sequence[str]) -> sqlite3.Connection:
    """An empty table with these columns, in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    told = ", ".join(f"{_quoted(name)} {kinds[name]}" for name in names)
    connection.execute(f"create table items ({told})")
    return connection


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _select(
    connection: sqlite3.Connection, expression: str, kinds: dict[str, str], n: int, used: dict[str, None] | None = None
) -> Ints:
    """The rows that an expression is true of, from 0."""

    def permit(action: int, first: str | None, second: str | None, *_: Any) -> int:
        if action == sqlite3.SQLITE_READ and first == "items":
            if used is not None and second:
                used[second] = None
            return sqlite3.SQLITE_OK
        function = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in _FORBIDDEN
        return sqlite3.SQLITE_OK if function or action == sqlite3.SQLITE_SELECT else sqlite3.SQLITE_DENY

    looks = 0

    def goes_on() -> int:
        nonlocal looks
        looks += 1
        return int(looks * _LOOKS > _STEPS + n * _STEPS_AN_IMAGE)

    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
    connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, _DEEPEST)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, LONGEST)
    connection.set_authorizer(permit)
    connection.set_progress_handler(goes_on, _LOOKS)
    try:
        found = connection.execute(f"select rowid - 1 from items where ((\n{expression}\n))").fetchall()
    except (sqlite3.Error, sqlite3.Warning, ValueError, UnicodeError, OverflowError) as error:
        raise _refused(expression, str(error), kinds) from None
    return np.array([row for (row,) in found if isinstance(row, int)], dtype=np.int64)


def _refused(expression: str, why: str, kinds: dict[str, str]) -> UserError:
    shown = expression if len(expression) <= 80 else f"{expression[:80]}…"
    unknown = re.fullmatch(r"no such column: (.*)", why)
    if unknown:
        hint = nearest(unknown[1], kinds)
        return UserError(f"--where {shown}: no column {unknown[1]}{hint}; there is {', '.join(kinds)}")
    why = {"interrupted": "it takes too long", "not authorized": "only columns and functions may stand in it"}.get(
        why, why
    )
    return UserError(f"--where {shown}: {why}; an expression is needed, e.g. \"label = 'cat' and split = 'train'\"")


def _joined(items: Items, columns: pa.Table | None, names: Sequence[str]) -> list[list[Any]]:
    """Values of these columns for each image; None where nothing is known."""
    rows = None
    if columns is not None and any(name not in OWN for name in names):
        rows = Items(columns, None, "", "").rows(items.ids)
    return [_own_values(items, name) if name in OWN else _values(columns, name, rows) for name in names]


def _own_values(items: Items, name: str) -> list[Any]:
    if name == "label":
        classes = items.class_names
        return [None if one < 0 else (one if classes is None else classes[one]) for one in items.labels.tolist()]
    if name == "split" and name not in items.table.column_names:  # an index that an older version wrote
        return [None] * len(items)
    values: list[Any] = items.table[name].to_pylist()
    return values


def _values(columns: Any, name: str, rows: Any) -> list[Any]:
    taken = columns[name].take(pa.array(rows, mask=rows < 0))
    return [_plain(one) for one in taken.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value
