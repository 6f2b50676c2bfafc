"""Whether a run learned anything: what at its end, or in its figures, says that it did not, and what to try.

Doubts are lines for people. A stage keeps its own in the manifest (`stages.<name>.warnings`), where `warnings_of` finds
them for the terminal, --json and the report.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.run.folder import read_manifest
from rayssl.pipeline.training.watch import HAIR, STILL

TENTH = 0.1  # of the steps, at either end, whose losses are compared
FEWEST = 20  # steps, below which a loss that did not fall says nothing
SPREAD = 0.1  # of the codes: below it, and below what it was at first, they have come together
DEAD = 1e-3  # below it they are one code, whatever the network began with
ONE_DIRECTION = 1.5  # RankMe below which the embeddings differ along one direction only
MEAN_IMAGE = 0.98  # of the error of the mean image: as good as no reconstruction

SLOWER = "try a lower --train.learning-rate, a longer --train.warmup-epochs, or --train.clip-grad 1"
MILDER = "try milder views (--augment.crop 0.5, --augment.color 0), another recipe, or `rayssl tune`"

Rows = Sequence[Mapping[str, Any]]


def doubts_of_training(rows: Rows, chance: Mapping[str, float]) -> list[str]:
    """From the rows that training logged, first to last, and what its losses are where the network guesses."""
    if not rows:
        return []
    few = max(1, min(len(rows), max(5, round(TENTH * len(rows)))))
    first, last = rows[:few], rows[-few:]
    idle = [
        f"at the end, after {rows[-1]['step'] + 1} steps, the {told_as(name)} is {mean_of(last, name):.3f}, and "
        f"guessing gives {value:.3f}: nothing was learned, and the embeddings are little better than chance: {SLOWER}"
        for name, value in chance.items()
        if name in last[-1] and mean_of(last, name) > (1 - HAIR) * value
    ]
    return (idle or doubts_of_loss(first, last, len(rows))) + doubts_of_spread(rows)


def doubts_of_loss(first: Rows, last: Rows, steps: int) -> list[str]:
    """A loss that stands still, or ends no lower than it began."""
    # What an autoencoder restores, where it is logged: other parts of its loss may grow by intention.
    name = "train/reconstruction" if "train/reconstruction" in last[-1] else "train/loss"
    began, ended = mean_of(first, name), mean_of(last, name)
    values = [row[name] for row in last]
    if len(values) > 1 and np.ptp(values) <= STILL * abs(ended):
        return [f"at the end the {told_as(name)} has been {ended:.6g} for {len(values)} steps: nothing moves: {SLOWER}"]
    if steps >= FEWEST and ended >= began:
        return [f"the {told_as(name)} did not fall: {began:.4g} at first, {ended:.4g} at the end: {SLOWER}"]
    return []


def doubts_of_spread(rows: Rows) -> list[str]:
    """Features that are alike for all images of a batch."""
    spreads = [row["health/std"] for row in rows if "health/std" in row]
    if not spreads or spreads[-1] >= max(DEAD, min(SPREAD, spreads[0])):
        return []
    return [
        f"at the end the features of different images are nearly the same (spread {spreads[-1]:.2g}, healthy is about "
        f"1): they have collapsed or are dead: {SLOWER}"
    ]


def doubts_of_figures(flat: Mapping[str, float]) -> list[str]:
    """From the figures of an evaluation, by their names, of an encoder that was trained here."""
    found = []
    spread, untrained = flat.get("health/std"), flat.get("baseline/random-init/health/std", SPREAD)
    if spread is not None and spread < max(DEAD, min(SPREAD, untrained)):
        found.append(f"the embeddings are nearly all the same (spread {spread:.2g}, healthy is about 1): {SLOWER}")
    rank = flat.get("health/rankme")
    if rank is not None and rank < ONE_DIRECTION:
        found.append(f"the embeddings differ along one direction only (RankMe {rank:.2g}): {SLOWER}")
    knn = flat.get("knn/top1")
    for baseline, told in (("raw-pixels", "raw pixels"), ("random-init", "the untrained network")):
        plain = flat.get(f"baseline/{baseline}/knn/top1")
        if knn is not None and plain is not None and knn < plain:
            found.append(
                f"kNN of the embeddings is {100 * knn:.1f} %, below the {100 * plain:.1f} % of {told}: {MILDER}"
            )
    error, mean = flat.get("reconstruct/mse"), flat.get("reconstruct/mean-image-mse")
    if error is not None and mean is not None and error >= MEAN_IMAGE * mean:
        found.append(
            f"what comes back of an image is no nearer to it (error {error:.3g}) than the mean image ({mean:.3g}): "
            f"{SLOWER}"
        )
    return found


def warnings_of(run: Path) -> list[str]:
    """What the stages of a run have kept, in their order; nothing where there is no whole run folder."""
    try:
        stages = read_manifest(run).get("stages", {})
    except UserError:
        return []
    return [str(text) for facts in stages.values() for text in facts.get("warnings", ())]


def mean_of(rows: Rows, name: str) -> float:
    """The mean of a logged figure."""
    return float(np.mean([row[name] for row in rows]))


def told_as(name: str) -> str:
    """A loss by the words for it: train/rotation_loss is the rotation loss."""
    return name.removeprefix("train/").replace("_", " ")
