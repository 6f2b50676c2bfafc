"""Generations of an index: <run>/index/<data>/CURRENT names the folder of the one that is searched.

gNNNNNN/manifest.json    what the index is, and where each of these files lies: here, or in an earlier generation
        index.faiss      the base; it is never changed
        items.arrow      what is known of the base's images, ascending by id
        added.arrow      vectors of those of them that came after the run: embeddings/ has those of the others
        additions.arrow  images that came since the base was built, with their vectors
        removed.arrow    ids that have gone
        columns.arrow    what else is known of images, by id, where a table of it was given

A generation is written aside and CURRENT last, so a reader sees the old one or the new, and a killed writer leaves
nothing that is read. Readers keep what they have opened.
"""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayssl.pipeline.base.documents import DamagedError, load, open_regular, read_bytes
from rayssl.pipeline.base.errors import MissingError, UserError
from rayssl.pipeline.base.files import delete, listed, replacing, sha256, write_json, write_text
from rayssl.pipeline.base.schemas import IndexFile
from rayssl.pipeline.base.seals import check, digest, forget, forget_folder, note
from rayssl.pipeline.search.items import SCHEMA, Items, ints

CURRENT, MANIFEST, FAISS = "CURRENT", "manifest.json", "index.faiss"
ITEMS, ADDED, ADDITIONS, REMOVED = "items", "added", "additions", "removed"
COLUMNS = "columns"
PARTS = (ITEMS, ADDED, ADDITIONS, REMOVED, COLUMNS)
IDS = pa.schema({"id": pa.int64()})
_NAME = re.compile(r"g\d{6,9}")
_LONGEST = 64  # bytes of CURRENT

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
T = TypeVar("T")


def with_vectors(schema: pa.Schema, dim: int) -> pa.Schema:
    """Columns, and the vectors that are searched."""
    return schema.append(pa.field("vector", pa.list_(pa.float32(), dim)))


@dataclass(frozen=True)
class Generation:
    """An index as it was at one moment, but for FAISS' file. Tables stay in their files, mapped."""

    name: str  # gNNNNNN
    manifest: dict[str, Any]  # see IndexFile
    items: pa.Table  # of the base, ascending by id
    added: pa.Table  # id and vector of those that came after the run
    additions: pa.Table  # items that are not in the base, with vectors; ascending
    removed: Ints  # all ids that have ever gone, ascending
    columns: pa.Table | None = None  # id, ascending, and what else is known of images

    @property
    def base(self) -> str:
        """The generation whose index.faiss is searched."""
        return str(self.manifest.get("base") or self.name)

    @property
    def has_own(self) -> bool:
        """Whether it tells more than the embeddings that it was built from."""
        told = (self.added, self.additions, self.removed, *([] if self.columns is None else [self.columns]))
        return any(map(len, told))

    @cached_property
    def gone(self) -> Ints:
        """Ids of the base that are not found any more."""
        return self.removed[np.isin(self.removed, ints(self.items["id"]))]

    def living(self) -> Items:
        """What is known of all images that are found."""
        items = self.items
        if len(self.gone):
            items = items.filter(pa.array(~np.isin(ints(items["id"]), self.gone)))
        names = self.manifest.get("class_names")
        return Items(
            pa.concat_tables([items, self.additions.select(SCHEMA.names)]) if len(self.additions) else items,
            None if names is None else tuple(names),
            self.manifest["data_fingerprint"],
            self.manifest.get("data_path") or "",
            self.manifest.get("place"),
            self.columns,
        )


def has_generations(folder: Path) -> bool:
    """Whether an index has them; one that an older version wrote has not."""
    return os.path.lexists(folder / CURRENT)


def current(folder: Path) -> str:
    """The name of the generation that is searched; raises UserError where that cannot be told."""
    path = folder / CURRENT
    try:
        name = read_bytes(path, _LONGEST).decode("ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{path} does not exist: {remedy_of(folder)} writes it") from None
    except (DamagedError, UnicodeDecodeError):
        name = ""
    if not _NAME.fullmatch(name):
        raise UserError(f"{path} is damaged (no name of a generation): {remedy_of(folder)} writes it again")
    check(path, f"{remedy_of(folder)} writes it again")
    return name


def following(folder: Path, read: Callable[[str], T]) -> T:
    """What `read` makes of the current generation; of the next one where that has gone while it was read."""
    while True:
        name = current(folder)
        try:
            return read(name)
        except UserError:
            if current(folder) == name:
                raise


def read_generation(folder: Path, name: str) -> Generation:
    """A generation; raises UserError where a file of it is missing, damaged, or not what the manifest says."""
    manifest = read_index_manifest(folder / name, remedy_of(folder))
    parts, dim = manifest.get("parts") or {}, int(manifest["dim"])
    schemas = {ITEMS: SCHEMA, ADDED: with_vectors(IDS, dim), ADDITIONS: with_vectors(SCHEMA, dim), REMOVED: IDS}
    tables = {part: _read_part(folder, parts.get(part), schema) for part, schema in schemas.items()}
    columns = _read_part(folder, parts[COLUMNS], None) if COLUMNS in parts else None
    removed = ints(tables[REMOVED]["id"])
    found = Generation(name, manifest, tables[ITEMS], tables[ADDED], tables[ADDITIONS], removed, columns)
    if len(found.items) != manifest["count"]:
        raise UserError(
            f"{folder / name} has {len(found.items)} items for {manifest['count']} vectors: {remedy_of(folder)} "
            "writes it again"
        )
    return found


