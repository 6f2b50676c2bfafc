"""How a race spends its time: pure functions of the budget, of speeds that were measured once, and of results.

A round gives every candidate in it a number of seconds of training on top of what it had; the seconds become steps by
the measured speeds, and stay what they are in race.json. The best of a round go on into the next.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LAST = 2  # candidates in the last round
FIRST_SHARE = 0.4  # of the time for training that the first of two rounds takes: for 15 minutes, 6 × 40 s and 2 × 3 min
THREE_ROUNDS_FROM = 20 * 60.0  # seconds for training from which there are three
THREE_SHARES = (0.25, 0.3, 0.45)
LEAST_SECONDS, LEAST_STEPS = 20.0, 20  # of training in a round, below which a candidate shows nothing
OF_SECONDS = 15 * 60.0  # the budget that these parts of it are of; a shorter one has shorter parts
START_SECONDS, TEACHER_SECONDS, FINISH_SECONDS = 120.0, 60.0, 120.0
PLANNED_SHARE = 0.9  # of what is left, after speeds were measured: other work slows a machine down
MOST_THREADS = 8  # of a trial: small networks gain little from more


@dataclass(frozen=True)
class Part:
    """A line of the budget table."""

    name: str
    seconds: float
    text: str = ""


@dataclass(frozen=True)
class Overhead:
    """Seconds that a trial takes beside training, with its threads."""

    seeing: float = 0.0  # to see the images by its own last stage, and to compare these: what ranks it in a round
    searching: float = 0.0  # to compare all that it could be searched by, which the last round ends with


@dataclass(frozen=True)
class Round:
    """Who trains, and for how long."""

    seconds: float  # of training, for each, on top of what it has had
    keep: int | None = None  # the best so many of those before; None: `names`
    names: tuple[str, ...] = ()
    full: bool = False  # whether all that a run folder could be searched by is compared at its end


def budget_table(minutes: float, trained: int, frozen: int, at_a_time: int = 1) -> list[Part]:
    """What a race of so many minutes is expected to spend its time on."""
    total = 60 * minutes
    short = min(1.0, total / OF_SECONDS)
    start, finish = short * START_SECONDS, short * FINISH_SECONDS
    teacher = short * TEACHER_SECONDS if frozen and trained else 0.0
    left = total - start - teacher - finish
    parts = [Part("start, and what needs no training", start)]
    if teacher:
        parts.append(Part("features of the frozen network", teacher))
    if trained:
        names = [str(number) for number in range(trained)]
        fitting = affordable(names, left, at_a_time, Overhead())
        for number, one in enumerate(plan_rounds(fitting, left, at_a_time, Overhead()), start=1):
            count = len(one.names) or one.keep or 0
            text = f"{count} × {one.seconds / at_a_time:.0f} s of the whole machine"
            parts.append(Part(f"round {number}", one.seconds * math.ceil(count / at_a_time), text))
    parts.append(Part("index, test images and report", finish))
    return parts


def reserve(minutes: float) -> float:
    """Seconds of a race that its end is given."""
    return FINISH_SECONDS * min(1.0, 60 * minutes / OF_SECONDS)


def threads_of(cores: float, trained: int) -> int:
    """The threads of a trial: two trials at a time on one machine, because two are left in the last round."""
    return int(max(1, min(MOST_THREADS, cores // max(1, min(trained, LAST)))))


def affordable(names: Sequence[str], seconds: float, at_a_time: int, overhead: Overhead) -> list[str]:
    """The first so many candidates that a budget gives enough training, in every round, to show something."""
    for count in range(len(names), 0, -1):
        rounds = plan_rounds(names[:count], seconds, at_a_time, overhead)
        if min(one.seconds for one in rounds) >= LEAST_SECONDS:
            return list(names[:count])
    return []


def quick_enough(
    names: Sequence[str], seconds: float, at_a_time: int, overhead: Overhead, speeds: Mapping[str, float]
) -> list[str]:
    """Those of `affordable` whose seconds a step leave them some steps in the first round: the slowest is out first."""
    left = [name for name in names if name in speeds]
    while fitting := affordable(left, seconds, at_a_time, overhead):
        first = plan_rounds(fitting, seconds, at_a_time, overhead)[0].seconds
        slowest = max(fitting, key=lambda name: speeds[name])
        if LEAST_STEPS * speeds[slowest] <= first:
            return fitting
        left.remove(slowest)
    return []


def plan_rounds(names: Sequence[str], seconds: float, at_a_time: int, overhead: Overhead) -> list[Round]:
    """Rounds of successive halving that take so many seconds together, with so many trials at a time."""
    count = len(names)
    if count == 0:
        return []
    if count <= LAST:
        sizes, shares = [count], [1.0]
    elif seconds < THREE_ROUNDS_FROM or math.ceil(count / 2) <= LAST:
        sizes, shares = [count, LAST], [FIRST_SHARE, 1 - FIRST_SHARE]
    else:
        sizes, shares = [count, math.ceil(count / 2), LAST], list(THREE_SHARES)
    beside = [overhead.seeing] * (len(sizes) - 1) + [overhead.searching]
    each = [
        max(0.0, share * seconds / math.ceil(size / at_a_time) - more)
        for size, share, more in zip(sizes, shares, beside)
    ]
    last = len(sizes) - 1
    first = Round(each[0], names=tuple(names), full=last == 0)
    return [first, *(Round(each[i], keep=sizes[i], full=i == last) for i in range(1, len(sizes)))]


def more_rounds(
    ranking: Sequence[str], new: Sequence[str], seconds: float, at_a_time: int, overhead: Overhead, first: float
) -> list[Round]:
    """What a budget that was raised by so many seconds adds to rounds that are over.

    `ranking` are the candidates so far, best first; `new` did not fit in before: they get what the others had in their
    first round, `first` seconds, where there is time for it.
    """
    rounds = []
    fitting = list(new)
    while fitting and math.ceil(len(fitting) / at_a_time) * (first + overhead.seeing) > FIRST_SHARE * seconds:
        fitting.pop()
    if fitting:
        seconds -= math.ceil(len(fitting) / at_a_time) * (first + overhead.seeing)
        rounds.append(Round(first, names=tuple(fitting)))
    count = min(LAST, len(ranking) + len(fitting))
    if count and (each := seconds / math.ceil(count / at_a_time) - overhead.searching) >= LEAST_SECONDS:
        rounds.append(Round(each, keep=count, full=True))
    return rounds


def steps_for(seconds: float, seconds_a_step: float) -> int:
    """Optimiser steps in so many seconds, at least one."""
    return max(1, round(seconds / seconds_a_step))


def ranked(scores: Mapping[str, float], order: Sequence[str]) -> list[str]:
    """Names by score, best first; equal ones in the order that candidates are listed in."""
    return sorted(scores, key=lambda name: (-scores[name], order.index(name)))
