"""What the parts of a race share: the race itself, its trials, and the seams to where they run and what shows them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rayssl.pipeline.data import Dataset
from rayssl.pipeline.race.candidates import Entry
from rayssl.pipeline.race.finals import chosen, own_best
from rayssl.pipeline.race.live_table import line_of
from rayssl.pipeline.race.plan import PLANNED_SHARE, reserve
from rayssl.pipeline.race.race_file import FINISHED, Ledger, Result, save_ledger
from rayssl.pipeline.run.plan import Machine


@dataclass(frozen=True)
class Task:
    """What is done in a process of its own: a trial, or the timing of its step."""

    name: str  # of the candidate
    run: str
    timed: bool = False


@dataclass(frozen=True)
class Ended:
    """What a task came to."""

    name: str
    reason: str = ""  # of a failure
    stopped: bool = False  # it was asked to: it is done again
    seconds: float = 0.0
    seconds_a_step: float | None = None


@dataclass(frozen=True)
class Room:
    """What a trial gets, and how many there are at a time."""

    threads: int
    at_a_time: int


class Track(Protocol):
    """Where trials run."""

    def room(self, threads: int | None, trained: int) -> Room:
        """The threads of a trial, those that were settled before if any, and trials at a time."""

    def run(self, tasks: Sequence[Task], threads: int, on_end: Callable[[Ended], None]) -> None:
        """Run the tasks, and tell of each when it has ended; raises Interrupted after a signal."""


class Shown(Protocol):
    """What shows a race (see rayssl.pipeline.race.live_table)."""

    def __call__(self, row: dict[str, Any]) -> None:
        """A row of a stage, or a message."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def stand(self, ledger: Ledger) -> None:
        """How it stands."""


@dataclass
class Race:
    """A race that can start."""

    out: Path
    entries: list[Entry]
    ledger: Ledger
    dataset: Dataset
    machine: Machine  # that a trial's worker has
    began: float  # time.monotonic() of the command
    shown: Shown

    def run_of(self, name: str) -> Path:
        """The run folder of a candidate."""
        return self.out / name

    def keep(self) -> None:
        """Write race.json and show how it stands."""
        save_ledger(self.out, self.ledger)
        self.shown.stand(self.ledger)

    def left(self) -> float:
        """Seconds of the budget that are planned with, without those of its end."""
        minutes = self.ledger.minutes
        return PLANNED_SHARE * (60 * minutes - (time.monotonic() - self.began) - reserve(minutes))


def result_of(race: Race, name: str, number: int, steps: int, seconds: float) -> Result:
    """What the run folder of a candidate says of it after a round; raises UserError where it was not searched."""
    run = race.run_of(name)
    own = own_best(run, race.ledger.about[name].source)
    return Result(number, FINISHED, steps, own.score, chosen(run).name, round(seconds, 2))


def ended(race: Race, name: str) -> None:
    """Keep and tell what became of a candidate."""
    race.keep()
    race.shown.say(line_of(race.ledger, name))


def say_nothing(text: str) -> None:
    """What every run folder would say again."""


def warning_by(shown: Shown) -> Callable[[str], None]:
    return lambda text: shown({"message": f"warning: {text}"})


def reading_by(shown: Shown) -> Callable[[int, int], None]:
    return lambda done, total: shown({"stage": "reading images", "done": done, "total": total})
