"""Reading the JSON that run folders hold: from regular files alone, of bounded size and depth, by a schema.

A folder may come from anybody, and any disk may fail: whatever stands in the place of a file, what a reader says is one
line with the file, the key and what repairs it.
"""

import dataclasses
import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from rayssl.pipeline.base.errors import MissingError, UserError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

T = TypeVar("T")

LARGEST = 256 * 2**20  # bytes of a JSON file: a manifest that lists a million unreadable images is smaller
LONGEST_LINE = 2**20  # bytes of a line of metrics.jsonl
MOST_VALUES = 5_000_000  # of a JSON file, each of which takes up to a hundred times its bytes in memory
MOST_TOLD = 1000  # wrong values of a file that are looked at, to name the first
DEEPEST = 100  # nesting
MOST_DIGITS = 25  # of a whole number
SHOWN = 60  # letters of a wrong value
_NO_FILE = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


class DamagedError(ValueError):
    """What is read is not what was written; the text says how."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read, and nothing that would wait, or never end.

    Raises DamagedError for anything else, OSError where it is missing or cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise DamagedError("a socket or device, not a file") from None
        if error.errno == errno.ELOOP:
            raise DamagedError("a link that leads to itself, not a file") from None
        raise
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        raise DamagedError(f"{_NO_FILE.get(kind, 'something else')}, not a file")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """What a file holds; raises DamagedError where that is more than `most` bytes or no file."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DamagedError(f"more than {most:,} bytes")
    return content


def parse(content: bytes, *, no_numbers: bool = False) -> Any:
    """The value of some JSON in UTF-8, with finite numbers of sensible length; raises DamagedError for any other.

    With `no_numbers` NaN and Infinity are read as such.
    """
    constant = float if no_numbers else _refused
    if sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise DamagedError(f"more than {MOST_VALUES:,} values")
    try:
        text = content.decode("utf-8")
        value = json.loads(text, parse_constant=constant, parse_float=_finite, parse_int=_short)
    except UnicodeDecodeError as error:
        raise DamagedError(f"not JSON: byte {error.start} is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise DamagedError(f"not JSON: {error.msg.lower()} in line {error.lineno}") from None
    except RecursionError:
        raise DamagedError("not JSON of ours: nested too deeply") from None
    if _depth(value) > DEEPEST:
        raise DamagedError("not JSON of ours: nested too deeply")
    return value


def load(path: Path, schema: "type[BaseModel]", remedy: str, missing: str | None = None) -> dict[str, Any]:
    """A JSON object that fits a schema, as it stands there; keys that the schema does not know are kept.

    `remedy` says what repairs a damaged file, `missing` what to say where there is none. Raises UserError.
    """
    try:
        values = parse(read_bytes(path))
        fit(values, schema)
    except FileNotFoundError:
        raise MissingError(missing or f"{path} does not exist: {remedy}") from None
    except NotADirectoryError:
        raise MissingError(f"{path} does not exist: {remedy}") from None
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied") from None
    except OtherSchemaError as error:
        raise UserError(f"{path} {error}; {remedy}") from None
    except DamagedError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None
    return values  # type: ignore[no-any-return]


def made_of(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass of what it knows of some values; other keys are of a newer version."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in values.items() if key in known})


class OtherSchemaError(DamagedError):
    """A file of another version."""


def fit(values: Any, schema: "type[BaseModel]") -> None:
    """Raises DamagedError, with key and value, where values do not fit a schema."""
    from pydantic import ValidationError

    from rayssl.pipeline.base.schemas import VERSION

    if not isinstance(values, dict):
        raise DamagedError("not JSON of ours: no object")
    if "schema_version" in schema.model_fields and values.get("schema") != VERSION:
        raise OtherSchemaError(f"has schema {_short_repr(values.get('schema'))}: this version reads schema {VERSION}")
    try:
        schema.model_validate(values)
    except ValidationError as error:
        raise DamagedError(_one_line(error)) from None


def _one_line(error: "ValidationError") -> str:
    if error.error_count() > MOST_TOLD:
        return f"{error.error_count():,} of its values are not what they should be"
    wrong = error.errors(include_url=False)
    first = wrong[0]
    key = _key(first["loc"])
    if first["type"] == "missing":
        return f"it lacks {', '.join(_key(one['loc']) for one in wrong if one['type'] == 'missing')}"
    said = first["msg"].removeprefix("Value error, ")
    return f"{key} is {_short_repr(first['input'])}: {said[0].lower()}{said[1:]}"


def _key(location: tuple[int | str, ...]) -> str:
    text = " ".join(".".join(str(part) for part in location).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _short_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _refused(name: str) -> Any:
    raise DamagedError(f"not JSON: {name} is no finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DamagedError(f"{text[:SHOWN]} is no finite number")
    return value


def _short(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise DamagedError(f"a number of {len(text)} digits")
    return int(text)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [one for each in level for one in _inside(each)]:
        depth += 1
        if depth > DEEPEST:
            break
    return depth


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
