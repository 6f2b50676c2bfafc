"""Which vectors a run is searched by: candidates are compared on validation images, by labels or by agreement."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.config import Config
from rayssl.pipeline.features import LAST
from rayssl.pipeline.models.descriptors import DESCRIPTORS
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.search.choice import (
    AUTO_DIM,
    MOST,
    PAIRED,
    Candidate,
    Material,
    Measure,
    Raw,
    Tried,
    agreement,
    choose,
    joined,
    pairs,
    singles,
)
from rayssl.pipeline.search.parts import JOIN, Seen, Vectors
from rayssl.pipeline.stages.search_sources import Look, seconds_an_image

QUERIES, NEIGHBOURS = 6, 6  # validation images and what is found for them, in the report
PAIRS = PAIRED * (PAIRED - 1) // 2
AGREEMENT = "share of the 20 nearest training images of a validation image that other candidates name too: no labels"

Floats = NDArray[np.float32]


def decide(
    work: Work, look: Look, seen: list[Seen], train: list[Floats], val: list[Floats]
) -> tuple[Vectors, list[Candidate], dict[str, Any], int]:
    """The chosen vectors, all candidates, what is told of the choice, and the most numbers in a vector."""
    settings, dim = work.config.search, most_numbers(work.config)
    labels = labels_of(work, look)
    tried = compare(work, look, seen, train, val, labels)
    guessed = labels is None and settings.vectors == "auto"
    if labels is None:
        tried = by_agreement(tried)
    if guessed:
        tried = guess_first(mixture(tried, look, dim), tried)
        ties = [tried[0].candidate]
    else:
        ties = choose([one.candidate for one in tried])[1]
    chosen = tried[0] if guessed else next(one for one in tried if one.candidate is choose(ties)[0])
    facts = {
        "criterion": labels.words if labels is not None else AGREEMENT,
        "score": chosen.candidate.score,
        "n": len(val[0]),
        "guess": labels is None,
        "ties": [one.name for one in ties],
        "told": told_of(chosen.candidate, tried, look, guessed, measured=labels is not None),
        "asked": settings.vectors,
        "shown": [neighbours_of(one, look) for one in three_to_show(chosen, tried)],
    }
    return chosen.vectors, [one.candidate for one in tried], facts, dim


def three_to_show(chosen: Tried, tried: list[Tried]) -> list[Tried]:
    """The chosen candidate and the best two from other sources."""
    found = {chosen.candidate.source: chosen}
    for one in sorted(tried, key=lambda one: -one.candidate.score):
        found.setdefault(one.candidate.source, one)
    return list(found.values())[:3]


def neighbours_of(one: Tried, look: Look) -> dict[str, Any]:
    """For a report: validation images, always the same, and the training images that a candidate finds for them."""
    work = look.work
    train, val = (getattr(work.dataset, split).select(look.rows[split]) for split in ("train", "val"))
    queries = permutation(len(val), work.config.train.seed, "report-search")[:QUERIES]
    nearest_ = np.argsort(-(one.val[queries] @ one.train.T), axis=1, kind="stable")[:, :NEIGHBOURS]
    return {
        "name": one.candidate.name,
        "queries": val.ids[queries].tolist(),
        "found": [train.ids[rows].tolist() for rows in nearest_],
    }


@dataclass(frozen=True)
class Labels:
    """How candidates are measured, and in words."""

    measure: Measure
    words: str


def compare(
    work: Work, look: Look, seen: list[Seen], train: list[Floats], val: list[Floats], labels: Labels | None
) -> list[Tried]:
    """What is seen, plain and whitened, and pairs of the best; at most 60 candidates, measured by labels if any."""
    settings, dim = work.config.search, most_numbers(work.config)
    whiten = (False, True) if settings.whiten == "auto" else (settings.whiten,)
    measure = labels.measure if labels is not None else lambda of_train, of_val: (0.0, np.zeros(0, dtype=bool))
    tried: list[Tried] = []
    for one, of_train, of_val in zip(seen, train, val, strict=True):
        source = look.sources[one.source]
        own_width = one.what == LAST and settings.dim == "auto" and source.trained and not source.kept
        seconds = seconds_an_image(source, work.device)
        tried += singles(Raw(one, of_train, of_val, source.flops, seconds, own_width), dim, measure, whiten)
        row = {"run": work.run.name, "stage": "search/compare", "done": len(tried), "total": len(whiten) * len(seen)}
        work.reporter.progress(row)
    if JOIN in settings.vectors:
        return [joined([best_of(one, tried) for one in seen], dim, measure)]
    tried = tried[: MOST - PAIRS]
    return tried if settings.vectors != "auto" or labels is None else tried + pairs(tried, dim, measure)


def best_of(seen: Seen, tried: list[Tried]) -> Tried:
    """Plain or whitened."""
    return max((one for one in tried if one.vectors.parts[0].seen == seen), key=lambda one: one.candidate.score)


def most_numbers(config: Config) -> int:
    """In a searched vector, but for the last stage's."""
    return AUTO_DIM if config.search.dim == "auto" else config.search.dim


