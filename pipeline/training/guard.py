"""A guard over training that starts from given weights: it measures the encoder now and then, keeps the best state and
ends training that does harm.

With labels it measures kNN: the share of validation images whose class their nearest training images tell. State 0, the
start, is a candidate; a later state takes its place where it is better by more than one paired standard error, and
among those the best is kept, of equals the earlier. Training ends where two looks in a row are worse than the start by
more than two paired standard errors.

Without labels nothing says which of two states is better; what can be told is how far the encoder has gone. The
training images are put into a few groups by k-means of their features at the start, and each validation image into the
group that its neighbours vote for. The measure is agreement: the share of validation images that are in the group that
they were in at the start. On photographs of groceries it fell as kNN did, where the share of neighbours that stay was
far down before kNN was. The last state whose agreement is at least AGREEMENT is kept, and training ends after two
looks in a row below it.

Shapes: Q validation images, R training images, K neighbours, D features.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.base.vectors import kmeans, knn_classify
from rayssl.pipeline.data.dataset import Images
from rayssl.pipeline.features.extract import embed_images
from rayssl.pipeline.methods.base import Method
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.trainable import without_adapters

LOOKS = 20  # in a run, the start not counted: one every 5 % of the steps
QUERIES, REFERENCES = 1024, 4096  # validation and training images that are looked at, at most
SHARE, LEAST = 0.15, 1024  # of a run's work that all looks may take; images that are looked at nevertheless
FEWEST = 50  # labelled validation images: of fewer, kNN says nothing
NEIGHBOURS, TEMPERATURE = 20, 0.07
BETTER, WORSE = 1.0, 2.0  # paired standard errors: to leave the start, to fall below it
ROUNDING = 1e-9
PATIENCE = 2  # looks below the start, one after the other, that end training
GROUPS = 40  # without labels: of training images; fewer where there would be fewer than 20 in each
AGREEMENT = 2 / 3  # least share of validation images that stay in theirs

T = TypeVar("T", bound=np.generic)

_ARRAYS = ("start", "best", "groups", "votes")  # of a guard's state, beside what is kept
_VALUES = ("step", "best_step", "below", "stopped", "reason")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """The images that every look is at, the same each time. `classes` is 0 where labels are not used."""

    queries: Images
    references: Images
    classes: int
    size: int  # at most so many images

    @property
    def measure(self) -> str:
        """What is measured on them: "knn" or "agreement"."""
        return "knn" if self.classes else "agreement"


def look_size(steps: int, views: int) -> int:
    """Images for each look, so that all looks together cost a SHARE of so many steps with so many views each.

    A view of a step costs about three times an image that is only looked at: forward and backward pass.
    """
    return max(LEAST, round(SHARE * 3 * views * steps / LOOKS))


def draw_sample(train: Images, val: Images, classes: int, seed: int, size: int) -> Sample | None:
    """At most `size` validation and training images, those with a label where there are enough; None without any."""
    (known, labels), (asked, _) = train.labelled(), val.labelled()
    if classes > 1 and len(asked) >= FEWEST and len(known) >= NEIGHBOURS and len(np.unique(labels)) > 1:
        train, val = train.select(known), val.select(asked)
    else:
        classes = 0
    if len(val) == 0 or len(train) == 0:
        return None
    queries = _some(val, min(QUERIES, size // 2), seed)
    return Sample(queries, _some(train, min(REFERENCES, size - len(queries)), seed), classes, size)


def _some(images: Images, count: int, seed: int) -> Images:
    return images if len(images) <= count else images.select(permutation(len(images), seed, "guard")[:count])


def sample_features(
    encoder: Encoder, sample: Sample, *, device: torch.device, precision: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(Q, D) and (R, D). By a copy of the encoder: whoever trains it does not notice. Every worker gets all."""
    # float32, which is what is exported; a compiled network's copy is not compiled.
    looked = without_adapters(copy.deepcopy(encoder)).float().eval().requires_grad_(False)
    queries, references = (
        embed_images(looked, images, device=device, precision=precision)
        for images in (sample.queries, sample.references)
    )
    return queries, references


