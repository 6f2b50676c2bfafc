"""A race from its start to its last line: what needs no training, rounds of training, the winner.

Where trials run is told by a `Track`; the only one in the product is Ray's (rayssl.pipeline.cluster.race).
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Interrupted
from rayssl.pipeline.data.concluded import lines
from rayssl.pipeline.race.candidates import FROZEN, UNTRAINED
from rayssl.pipeline.race.end import finish
from rayssl.pipeline.race.outcome import budget_lines
from rayssl.pipeline.race.parts import Race, Track, ended, result_of, say_nothing
from rayssl.pipeline.race.plan import budget_table
from rayssl.pipeline.race.race_file import FAILED, Result
from rayssl.pipeline.race.rounds import train
from rayssl.pipeline.race.trial import Clock, make_folder, search_untrained


def run_race(race: Race, open_track: Callable[[], AbstractContextManager[Track]]) -> list[str]:
    """Run what is left of a race and return the recommendation; after Ctrl-C that of what there is, then Interrupted.

    Raises UserError where even the untrained network cannot be searched.
    """
    ledger = race.ledger
    if ledger.finished and ledger.told:
        return ledger.told
    tell_budget(race)
    race.keep()
    stopped: BaseException | None = None
    try:
        run_free(race)
        train(race, open_track)
    except (Interrupted, KeyboardInterrupt) as signal:
        stopped = signal
        race.shown.say("stopping: what there is so far is compared, and the best is made searchable")
    told = finish(race, stopped=stopped is not None)
    if stopped is not None:
        for line in told:
            race.shown.say(line)
        raise stopped
    return told


def tell_budget(race: Race) -> None:
    """What the race is about to spend its time on."""
    ledger, say = race.ledger, race.shown.say
    say(f"race of {len(ledger.names)} candidates in {ledger.minutes:g} min: {race.out}")
    for line in lines(race.dataset):
        say(line)
    if not ledger.data["labelled"]:
        say("  no labels to compare by: the order of the candidates is a guess")
    if race.dataset.idle_rows:
        named = f"{len(race.dataset.idle_rows)}, e.g. '{race.dataset.idle_rows[0]}'"
        say(f"warning: paths in the labels that match no image: {named}")
    if not ledger.rounds:
        frozen = sum(one.kind == FROZEN for one in ledger.about.values())
        for line in budget_lines(budget_table(ledger.minutes, len(ledger.trained), frozen)):
            say(line)


def run_free(race: Race) -> None:
    """What needs no training, in this process: it is compared on validation images by the search of its run folder."""
    for entry in race.entries:
        if entry.trains or race.ledger.result(entry.name, 0) is not None:
            continue
        began, run = time.monotonic(), race.run_of(entry.name)
        try:
            make_folder(entry.config, run, race.ledger.command, say_nothing, race.machine)
            clock = Clock(race.shown, entry.source)
            search_untrained(run, clock)
            if entry.kind == UNTRAINED:
                race.ledger.overhead = clock.overhead()
            seconds = time.monotonic() - began
            race.ledger.add(entry.name, result_of(race, entry.name, 0, 0, seconds))
        except UserError as error:
            if entry.kind == UNTRAINED or (entry.network is not None and entry.network.asked):
                raise
            seconds = time.monotonic() - began
            race.ledger.add(entry.name, Result(0, FAILED, 0, None, seconds=round(seconds, 2), reason=str(error)))
        ended(race, entry.name)
