"""Images come to the index of a run, go from it, and are compared with it; nothing is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayssl.pipeline.base.progress import Display

if TYPE_CHECKING:
    from rayssl.pipeline.search.ingest import Outcome, Progress
    from rayssl.pipeline.search.query import OpenIndex

SHOWN = 5  # unreadable images that are named


def add_to_index(run: Path, data: str | None, paths: list[str], display: Display) -> dict[str, Any]:
    """Embed the images of files and folders and add them."""
    from rayssl.pipeline.search.ingest import add_images

    return _changed(run, data, display, lambda opened, progress: add_images(opened, paths, progress))


def remove_from_index(run: Path, data: str | None, wanted: list[str], display: Display) -> dict[str, Any]:
    """Remove images by ids, paths and patterns."""
    from rayssl.pipeline.search.ingest import remove_images

    return _changed(run, data, display, lambda opened, progress: remove_images(opened, wanted))


def sync_index(run: Path, data: str | None, place: str | None, display: Display, *, yes: bool) -> dict[str, Any]:
    """Make an index what its folders hold by now."""
    from rayssl.pipeline.search.ingest import sync_images

    return _changed(run, data, display, lambda opened, progress: sync_images(opened, place, yes=yes, progress=progress))


def set_columns_of_index(run: Path, data: str | None, file: Path, display: Display) -> list[str]:
    """Join a table's columns to the images of an index."""
    from rayssl.pipeline.search.ingest import set_columns
    from rayssl.pipeline.search.query import open_index

    told = set_columns(open_index(run, data), file)
    for line in told:
        display({"message": line})
    return told


def _changed(
    run: Path, data: str | None, display: Display, change: "Callable[[OpenIndex, Progress], Outcome]"
) -> dict[str, Any]:
    """What a change did, in words on the display and as values."""
    from rayssl.pipeline.search.query import open_index

    opened = open_index(run, data)
    done = change(opened, lambda n, total: display({"run": run.name, "stage": "embed", "done": n, "total": total}))
    for path, why in done.unreadable[:SHOWN]:
        display({"message": why if path in why else f"{path}: {why}"})
    if len(done.unreadable) > SHOWN:
        display({"message": f"{len(done.unreadable) - SHOWN:,} more images cannot be read"})
    display({"message": done.told})
    return {
        "run": str(opened.run),
        "data": opened.name,
        "added": [str(one) for one in done.added],
        "removed": [str(one) for one in done.removed],
        "moved": done.moved,
        "unchanged": done.unchanged,
        "unreadable": [list(one) for one in done.unreadable],
    }