def labels_of(work: Work, look: Look) -> Labels | None:
    """By the labels of training and validation images; None where there are none, or training lacks classes."""
    train, val = (getattr(work.dataset, split).select(look.rows[split]) for split in ("train", "val"))
    (train_rows, train_labels), (val_rows, val_labels) = train.labelled(), val.labelled()
    if work.dataset.some_classes or not len(train_labels) or not len(val_labels) or len(set(train_labels)) < 2:
        return None
    evaluate = work.config.evaluate
    material = Material(train_labels, val_labels, evaluate.k, evaluate.temperature)
    words = (
        f"kNN top-1 of {len(val_labels)} validation images, k = {min(evaluate.k, len(train_labels))}, "
        f"T = {evaluate.temperature:g}, votes of {len(train_labels)} training images"
    )

    def measure(of_train: Floats, of_val: Floats) -> tuple[float, NDArray[np.bool_]]:
        correct = material.correct(of_train[train_rows], of_val[val_rows])
        return float(correct.mean()), correct

    return Labels(measure, words)


def by_agreement(tried: list[Tried]) -> list[Tried]:
    """Scored by how far a candidate's neighbours are those of candidates from other sources, best first."""
    scores = agreement([one.candidate.source for one in tried], [(one.train, one.val) for one in tried])
    scored = [
        replace(one, candidate=replace(one.candidate, score=score)) for one, score in zip(tried, scores, strict=True)
    ]
    return sorted(scored, key=lambda one: -one.candidate.score)


def guess_first(guess: Tried, tried: list[Tried]) -> list[Tried]:
    """What is guessed before all that was tried; what was made of several of these gets a score like theirs."""
    if JOIN in guess.candidate.source:
        guess = next(one for one in by_agreement([*tried, guess]) if one.candidate.name == guess.candidate.name)
    return [guess, *tried]


def mixture(tried: list[Tried], look: Look, dim: int) -> Tried:
    """What is guessed without labels, whitened where that is to be had.

    Where a frozen pretrained network is at hand, its features and the run's own last maps (generalised mean) together;
    else a network that has learned from, or started from, pretrained weights; else HOG, colour histogram and the last
    stage together.
    """
    own = next(source for source in look.sources.values() if source.trained)
    frozen = [name for name, source in look.sources.items() if source.pretrained and name != own.name]
    last = {name: _whitened(tried, source.seen[-1]) for name, source in look.sources.items()}
    if frozen and not own.kept:
        maps = [seen for seen in own.seen if seen.name.endswith(":gem")]
        return joined([last[frozen[0]], _whitened(tried, maps[-1]) if maps else last[own.name]], dim)
    if own.pretrained:
        return last[own.name]
    if frozen:
        return last[frozen[0]]
    return joined([last[name] for name in (*DESCRIPTORS, own.name)], dim)


def _whitened(tried: list[Tried], seen: Seen) -> Tried:
    """What is made of it: whitened, where both were tried."""
    made = [one for one in tried if [part.seen for part in one.vectors.parts] == [seen]]
    return max(made, key=lambda one: one.candidate.whitened)


def told_of(chosen: Candidate, tried: list[Tried], look: Look, guessed: bool, *, measured: bool) -> str:
    """The choice in a sentence."""
    if guessed:
        return (
            f"{chosen.name}, a guess: without labels nothing says which vectors find best. Label 200 images "
            "(--data.labels FILE) and it is measured"
        )
    if not measured:
        return f"{chosen.name}, as asked"
    own = [
        one.candidate
        for one in tried
        if is_own_network(one.candidate.source, look) and one.candidate.name.endswith(f":{LAST}")
    ]
    told = f"{chosen.name} ({100 * chosen.score:.1f})"
    if own and own[0].name != chosen.name:
        told += f" instead of {own[0].source} ({100 * own[0].score:.1f})"
    return told


def is_own_network(name: str, look: Look) -> bool:
    """Whether a candidate's source is the run's own network; several sources together are none."""
    return name in look.sources and look.sources[name].trained
