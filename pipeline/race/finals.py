"""What the run folders of a race came to, compared on the same validation images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.evaluation.metrics import interval_of_proportion
from rayssl.pipeline.race.candidates import ADAPT, DISTILL, FROZEN
from rayssl.pipeline.race.race_file import About
from rayssl.pipeline.search.choice import Candidate, choose, paired_error
from rayssl.pipeline.search.parts import JOIN
from rayssl.pipeline.search.store import read_candidates, read_search

# Without labels: what has learned from pretrained weights before these, these before what was trained from scratch.
GUESSED = {DISTILL: 0, FROZEN: 1, ADAPT: 2}
WIDE = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True)
class Final:
    """A candidate at the end."""

    name: str
    kind: str
    text: str
    own: float  # its own best vectors' score: kNN of validation images, 0 … 1, or the criterion without labels
    half: float | None  # of the 95 % interval of `own`; None without labels
    behind: float  # the winner's searched vectors
    behind_half: float | None  # of the 95 % interval of that, paired; None without labels
    flops: float  # of its own vectors, an image
    seconds: float  # the same on this machine
    vectors: str  # what its run folder would be searched by
    has_own: bool  # whether its own encoder takes part in these
    alone: bool  # whether nothing else does
    score: float  # of these
    score_half: float | None
    bytes: int  # of such a vector
    work: float  # operations to make one
    images: int  # validation images with labels


def own_best(run: Path, source: str) -> Candidate:
    """The best vectors of a run's own encoder; raises UserError where there are none."""
    found = [one for one in read_candidates(run) if one.source == source]
    if not found:
        raise UserError(f"{run} was searched without its own encoder ({source})")
    return max(found, key=lambda one: one.score)


def chosen(run: Path) -> Candidate:
    """What a run folder is searched by."""
    name = read_search(run).vectors.label
    return next(one for one in read_candidates(run) if one.name == name)


def compare(runs: Mapping[str, Path], about: Mapping[str, About], by_hand: str | None = None) -> list[Final]:
    """The candidates with something to search by, the winner first, then by their own score.

    The winner is the one whose chosen vectors would be chosen among those of all: the cheapest of those that cannot be
    told from the best; see `find_winner`. `runs` are in the order that decides between equals.
    """
    best: dict[str, Candidate] = {}
    own: dict[str, Candidate] = {}
    for name, run in runs.items():
        try:
            best[name], own[name] = chosen(run), own_best(run, about[name].source)
        except UserError:  # it failed before anything was chosen
            best.pop(name, None)
    if not best:
        return []
    winner = by_hand if by_hand in best else find_winner(best, own, about)
    finals = [_final(name, about[name], best[name], own[name], best[winner]) for name in best]
    return sorted(finals, key=lambda one: (one.name != winner, -one.own))


def find_winner(best: Mapping[str, Candidate], own: Mapping[str, Candidate], about: Mapping[str, About]) -> str:
    """By labels the cheapest of those that cannot be told from the best; without any a written order, a guess."""
    if not any(len(one.correct) for one in best.values()):
        return min(best, key=lambda name: (GUESSED.get(about[name].kind, len(GUESSED)), -own[name].score))
    taken, ties = choose(list(best.values()))
    # Several run folders can have much the same vectors: those that a candidate has of its own come first.
    tied = [name for name, one in best.items() if any(one is tie for tie in ties) and one.bytes <= taken.bytes]
    own_first = [name for name in tied if _has_own(best[name], about[name])]
    return min(own_first, key=lambda name: (best[name].bytes, best[name].flops), default=_named(best, taken))


def _named(best: Mapping[str, Candidate], taken: Candidate) -> str:
    return next(name for name, one in best.items() if one is taken)


def _final(name: str, about: About, vectors: Candidate, own: Candidate, winner: Candidate) -> Final:
    n = len(own.correct)
    paired = n == len(winner.correct) and n > 0
    return Final(
        name=name,
        kind=about.kind,
        text=about.text,
        own=own.score,
        half=_half(own),
        behind=winner.score - own.score,
        behind_half=WIDE * paired_error(winner.correct, own.correct) if paired else None,
        flops=own.flops,
        seconds=own.seconds,
        vectors=vectors.name,
        has_own=_has_own(vectors, about),
        alone=vectors.source == about.source,
        score=vectors.score,
        score_half=_half(vectors),
        bytes=vectors.bytes,
        work=vectors.flops,
        images=n,
    )


def _has_own(vectors: Candidate, about: About) -> bool:
    return about.source in vectors.source.split(JOIN)


def _half(one: Candidate) -> float | None:
    if not len(one.correct):
        return None
    low, high = interval_of_proportion(int(one.correct.sum()), len(one.correct))
    return (high - low) / 2


def descriptors(run: Path, names: Sequence[str]) -> dict[str, Candidate]:
    """The best of some sources that need no network, of a run folder."""
    found: dict[str, Candidate] = {}
    for one in read_candidates(run):
        if one.source in names and (one.source not in found or one.score > found[one.source].score):
            found[one.source] = one
    return found
