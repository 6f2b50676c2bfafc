"""Looking at all images of a source, in threads: their headers, their pixels, and which cannot be read."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.decode import LONGEST, Header, decode, held, kept_size, load_size_of, read_header
from rayssl.pipeline.data.listing import Store
from rayssl.pipeline.data.shown import Held, Pixels, Shown, Survey, surveyed

FLAT = 20  # grey levels (of 256) between the darkest and the brightest part of an image that shows nothing
DEFAULT_SIZE = 224  # side in pixels where sizes differ
LARGEST_COMMON = 256  # a common size up to this is kept

_SEEN = 1024  # values of an image that tell whether it is flat
_GOLDEN = 0.6180339887498949
_WAITING = 16  # threads that wait for a disk or a server
_CHUNK = 8  # images a task: enough to make the pool's own cost small, few enough to bound memory

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Look:
    """What the headers of all images say."""

    image_size: int  # proposed side of what the network sees
    grey: bool  # every image is
    bands: tuple[int, ...]  # numbers of channels found
    kept_pixels: float  # mean of height × width after shrinking
    smallest: tuple[int, int] = (0, 0)  # height and width of the image with the shortest side
    largest: tuple[int, int] = (0, 0)  # of the image with the longest side
    wide: int = 0  # images of more than 8 bits
    transparent: int = 0  # images that may be, somewhere
    long: int = 0  # images of which the middle is kept
    paged: int = 0  # images of several pages or frames
    own: tuple[int, ...] = ()  # positions of pictures that this project wrote
    negative: int = 0  # images of more than 8 bits whose zero is white


def look(store: Store, rows: NDArray[np.int64], image_size: int | None) -> Look | None:
    """Read the headers of all images at `rows` (ascending); None where not one of them can be read."""
    found = list(_in_threads(_header, _heads(store, rows.tolist()), waiting=True))
    own = [row for row, header in zip(rows.tolist(), found, strict=True) if header is not None and header.own]
    headers = [header for header in found if header is not None and not header.own]
    if not headers:
        return None
    size = image_size or _proposed_size(headers)
    load_size = load_size_of(size)
    areas = [h * w for h, w in (kept_size(header.height, header.width, load_size) for header in headers)]
    return Look(
        image_size=size,
        grey=all(header.grey for header in headers),
        bands=tuple(sorted({header.channels for header in headers})),
        kept_pixels=sum(areas) / len(areas),
        smallest=min(headers, key=lambda header: (min(header[:2]), max(header[:2])))[:2],
        largest=max(headers, key=lambda header: (max(header[:2]), min(header[:2])))[:2],
        wide=sum(header.wide for header in headers),
        transparent=sum(header.transparent for header in headers),
        long=sum(max(header[:2]) > LONGEST * max(load_size, min(header[:2])) for header in headers),
        paged=sum(header.pages > 1 for header in headers),
        own=tuple(own),
        negative=sum(header.negative for header in headers),
    )


def survey(store: Store, rows: Sequence[int], channels: int | None) -> Survey:
    """What all images at `rows` (ascending) hold of more than 8 bits and of transparency; each is decoded."""

    def look_into(item: tuple[int, Callable[[], bytes]]) -> Held | None:
        try:
            data = item[1]()
            header = read_header(data)
        except (UserError, OSError):  # it is set aside when it is decoded
            return None
        return held(data, channels) if header.wide or header.transparent else None

    return surveyed(_in_threads(look_into, store.stream(rows)))


def decode_all(
    store: Store, rows: Sequence[int], channels: int, load_size: int, shown: Shown
) -> Iterator[Pixels | str]:
    """The pixels of every image at `rows` (ascending), in order; in place of an unreadable one, why it is."""

    def pixels(item: tuple[int, Callable[[], bytes]]) -> Pixels | str:
        try:
            return decode(item[1](), channels, load_size, shown)
        except UserError as error:
            return str(error).removeprefix("image cannot be read: ")
        except FileNotFoundError:
            return "gone since it was listed"
        except OSError as error:  # of the disk or the network, not of the image: to be remembered by no cache
            raise UserError(f"reading images failed: {error}") from None

    yield from _in_threads(pixels, store.stream(rows))


def is_flat(image: Pixels) -> bool:
    """Whether there is next to nothing to see: the values of all but a few pixels are within a few grey levels."""
    values = image.reshape(-1)
    if values.size > _SEEN:  # spread evenly, and not by columns or bands
        values = values[(np.arange(_SEEN) * (_GOLDEN * values.size)).astype(np.int64) % values.size]
    some = np.sort(values)
    few = len(some) // 1000
    return int(some[-1 - few]) - int(some[few]) < FLAT


def _proposed_size(headers: list[Header]) -> int:
    sizes = {(header.height, header.width) for header in headers}
    common = min(next(iter(sizes)))
    return common if len(sizes) == 1 and common <= LARGEST_COMMON else DEFAULT_SIZE


def _heads(store: Store, rows: list[int]) -> Iterator[tuple[Callable[[], bytes | Path], Callable[[], bytes]]]:
    """How to read the beginning of every image, and how to read all of it."""
    if type(store).head is Store.head:  # what is read whole is read block by block
        yield from ((read, read) for _, read in store.stream(rows))
    else:
        yield from ((partial(store.head, i), partial(store.read, i)) for i in rows)


def _header(image: tuple[Callable[[], bytes | Path], Callable[[], bytes]]) -> Header | None:
    for read in dict.fromkeys(image):  # a header may lie behind the beginning
        try:
            return read_header(read())
        except (UserError, OSError):
            continue
    return None


def _in_threads(work: Callable[[T], R], items: Iterable[T], *, waiting: bool = False) -> Iterator[R]:
    """`work` on every item, in order, with few results kept; in more threads where they are `waiting` for a disk."""
    threads = (
        _WAITING
        if waiting
        else min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    )
    remaining = iter(items)
    pending: deque[Future[list[R]]] = deque()
    with _quiet(), ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            while chunk := list(islice(remaining, _CHUNK)):
                pending.append(pool.submit(lambda chunk: [work(item) for item in chunk], chunk))
                if len(pending) > 2 * threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _quiet() -> Iterator[None]:
    # Pillow warns of every odd palette and EXIF block; an image that can be read is fine, another is reported by name.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield
