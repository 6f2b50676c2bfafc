"""The one way to a data set."""

import hashlib
import re
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.cache_folder import cache_dir
from rayssl.pipeline.base.digests import digest
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.cache import has_pack, open_pack, remembered, remembered_array
from rayssl.pipeline.data.cache_room import limit
from rayssl.pipeline.data.concluded import class_notes
from rayssl.pipeline.data.content import SCHEME
from rayssl.pipeline.data.dataset import Dataset, Images, Reader, Stream, sample_ids
from rayssl.pipeline.data.decode import decode, load_size_of
from rayssl.pipeline.data.duplicates import contradiction_notes, duplicate_notes, hashing
from rayssl.pipeline.data.listing import OUTSIDE, TEST, Listing, Store
from rayssl.pipeline.data.reading import AUTO, Key, Note, Reading
from rayssl.pipeline.data.scan import Look, decode_all, is_flat, look, survey
from rayssl.pipeline.data.settle import Settled, flat_notes, found_in, settle
from rayssl.pipeline.data.shown import Pixels
from rayssl.pipeline.data.sources import find_source
from rayssl.pipeline.data.splits import Parts, cut_test, cut_val, limited, without
from rayssl.pipeline.data.tables import apply_tables

LARGEST_CACHE = 32e9  # bytes of decoded images that "auto" keeps
CACHE_SHARE = 0.2  # of the free disk

Progress = Callable[[int, int], None]


def open_dataset(
    path: str | Path,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    splits: str = AUTO,
    labels: str | Path | None = None,
    key: Key = "first",
    image_column: str | None = None,
    label_column: str | None = None,
    range: str = AUTO,
    background: str = AUTO,
    loader: str = "auto",
    progress: Progress | None = None,
    strict: bool = True,
) -> Dataset:
    """Open a folder, parquet files, tar shards (local, or behind an fsspec URL) or a data set by name.

    A test part that the source does not have is cut from it by a fixed draw, whatever `seed`: a fifth, the same
    share of every class, or a tenth of unlabelled images. Then `limit` draws so many of the others, and
    `val_fraction` of those is held out as validation, both by `seed`; a source with a test and a validation part
    keeps both. `labels` is a CSV with the columns path, label and, optionally, group; groups stay together.
    Where only some images have a label (the others −1), test and validation are cut from these; a test part of the
    source in which no image has one keeps its images and gets such a cut as well.

    `image_size` None: the size that all images share, up to 256, else 224. `channels` None: 1 where all are grey,
    else 3. `loader`: "resident" decodes once into a memory-mapped cache, "stream" on demand, "auto" by size; the
    pixels are the same. `strict`: options that say nothing about this kind of source are refused; those of an old
    run are left alone. `progress(done, total)` is called now and then while images are decoded.

    Raises UserError, one line, for what is wrong with the path, an option or the images.
    """
    _check_options(image_size, channels, limit, val_fraction, loader)
    labels = AUTO if labels is None else str(labels)
    reading = Reading(splits, labels, key, image_column, label_column, range, background)
    source = find_source(str(path), reading, strict=strict)
    tabled = apply_tables(source.listing, source.path, reading)
    listing, groups, table, idle = tabled.listing, tabled.groups, tabled.digest, tabled.idle

    ids = _ids(listing)
    _check_encoding(source.path, listing)
    aside = _without_place(listing)
    usable = np.ones(len(ids), dtype=bool)
    usable[list(aside)] = False
    _need_some(source.path, listing, aside, usable)
    if listing.labels is not None and (listing.labels[usable] < 0).all():
        listing = replace(listing, labels=None, class_names=None)
    parts = limited(cut_test(listing.splits, usable, ids, listing.labels, groups), ids, listing.labels, limit, seed)

    pixels = _Pixels.of(source.path, listing, parts.all(), image_size, channels, reading)
    reader, broken, flat = pixels.reader(loader, progress)
    aside |= broken
    own = dict.fromkeys(pixels.look.own, "a picture that rayssl wrote")
    aside |= own
    usable[[*broken, *own]] = False
    parts = without(parts, ~usable)
    if not len(parts.train):
        first = min(aside)
        raise UserError(
            f"{source.path}: no training image can be read ({len(broken)} are damaged), "
            f"e.g. {listing.keys[first]}: {aside[first]}{_hint(aside[first])}"
        )
    hashes = pixels.hashes(reader)
    train, val = cut_val(parts, ids, listing.labels, groups, val_fraction, seed)

    def images(positions: NDArray[np.int64]) -> Images:
        rows = pixels.rows_of(positions) if not isinstance(reader, Stream) else positions
        part_labels = None if listing.labels is None else listing.labels[positions]
        paths = [listing.keys[i] for i in positions.tolist()]
        part_hashes = hashes[pixels.rows_of(positions)]
        digests = None if listing.digests is None else listing.digests[positions]
        return Images(ids[positions], paths, part_labels, reader, rows, listing.store, positions, part_hashes, digests)

    read_as = [table, f"size {pixels.image_size}", f"channels {pixels.channels}", *pixels.settled.identity]
    by_names = digest([listing.identity, *read_as])
    by_content = f"{SCHEME}:{digest([pixels.content, *read_as])}" if listing.contents is not None else by_names
    dataset = Dataset(
        name=source.name,
        path=source.path,
        fingerprint=by_content,
        content=by_content,
        by_names=by_names,
        train=images(train),
        val=images(val),
        test=images(parts.test),
        class_names=listing.class_names,
        channels=pixels.channels,
        image_size=pixels.image_size,
        unreadable=tuple((_printable(listing.keys[i]), aside[i]) for i in sorted(aside)),
        idle_rows=tuple(map(_printable, idle)),
        own_val=parts.val is not None,
        kind=listing.kind,
        notes=(
            *listing.notes,
            *_cut_notes(listing, parts),
            *class_notes(listing.class_names, _of(listing, train), _of(listing, parts.test)),
            *pixels.settled.notes,
            *flat_notes(flat, len(pixels.positions), pixels.look),
        ),
        passed_over=listing.passed_over,
        stored_sizes=((*pixels.look.smallest,), (*pixels.look.largest,)),
        range=pixels.settled.range,
        background=pixels.settled.background,
    )
    copies = duplicate_notes(dataset.count_duplicates())
    if listing.labels is not None:
        used = parts.all()
        copies += contradiction_notes(hashes[pixels.rows_of(used)], listing.labels[used])
    return replace(dataset, notes=(*dataset.notes, *copies))


