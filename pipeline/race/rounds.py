"""Rounds of training: speeds are measured once, rounds are written down, and what is left of them is run."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import delete
from rayssl.pipeline.base.seals import forget_folder
from rayssl.pipeline.race.parts import Ended, Race, Task, Track, ended, result_of, say_nothing
from rayssl.pipeline.race.plan import (
    LAST,
    LEAST_STEPS,
    Overhead,
    affordable,
    more_rounds,
    plan_rounds,
    quick_enough,
    ranked,
    steps_for,
    threads_of,
)
from rayssl.pipeline.race.race_file import FAILED, Ledger, Result
from rayssl.pipeline.race.trial import make_folder, set_steps
from rayssl.pipeline.race.turns import TOLD_FROM, told_turns


def train(race: Race, open_track: Callable[[], AbstractContextManager[Track]]) -> None:
    """Plan the rounds if that is still to be done, and run what is left of them."""
    settle_turns(race)
    ledger = race.ledger
    if not has_left(ledger):
        return
    if not ledger.rounds and not entrants_by_guess(race):
        return tell_short(race)
    with open_track() as track:
        settle_room(race, track)
        if not ledger.rounds:
            plan_first_rounds(race, track)
        run_rounds(race, track)
        if ledger.minutes > ledger.planned_minutes:
            plan_more_rounds(race, track)
            run_rounds(race, track)


def tell_short(race: Race) -> None:
    """There is no time for any training, or nobody left who could be trained."""
    ledger = race.ledger
    ledger.planned_minutes = ledger.minutes
    race.keep()
    why = f"--minutes {ledger.minutes:g} is too short to train one candidate"
    if all(ledger.failed(name) for name in ledger.trained):
        why = "all candidates that train have failed"
    race.shown.say(f"{why}: what needs no training is compared")


def has_left(ledger: Ledger) -> bool:
    """Whether there is a round to plan or a trial to run."""
    if ledger.trained and ledger.minutes > ledger.planned_minutes:
        return True
    return any(ledger.left_in(number) for number in range(1, len(ledger.rounds) + 1))


def settle_turns(race: Race) -> None:
    """Whether RotNet takes part: where nobody asked for it, only where up seems to be up."""
    ledger, dataset = race.ledger, race.dataset
    rotnet = next((entry.name for entry in race.entries if entry.kind == "rotnet"), None)
    if rotnet is None or ledger.guess or ledger.rounds or ledger.settings["candidates"] is not None:
        return
    share = told_turns(dataset.train, dataset.val, race.entries[0].config.train.seed)
    if share is None:
        ledger.guess = "too few images to tell whether up is up: RotNet takes part"
    elif share >= TOLD_FROM:
        ledger.guess = f"up is up, it seems ({100 * share:.0f} % of turns are told, of 25 by chance): RotNet takes part"
    else:
        ledger.guess = (
            f"up may not be up ({100 * share:.0f} % of turns are told, of 25 by chance): RotNet is left out, a guess: "
            "--candidates names it"
        )
        ledger.left_out.append(rotnet)
        ledger.trained.remove(rotnet)
        del ledger.about[rotnet]
    race.shown.say(ledger.guess)
    race.keep()


def entrants_by_guess(race: Race) -> list[str]:
    """The candidates there will be time for, as far as that can be said before speeds are measured."""
    return affordable(race.ledger.trained, race.left(), LAST, overhead_of(race.ledger))


def overhead_of(ledger: Ledger) -> Overhead:
    """What a trial takes beside training: it has a share of the cores that this process had."""
    cores = os.cpu_count() or 1
    share = max(1.0, cores / (ledger.threads or threads_of(cores, len(ledger.trained))))
    searching = share * ledger.overhead.searching
    return Overhead(share * ledger.overhead.seeing if ledger.data["labelled"] else searching, searching)


def settle_room(race: Race, track: Track) -> None:
    """The threads of a trial, once; and the trials at a time that rounds are planned for."""
    ledger = race.ledger
    room = track.room(ledger.threads or None, len(ledger.trained))
    if not ledger.threads:
        ledger.threads = room.threads
    ledger.at_a_time = room.at_a_time
    race.keep()


def plan_first_rounds(race: Race, track: Track) -> None:
    """Measure the candidates' speeds, and write down rounds that fill the time."""
    ledger = race.ledger
    measure(race, track, affordable(ledger.trained, race.left(), ledger.at_a_time, overhead_of(ledger)))
    names = quick_enough(ledger.trained, race.left(), ledger.at_a_time, overhead_of(ledger), ledger.speeds)
    if not names:
        return tell_short(race)
    ledger.rounds = plan_rounds(names, race.left(), ledger.at_a_time, overhead_of(ledger))
    ledger.planned_minutes = ledger.minutes
    race.keep()
    tell_rounds(race, 1)