def read_index_manifest(folder: Path, remedy: str) -> dict[str, Any]:
    """manifest.json of an index; raises UserError where it is missing or damaged."""
    path = folder / MANIFEST
    manifest = load(path, IndexFile, f"{remedy} writes it again", f"{path} does not exist: {remedy} writes it")
    check(path, f"{remedy} writes it again")
    return manifest


def last_whole(folder: Path) -> Generation | None:
    """The current generation, or, where CURRENT is lost, the newest that can be read; None where there is none."""
    names = [path.name for path in listed(folder, "g*") if _NAME.fullmatch(path.name)]
    with suppress(UserError):
        names.append(current(folder))
    for name in reversed(names):
        try:
            return read_generation(folder, name)
        except UserError:
            continue
    return None


def may_have_lost(folder: Path) -> bool:
    """Whether there are files of what came and went: where no generation can be read, that is lost."""
    return any(path.name != f"{ITEMS}.arrow" for path in listed(folder, "g*/*.arrow"))


def next_name(folder: Path, *, broken: bool = False) -> str:
    """What a new generation is called; a `broken` one is written again under its own name."""
    try:
        number = int(current(folder)[1:])
    except UserError:
        names = [path.name for path in listed(folder, "g*") if _NAME.fullmatch(path.name)]
        number = max((int(name[1:]) for name in names), default=1 if broken else 0)
    return f"g{number if broken else number + 1:06d}"


def write_parts(folder: Path, name: str, tables: Mapping[str, pa.Table]) -> dict[str, dict[str, Any]]:
    """Write tables of a new generation; returns what its manifest has to tell of them. An empty table has no file."""
    found = {}
    for part, table in tables.items():
        if len(table):
            path = folder / name / f"{part}.arrow"
            with (
                replacing(path) as temporary,
                pa.OSFile(str(temporary), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table.combine_chunks())
            found[part] = {"path": f"{name}/{path.name}", "size": path.stat().st_size, "sha256": sha256(path)}
    return found


def write_manifest(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a generation that has no base of its own."""
    write_json(folder / name / MANIFEST, facts)


def name_current(folder: Path, name: str) -> None:
    """From now on readers open this generation."""
    write_text(folder / CURRENT, f"{name}\n")


def drop_others(folder: Path, kept: list[Generation]) -> None:
    """Remove the generations that none of these needs."""
    needed = {one.name for one in kept} | {one.base for one in kept}
    needed |= {part["path"].split("/")[0] for one in kept for part in (one.manifest.get("parts") or {}).values()}
    for path in listed(folder, "g*"):
        if path.name not in needed and _NAME.fullmatch(path.name):
            drop(path)


def drop(folder: Path) -> None:
    """Remove what we have written into the folder of a generation, and then the folder, if nothing else is in it."""
    forget_folder(folder)
    ours = (FAISS, MANIFEST, *(f"{part}.arrow" for part in PARTS))
    for path in listed(folder):
        if (path.name in ours or path.name.startswith(".")) and not path.is_dir():
            delete(path)
    if folder.is_dir() and not listed(folder):
        delete(folder)


def drop_older_form(folder: Path) -> None:
    """Remove the files of an index as older versions wrote it, which a generation has replaced."""
    files = [folder / name for name in (FAISS, MANIFEST) if os.path.lexists(folder / name)]
    forget(*files)
    for path in files:
        if not path.is_dir():
            delete(path)
    note(*files)


def base_file(folder: Path) -> Path:
    """The file of FAISS that is searched; CURRENT where that does not tell."""
    if not has_generations(folder):
        return folder / FAISS
    try:
        name = current(folder)
        return folder / (read_index_manifest(folder / name, "").get("base") or name) / FAISS
    except UserError:
        return folder / CURRENT


def remedy_of(folder: Path) -> str:
    """The command that builds an index again: it lies in <run>/index/<data>/."""
    return f"`rayssl index {folder.parents[1] if len(folder.parents) > 1 else 'RUN'}`"


def _read_part(folder: Path, part: Mapping[str, Any] | None, schema: pa.Schema | None) -> pa.Table:
    """A table of a generation, mapped; an empty one where there is none. Without `schema` it has ids and any others."""
    if part is None:
        return pa.Table.from_batches([], schema)  # `empty_table` imports pandas where that is installed
    path, remedy = folder / part["path"], remedy_of(folder)
    try:
        open_regular(path).close()
        if digest(path) != part["sha256"]:
            raise DamagedError("its sha256 is not the manifest's")
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        _check_table(table, schema, path.stat().st_size)
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist: {remedy} writes it") from None
    except DamagedError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy} writes it again") from None
    except (OSError, MemoryError, ValueError, ArithmeticError, LookupError, pa.ArrowException):
        raise UserError(f"{path} is damaged (Arrow cannot read it): {remedy} writes it again") from None
    return table


def _check_table(table: pa.Table, schema: pa.Schema | None, size: int) -> None:
    known = IDS if schema is None else schema
    if len(set(table.column_names)) < table.num_columns or not table.select(known.names).schema.equals(known):
        raise DamagedError("other columns than it should have")
    if table.nbytes > size:  # ours are not compressed
        raise DamagedError(f"{table.nbytes:,} bytes in {size:,}")
    table.validate(full=True)  # offsets that lead out of a buffer, texts that are not UTF-8
    if table["id"].null_count or ("path" in table.column_names and table["path"].null_count):
        raise DamagedError("rows without an id or path")
    if (np.diff(ints(table["id"])) <= 0).any():
        raise DamagedError("ids that do not ascend")
    if "vector" in table.column_names:
        chunks = table["vector"].chunks
        if table["vector"].null_count or any(chunk.values.null_count for chunk in chunks):
            raise DamagedError("rows without a vector")
