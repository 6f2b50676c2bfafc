"""Tags that people give to images on the page: one an image, kept in the run folder, and given out as labels.

<run>/tags/<data>.json holds the tag of every tagged image by its id.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rayssl.pipeline.base.documents import load
from rayssl.pipeline.base.errors import MissingError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.lease import settled, writer_lock
from rayssl.pipeline.base.schemas import TagsFile
from rayssl.pipeline.base.seals import check
from rayssl.pipeline.search.query import OpenIndex

FOLDER = "tags"
WAIT = 3.0  # seconds for another writer of the run
REMEDY = "restore it, or remove it and tag again"

Tags = dict[str, str]  # by id


def read_tags(opened: OpenIndex) -> Tags:
    """Those of a data set; raises UserError for a file that is damaged."""
    return settled(opened.run, lambda: _read(_path(opened)))


def set_tags(opened: OpenIndex, changes: Mapping[str, str | None]) -> Tags:
    """Give images of some ids a tag, or none; returns all. On return they are on the disk.

    Raises UserError where another process writes the run, or the file is damaged.
    """
    with writer_lock(opened.run, wait_s=WAIT):
        tags = {**_read(_path(opened)), **changes}
        kept = {one: tag for one, tag in sorted(tags.items()) if tag is not None}
        write_json(_path(opened), {"schema": 1, "tags": kept})
    return kept


def as_csv(opened: OpenIndex, tags: Mapping[str, str]) -> str:
    """The columns path and label, as --data.labels takes them; images that are no longer indexed are left out."""
    ids = np.array([int(one) for one in tags], dtype=np.int64)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", "label"])
    writer.writerows(_rows(opened, opened.items.rows(ids).tolist(), list(tags.values())))
    return table.getvalue()


def _rows(opened: OpenIndex, rows: Sequence[int], tags: Sequence[str]) -> list[tuple[str, str]]:
    return sorted((opened.items.path(row), tag) for row, tag in zip(rows, tags, strict=True) if row >= 0)


def _path(opened: OpenIndex) -> Path:
    return opened.run / FOLDER / f"{opened.name}.json"


def _read(path: Path) -> Tags:
    try:
        tags: Tags = load(path, TagsFile, REMEDY)["tags"]
    except MissingError:
        return {}
    check(path, REMEDY)
    return tags
