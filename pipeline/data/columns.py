"""Which column of parquet files holds the images and which the labels: by names, types and the first bytes."""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import storage
from rayssl.pipeline.data.decode import read_header
from rayssl.pipeline.data.labels import HALF
from rayssl.pipeline.data.reading import WORDS, Note, Reading
from rayssl.pipeline.data.regular import check_size, largest

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
IMAGE_FLAG, LABEL_FLAG = "--data.image-column", "--data.label-column"

_LIKE_LABELS = re.compile(r"(label|class|category)(s|_?names?)?$", re.IGNORECASE)
_MOST_ROWS = 1 << 12  # read at once; more would hardly be quicker
_MOST_IMAGES = 1 << 6  # the same of a row group's images
_UNREADABLE = (OSError, MemoryError, ValueError, ArithmeticError, LookupError)  # and pyarrow's own
_ROWS = 8  # whose bytes are looked at
_LONGEST_FILE = 1 << 62  # bytes


@dataclass(frozen=True)
class Part:
    """One parquet file, by what its footer says."""

    path: str
    relative: str
    schema: Any
    footer: Any

    @property
    def rows(self) -> int:
        return int(self.footer.num_rows)

    @property
    def names(self) -> list[str]:
        return list(self.schema.names)

    def images(self) -> list[str]:
        """Columns that may hold images: bytes, or a structure with bytes."""
        return [name for name in self._single() if _may_be_image(self.schema.field(name).type)]

    def may_be_label(self, name: str) -> bool:
        """Whether the type of the column allows for classes."""
        return name in self._single() and _may_be_label(self.schema.field(name).type)

    def holds_texts(self, name: str) -> bool:
        """Whether the column is of texts."""
        return name in self._single() and "string" in str(self.schema.field(name).type)

    def kind(self, name: str) -> str:
        """The type of a column, in words."""
        return str(self.schema.field(name).type) if name in self._single() else "of a name given twice"

    def has_paths(self, image: str) -> bool:
        """Whether the images come with their file names."""
        import pyarrow as pa

        kind = self.schema.field(image).type
        return bool(pa.types.is_struct(kind)) and _subfields(kind).count("path") == 1

    def class_names(self, label: str | None) -> list[str] | None:
        """Names of the classes of a column, where the metadata of the Hugging Face hub tell them.

        None where one of them holds half of a character, which no file can hold: such metadata say nothing.
        """
        feature = self._features().get(label or "")
        names = feature.get("names") if isinstance(feature, dict) else None
        texts = [str(name) for name in names] if isinstance(names, list) else []
        return texts if texts and not any(HALF.search(name) for name in texts) else None

    def named_columns(self) -> list[str]:
        """Columns with class names."""
        return [name for name in self._features() if name in self.names and self.class_names(name)]

    def _single(self) -> list[str]:
        names = self.names
        return [name for name in names if names.count(name) == 1]

    def _features(self) -> dict[str, Any]:
        try:
            features = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
        except (KeyError, ValueError, TypeError, RecursionError):
            return {}
        return features if isinstance(features, dict) else {}


@dataclass(frozen=True)
class Chosen:
    """A column, and what has to be said about the choice."""

    name: str
    notes: tuple[Note, ...] = ()


def open_part(path: str, relative: str) -> Part:
    """What the footer of a file says."""
    with opened(path) as file:
        try:
            part = Part(path, relative, file.schema_arrow, file.metadata)
            _ = part.names, part.rows, [str(kind) for kind in part.schema.types]
        except (ValueError, OSError) as error:  # of names that are no text, too
            raise _unreadable(path, error) from None
        return part


def opened(path: str, footer: Any = None) -> Any:
    """The parquet file, to be used in a with-statement; its `footer` is not read again. Raises UserError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if storage.is_url(path):
            return pq.ParquetFile(storage.open_binary(path), metadata=footer, pre_buffer=False)
        return pq.ParquetFile(path, metadata=footer, memory_map=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


def read_values(path: str, columns: Sequence[str], footer: Any = None) -> list[tuple[str, list[Any]]]:
    """Name and values of columns, as Python's own. Raises UserError for what cannot be read, and for bytes as text."""
    import pyarrow as pa

    table = read_columns(path, columns, footer=footer)
    found = []
    for name, column in zip(table.column_names, table.columns):
        try:
            found.append((name, column.to_pylist()))
        except UnicodeDecodeError as error:
            text = f"{path} cannot be read as parquet: column '{name}' holds a text that is not UTF-8"
            raise UserError(f"{text} ({error.reason})") from None
        except (pa.ArrowException, *_UNREADABLE) as error:  # a date of the year 300,000
            raise UserError(f"{path} cannot be read as parquet: column '{name}': {_first_line(error)}") from None
    return found


