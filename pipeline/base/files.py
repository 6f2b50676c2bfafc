"""Files of run folders and caches: put whole or not at all, listed, moved, deleted.

All of the package goes by this module and by `atomic`, `seals`, `lease` and `locks` beside it, so that the place where
another kind of store answers is here. What data sets are read from is `rayssl.pipeline.data.storage`.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.atomic import placing
from rayssl.pipeline.base.seals import check_stays, put_noted


@contextmanager
def replacing(path: Path, *, noted: bool = True) -> Iterator[Path]:
    """`placing` a file; in a folder that notes what is finished in it, the file is `noted`.

    Raises UserError where a link would take it out of that folder.
    """
    check_stays(path)
    with placing(path, put_noted if noted else os.replace) as temporary:
        yield temporary


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write indented JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(folder: Path, pattern: str = "*", *, below: bool = False) -> list[Path]:
    """What is in a folder by names, sorted; nothing where there is no such folder.

    `pattern` as of pathlib, with "/" for folders within; `below`: in all folders below it, too. Raises OSError for a
    folder that cannot be read, which pathlib would take for an empty one.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        os.scandir(folder).close()
    return sorted(folder.rglob(pattern) if below else folder.glob(pattern))


def move(source: Path, target: Path) -> None:
    """A file or folder takes its place at once, of a file or an empty folder.

    Raises FileExistsError where a folder with something in it is there.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(str(target)) from None
        raise


def delete(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing where nothing is there.

    Of a folder what cannot be removed stays, and is no error.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
