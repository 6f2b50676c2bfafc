"""Tables as people write them, CSV, TSV, JSON lines or parquet, as named columns."""

import contextlib
import csv
import io
import json
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import storage
from rayssl.pipeline.data.columns import opened, read_values
from rayssl.pipeline.data.regular import check_size, status_of

_SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Table:
    """Rows by columns."""

    path: str
    header: list[str]
    rows: list[list[Any]]  # of texts, but for JSON and parquet
    lines: list[int]  # where each row is, for messages

    @property
    def columns(self) -> list[str]:
        """Their names in small letters."""
        return [str(name).strip().lower() for name in self.header]

    def column(self, name: str) -> list[Any]:
        """The values of a column that there is once."""
        if self.columns.count(name) != 1:
            raise UserError(f"{self.path} has {self.columns.count(name)} columns called '{name}': keep one of them")
        place = self.columns.index(name)
        return [row[place] for row in self.rows]


def read_table(path: str, known: Iterable[str]) -> Table:
    """The table in a file; `known` are names of columns one of which tells a header. Raises UserError, one line."""
    where = storage.normalise(path)
    _check_file(path, where)
    try:
        if where.lower().endswith(".parquet"):
            return _parquet(path, where)
        text = _decoded(path, storage.read(where))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: a CSV with the columns path and label is needed") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read as a CSV: {error}") from None
    if where.lower().endswith((".jsonl", ".ndjson", ".json")):
        return _json(path, text)
    return _csv(path, text, set(known))


def _check_file(path: str, where: str) -> None:
    """A folder holds no table, and a pipe may keep us waiting for ever."""
    if storage.is_url(where):
        return
    status = status_of(where)
    if status is None:
        raise UserError(f"{path} does not exist: a CSV with the columns path and label is needed")
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise UserError(f"{path} is {kind}: a CSV with the columns path and label is needed")
    check_size(status.st_size, path)


def _decoded(path: str, data: bytes) -> str:
    """Text in UTF-8 or UTF-16, with or without a mark of the byte order."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data[:4]:
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    else:
        encoding = "utf-8-sig"
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} cannot be read as a CSV: line {line} is not in {error.encoding}, save it as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path} cannot be read as a CSV: it is no text (a NUL in line {line})")
    return text


def _csv(path: str, text: str, known: set[str]) -> Table:
    first, _, rest = text.partition("\n")
    if mark := re.fullmatch(r'"?sep=(.)"?\r?', first):  # a line for Excel
        return _separated(path, rest, mark[1])
    return _separated(path, text, _separator(text, known))


def _separator(text: str, known: set[str]) -> str:
    """The one that makes a header of known columns; else the one that the first line has most of."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    for separator in _SEPARATORS:
        with _long_fields():
            names = {name.strip().lower() for name in next(csv.reader([line], delimiter=separator), [])}
        if names & known:
            return separator
    return max(_SEPARATORS, key=line.count)


def _separated(path: str, text: str, separator: str) -> Table:
    rows, lines = [], []
    with _long_fields():
        # Strict: an open quote makes one field of the rest of the file, and nobody would know.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append([cell.strip() for cell in row])
                    lines.append(reader.line_num)
        except csv.Error as error:
            after = lines[-1] + 1 if lines else 1
            hint = "a quote is not closed" if "end of data" in str(error) else str(error)
            raise UserError(f"{path}: {hint}, in the row that begins in line {after}") from None
    if not rows:
        raise UserError(f"{path} has no rows")
    width = len(rows[0])
    for row, line in zip(rows, lines):
        if any(row[width:]):
            raise UserError(
                f"{path}, line {line} has {len(row)} values and the first line {width}: "
                f'put what has a "{separator.strip() or "tab"}" in it in quotes'
            )
    filled = [row[:width] + [""] * (width - len(row)) for row in rows]
    return Table(path, filled[0], filled[1:], lines[1:])


def _json(path: str, text: str) -> Table:
    """Objects, one per line or in a list."""
    try:
        if text.lstrip().startswith("["):
            found = list(enumerate(json.loads(text), 1))
        else:
            found = [(i, json.loads(line)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON lines: {error}") from None
    if not found:
        raise UserError(f"{path} has no rows")
    if wrong := [i for i, row in found if not isinstance(row, dict)]:
        raise UserError(f"{path}, line {wrong[0]} is no JSON object: one per line is needed")
    columns = list(dict.fromkeys(name for _, row in found for name in row))
    rows = [[row.get(name) for name in columns] for _, row in found]
    return Table(path, columns, rows, [i for i, _ in found])


def _parquet(path: str, where: str) -> Table:
    with opened(where) as file:
        names = [name for name, kind in zip(file.schema_arrow.names, file.schema_arrow.types) if not _is_large(kind)]
        found = read_values(where, names, file.metadata)
    rows = [list(row) for row in zip(*(values for _, values in found))]
    return Table(path, [name for name, _ in found], rows, list(range(1, len(rows) + 1)))


def _is_large(kind: Any) -> bool:
    """Whether a column holds bytes or structures, which no path or label is."""
    import pyarrow as pa

    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(sys.maxsize >> 32)
    try:
        yield
    finally:
        csv.field_size_limit(before)
