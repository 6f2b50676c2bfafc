"""Which images are held out: a function of the images' ids and a key, not of their order."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.randomness import hash_key
from rayssl.pipeline.data.listing import TEST, VAL

TEST_SHARE = 0.2  # cut from labelled images that come without a test part
TEST_SHARE_UNLABELLED = 0.1

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Positions of the images of every part, ascending."""

    train: Positions
    val: Positions | None  # None: still to be cut from train
    test: Positions
    own_test: bool  # the source told which images are for testing

    def all(self) -> Positions:
        """Every image that is used."""
        parts = [self.train, self.test] if self.val is None else [self.train, self.val, self.test]
        return np.sort(np.concatenate(parts))


def cut_test(
    splits: list[str],
    usable: NDArray[np.bool_],
    ids: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    groups: NDArray[np.int64] | None,
) -> Parts:
    """The source's own parts, or a test part cut by a draw that is always the same; of the `usable` (N,) images.

    Where other images than the source's test part have labels, the cut joins that part, to have some to measure by.
    """
    in_test, in_val = (usable & np.array([split == part for split in splits], dtype=bool) for part in (TEST, VAL))
    own_test = bool(in_test.any())
    in_val &= own_test
    rest, val, test = (np.flatnonzero(mask) for mask in (usable & ~in_test & ~in_val, in_val, in_test))
    if not own_test or (labels is not None and (labels[test] < 0).all()):
        share = TEST_SHARE_UNLABELLED if labels is None else TEST_SHARE
        held = hold_out_labelled(ids[rest], _of(labels, rest), _of(groups, rest), share, "test", at_least=1)
        rest, test = rest[~held], np.sort(np.concatenate([test, rest[held]]))
    return Parts(rest, val if len(val) else None, test, own_test)


def limited(
    parts: Parts, ids: NDArray[np.int64], labels: NDArray[np.int64] | None, limit: int | None, seed: int
) -> Parts:
    """At most `limit` training images, drawn by the seed."""
    if limit is None:
        return parts
    chosen = draw(ids[parts.train], _of(labels, parts.train), limit, seed, "limit")
    return replace(parts, train=parts.train[chosen])


def without(parts: Parts, broken: NDArray[np.bool_]) -> Parts:
    """The parts without the `broken` (N,) images; training images are taken from a cut test part if none is left."""
    train, test = parts.train[~broken[parts.train]], parts.test[~broken[parts.test]]
    val = None if parts.val is None else parts.val[~broken[parts.val]]
    if len(train) == 0 and not parts.own_test:
        train, test = test, train
    return Parts(train, val, test, parts.own_test)


def cut_val(
    parts: Parts,
    ids: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    groups: NDArray[np.int64] | None,
    fraction: float,
    seed: int,
) -> tuple[Positions, Positions]:
    """(train, val): the source's own validation part, or `fraction` of train, drawn by the seed."""
    if parts.val is not None:
        return parts.train, parts.val
    train = parts.train
    held = hold_out_labelled(ids[train], _of(labels, train), _of(groups, train), fraction, seed, "validation")
    return train[~held], train[held]


def hold_out_labelled(
    ids: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    groups: NDArray[np.int64] | None,
    fraction: float,
    *key: int | str,
    at_least: int = 0,
) -> NDArray[np.bool_]:
    """`hold_out` among the images that have a label; one without (−1) is held out with its group alone.

    `labels` None: among all of them.
    """
    known = np.ones(len(ids), dtype=bool) if labels is None else labels >= 0
    held = np.zeros(len(ids), dtype=bool)
    held[known] = hold_out(ids[known], _of(labels, known), _of(groups, known), fraction, *key, at_least=at_least)
    return held if groups is None else np.isin(groups, groups[held])


def hold_out(
    ids: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    groups: NDArray[np.int64] | None,
    fraction: float,
    *key: int | str,
    at_least: int = 0,
) -> NDArray[np.bool_]:
    """(N,) mask of about `fraction` of N images, the same share of every class, groups kept whole, never all of them.

    Without groups exactly round(fraction · N), but `at_least`, are held out. The draw is keyed by `key`.
    """
    n = len(ids)
    if n == 0:
        return np.zeros(0, dtype=bool)
    unit = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(n)
    sizes = np.bincount(unit)
    first = np.full(len(sizes), n)
    np.minimum.at(first, unit, np.arange(n))
    # A group is drawn by the smallest hash of its images and counts for the class of its first one.
    draws = np.full(len(sizes), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(draws, unit, hash_key([*key, ids]))
    classes = np.unique(labels[first], return_inverse=True)[1] if labels is not None else np.zeros(len(sizes), int)
    total = min(max(round(fraction * n), at_least), n - 1)
    targets = _quotas(np.bincount(classes, weights=sizes).astype(np.int64), total)
    held = _first_of_each(classes, draws, sizes, targets)
    if held.all():
        held[np.argmax(draws)] = False
    return np.asarray(held[unit], dtype=bool)


def draw(ids: NDArray[np.int64], labels: NDArray[np.int64] | None, n: int, *key: int | str) -> NDArray[np.bool_]:
    """(N,) mask of `n` images, the same share of every class and of those without a label (−1)."""
    if n >= len(ids):
        return np.ones(len(ids), dtype=bool)
    classes = np.unique(labels, return_inverse=True)[1] if labels is not None else np.zeros(len(ids), int)
    targets = _quotas(np.bincount(classes), n)
    return _first_of_each(classes, hash_key([*key, ids]), np.ones(len(ids), int), targets)


def _quotas(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """`total` shared in proportion to `counts` by largest remainders; ties go to the larger class, then the first."""
    exact = counts * (total / counts.sum())
    quotas: NDArray[np.int64] = np.floor(exact + 1e-9).astype(np.int64)
    order = np.lexsort((np.arange(len(counts)), -counts, -(exact - quotas).round(9)))
    quotas[order[: total - quotas.sum()]] += 1
    return quotas


def _first_of_each(
    classes: NDArray[np.int64], draws: NDArray[np.uint64], sizes: NDArray[np.int64], targets: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Units in the order of their draw, class by class, as long as that brings the class closer to its target."""
    order = np.lexsort((draws, classes))
    ordered = sizes[order]
    before = np.cumsum(ordered) - ordered
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    before = before - np.repeat(before[starts], np.diff(np.append(starts, len(order))))
    taken = before + ordered / 2 <= targets[classes[order]]
    held = np.zeros(len(order), dtype=bool)
    held[order] = taken
    return held


def _of(values: NDArray[np.int64] | None, chosen: Positions | NDArray[np.bool_]) -> NDArray[np.int64] | None:
    return None if values is None else values[chosen]