def _of(listing: Listing, positions: NDArray[np.int64]) -> NDArray[np.int64] | None:
    return None if listing.labels is None else listing.labels[positions]


@dataclass(frozen=True)
class _Pixels:
    """The images that are used, and how they are decoded."""

    path: str
    store: Store
    positions: NDArray[np.int64]  # in the store, ascending
    image_size: int
    channels: int
    look: Look
    settled: Settled
    bytes: float  # of all of them decoded, estimated
    key: str  # of what is kept in the cache
    content: str  # digest of the files
    seen: list[int] = field(default_factory=list)  # hashes of the images that were decoded just now

    @classmethod
    def of(
        cls,
        path: str,
        listing: Listing,
        positions: NDArray[np.int64],
        image_size: int | None,
        channels: int | None,
        reading: Reading,
    ) -> "_Pixels":
        chosen = hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()
        content = listing.identity
        if listing.contents is not None:
            content = digest([content, listing.contents.digest()])
        identity = digest([content, listing.stamp, chosen])
        seen = _look(path, listing, positions, image_size, identity)
        channels = _channels(path, seen, channels)
        settled = settle(seen, reading, lambda: _survey(listing.store, positions, channels, identity))
        key = digest([identity, str(load_size_of(seen.image_size)), str(channels), *settled.identity])[:32]
        size = seen.kept_pixels * channels * len(positions)
        return cls(path, listing.store, positions, seen.image_size, channels, seen, settled, size, key, content)

    def reader(self, loader: str, progress: Progress | None) -> tuple[Reader, dict[int, str], int | None]:
        """What gives the pixels, (position → reason) the images that it cannot give, and how many show nothing."""
        n = len(self.positions)

        def report(done: int) -> None:
            if progress is not None and (done % 100 == 0 or done == n):
                progress(done, n)

        reader: Reader
        if loader == "resident" or (loader == "auto" and (self._fits() or has_pack(self.key))):
            reader = pack = open_pack(
                self.key, n, self.channels, self.images, report, data=self.path, expected=self.bytes
            )
            broken, flat = pack.unreadable(), pack.flat
        else:
            reader = Stream(self.store, self.channels, load_size_of(self.image_size), self.settled.shown)
            checked = remembered(digest(["stream", self.key])[:32], lambda: _checked(self.images(), report))
            broken, flat = dict(checked["unreadable"]), checked["flat"]
        return reader, {int(self.positions[row]): reason for row, reason in broken.items()}, flat

    def images(self) -> Iterable[Pixels | str]:
        """All of them decoded, or why that cannot be done."""
        size, shown = load_size_of(self.image_size), self.settled.shown
        return hashing(decode_all(self.store, self.positions.tolist(), self.channels, size, shown), self.seen)

    def hashes(self, reader: Reader) -> NDArray[np.int64]:
        """(N,) hashes of the pixels, 0 for an image that cannot be read; what `reader` was made of tells them."""
        n = len(self.positions)

        def compute() -> NDArray[np.int64]:
            if len(self.seen) != n:  # decoded before, or by another process
                again = self.images() if isinstance(reader, Stream) else hashing(map(reader.read, range(n)), self.seen)
                deque(again, maxlen=0)
            return np.array(self.seen, dtype=np.int64)

        return remembered_array(digest(["pixels", self.key])[:32], n, compute)

    def rows_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of a pack of these images."""
        return np.searchsorted(self.positions, positions).astype(np.int64)

    def _fits(self) -> bool:
        room = min(CACHE_SHARE * shutil.disk_usage(cache_dir()).free, LARGEST_CACHE, limit(cache_dir()))
        return self.bytes <= room


def _check_options(
    image_size: int | None, channels: int | None, limit: int | None, val_fraction: float, loader: str
) -> None:
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size is {image_size}: at least 1 pixel")
    if channels is not None and channels < 1:
        raise UserError(f"channels is {channels}: at least 1")
    if limit is not None and limit < 2:
        raise UserError(f"limit is {limit}: at least 2 images are needed")
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: at least 0 and less than 1")
    if loader not in ("auto", "resident", "stream"):
        raise UserError(f"loader is '{loader}': auto, resident or stream")


def _ids(listing: Listing) -> NDArray[np.int64]:
    key = digest(["ids", listing.identity, listing.stamp])[:32]
    return remembered_array(key, len(listing.keys), lambda: _different_ids(listing.keys))


def _different_ids(keys: list[str]) -> NDArray[np.int64]:
    ids = sample_ids(keys)
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(same):
        first, second = keys[order[same[0]]], keys[order[same[0] + 1]]
        raise UserError(f"{first} and {second} have the same id: rename one of them")
    return ids


def _check_encoding(path: str, listing: Listing) -> None:
    """Refuse names that only look damaged: Python was told to read them by another encoding."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not _is_utf8("".join(listing.keys)):
        raise UserError(
            f"{path} holds names that cannot be read as {encoding}, as PYTHONUTF8=0 or the locale has it: "
            "set PYTHONUTF8=1"
        )


