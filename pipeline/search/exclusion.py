"""Under which ids an index knows the very file that is asked for, which is not to find itself."""

import os
from pathlib import Path

from rayssl.pipeline.data import sample_id, storage


def own_address(image: str, data_path: str) -> set[int]:
    """The sample id of an image in the indexed store, by its URL."""
    root = f"{data_path.rstrip('/')}/"
    return {sample_id(image.removeprefix(root))} if storage.is_url(image) and image.startswith(root) else set()


def own_ids(image: str, folder: Path) -> set[int]:
    """The sample ids that a file in the indexed folder may have, by its own name and by what links lead to."""
    if not image or storage.is_url(image):  # bytes, pixels: nobody knows where they are from
        return set()
    path = Path(os.path.abspath(image))
    places = {path, path.parent.resolve() / path.name, path.resolve()}
    return {
        sample_id(place.relative_to(one).as_posix())
        for one in {folder, folder.resolve()}
        for place in places
        if place.is_relative_to(one)
    }


def same_file(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # not both are files on this machine
        return False
