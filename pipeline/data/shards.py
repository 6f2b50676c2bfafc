"""WebDataset tar shards: `key.jpg` with its label in `key.cls` or `key.json`."""

import errno
import io
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.digests import digest
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import formats, storage
from rayssl.pipeline.data.content import Contents
from rayssl.pipeline.data.labels import Labels, number_labels
from rayssl.pipeline.data.layout import file_splits
from rayssl.pipeline.data.listing import Listing, Store
from rayssl.pipeline.data.reading import Key, Note, Reading
from rayssl.pipeline.data.shard_labels import LABEL_FILES, Said, Sample, read_labels, said_by, with_field
from rayssl.pipeline.data.storage import Files
from rayssl.pipeline.data.told_splits import SPLIT, Splits, told_splits

SUFFIXES = (".tar",)

_BEFORE = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_LONGEST = 1 << 20  # bytes of these
_MOST_DIGITS = 1000  # side by side in these: tarfile looks at a row of them once for every digit

_KEY_FLAG, _IMAGE_FLAG, _LABELS_FLAG = "--data.key", "--data.image-column", "--data.labels"


@dataclass(frozen=True)
class Members(Store):
    """Members of uncompressed tar files, read by their position in the file."""

    files: list[str]
    file_of: NDArray[np.int64]  # (N,)
    starts: NDArray[np.int64]  # (N,) first byte in its file
    sizes: NDArray[np.int64]  # (N,) bytes

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, i: int) -> bytes:
        start = int(self.starts[i])
        return storage.read(self.files[self.file_of[i]], start, start + int(self.sizes[i]))


@dataclass(frozen=True)
class _Image:
    name: str  # of the member
    suffix: str  # what follows the key, in small letters
    start: int
    size: int


_Taken = tuple[int, str, _Image]  # number of the shard, key, image


@dataclass
class _Shard:
    """What one tar file holds."""

    path: str
    relative: str
    images: dict[str, list[_Image]] = field(default_factory=dict)  # by key
    said: dict[str, Said] = field(default_factory=dict)  # by the files beside the images, by key
    others: Counter[str] = field(default_factory=Counter)  # members that are neither, by suffix
    ends: bool = True  # as tar files do


def list_shards(root: str, files: Files, reading: Reading) -> Listing:
    """All images of all shards, one per key; the split is told by the names of the shards."""
    shards = [_scan(storage.join(root, file.path), file.path, reading.key) for file in files]
    if reading.image_column is not None:
        _only(shards, reading.image_column)
    if not any(shard.images for shard in shards):
        raise UserError(f"{shards[0].path} holds no image: key.jpg, key.png … are needed")
    taken = _one_per_key(shards)
    where = np.array([(i, image.start, image.size) for i, _, image in taken], dtype=np.int64)
    said = [_said_of(shards[i], key, image) for i, key, image in taken]
    by_shard, told = file_splits(root, [shard.relative for shard in shards], reading)
    splits, keys = _splits(said, taken, [by_shard[i] for i, _, _ in taken], reading)
    labels, field = _labels([Sample(shards[i].path, own) for (i, _, _), own in zip(taken, said)], keys, reading)
    return Listing(
        keys=[f"{shards[i].relative}/{image.name}" for i, _, image in taken],
        splits=splits.of_images,
        labels=labels.numbers,
        class_names=labels.class_names,
        store=Members([shard.path for shard in shards], where[:, 0], where[:, 1], where[:, 2]),
        identity=with_field(_identity(files, reading, splits), field),
        stamp=files.stamp(),
        notes=(*told, *splits.notes, *_cut_notes(shards), *_sharing_note(shards, taken, reading.key), *labels.notes),
        passed_over=_passed_over(shards, taken),
        contents=Contents(root, files),
    )


def split_name(name: str, key: Key) -> tuple[str, str]:
    """(key, what follows it without the dot) of a member's name.

    The key ends at the first dot of the base name, as WebDataset has it, or at the last one.
    """
    folders, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".") if key == "first" else base.rpartition(".")
    return folders + slash + stem if stem else "", suffix


