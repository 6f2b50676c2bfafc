"""Small parquet files, tar shards and folders with known images, for the tests of how data are read."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Dataset, Images, Reading
from rayssl.pipeline.data.listing import Listing
from rayssl.pipeline.data.sources import find_source

# What may stand in the place of a file, by what it is called, and how it is made at a path.
SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dead link": lambda path: path.symlink_to("/nowhere/at/all"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "file of the system": lambda path: path.symlink_to("/proc/self/mem"),
}


def png(number: int) -> bytes:
    """An image of 4 × 4 that no other number has."""
    data = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def write_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))


def write_parquet(path: Path, columns: dict[str, Any], names: dict[str, list[str]] | None = None) -> None:
    """Columns as they are; `names` are those of the classes of a column, as the hub has them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    if names is not None:
        features = {column: {"_type": "ClassLabel", "names": classes} for column, classes in names.items()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_tar(path: Path, members: dict[str, bytes | str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            raw = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))


def listed(path: Path, **said: Any) -> Listing:
    """What a folder holds, read as is `said`."""
    return find_source(str(path), Reading(**said)).listing


def refused(path: Path, **said: Any) -> str:
    """Why it is not read."""
    with pytest.raises(UserError) as error:
        listed(path, **said)
    assert "\n" not in str(error.value)
    return str(error.value)


def labels_of(found: Dataset | Listing) -> dict[str, str | None]:
    """Path → class name, None without a label."""
    if isinstance(found, Listing):
        return _named(found.keys, found.labels, found.class_names)
    parts = [part for part in (found.train, found.val, found.test) if part is not None]
    return {key: name for part in parts for key, name in _named(part.paths, part.labels, found.class_names).items()}


def told(found: Dataset | Listing) -> str:
    """All notes, a line each."""
    return "\n".join(note.text for note in found.notes)


def pixels_of(images: Images) -> dict[str, bytes]:
    return {path: images[i].tobytes() for i, path in enumerate(images.paths)}


def _named(keys: list[str], labels: Any, names: tuple[str, ...] | None) -> dict[str, str | None]:
    if labels is None or names is None:
        return dict.fromkeys(keys)
    return {key: names[label] if label >= 0 else None for key, label in zip(keys, labels.tolist())}


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine, while the block lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
