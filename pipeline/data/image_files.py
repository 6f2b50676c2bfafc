"""The image files of a folder and what they hold, as a data set of that folder would have them."""

import os
from pathlib import Path

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import formats, storage
from rayssl.pipeline.data.content import Digests, without_own
from rayssl.pipeline.data.passed import left_out, looked_at


def image_files(path: str) -> tuple[Path, list[str], Digests]:
    """A folder, the relative paths (N) of the images below it, and the digests (N, 16) of their bytes.

    `path` may also be one image. Pictures that this project wrote are left out. Raises UserError for what is not
    there, or not on this machine.
    """
    if storage.is_url(path):
        raise UserError(f"{path} is not on this machine: give a folder or image files")
    where = storage.normalise(path)
    if not os.path.lexists(where) and not storage.matches(where):
        raise UserError(f"{path} does not exist: give folders or image files")
    root, files = storage.find(where)
    files, _ = left_out(root, files)
    contents, _ = without_own(root, looked_at(root, files, formats.SUFFIXES))
    assert contents.known is not None  # without_own has read them all
    return Path(root), contents.files.paths, contents.known