def plan_more_rounds(race: Race, track: Track) -> None:
    """Rounds for minutes that were added."""
    ledger = race.ledger
    seconds = min(race.left(), 60 * (ledger.minutes - ledger.planned_minutes))
    new = [name for name in ledger.trained if ledger.last(name) is None]
    first = ledger.rounds[0].seconds if ledger.rounds else 0.0
    ranking = ranked(ledger.scores(len(ledger.rounds) + 1), ledger.trained)
    measure(race, track, [name for name in new if name not in ledger.speeds])
    new = [name for name in new if LEAST_STEPS * ledger.speeds.get(name, math.inf) <= first]
    count = len(ledger.rounds)
    ledger.rounds += more_rounds(ranking, new, seconds, ledger.at_a_time, overhead_of(ledger), first)
    ledger.planned_minutes = ledger.minutes
    race.keep()
    tell_rounds(race, count + 1)


def tell_rounds(race: Race, first: int) -> None:
    """What was planned, in lines."""
    ledger = race.ledger
    planned = {name for one in ledger.rounds for name in one.names}
    for name, seconds in ledger.speeds.items():
        if name not in planned:
            race.shown.say(f"{name} is left out: a step takes {seconds:.1f} s, too long for this budget")
    for number, one in enumerate(ledger.rounds[first - 1 :], start=first):
        who = f"the best {one.keep}" if one.keep is not None else ", ".join(one.names)
        race.shown.say(
            f"round {number}: {who}, {one.seconds:.0f} s of training each, {ledger.at_a_time} at a time, "
            f"{ledger.threads} thread{'s' * (ledger.threads > 1)} each"
        )


def measure(race: Race, track: Track, names: Sequence[str]) -> None:
    """Seconds a step of each candidate, by a copy that is thrown away; who fails is out."""
    ledger = race.ledger
    wanted = [name for name in names if name not in ledger.speeds and not ledger.failed(name)]
    for name in wanted:
        make(race, name)
    tasks = [Task(name, str(race.run_of(name).absolute()), timed=True) for name in wanted if not ledger.failed(name)]
    if tasks:
        race.shown.say(f"measuring the speed of {len(tasks)} candidates …")

    def on_end(end: Ended) -> None:
        if end.seconds_a_step is not None:
            ledger.speeds[end.name] = end.seconds_a_step
            race.keep()
        elif not end.stopped:
            ledger.add(end.name, Result(0, FAILED, 0, None, reason=end.reason))
            ended(race, end.name)

    track.run(tasks, ledger.threads, on_end)


def make(race: Race, name: str) -> None:
    """The run folder of a candidate that trains; one that cannot be made has failed."""
    entry = next((entry for entry in race.entries if entry.name == name), None)
    try:
        if entry is None:
            raise UserError("its weights are not on this machine any more")
        make_folder(entry.config, race.run_of(name), race.ledger.command, say_nothing)
        set_steps(race.run_of(name), None, race.ledger.threads)
    except UserError as error:
        race.ledger.add(name, Result(0, FAILED, 0, None, reason=str(error)))
        ended(race, name)


def run_rounds(race: Race, track: Track) -> None:
    """What is left of all rounds, one after the other: a round waits for all of the one before."""
    for number in range(1, len(race.ledger.rounds) + 1):
        if left := race.ledger.left_in(number):
            run_round(race, track, number, left)
        drop_checkpoints(race, number)


def run_round(race: Race, track: Track, number: int, names: Sequence[str]) -> None:
    """One round: every candidate trains up to its steps, from its own checkpoint, and is searched."""
    ledger = race.ledger
    steps = {name: steps_in(ledger, name, number) for name in names}
    for name in names:
        make(race, name)  # where it is not there any more
        set_steps(race.run_of(name), steps[name], ledger.threads, vectors_in(ledger, name, number))

    def on_end(end: Ended) -> None:
        if end.stopped:
            return
        try:
            if end.reason:
                raise UserError(end.reason)
            ledger.add(end.name, result_of(race, end.name, number, steps[end.name], end.seconds))
        except UserError as error:
            done = ledger.steps_before(end.name, number)
            ledger.add(end.name, Result(number, FAILED, done, None, reason=str(error)))
        ended(race, end.name)

    track.run([Task(name, str(race.run_of(name).absolute())) for name in names], ledger.threads, on_end)


def steps_in(ledger: Ledger, name: str, number: int) -> int:
    """Optimiser steps of a candidate after a round."""
    return ledger.steps_before(name, number) + steps_for(ledger.rounds[number - 1].seconds, ledger.speeds[name])


def vectors_in(ledger: Ledger, name: str, number: int) -> str:
    """By what a candidate is compared at the end of a round: its own last stage, in the last round all there is.

    Without labels vectors are measured by each other, so it is always all.
    """
    full = ledger.rounds[number - 1].full or not ledger.data["labelled"]
    return "auto" if full else ledger.about[name].source


def drop_checkpoints(race: Race, number: int) -> None:
    """Who is not in the next round keeps its encoder, not its checkpoints; who is in the last one may go on."""
    ledger = race.ledger
    if number == len(ledger.rounds):
        return
    staying = {name for later in range(number + 1, len(ledger.rounds) + 1) for name in ledger.rounds[later - 1].names}
    staying |= set(ledger.entrants(number + 1))
    for name in set(ledger.entrants(number)) - staying:
        forget_folder(race.run_of(name) / "checkpoints")
        delete(race.run_of(name) / "checkpoints")