def _scan(path: str, relative: str, key: Key) -> _Shard:
    shard = _Shard(path, relative)
    try:
        with storage.open_binary(path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
                for member in tar:
                    _look_at(shard, tar, member, key, size)
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
                shard.ends = end == tarfile.NUL * tarfile.BLOCKSIZE
    except RecursionError:
        raise UserError(f"{path} cannot be read as a tar file: too many headers before one member") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise UserError(f"{path} cannot be read as a tar file: a member claims more than any file has") from None
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError) as error:  # of headers that are no numbers
        raise UserError(f"{path} cannot be read as a tar file: {error}") from None
    return shard


class _Header(tarfile.TarInfo):
    """A header whose claims are looked at before anything is read or skipped by them."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        """What 512 bytes say; raises ReadError for what no archive has."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _BEFORE and header.size > _LONGEST):
            raise tarfile.ReadError(f"a member claims {header.size:,} bytes")
        return header

    def _block(self, count: int) -> int:
        """Bytes of the blocks to be read or skipped; sizes from an extended header come by here, too."""
        if count < 0:
            raise tarfile.ReadError(f"a member claims {count:,} bytes")
        return super()._block(count)  # type: ignore[misc, no-any-return]

    def _proc_pax(self, tar: tarfile.TarFile) -> Any:
        start = tar.fileobj.tell()
        claims = tar.fileobj.read(self.size)
        tar.fileobj.seek(start)
        if any(len(digits) > _MOST_DIGITS for digits in re.findall(rb"\d+", claims)):
            raise tarfile.ReadError("an extended header holds a number of more than a thousand digits")
        return super()._proc_pax(tar)  # type: ignore[misc]


def _look_at(shard: _Shard, tar: tarfile.TarFile, member: tarfile.TarInfo, key: Key, size: int) -> None:
    if member.issparse():
        shard.others["sparse files"] += 1
    elif member.isfile():
        if not 0 <= member.size <= size - member.offset_data:
            raise tarfile.ReadError(f"it ends within a member that claims {member.size:,} bytes")
        _add(shard, tar, member, key)
    elif member.islnk() or member.issym():
        shard.others["links"] += 1


def _add(shard: _Shard, tar: tarfile.TarFile, member: tarfile.TarInfo, rule: Key) -> None:
    key, suffix = split_name(member.name, rule)
    ending = f".{suffix.lower().rpartition('.')[2]}"
    if key and ending in formats.SUFFIXES:
        image = _Image(member.name, suffix.lower(), member.offset_data, member.size)
        shard.images.setdefault(key, []).append(image)
    elif key and suffix.lower() in LABEL_FILES:
        shard.said.setdefault(key, {}).update(said_by(suffix.lower(), tar.extractfile(member)))
    else:
        shard.others[ending if suffix else "no suffix"] += 1


def _only(shards: list[_Shard], asked: str) -> None:
    """Leave the images with one suffix."""
    wanted = asked.lower().lstrip(".")
    known = sorted({image.suffix for shard in shards for images in shard.images.values() for image in images})
    if wanted not in known:
        found = ", ".join(known) or "none"
        raise UserError(f"{_IMAGE_FLAG} {asked}: no image in {shards[0].path} ends so, only {found}")
    for shard in shards:
        fitting = {key: [image for image in images if image.suffix == wanted] for key, images in shard.images.items()}
        shard.others.update(
            f".{image.suffix}" for images in shard.images.values() for image in images if image.suffix != wanted
        )
        shard.images = {key: images for key, images in fitting.items() if images}


def _one_per_key(shards: list[_Shard]) -> list[_Taken]:
    """(number of the shard, key, image) of every key; of several images the same kind is taken throughout the set.

    A plain suffix goes before one with a dot (`seg.png`), then the one of most images, then the first in the shards.
    """
    found = [image.suffix for shard in shards for images in shard.images.values() for image in images]
    count, first = Counter(found), dict(zip(reversed(found), range(len(found), 0, -1)))
    rank = {suffix: ("." in suffix, -count[suffix], first[suffix]) for suffix in count}
    return [
        (i, key, min(images, key=lambda image: rank[image.suffix]))
        for i, shard in enumerate(shards)
        for key, images in shard.images.items()
    ]


