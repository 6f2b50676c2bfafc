"""race.json: what a race is of, what was measured once, its rounds, and what became of every candidate."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.documents import made_of
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.seals import started
from rayssl.pipeline.race.plan import Overhead, Round, ranked
from rayssl.pipeline.run.folder import read_race

SCHEMA = 1
NAME = "race.json"
FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True)
class Result:
    """What became of a candidate in one round; round 0 is of those that need no training."""

    round: int
    state: str  # FINISHED or FAILED
    steps: int  # optimiser steps so far
    score: float | None  # its own strength on validation images, higher is better; None where it has none
    vectors: str = ""  # what its run folder would be searched by
    seconds: float = 0.0
    reason: str = ""  # of a failure


@dataclass(frozen=True)
class About:
    """A candidate in words."""

    kind: str
    text: str
    source: str  # its own vectors among those that its run folder could be searched by


@dataclass
class Ledger:
    """race.json in memory; only the driver writes it."""

    settings: dict[str, Any]  # with others it is another race
    data: dict[str, Any]  # name, path, fingerprint, images, and whether validation images have labels
    minutes: float
    about: dict[str, About]  # all candidates, in the order of their chances
    trained: list[str]  # those of them that are trained
    threads: int = 0  # of every trial; 0: not settled yet
    at_a_time: int = 1  # trials, when the rounds were planned
    guess: str = ""  # what was concluded about the images
    left_out: list[str] = field(default_factory=list)  # candidates that the guess speaks against
    overhead: Overhead = field(default_factory=Overhead)  # of a trial, as measured in the driver with all cores
    speeds: dict[str, float] = field(default_factory=dict)  # seconds a step, measured once
    rounds: list[Round] = field(default_factory=list)
    planned_minutes: float = 0.0  # the budget that the rounds are made for
    results: dict[str, list[Result]] = field(default_factory=dict)
    final: list[dict[str, Any]] = field(default_factory=list)  # comparison with the winner, which is the first
    told: list[str] = field(default_factory=list)  # the recommendation
    winner: str | None = None
    chosen_by: str = "validation"  # or "hand"
    finished: bool = False
    command: str = ""
    software: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All candidates."""
        return list(self.about)

    def result(self, name: str, number: int) -> Result | None:
        """What became of a candidate in a round, if it has ended."""
        return next((one for one in self.results.get(name, []) if one.round == number), None)

    def add(self, name: str, result: Result) -> None:
        """A trial has ended."""
        self.results[name] = [*self.results.get(name, []), result]

    def last(self, name: str) -> Result | None:
        """The newest result of a candidate."""
        return self.results[name][-1] if self.results.get(name) else None

    def failed(self, name: str) -> bool:
        """Whether a candidate is out because it failed."""
        last = self.last(name)
        return last is not None and last.state == FAILED

    def scores(self, before: int) -> dict[str, float]:
        """The newest scores, of rounds before this one, of trained candidates that have not failed there."""
        found = {}
        for name in self.trained:
            earlier = [one for one in self.results.get(name, []) if one.round < before]
            if earlier and earlier[-1].state == FINISHED and earlier[-1].score is not None:
                found[name] = earlier[-1].score
        return found

    def entrants(self, number: int) -> list[str]:
        """Who takes part in round `number`, which follows from the results before it alone."""
        chosen = self.rounds[number - 1]
        if chosen.keep is None:
            return [name for name in chosen.names if name in self.speeds]
        return ranked(self.scores(number), self.trained)[: chosen.keep]

    def left_in(self, number: int) -> list[str]:
        """Who has not ended a round yet."""
        return [name for name in self.entrants(number) if self.result(name, number) is None]

    def steps_before(self, name: str, number: int) -> int:
        """Optimiser steps of a candidate before a round."""
        return max((one.steps for one in self.results.get(name, []) if one.round < number), default=0)


def save_ledger(out: Path, ledger: Ledger) -> None:
    """Write race.json, whole or not at all."""
    started(out)
    write_json(out / NAME, {"schema": SCHEMA, **dataclasses.asdict(ledger)})


def load_ledger(out: Path) -> Ledger:
    """Read race.json; raises UserError where it is missing, damaged or of another schema version."""
    path, values = out / NAME, read_race(out)
    try:
        values["rounds"] = [made_of(Round, {**one, "names": tuple(one["names"])}) for one in values["rounds"]]
        values["overhead"] = made_of(Overhead, values["overhead"])
        values["about"] = {name: made_of(About, one) for name, one in values["about"].items()}
        values["results"] = {
            name: [made_of(Result, one) for one in results] for name, results in values["results"].items()
        }
        return made_of(Ledger, values)
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged (no race): restore it, or start the race again in a new --out") from None
