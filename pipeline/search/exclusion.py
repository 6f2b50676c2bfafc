"""Under which paths an index may know the very file that is asked for, which is not to find itself."""

import os
from pathlib import Path

from rayssl.pipeline.data import storage


def own_keys_of_address(image: str, data_path: str) -> set[str]:
    """The path of an image in the indexed store, by its URL."""
    root = f"{data_path.rstrip('/')}/"
    return {image.removeprefix(root)} if storage.is_url(image) and image.startswith(root) else set()


def own_keys(image: str, folder: Path) -> set[str]:
    """The paths that a file may have in an index, by its own name and by what links lead to.

    Relative to the indexed folder where it lies in that, else absolute.
    """
    if not image or storage.is_url(image):  # bytes, pixels: nobody knows where they are from
        return set()
    path = Path(os.path.abspath(image))
    places = {path, path.parent.resolve() / path.name, path.resolve()}
    inside = {
        place.relative_to(one).as_posix()
        for one in {folder, folder.resolve()}
        for place in places
        if place.is_relative_to(one)
    }
    return inside | {str(place) for place in places}


def same_file(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # not both are files on this machine
        return False