def _splits(said: list[Said], taken: list[_Taken], of_shards: list[str], reading: Reading) -> tuple[Splits, list[str]]:
    """The splits, and the keys without the folders that tell them: train/cat/1 beside test/cat/2 in one shard."""
    keys = [key for _, key, _ in taken]
    splits = told_splits([own.get(SPLIT) for own in said], of_shards, reading)
    folders = _class_folders(keys)
    by_folder = told_splits(folders, of_shards, reading, "folders in the shards")
    if splits.by_column or not by_folder.notes:
        return splits, keys
    return by_folder, [_less(key, folder) for key, folder in zip(keys, folders)]


def _less(key: str, folder: str | None) -> str:
    names = key.split("/")
    if folder is not None:
        names.remove(folder)
    return "/".join(names)


def _labels(samples: list[Sample], keys: list[str], reading: Reading) -> tuple[Labels, str]:
    """The labels, and the field they are from."""
    if reading.labels == "none":
        return Labels(None, None, (Note("no labels, as asked"),)), ""
    folders = _class_folders(keys)
    if reading.labels == "folder":
        return number_labels(folders), "folder"
    labels, field = read_labels(samples, reading)
    names = sorted({name for name in folders if name is not None})
    if labels.numbers is None and not labels.notes and len(names) >= 2:
        offered = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        text = f"no labels; the images lie in {len(names)} folders ({offered}): `folder` makes them classes"
        labels = replace(labels, notes=(Note(text, flag=_LABELS_FLAG),))
    return labels, field


def _said_of(shard: _Shard, key: str, image: _Image) -> Said:
    # Where keys end at the last dot, k.cls is of k.left.jpg and k.right.jpg.
    return shard.said.get(key) or shard.said.get(split_name(image.name, "first")[0]) or {}


def _class_folders(keys: list[str]) -> list[str | None]:
    """The first folder of every image below those that all images share."""
    folders = [[name for name in key.split("/")[:-1] if name != "."] for key in keys]
    shared = next((i for i, names in enumerate(zip(*folders)) if len(set(names)) > 1), min(map(len, folders)))
    return [names[shared] if len(names) > shared else None for names in folders]


def _identity(files: Files, reading: Reading, splits: Splits) -> str:
    """Of names and sizes, and of what decides which images there are."""
    said = [f"key {reading.key}"] * (reading.key != "first")
    said += [f"image column {reading.image_column}"] * (reading.image_column is not None)
    said += ["split field"] * splits.by_column
    return digest([files.identity(), *said]) if said else files.identity()


def _cut_notes(shards: list[_Shard]) -> list[Note]:
    text = "{} does not end as a tar file does: it may have been cut off, or be damaged in the middle"
    return [Note(text.format(shard.path), guess=True) for shard in shards if not shard.ends]


def _sharing_note(shards: list[_Shard], taken: list[_Taken], key: Key) -> tuple[Note, ...]:
    sharing = [(shards[i].images[own], image) for i, own, image in taken if len(shards[i].images[own]) > 1]
    if not sharing:
        return ()
    images, kept = sharing[0]
    other = next(image for image in images if image is not kept)
    left = sum(len(images) - 1 for images, _ in sharing)
    text = (
        f"{left:,} images share the key of another and are passed over, e.g. {other.name} beside {kept.name}: "
        f"a key ends at the {key} dot of a name"
    )
    return (Note(text, guess=True, flag=_KEY_FLAG if key == "first" else _IMAGE_FLAG),)


def _passed_over(shards: list[_Shard], taken: list[_Taken]) -> tuple[tuple[str, int], ...]:
    images = sum(len(images) for shard in shards for images in shard.images.values())
    idle = sum(len(shard.said.keys() - _keys_with_labels(shard)) for shard in shards)
    others: Counter[str] = sum((shard.others for shard in shards), Counter())
    counts = {"images that share the key of another": images - len(taken), "labels of no image": idle}
    counts |= {f"members of tar shards: {suffix}": n for suffix, n in sorted(others.items())}
    return tuple((what, n) for what, n in counts.items() if n)


def _keys_with_labels(shard: _Shard) -> set[str]:
    names = (image.name for images in shard.images.values() for image in images)
    return {*shard.images, *(split_name(name, "first")[0] for name in names)}
