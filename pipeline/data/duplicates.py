"""Images that are there twice: found by a hash of their decoded pixels, counted within and across splits."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.data.reading import Note
from rayssl.pipeline.data.shown import Pixels

Hashes = NDArray[np.int64]

_THREADS = 4
_WAITING = 32  # images: they stay in memory until their turn


@dataclass(frozen=True)
class Duplicates:
    """How many images show the same as others, pixel by pixel, as they are kept for training."""

    train: int  # images
    val: int
    test: int
    val_in_train: int  # images of val that are also in train
    test_in_train: int  # or held out of it: kNN asks these as well
    test_in_val: int
    in_test: int  # images of test that are there twice
    repeated: int  # images that repeat an earlier one, in whatever split


def pixel_hash(image: Pixels | str) -> int:
    """63 bits of the pixels and the shape; 0 for an image that could not be read."""
    if isinstance(image, str) or image.size == 0:
        return 0
    total = hashlib.sha256(repr(image.shape).encode())
    total.update(np.ascontiguousarray(image).data)
    return int.from_bytes(total.digest()[:8]) >> 1 or 1


def hashing(images: Iterable[Pixels | str], found: list[int]) -> Iterator[Pixels | str]:
    """The same images; the hash of every one that passes is put into `found`, in threads while others are decoded."""
    found.clear()
    waiting: deque[Future[int]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:
        for image in images:
            waiting.append(pool.submit(pixel_hash, image))
            yield image
            if len(waiting) > _WAITING:
                found.append(waiting.popleft().result())
        found += [one.result() for one in waiting]


def count_duplicates(train: Hashes, val: Hashes, test: Hashes) -> Duplicates:
    """Of the hashes of the images of three splits."""
    every = np.concatenate([train, val, test])
    _, where, counts = np.unique(test, return_inverse=True, return_counts=True)
    return Duplicates(
        train=len(train),
        val=len(val),
        test=len(test),
        val_in_train=_shared(val, train),
        test_in_train=_shared(test, np.concatenate([train, val])),
        test_in_val=_shared(test, val),
        in_test=int((counts[where] > 1).sum()),
        repeated=len(every) - len(np.unique(every)),
    )


def _shared(some: Hashes, others: Hashes) -> int:
    return int(np.isin(some, others).sum())


APART = "a CSV for --data.labels with a column group keeps copies together"


def duplicate_notes(found: Duplicates | None) -> tuple[Note, ...]:
    """What is to be told of them before training."""
    if found is None or not found.repeated:
        return ()
    notes = []
    if found.test_in_train:
        notes.append(f"{flattering_test(found)}: accuracies on test images are flattered; {APART}")
    if found.val_in_train:
        notes.append(
            f"{found.val_in_train:,} of {found.val:,} validation images are also in training, pixel by pixel: what is "
            f"chosen by them is chosen by images that were learned from; {APART}"
        )
    if not notes:
        images = found.train + found.val + found.test
        notes.append(f"{found.repeated:,} of {images:,} images repeat another one, pixel by pixel")
    return tuple(map(Note, notes))


def contradiction_notes(hashes: Hashes, labels: NDArray[np.int64]) -> tuple[Note, ...]:
    """That copies of an image have different labels (N,), −1 for none."""
    known = (labels >= 0) & (hashes != 0)
    _, where = np.unique(hashes[known], return_inverse=True)
    lowest = np.full(len(where), np.iinfo(np.int64).max)
    highest = np.full(len(where), -1)
    np.minimum.at(lowest, where, labels[known])
    np.maximum.at(highest, where, labels[known])
    if not (count := int((lowest != highest)[where].sum())):
        return ()
    text = f"{count:,} images are of one class and show the same as images of another, pixel by pixel"
    return (Note(text, flag="--data.labels"),)


def flattering_test(found: Duplicates) -> str:
    """What flatters figures on the test images."""
    return f"{found.test_in_train:,} of {found.test:,} test images are also in training, pixel by pixel"
