"""Changes of an index, each a new generation that is on the disk when the function returns.

Nothing is trained, and nothing is built again until what has come and gone is more than a tenth of the base: then a new
one is built of what is there. Whoever changes an index holds the writer's lock of its run.

Shapes: M images, D numbers.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.dataset import sample_id, sample_ids
from rayssl.pipeline.search.embeddings import content_column, vector_column
from rayssl.pipeline.search.generations import (
    ADDITIONS,
    COLUMNS,
    IDS,
    ITEMS,
    REMOVED,
    Generation,
    drop,
    drop_others,
    name_current,
    next_name,
    read_generation,
    with_vectors,
    write_manifest,
    write_parts,
)
from rayssl.pipeline.search.items import ADDED as ADDED_SPLIT
from rayssl.pipeline.search.items import SCHEMA, ints
from rayssl.pipeline.search.live import NOTHING

SHARE = 0.1  # of the base, that may have come and gone before a new one is built

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Digests = NDArray[np.uint8]


@dataclass(frozen=True)
class Known:
    """What is known of M images but for their ids: paths, digests (M, 16) of their files, what they were added with."""

    paths: list[str]
    contents: Digests
    sources: list[str | None]

    def columns(self) -> dict[str, pa.Array]:
        """As in items."""
        return {
            "path": pa.array(self.paths, pa.string()),
            "content": content_column(self.contents),
            "source": pa.array(self.sources, pa.string()),
        }


NOBODY = Known([], np.zeros((0, 16), np.uint8), [])


@dataclass(frozen=True)
class Change:
    """Images that come, with their vectors (M, D); ids that go; images that stay and are known otherwise by now."""

    come: Known = NOBODY
    vectors: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    go: Ints = field(default_factory=lambda: NOTHING)
    ids: Ints = field(default_factory=lambda: NOTHING)  # of `known`
    known: Known = NOBODY
    place: str | None = None  # where the run's images are by now, if that is told
    columns: pa.Table | None = None  # id, ascending, and what else is known of images, in the place of what was
    nothing_waits: bool = False  # what had been added before is embedded again

    def __bool__(self) -> bool:
        told = self.place is not None or self.columns is not None or self.nothing_waits
        return bool(len(self.come.paths) or len(self.go) or len(self.ids) or told)


def apply(folder: Path, before: Generation, change: Change) -> tuple[Generation, Ints]:
    """The generation after a change, written, and the ids (M,) of the images that came.

    Raises UserError for vectors that are not finite or of another length.
    """
    if not change:
        return before, NOTHING
    dim = int(before.manifest["dim"])
    if len(change.come.paths) and change.vectors.shape != (len(change.come.paths), dim):
        raise UserError(f"vectors have the shape {change.vectors.shape}: ({len(change.come.paths)}, {dim}) is needed")
    if not np.isfinite(change.vectors).all():
        raise UserError("the vectors to add hold NaN or infinity")
    ids = new_ids(change.come.paths, np.concatenate([_all_ids(before), before.removed]))
    tables = {ADDITIONS: _additions(before, change, ids), REMOVED: _removed(before, change)}
    if np.isin(change.ids, ints(before.items["id"])).any():
        tables[ITEMS] = renamed(before.items, change)
    if change.columns is not None:
        tables[COLUMNS] = change.columns
    return _write(folder, before, tables, change), ids


def is_worn(generation: Generation) -> bool:
    """Whether so much has come and gone that a new base is worth it."""
    return len(generation.additions) + len(generation.gone) > SHARE * len(generation.items)


def new_ids(paths: list[str], taken: Ints) -> Ints:
    """(M,) ids by path, as of any image; salted where an id is or was somebody else's."""
    ids = sample_ids(paths)
    unique, counts = np.unique(ids, return_counts=True)
    clashing = np.flatnonzero(np.isin(ids, taken) | np.isin(ids, unique[counts > 1]))
    used = set(taken.tolist()) | set(np.delete(ids, clashing).tolist()) if len(clashing) else set()
    for row in clashing.tolist():
        salt = 0
        while int(ids[row]) in used:
            salt += 1
            ids[row] = sample_id(f"{paths[row]}\0{salt}")
        used.add(int(ids[row]))
    return ids


def _all_ids(generation: Generation) -> Ints:
    return np.concatenate([ints(generation.items["id"]), ints(generation.additions["id"])])


def _additions(before: Generation, change: Change, ids: Ints) -> pa.Table:
    """Those that stay, as they are known now, and those that come."""
    dim, n = int(before.manifest["dim"]), len(ids)
    kept = before.additions.filter(pa.array(~np.isin(ints(before.additions["id"]), change.go)))
    come = pa.table(
        {
            "id": pa.array(ids),
            "label": pa.nulls(n, pa.int64()),
            "split": pa.array([ADDED_SPLIT] * n, pa.string()),
            "vector": vector_column(change.vectors.reshape(n, dim)),
            **change.come.columns(),
        }
    )
    schema = with_vectors(SCHEMA, dim)
    table = pa.concat_tables([renamed(kept, change), come.select(schema.names).cast(schema)])
    return table.take(pa.array(np.argsort(ints(table["id"]), kind="stable")))


def _removed(before: Generation, change: Change) -> pa.Table:
    return pa.table({"id": pa.array(np.union1d(before.removed, change.go))}, schema=IDS)


def renamed(table: pa.Table, change: Change) -> pa.Table:
    """Items, with what is known otherwise of some of them."""
    order = np.argsort(change.ids)
    ids = ints(table["id"])
    rows = np.flatnonzero(np.isin(ids, change.ids))
    if not len(rows):
        return table
    taken = pa.array(order[np.searchsorted(change.ids, ids[rows], sorter=order)])
    mask = np.zeros(len(table), dtype=bool)
    mask[rows] = True
    for name, values in change.known.columns().items():
        column = pc.replace_with_mask(table[name].combine_chunks(), pa.array(mask), values.take(taken))
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def _write(folder: Path, before: Generation, tables: dict[str, pa.Table], change: Change) -> Generation:
    """A generation with the base of the one before."""
    name = next_name(folder)
    drop(folder / name)
    written = write_parts(folder, name, tables)
    kept = {part: one for part, one in before.manifest["parts"].items() if part not in tables}
    facts = {**before.manifest, "base": before.base, "parts": {**kept, **written}}
    if change.place is not None:
        facts["place"] = change.place
    if change.nothing_waits:
        facts["waiting"] = []
    write_manifest(folder, name, facts)
    name_current(folder, name)
    found = read_generation(folder, name)
    drop_others(folder, [before, found])
    return found
