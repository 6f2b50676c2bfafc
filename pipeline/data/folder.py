"""A folder of image files, with or without folders for splits and for classes."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rayssl.pipeline.data import storage
from rayssl.pipeline.data.content import without_own
from rayssl.pipeline.data.labels import HALF
from rayssl.pipeline.data.layout import read_layout
from rayssl.pipeline.data.listing import Listing, Store, number_classes
from rayssl.pipeline.data.reading import Reading
from rayssl.pipeline.data.storage import Files

_HEAD = 1 << 16  # bytes that hold the header of nearly every image


@dataclass(frozen=True)
class ImageFiles(Store):
    """One file an image."""

    root: str
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int) -> bytes:
        return storage.read(storage.join(self.root, self.keys[i]))

    def head(self, i: int) -> bytes | Path:
        path = storage.join(self.root, self.keys[i])
        return storage.read(path, 0, _HEAD) if storage.is_url(path) else Path(path)

    def file(self, i: int) -> Path | None:
        path = storage.join(self.root, self.keys[i])
        return None if storage.is_url(path) else Path(path)


def list_folder(root: str, files: Files, reading: Reading) -> Listing:
    """Image files below `root`; what their folders mean is told by `rayssl.pipeline.data.layout`."""
    contents, own = without_own(root, files)
    files = contents.files
    keys = files.paths
    folders = [key.rpartition("/")[0] for key in keys]
    layout = read_layout(root, Counter(folders), reading)
    labels, class_names = None, None
    if any(layout.class_of.values()):
        labels, class_names = number_classes([_readable(layout.class_of[folder]) for folder in folders])
    return Listing(
        keys=keys,
        splits=[layout.split_of[folder] for folder in folders],
        labels=labels,
        class_names=class_names,
        store=ImageFiles(root, keys),
        identity=files.identity(),
        stamp=files.stamp(),
        contents=contents,
        digests=contents.known,
        kind="a folder of images",
        notes=layout.notes,
        passed_over=(("pictures that rayssl wrote", own),) if own else (),
    )


def _readable(name: str | None) -> str | None:
    """A class whose name is text; images of another are set aside by their own names."""
    return None if name is not None and not name.isascii() and HALF.search(name) else name