def read_columns(path: str, columns: Sequence[str], group: int | None = None, footer: Any = None) -> Any:
    """Columns of a parquet file, or of one of its row groups, as a table. Raises UserError for what cannot be read.

    They take no more memory than what is read in one piece.
    """
    import pyarrow as pa

    try:
        with opened(path, footer) as file:
            return read_bounded(file, path, columns, largest(), group)
    except (pa.ArrowException, *_UNREADABLE) as error:
        raise _unreadable(path, error) from None


def read_bounded(file: Any, path: str, columns: Sequence[str], most: int, group: int | None = None) -> Any:
    """Columns of an open parquet file, or of one of its row groups, of at most so many bytes, as a table.

    What they say to be once decompressed is looked at first. That may be a lie, and a dictionary may hold a long value
    once that stands in every row: so rows are counted as they come. Raises UserError for more, and what Arrow raises.
    """
    groups = list(range(file.metadata.num_row_groups)) if group is None else [group]
    size, expands = _claimed(file.metadata, groups, columns, most)
    what = f"{path}: {_listed(columns)}, decompressed,"
    check_size(size, what, most)
    rows = _MOST_ROWS if group is None else _MOST_IMAGES
    if expands:
        rows = max(1, min(rows, most // (4 * max(1, size))))  # one such piece is read beyond the limit
    return _in_batches(file, groups, columns, rows, what, most)


def _unreadable(path: str, error: BaseException) -> UserError:
    return UserError(f"{path} cannot be read as parquet: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "there is not enough memory").splitlines()[0]


def _claimed(footer: Any, groups: Sequence[int], columns: Sequence[str], most: int) -> tuple[int, bool]:
    """Bytes that columns say to have decompressed, and whether they may be more than `most` in memory."""
    paths = [footer.schema.column(i).path for i in range(len(footer.schema))]
    asked = [i for i, path in enumerate(paths) if any(f"{path}.".startswith(f"{name}.") for name in columns)]
    _check_chunks(footer, groups, asked)
    size, texts, rows = 0, 0, 0
    for group in groups:
        found = footer.row_group(group)
        rows += found.num_rows
        for chunk in (found.column(i) for i in asked):
            size += chunk.total_uncompressed_size
            texts += chunk.total_uncompressed_size * (chunk.physical_type == "BYTE_ARRAY")
    return size, rows * texts > most


def _check_chunks(footer: Any, groups: Sequence[int], columns: Sequence[int]) -> None:
    """Raises OSError for what a footer should not say of parts of these columns.

    `RowGroupMetaData.column` would end the process there. Whoever reads no rows makes Arrow look at the same, by a way
    on which errors are caught, and reads nothing of the file.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(_Hollow(), metadata=footer, buffer_size=1, pre_buffer=False) as file:
        for group in groups:  # each alone: of several only the first would be looked at
            list(file.reader.iter_batches(0, row_groups=[group], column_indices=columns, use_threads=False))


class _Hollow(io.RawIOBase):
    """A file that is large enough for anything and holds nothing."""

    _place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset if whence == io.SEEK_SET else _LONGEST_FILE + offset
        return self._place


def _in_batches(file: Any, groups: Sequence[int], columns: Sequence[str], rows: int, what: str, most: int) -> Any:
    import pyarrow as pa

    batches, total = [], 0
    for batch in file.iter_batches(rows, row_groups=groups, columns=list(columns), use_threads=False):
        total += batch.nbytes
        check_size(total, what, most)
        batches.append(batch)
    if not batches:  # an empty table of the right columns
        return file.read_row_groups(groups, columns=list(columns), use_threads=False)
    return pa.Table.from_batches(batches)


def check_rows(part: Part) -> None:
    """Raises UserError for more rows than bytes: no image is that small."""
    size = storage.size_of(part.path)
    if not 0 <= part.rows <= size:
        raise UserError(f"{part.path} cannot be read as parquet: it claims {part.rows:,} rows in {size:,} bytes")


def choose_image(parts: Sequence[Part], asked: str | None) -> Chosen:
    """The column of images: the one asked for, or the one that all files have and that looks like it."""
    if asked is not None:
        for part in parts:
            _need_image(part, asked)
        return Chosen(asked)
    common = [name for name in parts[0].images() if all(name in part.images() for part in parts)]
    if not common:
        raise UserError(_no_common_image(parts))
    known = [name for name in IMAGE_COLUMNS if name in common]
    if len(common) == 1 and known:
        return Chosen(common[0])
    return _by_bytes(parts, common, known)


def choose_label(parts: Sequence[Part], image: str, reading: Reading) -> tuple[str | None, tuple[Note, ...]]:
    """The column of labels, or None and why."""
    if reading.labels == "none":
        return None, (Note("no labels, as asked"),)
    asked = reading.label_column if reading.labels in WORDS else None  # else it is the table's
    if asked is not None:
        return _asked_label(parts, asked)
    known = _label_names(parts, image)
    common = [name for name in known if all(name in part.names for part in parts)]
    fit = [name for name in common or known if all(_fits(part, name) for part in parts)]
    if not fit:
        return None, _no_label_note(parts, image, known)
    _same_meaning(parts, fit[0], known)
    like = [name for part in parts for name in part.names if name != image and _LIKE_LABELS.search(name)]
    others = [name for name in dict.fromkeys([*known, *like]) if name != fit[0] and _may_be_one(parts, name)]
    beside = f"; there are {_listed(others)} as well" if others else ""
    note = Note(f"labels: column '{fit[0]}'{beside}", guess=bool(others), flag=LABEL_FLAG)
    return fit[0], (note, *_lacking_note(parts, fit[0]))


def image_of_old(part: Part) -> str | None:
    """The column that was taken before bytes were looked at: its runs keep their fingerprints."""
    found = part.images()
    return next((name for name in IMAGE_COLUMNS if name in found), found[0] if found else None)


def label_of_old(part: Part, image: str) -> str | None:
    """The column of labels that was taken of the first file alone."""
    known = [*LABEL_COLUMNS, *part.named_columns()]
    return next((name for name in known if name in part.names and name != image), None)


def _need_image(part: Part, asked: str) -> None:
    if asked not in part.images():
        found = _listed(part.images()) if part.images() else f"none; its columns are {', '.join(part.names)}"
        raise UserError(f"{IMAGE_FLAG} {asked}: {part.path} has no such column of images, it has {found}")


def _no_common_image(parts: Sequence[Part]) -> str:
    first = next((part for part in parts if part.images()), None)
    if first is None:
        names = ", ".join(parts[0].names)
        twice = next((name for name in parts[0].names if parts[0].names.count(name) > 1), None)
        if twice is not None:
            return f"{parts[0].path} has two columns called '{twice}': rename one"
        return f"{parts[0].path} has no column of images (image: struct<bytes, path> or binary), only {names}"
    strangers = [part for part in parts if not set(first.images()) & set(part.images())]
    other = strangers[0] if strangers else parts[-1]
    has = _listed(other.images()) if other.images() else f"none, only {', '.join(other.names)}"
    return (
        f"{first.path} has images in {_listed(first.images())} and {other.path} in {has}: "
        "give files with the same columns, or a pattern that leaves some out"
    )


def _by_bytes(parts: Sequence[Part], common: list[str], known: list[str]) -> Chosen:
    part = next((part for part in parts if part.rows), parts[0])
    seen = [name for name in common if _looks_like_images(part, name)]
    best = [name for name in known if name in seen] or seen or known
    if len(best) == 1:
        others = [name for name in seen if name != best[0]]
        also = f"; {_listed(others)} may be images as well" if others else ""
        return Chosen(best[0], (Note(f"images: column '{best[0]}'{also}", guess=bool(others), flag=IMAGE_FLAG),))
    if best:
        raise UserError(f"{part.path} has images in {_listed(best)}: choose one with {IMAGE_FLAG}")
    raise UserError(
        f"{part.path}: no column holds images as far as its first rows show; "
        f"{IMAGE_FLAG} takes one all the same: {_listed(common)}"
    )


def _looks_like_images(part: Part, name: str) -> bool:
    """Whether half of the first rows that hold bytes have the header of an image."""
    found = [_is_image(data) for data in _first_bytes(part, name)]
    return bool(found) and 2 * sum(found) >= len(found)


def _first_bytes(part: Part, name: str) -> list[bytes]:
    import pyarrow as pa

    found: list[bytes] = []
    try:
        with opened(part.path, part.footer) as file:
            for group in range(file.metadata.num_row_groups):
                size, _ = _claimed(file.metadata, [group], [name], largest())
                check_size(size, f"{part.path}: '{name}', decompressed,")
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[name], use_threads=False):
                    column = batch.column(0)
                    values = (column.field("bytes") if hasattr(column, "field") else column).to_pylist()
                    found += [value for value in values if value is not None]
                    if len(found) >= _ROWS:
                        return found[:_ROWS]
    except (pa.ArrowException, *_UNREADABLE) as error:
        raise _unreadable(part.path, error) from None
    return found


def _is_image(data: bytes) -> bool:
    try:
        read_header(data)
    except UserError:
        return False
    return True


def _asked_label(parts: Sequence[Part], asked: str) -> tuple[str, tuple[Note, ...]]:
    if not any(asked in part.names for part in parts):
        raise UserError(f"{LABEL_FLAG} {asked}: {parts[0].path} has no such column, only {', '.join(parts[0].names)}")
    for part in parts:
        if asked in part.names and not part.may_be_label(asked):
            raise UserError(
                f"{LABEL_FLAG} {asked}: this column of {part.path} is {part.kind(asked)}, "
                "whole numbers or texts are needed"
            )
    return asked, (Note(f"labels: column '{asked}', as asked"), *_lacking_note(parts, asked))


def _label_names(parts: Sequence[Part], image: str) -> list[str]:
    """Columns whose names, or the metadata, say that they hold labels, the likeliest first."""
    spelt = dict.fromkeys(name for part in parts for name in part.names)
    written = [name for wanted in LABEL_COLUMNS for name in (wanted, *spelt) if name.lower() == wanted]
    named = [*written, *(name for part in parts for name in part.named_columns())]
    return [name for name in dict.fromkeys(named) if name != image and any(name in part.names for part in parts)]


def _may_be_one(parts: Sequence[Part], name: str) -> bool:
    return any(part.may_be_label(name) for part in parts)


def _fits(part: Part, name: str) -> bool:
    return name not in part.names or part.may_be_label(name)


def _no_label_note(parts: Sequence[Part], image: str, known: list[str]) -> tuple[Note, ...]:
    if known:
        part = next(part for part in parts if known[0] in part.names)
        why = f"column '{known[0]}' of {part.relative} is {part.kind(known[0])}"
        return (Note(f"no labels: {why}, no classes", guess=True, flag=LABEL_FLAG),)
    others = [name for name in parts[0].names if name != image and parts[0].may_be_label(name)]
    if not others:
        return ()
    text = f"no labels: no column is named like labels, there is {_listed(others)}"
    return (Note(text, guess=True, flag=LABEL_FLAG),)


def _same_meaning(parts: Sequence[Part], label: str, known: list[str]) -> None:
    """Refuse files whose labels stand in columns of different names."""
    has = next(part for part in parts if label in part.names)
    for part in parts:
        other = next((name for name in known if name in part.names and part.may_be_label(name)), None)
        if part.rows and label not in part.names and other is not None:
            raise UserError(
                f"{has.path} has labels in column '{label}' and {part.path} in '{other}': "
                f"give both the same name, or one with {LABEL_FLAG}"
            )


def _lacking_note(parts: Sequence[Part], label: str) -> tuple[Note, ...]:
    lacking = [part for part in parts if label not in part.names and part.rows]
    if not lacking:
        return ()
    rows = sum(part.rows for part in lacking)
    files = lacking[0].relative + (f" and {len(lacking) - 1} more files" if len(lacking) > 1 else "")
    return (Note(f"{rows:,} images without a label: {files} has no column '{label}'", flag=LABEL_FLAG),)


def _may_be_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return _subfields(kind).count("bytes") == 1 and _may_be_image(kind.field("bytes").type)
    return any(is_bytes(kind) for is_bytes in _bytes_types(pa.types))


def _may_be_label(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return _may_be_label(kind.value_type)
    simple: list[Callable[[Any], bool]] = [
        types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null, types.is_string,
        types.is_large_string, getattr(types, "is_string_view", lambda _: False),
    ]  # fmt: skip
    return any(is_simple(kind) for is_simple in simple)


def _bytes_types(types: Any) -> list[Callable[[Any], bool]]:
    return [types.is_binary, types.is_large_binary, getattr(types, "is_binary_view", lambda _: False)]


def _subfields(kind: Any) -> list[str]:
    return [kind.field(i).name for i in range(kind.num_fields)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
