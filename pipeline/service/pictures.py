"""Pictures of a run's own images by id: decoded and encoded again here, so that no byte of a file is passed on.

What is shown is what lies at the image's path now.
"""

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.documents import DamagedError, read_bytes
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.dataset import sample_id, sample_ids
from rayssl.pipeline.data.decode import decode
from rayssl.pipeline.data.formats import marks
from rayssl.pipeline.data.listing import Store
from rayssl.pipeline.data.reading import Reading
from rayssl.pipeline.data.shown import Pixels
from rayssl.pipeline.data.sources import find_source
from rayssl.pipeline.run.folder import data_name, read_manifest
from rayssl.pipeline.run.images import reading_of
from rayssl.pipeline.search.queries import MOST_BYTES
from rayssl.pipeline.search.query import OpenIndex

SMALL, LARGE = 160, 1024  # pixels of the shorter side of a thumbnail and of a picture, at most
LONGEST = 2  # times as long the other side may be
LOSSLESS = 96  # pixels: up to this side a picture is a PNG, else a JPEG
KEPT = 4096  # thumbnails in memory, of 5 to 10 kB each
QUALITY = 88  # of JPEG


class Picture(NamedTuple):
    """An encoded picture and its media type."""

    content: bytes
    kind: str


class NoPictureError(Exception):
    """There is no picture of an image; the text says why, and names no place on this machine."""


@dataclass(frozen=True)
class _Places:
    """Where the images of a data set are: N of them."""

    store: Store
    ids: NDArray[np.int64]  # (N,), of their paths, ascending
    positions: NDArray[np.int64]  # (N,), in the store

    def of(self, path: str) -> int:
        """The position of the image at a path; raises NoPictureError where there is none."""
        wanted = sample_id(path)
        row = int(np.searchsorted(self.ids, wanted))
        if row == len(self.ids) or self.ids[row] != wanted:
            raise NoPictureError("the image is no longer where it was")
        return int(self.positions[row])


class Pictures:
    """Those of one open index. The images are listed at the first picture."""

    def __init__(self, opened: OpenIndex) -> None:
        self._opened = opened
        self._listing = threading.Lock()
        self.thumbnail: Callable[[int], Picture] = lru_cache(maxsize=KEPT)(lambda row: self._picture(row, SMALL))

    def large(self, row: int) -> Picture:
        """The image in a row of the items, as large as it is, up to `LARGE`. Raises NoPictureError."""
        return self._picture(row, LARGE)

    def _picture(self, row: int, side: int) -> Picture:
        path = self._opened.items.path(row)
        try:
            data = read_bytes(Path(path), MOST_BYTES) if Path(path).is_absolute() else self._own(path)
            return _encoded(self._decoded(data, side))
        except (UserError, OSError, DamagedError):
            raise NoPictureError("the image cannot be read") from None

    def _own(self, path: str) -> bytes:
        """An image of the run's; those that were added from elsewhere have absolute paths."""
        with self._listing:
            places = self._places
        position = places.of(path)
        self._refuse_outside(places.store.file(position))
        return places.store.read(position)

    def _refuse_outside(self, file: Path | None) -> None:
        """A link may lead out of the folder of images: what is there is not the run's."""
        if file is not None and not file.resolve().is_relative_to(self._opened.place.resolve()):
            raise NoPictureError("the image is a link to a place outside of the data's folder")

    def _decoded(self, data: bytes, side: int) -> Pixels:
        shown = self._opened.shown
        try:
            return decode(data, None, side, shown)
        except UserError:  # neither grey nor colours: of more channels the first is shown
            channels = configuration.load(self._opened.run / "config.json").data.channels
            return decode(data, channels, side, shown)[:, :, :1]

    @cached_property
    def _places(self) -> _Places:
        try:
            path, reading = _source_of(self._opened)
            listing = find_source(path, reading, strict=False).listing
        except (UserError, OSError):
            raise NoPictureError("the images are not where the run has them: --data.path says where they are") from None
        ids = sample_ids(listing.keys)
        order = np.argsort(ids)
        return _Places(listing.store, ids[order], order)


def _source_of(opened: OpenIndex) -> tuple[str, Reading]:
    """What was embedded, and how the user says that it is read."""
    data = configuration.load(opened.run / "config.json").data
    if opened.name == data_name(opened.run):
        return data.path, Reading(**reading_of(data))
    said = (read_manifest(opened.run).get("others") or {}).get(opened.name, {}).get("reading") or {}
    return opened.items.data_path, replace(Reading(), **said, range=data.range, background=data.background)


def _encoded(pixels: Pixels) -> Picture:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    longest = LONGEST * min(image.size)
    if max(image.size) > longest:
        image.thumbnail((longest, longest))
    kind = "PNG" if max(image.size) <= LOSSLESS else "JPEG"
    content = io.BytesIO()
    image.save(content, kind, **({} if kind == "PNG" else {"quality": QUALITY}), **marks(kind))
    return Picture(content.getvalue(), f"image/{kind.lower()}")