def _without_place(listing: Listing) -> dict[int, str]:
    """Position → reason, of the images that are in no part or cannot be named."""
    aside = {}
    if OUTSIDE in listing.splits:
        outside = (i for i, split in enumerate(listing.splits) if split == OUTSIDE)
        aside = dict.fromkeys(outside, "in no split")
    if not _is_utf8("".join(listing.keys)):  # one by one only where it is worth looking
        named = (i for i, key in enumerate(listing.keys) if not _is_utf8(key))
        aside |= dict.fromkeys(named, "its name is not valid UTF-8")
    return aside


def _is_utf8(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(key: str) -> str:
    """A name that can be written, \\xff for a byte that is no character."""
    return key.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _cut_notes(listing: Listing, parts: Parts) -> tuple[Note, ...]:
    """That images are tested on which nobody called test images."""
    cut = sum(listing.splits[i] != TEST for i in parts.test.tolist())
    if not cut:
        return ()
    if parts.own_test:
        own = len(parts.test) - cut
        text = f"none of the {own:,} test images has a label: {cut:,} labelled ones for training are tested on as well"
    else:
        alike = "" if listing.labels is None else ", the same share of every class"
        text = f"no images are told to be for testing: {cut:,} are drawn for it{alike}"
    return (Note(text, flag="--data.splits"),)


def _need_some(path: str, listing: Listing, aside: dict[int, str], usable: NDArray[np.bool_]) -> None:
    if usable.any():
        return
    if not listing.keys:
        raise UserError(f"{path} holds no images")
    raise UserError(f"{path}: none of {len(usable)} images can be used, e.g. {_printable(listing.keys[0])}: {aside[0]}")


def _hint(reason: str) -> str:
    """What reads images of another number of channels."""
    bands = re.match(r"it has (\d+) channels, not", reason)
    return f"; --data.channels {bands[1]} reads such images" if bands else ""


def _look(path: str, listing: Listing, positions: NDArray[np.int64], image_size: int | None, identity: str) -> Look:
    def compute() -> dict[str, object]:
        found = look(listing.store, positions, image_size)
        if found is None:
            raise UserError(
                f"{path}: none of {len(positions)} images can be read, "
                f"e.g. {listing.keys[positions[0]]}: {_reason(listing.store, int(positions[0]))}"
            )
        return asdict(found)

    return Look(**remembered(digest(["look at all of them", identity, str(image_size)])[:32], compute))


def _reason(store: Store, position: int) -> str:
    try:
        decode(store.read(position), None, None)
    except UserError as error:
        return str(error).removeprefix("image cannot be read: ")
    except OSError as error:
        return error.strerror or str(error)
    return "not an image"


def _channels(path: str, seen: Look, channels: int | None) -> int:
    if channels is None:
        return 1 if seen.grey else 3
    if channels not in (1, 3, *seen.bands):
        has = " or ".join(map(str, seen.bands))
        raise UserError(f"channels is {channels}: the images in {path} have {has} (1 and 3 are converted to)")
    return channels


def _survey(store: Store, positions: NDArray[np.int64], channels: int | None, identity: str) -> dict[str, Any]:
    bands = "pixels" if channels in (1, 3) else f"{channels} bands"
    key = digest(["survey", identity, bands])[:32]
    found: dict[str, Any] = remembered(key, lambda: found_in(survey(store, positions.tolist(), channels)))
    return found


def _checked(images: Iterable[Pixels | str], report: Callable[[int], None]) -> dict[str, Any]:
    """Which images cannot be read, and why; how many show nothing."""
    unreadable, flat = [], 0
    for row, image in enumerate(images):
        if isinstance(image, str):
            unreadable.append((row, image))
        else:
            flat += is_flat(image)
        report(row + 1)
    return {"unreadable": unreadable, "flat": flat}
