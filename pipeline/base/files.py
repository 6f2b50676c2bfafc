"""Files that appear whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
