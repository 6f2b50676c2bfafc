"""Data sets known by name: written once as parquet into the cache, and read from there ever after."""

import contextlib
import functools
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rayssl.pipeline.base.cache_folder import cache_dir
from rayssl.pipeline.base.digests import digest
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import delete, move
from rayssl.pipeline.data import storage
from rayssl.pipeline.data.cache_room import touch
from rayssl.pipeline.data.listing import Listing
from rayssl.pipeline.data.parquet import list_parquet
from rayssl.pipeline.data.reading import Reading
from rayssl.pipeline.data.scattered import scatter

_FORMAT = 1  # of the files written here

Examples = Iterable[tuple[Image.Image, int]]


@dataclass(frozen=True)
class Made:
    """A data set as its maker gives it."""

    splits: dict[str, Examples]  # one file each
    class_names: list[str]


def is_named(path: str) -> bool:
    """Whether this is the name of a data set."""
    return path.removeprefix("name:") in NAMED


def list_named(name: str) -> Listing:
    """The data set `name` of NAMED, downloaded where that has not been done. Raises UserError where that fails."""
    folder = cache_dir() / "named" / f"{name}-{_FORMAT}"
    if not folder.is_dir():
        _make(name, folder)
    touch(folder)
    root, files = storage.find(str(folder))
    # The bytes of a PNG differ between builds of the compressor, the pixels do not: identify by name.
    return replace(list_parquet(root, files, Reading()), identity=digest(["named", name, str(_FORMAT)]), contents=None)


def _make(name: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
    try:
        made = NAMED[name](temporary / "download")
        finished = temporary / "finished"
        finished.mkdir()
        for split, examples in made.splits.items():
            _write(finished / f"{split}.parquet", examples, made.class_names)
        with contextlib.suppress(OSError):  # another process was quicker: its files are as good
            move(finished, folder)
    finally:
        delete(temporary)


def _write(path: Path, examples: Examples, class_names: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": class_names}}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image_type), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        rows: list[dict[str, Any]] = []
        for number, (image, label) in enumerate(examples):
            # A class name may hold a slash, as in CIFAR-100's kin: it must not look like a folder.
            name = f"{class_names[label].replace('/', '-')}/{number:06d}.png"
            rows.append({"image": {"bytes": _png(image), "path": name}, "label": int(label)})
            if len(rows) == 1000:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data.getvalue()


def _digits(_: Path) -> Made:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)  # 17 grey levels, 0 … 16
    examples = [(Image.fromarray(image), int(label)) for image, label in zip(pixels, digits.target)]
    return Made({"digits": examples}, [str(i) for i in range(10)])


def _scattered_digits(_: Path) -> Made:
    return Made(dict(scatter()), [str(i) for i in range(10)])


def _torchvision(cls: str, splits: dict[str, dict[str, Any]], download: Path) -> Made:
    import torchvision

    sets = {}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            for split, options in splits.items():
                sets[split] = getattr(torchvision.datasets, cls)(str(download), download=True, **options)
    except Exception as error:  # each set fails in its own way: no network, a changed address, a wrong checksum
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{cls} cannot be downloaded ({reason[0]}): look at the network, or give a folder of images"
        ) from None
    names = next((s.classes for s in sets.values() if getattr(s, "classes", None)), None)
    names = names or [str(i) for i in range(_CLASSES[cls])]
    return Made(sets, [str(name) for name in names])


# Number of classes of the sets that may not name them.
_CLASSES = {"SVHN": 10, "USPS": 10, "GTSRB": 43, "Flowers102": 102}

# Sets whose images mean something else in a mirror: digits, characters and traffic signs.
HANDED = frozenset({"digits", "scattered-digits", "mnist", "kmnist", "usps", "svhn", "gtsrb"})

_BY_TRAIN: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_BY_SPLIT: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_BY_TRAINVAL: dict[str, dict[str, Any]] = {"train": {"split": "trainval"}, "test": {"split": "test"}}
_WITH_VAL: dict[str, dict[str, Any]] = {**_BY_SPLIT, "validation": {"split": "val"}}

# name → what makes it, given a folder to download to
NAMED: dict[str, Callable[[Path], Made]] = {
    "digits": _digits,
    "scattered-digits": _scattered_digits,
    "cifar10": functools.partial(_torchvision, "CIFAR10", _BY_TRAIN),
    "cifar100": functools.partial(_torchvision, "CIFAR100", _BY_TRAIN),
    "mnist": functools.partial(_torchvision, "MNIST", _BY_TRAIN),
    "fashionmnist": functools.partial(_torchvision, "FashionMNIST", _BY_TRAIN),
    "kmnist": functools.partial(_torchvision, "KMNIST", _BY_TRAIN),
    "usps": functools.partial(_torchvision, "USPS", _BY_TRAIN),
    "svhn": functools.partial(_torchvision, "SVHN", _BY_SPLIT),
    "stl10": functools.partial(_torchvision, "STL10", _BY_SPLIT),
    "food101": functools.partial(_torchvision, "Food101", _BY_SPLIT),
    "gtsrb": functools.partial(_torchvision, "GTSRB", _BY_SPLIT),
    "oxfordiiitpet": functools.partial(_torchvision, "OxfordIIITPet", _BY_TRAINVAL),
    "fgvcaircraft": functools.partial(_torchvision, "FGVCAircraft", _BY_TRAINVAL),
    "dtd": functools.partial(_torchvision, "DTD", _WITH_VAL),
    "flowers102": functools.partial(_torchvision, "Flowers102", _WITH_VAL),
    "eurosat": functools.partial(_torchvision, "EuroSAT", {"eurosat": {}}),
}
