"""Baselines without weights and training: raw pixels and classical descriptors in the place of an encoder's features.

What they are worth follows from the images alone: it is measured once for a data set and remembered for its other runs.
Shapes: N images, D numbers.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.data import Dataset, Images
from rayssl.pipeline.data.cache import remembered
from rayssl.pipeline.evaluation.measure import Record, evaluate_embeddings, raw_pixel_embeddings
from rayssl.pipeline.evaluation.probe import ProbeResult
from rayssl.pipeline.features.frozen import Progress, describe_here
from rayssl.pipeline.models.descriptors import DESCRIPTORS
from rayssl.pipeline.search.embeddings import Embeddings

RAW_PIXELS = "raw-pixels"
VERSIONS = {RAW_PIXELS: 1, **{name: descriptor.version for name, descriptor in DESCRIPTORS.items()}}
FIGURES = 2  # changes with how a figure is measured: those that were remembered are then measured again
PARTS = ("train", "val", "test")

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A data set as baselines see it: as the run reads it, and read at another number of pixels a side."""

    dataset: Dataset
    at_size: Callable[[int], Dataset]
    progress: Callable[[str], Progress | None] = lambda stage: None

    def vectors(self, name: str, part: str) -> Floats:
        """(N, D) of the images of train, val or test. In this process alone: other workers need not call it."""
        if name == RAW_PIXELS:
            images, size = part_of(self.dataset, part), self.dataset.image_size
            return raw_pixel_embeddings(images, part, image_size=size, channels=self.dataset.channels).vectors
        sized = self.at_size(DESCRIPTORS[name].size)
        return describe_here(name, part_of(sized, part), sized.cached_as(), self.progress(f"{name}/{part}"))


def part_of(dataset: Dataset, part: str) -> Images:
    """The images of train, val or test, which may be none."""
    images: Images | None = getattr(dataset, part)
    return images if images is not None else dataset.train.select(np.arange(0))


def evaluate_baseline(
    name: str, pictures: Pictures, splits: dict[str, Embeddings], *, checkpoint: str, **settings: Any
) -> list[Record]:
    """The records of `evaluate_embeddings` for a baseline, of the images that `splits` (train and test) are of."""

    def measure() -> list[Record]:
        found = _in_place_of(splits, name, pictures)
        return evaluate_embeddings(found["train"], found["test"], **settings, prefix=f"baseline/{name}/")

    parts = [[split.data, split.data_fingerprint, split.split] for split in splits.values()]
    facts = [settings, parts, pictures.dataset.cached_as()]
    records: list[Record] = remembered(_key("evaluate", name, facts, splits.values()), measure)
    return [{**record, "checkpoint": checkpoint} for record in records]


def probe_baseline(
    name: str, pictures: Pictures, measure: Callable[[list[Floats]], ProbeResult], facts: Any
) -> ProbeResult:
    """What `measure` makes of the vectors of train, val and test; `facts`: all that it depends on besides."""
    parts = [part_of(pictures.dataset, part) for part in PARTS]
    key = _key("probe", name, [facts, pictures.dataset.cached_as()], parts)

    def found() -> dict[str, Any]:
        return dataclasses.asdict(measure([pictures.vectors(name, part) for part in PARTS]))

    return ProbeResult(**remembered(key, found))


def _in_place_of(splits: dict[str, Embeddings], name: str, pictures: Pictures) -> dict[str, Embeddings]:
    """The baseline's vectors in the place of those of the splits, in the same order."""
    vectors = np.concatenate([pictures.vectors(name, part) for part in PARTS])
    ids = np.concatenate([part_of(pictures.dataset, part).ids for part in PARTS])
    rows = {one: row for row, one in enumerate(ids.tolist())}
    return {
        key: replace(split, vectors=vectors[[rows[one] for one in split.ids.tolist()]]) for key, split in splits.items()
    }


def _key(what: str, name: str, facts: Any, parts: Iterable[Embeddings | Images]) -> str:
    """A hash of all that a figure depends on: of the images by id, with their labels."""
    described = json.dumps(["baseline", FIGURES, what, name, VERSIONS[name], facts], sort_keys=True)
    digest = hashlib.sha256(described.encode())
    for part in parts:
        digest.update(str(len(part.ids)).encode())
        digest.update(part.ids.astype("<i8").tobytes())
        digest.update(b"" if part.labels is None else part.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:32]
