"""Which vectors are searched: candidates, how well validation images find their own class, and the rule that decides.

Shapes: C candidates, n validation images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.vectors import knn_classify
from rayssl.pipeline.search.parts import JOIN, Part, Seen, Vectors
from rayssl.pipeline.search.projection import Directions, Projection, find_directions, fit_projection

MOST = 60  # candidates
PAIRED = 4  # sources whose best candidates are paired
_ROUNDING = 1e-12
AGREED = 20  # neighbours that candidates are compared by without labels
AUTO_DIM = 256  # most numbers in a searched vector

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """Vectors that might be searched, and how good they are."""

    name: str  # "hog", "simclr:layer3:2x2 whitened", "hog+simclr:last"
    source: str  # "hog", "simclr"; of a pair "hog+simclr"
    whitened: bool
    bytes: int  # of a vector
    flops: float  # to make one: what stands for the time, as it is the same on every machine
    score: float  # kNN top-1 of the validation images, 0 … 1; without labels the criterion's
    correct: NDArray[np.bool_]  # (n,) which of them; empty without labels
    seconds: float = 0.0  # to make one here; told, never decided by


@dataclass(frozen=True)
class Material:
    """Labelled images: training images that vote, and validation images that are asked."""

    train_labels: Ints
    val_labels: Ints
    k: int
    temperature: float

    def correct(self, train: Floats, val: Floats) -> NDArray[np.bool_]:
        """(n,) validation images that their neighbours name rightly."""
        classes = 1 + int(max(self.train_labels.max(), self.val_labels.max()))
        k = min(self.k, len(train))
        found = knn_classify(train, self.train_labels, val, k, self.temperature, classes)
        return np.asarray(found == self.val_labels)


@dataclass(frozen=True)
class Raw:
    """What is seen of the training and validation images, (N, D) and (n, D), and what it costs an image."""

    seen: Seen
    train: Floats
    val: Floats
    flops: float
    seconds: float
    own_width: bool = False  # the last stage: as wide as it is


@dataclass(frozen=True)
class Tried:
    """A candidate with the map that makes its vectors, and the vectors."""

    candidate: Candidate
    vectors: Vectors
    train: Floats
    val: Floats


Measure = Callable[[Floats, Floats], tuple[float, NDArray[np.bool_]]]


def singles(raw: Raw, dim: int, measure: Measure, whiten: Sequence[bool] = (False, True)) -> list[Tried]:
    """What is seen, plain and whitened: fitted to the training images, measured on the validation images."""
    width = raw.train.shape[1]
    most = width if raw.own_width else dim
    found = find_directions(raw.train, most) if True in whiten or width > most else None
    return [_tried(raw, whitened, _projection(found, whitened, width, most), measure) for whitened in whiten]


def _projection(found: Directions | None, whitened: bool, width: int, dim: int) -> Projection:
    if whitened:
        assert found is not None
        return found.whitened()
    if width <= dim:
        return Projection(None, None)
    assert found is not None
    return found.plain()


def _tried(raw: Raw, whitened: bool, projection: Projection, measure: Measure) -> Tried:
    vectors = Vectors((Part(raw.seen, whitened, projection),))
    train, val = projection(raw.train), projection(raw.val)
    score, correct = measure(train, val)
    candidate = Candidate(
        vectors.label, raw.seen.source, whitened, 4 * train.shape[1], raw.flops, score, correct, raw.seconds
    )
    return Tried(candidate, vectors, train, val)


def pairs(tried: Sequence[Tried], dim: int, measure: Measure) -> list[Tried]:
    """The best candidates of the best four sources, two by two: parts of equal weight, projected to `dim` numbers."""
    best: dict[str, Tried] = {}
    for one in sorted(tried, key=lambda one: -one.candidate.score):
        best.setdefault(one.candidate.source, one)
    return [joined(two, dim, measure) for two in combinations(list(best.values())[:PAIRED], 2)]


def joined(parts: Sequence[Tried], dim: int, measure: Measure | None = None) -> Tried:
    """Several candidates as one: parts of equal weight, projected to `dim` numbers."""
    both = [np.concatenate([getattr(one, split) for one in parts], axis=1) for split in ("train", "val")]
    joint = fit_projection(both[0], dim, whiten=False)
    vectors = Vectors(tuple(part for one in parts for part in one.vectors.parts), joint)
    train, val = joint(both[0]), joint(both[1])
    score, correct = measure(train, val) if measure is not None else (0.0, np.zeros(0, dtype=bool))
    candidates = [one.candidate for one in parts]
    candidate = Candidate(
        vectors.label,
        JOIN.join(one.source for one in candidates),
        any(one.whitened for one in candidates),
        4 * train.shape[1],
        sum(one.flops for one in candidates),
        score,
        correct,
        sum(one.seconds for one in candidates),
    )
    return Tried(candidate, vectors, train, val)


def agreement(sources: Sequence[str], vectors: Sequence[tuple[Floats, Floats]], k: int = AGREED) -> list[float]:
    """For each candidate the mean share of the k nearest training images of a validation image that candidates of
    other sources name too, each source with equal weight: 0 … 1; 0 without validation images. No labels are needed."""
    import faiss

    if not vectors or not len(vectors[0][1]):
        return [0.0] * len(vectors)
    found = []
    for train, val in vectors:
        _, rows = faiss.knn(val, train, min(k, len(train)), metric=faiss.METRIC_INNER_PRODUCT)
        found.append(np.sort(rows, axis=1))
    names = list(dict.fromkeys(sources))
    scores = []
    for own, mine in zip(sources, found, strict=True):
        shares = []
        for name in names:
            others = [rows for other, rows in zip(sources, found, strict=True) if other == name and name != own]
            if others:
                shares.append(np.mean([_shared(mine, rows) for rows in others]))
        scores.append(float(np.mean(shares)) if shares else 0.0)
    return scores


def _shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    both = np.sort(np.concatenate([a, b], axis=1), axis=1)
    return float((both[:, 1:] == both[:, :-1]).sum(axis=1).mean() / a.shape[1])


def paired_error(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The standard error of the difference of two shares of the same n images that are right."""
    if len(a) < 2:
        return 0.0
    difference = a.astype(np.float64) - b.astype(np.float64)
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))


def choose(candidates: Sequence[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """The candidate to search by, and all those that cannot be told from the best, best first.

    A candidate is tied with the best one where it is behind by no more than one paired standard error; of these the
    cheapest is taken: by bytes of a vector, then by the work to make one.
    """
    ordered = sorted(candidates, key=lambda one: (-one.score, one.bytes, one.flops, one.name))
    best = ordered[0]
    ties = [one for one in ordered if best.score - one.score <= paired_error(best.correct, one.correct) + _ROUNDING]
    return min(ties, key=lambda one: (one.bytes, one.flops, -one.score, one.name)), ties


def refit(vectors: Vectors, raw: Sequence[Floats], dim: int) -> Vectors:
    """The same parts with maps fitted to other images, (N, D_p) of each part: train and validation together."""
    parts = []
    for part, values in zip(vectors.parts, raw, strict=True):
        kept = part.projection.width(values.shape[1])
        parts.append(replace(part, projection=fit_projection(values, kept, part.whitened)))
    if vectors.joint is None:
        return Vectors(tuple(parts))
    both = np.concatenate([part.projection(values) for part, values in zip(parts, raw, strict=True)], axis=1)
    return Vectors(tuple(parts), fit_projection(both, dim, whiten=False))
