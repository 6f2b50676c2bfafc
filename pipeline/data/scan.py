"""Looking at all images of a source, in threads: their sizes, their pixels, and which cannot be read."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import Header, Pixels, decode, kept_size, load_size_of, read_header
from pipeline.data.listing import Store
from pipeline.errors import UserError

MANY = 20_000  # images; of more than that only a sample's headers are read
SAMPLE = 2_000
DEFAULT_SIZE = 224  # side in pixels where sizes differ
LARGEST_COMMON = 256  # a common size up to this is kept

_CHUNK = 8  # images a task: enough to make the pool's own cost small, few enough to bound memory

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Look:
    """What the headers of all images, or of a sample of them, say."""

    image_size: int  # proposed side of what the network sees
    grey: bool  # every image is
    bands: tuple[int, ...]  # numbers of channels found
    kept_pixels: float  # mean of height × width after shrinking


def look(store: Store, rows: NDArray[np.int64], image_size: int | None) -> Look | None:
    """Read headers of the images at `rows`; None where not one of them can be read."""
    if len(rows) > MANY:
        sample = store.sample(SAMPLE)
        sample = sample[np.isin(sample, rows)]
        rows = sample if len(sample) else rows[:SAMPLE]
    headers = [header for header in _in_threads(lambda i: _header(store, i), rows.tolist()) if header is not None]
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
    )


def decode_all(store: Store, rows: Sequence[int], channels: int, load_size: int) -> Iterator[Pixels | str]:
    """The pixels of every image at `rows` (ascending), in order; in place of an unreadable one, why it is."""

    def pixels(item: tuple[int, Callable[[], bytes]]) -> Pixels | str:
        try:
            return decode(item[1](), channels, load_size)
        except UserError as error:
            return str(error).removeprefix("image cannot be read: ")
        except FileNotFoundError:
            return "gone since it was listed"
        except OSError as error:  # of the disk or the network, not of the image: to be remembered by no cache
            raise UserError(f"reading images failed: {error}") from None

    yield from _in_threads(pixels, store.stream(rows))


def _proposed_size(headers: list[Header]) -> int:
    sizes = {(header.height, header.width) for header in headers}
    common = min(next(iter(sizes)))
    return common if len(sizes) == 1 and common <= LARGEST_COMMON else DEFAULT_SIZE


def _header(store: Store, i: int) -> Header | None:
    try:
        return read_header(store.head(i))
    except (UserError, OSError):
        pass
    try:
        return read_header(store.read(i))  # a header may lie behind the part that `head` gives
    except (UserError, OSError):
        return None


def _in_threads(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`work` on every item, in order, with few results waiting."""
    threads = min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
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