def knn_hits(queries: NDArray[np.float32], references: NDArray[np.float32], sample: Sample) -> Floats:
    """(Q,) 1 where the nearest training images tell an image's class, else 0; 0 for all where a feature is not finite.

    k = 20 and T = 0.07, as `evaluation.json` has it.
    """
    assert sample.queries.labels is not None
    assert sample.references.labels is not None
    if not (np.isfinite(queries).all() and np.isfinite(references).all()):
        return np.zeros(len(queries))
    k = min(NEIGHBOURS, len(references))
    found = knn_classify(references, sample.references.labels, queries, k, TEMPERATURE, sample.classes)
    return np.asarray(found == sample.queries.labels, dtype=np.float64)


def groups_of(references: NDArray[np.float32], seed: int) -> Ints:
    """(R,) numbers of the groups of training images, by k-means."""
    return kmeans(references, min(GROUPS, max(1, len(references) // NEIGHBOURS)), seed, restarts=1)


def votes(queries: NDArray[np.float32], references: NDArray[np.float32], groups: Ints) -> Ints:
    """(Q,) the group that the nearest training images vote for; −1 where a feature is not finite."""
    if not (np.isfinite(queries).all() and np.isfinite(references).all()):
        return np.full(len(queries), -1, dtype=np.int64)
    k = min(NEIGHBOURS, len(references))
    return knn_classify(references, groups, queries, k, TEMPERATURE, int(groups.max()) + 1)


def validation_knn(encoder: Encoder, sample: Sample, *, device: torch.device, precision: str) -> Floats:
    """`knn_hits` of an encoder: their mean is its validation kNN. Rank 0's, on every worker."""
    queries, references = sample_features(encoder, sample, device=device, precision=precision)
    return _of_rank_0(lambda: knn_hits(queries, references, sample))


def paired_error(a: Floats, b: Floats) -> float:
    """Standard error of the mean of a − b, (Q,) each; 0 for a single image."""
    return float((a - b).std(ddof=1)) / math.sqrt(len(a)) if len(a) > 1 else 0.0


class Guard:
    """Looks at the encoder of a method in training; every worker must call it alike.

    `keeps` says which tensors of the method's state dict belong to a state that is kept. `begin` or `restore` first.
    """

    def __init__(
        self,
        method: Method[Any],
        sample: Sample,
        *,
        steps: int,
        keeps: Callable[[str], bool],
        device: torch.device,
        precision: str,
    ) -> None:
        self.method, self.sample, self.steps = method, sample, steps
        self.keeps, self.device, self.precision = keeps, device, precision
        self.start = self.now = self.best = np.zeros(0)  # figures (Q,) of the start, of the last look, of what is kept
        self.groups: Ints = np.zeros(0, dtype=np.int64)  # without labels: of training images at the start, (R,) …
        self.votes: Ints = np.zeros(0, dtype=np.int64)  # … and of validation images, (Q,)
        self.kept: dict[str, Tensor] = {}
        self.step = self.best_step = 0
        self.below = 0  # looks in a row
        self.stopped: int | None = None  # after so many steps
        self.reason = ""

    @property
    def has_begun(self) -> bool:
        """Whether the start is known."""
        return len(self.start) > 0

    def begin(self, step: int = 0) -> None:
        """Look at the start."""
        self.start = self.best = self.now = self._measure()
        self._keep(step)

    def due(self, step: int) -> bool:
        """Whether to look after so many steps: by their number alone."""
        return step % math.ceil(self.steps / LOOKS) == 0 or step == self.steps

    def look(self, step: int) -> bool:
        """Measure the state after so many steps; whether training should end here."""
        self.step, self.now = step, self._measure()
        if self._is_better():
            self.best = self.now
            self._keep(step)
        self.below = self.below + 1 if self._is_below() else 0
        if self.below >= PATIENCE and step < self.steps:
            self.stop(step, f"{PATIENCE} looks in a row were worse than the start")
        return self.stopped is not None

    def stop(self, step: int, reason: str) -> None:
        """Training ends after so many steps."""
        self.stopped, self.reason = step, reason

    def row(self) -> dict[str, Any]:
        """The last look, for metrics.jsonl."""
        figure = {f"guard/{self.sample.measure}": float(self.now.mean())}
        return {"stage": "guard", "step": self.step, **figure, "guard/kept_step": self.best_step}

    def line(self) -> str:
        """The last look, for a person."""
        now, start, best = (_percent(figures) for figures in (self.now, self.start, self.best))
        told = (
            f"{now} % of the validation images have neighbours of the same kind as at the start (there are no labels)"
        )
        if self.sample.measure == "knn":
            told = f"validation kNN {now} (start {start}, best {best}) among {len(self.sample.references):,} images"
        return f"guard: step {self.step}/{self.steps}, {told}"

    def summary(self) -> str:
        """How it ended and what is kept, for a person."""
        kept = "the weights it started from are kept" if self.best_step == 0 else f"step {self.best_step} is kept"
        if self.sample.measure == "knn":
            kept += f" (validation kNN {_percent(self.best)}, start {_percent(self.start)})"
        if self.stopped is None:
            return f"guard: {kept}"
        advice = "a lower --train.learning-rate may do better, in another --out"
        return f"guard: training was stopped after step {self.stopped}: {self.reason}; {kept}; {advice}"

    def facts(self) -> dict[str, Any]:
        """What manifest.json says of it."""
        return {
            "measure": self.sample.measure,
            "start": float(self.start.mean()),
            "best": float(self.best.mean()),
            "best_step": self.best_step,
            "stopped": self.stopped,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values to go on from; see `restore`."""
        tensors = {f"guard.{name}": torch.from_numpy(getattr(self, name)) for name in _ARRAYS}
        tensors |= {f"kept.{name}": value for name, value in self.kept.items()}
        return tensors, {name: getattr(self, name) for name in _VALUES}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        for name in _ARRAYS:
            setattr(self, name, tensors[f"guard.{name}"].numpy())
        self.kept = {name.removeprefix("kept."): value for name, value in tensors.items() if name.startswith("kept.")}
        for name in _VALUES:
            setattr(self, name, values[name])

    def bring_back(self) -> None:
        """Give the method the state that is kept."""
        self.method.load_state_dict(self.kept, strict=False)

    def _measure(self) -> Floats:
        queries, references = sample_features(
            self.method.kept(), self.sample, device=self.device, precision=self.precision
        )
        if self.sample.measure == "knn":
            return _of_rank_0(lambda: knn_hits(queries, references, self.sample))
        if not self.has_begun:
            self.groups = _of_rank_0(lambda: groups_of(references, 0))
            self.votes = _of_rank_0(lambda: votes(queries, references, self.groups))
        found = _of_rank_0(lambda: votes(queries, references, self.groups))
        return np.asarray(found == self.votes, dtype=np.float64)

    def _is_better(self) -> bool:
        if self.sample.measure == "agreement":
            return not self._is_below()
        gain = float((self.now - self.start).mean())
        # One image more is worth one standard error, but for rounding: that is not enough.
        surely = gain - BETTER * paired_error(self.now, self.start) > ROUNDING
        return surely and bool(self.now.mean() > self.best.mean())

    def _is_below(self) -> bool:
        if self.sample.measure == "agreement":
            return float(self.now.mean()) < AGREEMENT
        return float((self.start - self.now).mean()) > WORSE * paired_error(self.now, self.start)

    def _keep(self, step: int) -> None:
        self.step = self.best_step = step
        state = self.method.state_dict()
        self.kept = {name: value.detach().cpu().clone() for name, value in state.items() if self.keeps(name)}


def _of_rank_0(measure: Callable[[], NDArray[T]]) -> NDArray[T]:
    """Rank 0's, on every worker: a last bit that is another on another machine must not divide them."""
    found = collectives.broadcast_object(measure() if collectives.rank() == 0 else None)
    assert found is not None
    return found


def _percent(figures: Floats) -> str:
    return f"{100 * float(figures.mean()):.1f}"
