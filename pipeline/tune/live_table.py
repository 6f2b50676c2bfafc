"""How a search is going, on the terminal (stderr): a live table, or a line for every trial that has ended."""

import time
from typing import Protocol

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rayssl.pipeline.base.progress import LiveConsole, format_duration
from rayssl.pipeline.tune.space import Space, short
from rayssl.pipeline.tune.trials import FAILED, FINISHED, STOPPED, Trial, best_trial

SHOWN = 5  # of the best trials


class Standing(Protocol):
    """What the table is made of (see rayssl.pipeline.cluster.tune)."""

    total: int
    space: Space
    ended: list[Trial]
    running: dict[int, tuple[int, int, float | None]]


class Board(LiveConsole):
    """Shows a search; also takes lines of text."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._began = time.monotonic()
        self._told: set[int] | None = None
        self._before = 0

    def __call__(self, standing: Standing) -> None:
        """Show how it stands."""
        if self._told is None:  # what an earlier session has done
            self._told, self._before = {trial.number for trial in standing.ended}, len(standing.ended)
        if self._live is not None:
            self._live.update(self._table(standing))
        for trial in [trial for trial in list(standing.ended) if trial.number not in self._told]:
            self._told.add(trial.number)
            self.say(f"{line_of(trial, standing.space)} ({self._outlook(standing)})")

    def _outlook(self, standing: Standing) -> str:
        done, new = len(standing.ended), len(standing.ended) - self._before
        best = best_trial(standing.ended)
        parts = [f"{done}/{standing.total}"]
        if best is not None:
            parts.append(f"best {best.score:.4f} of trial {best.number}")
        if new and done < standing.total:
            rate = (time.monotonic() - self._began) / new
            parts.append(f"{format_duration(rate * (standing.total - done))} left")
        return ", ".join(parts)

    def _table(self, standing: Standing) -> Group:
        ended, running = list(standing.ended), sorted(standing.running.items())
        states = {state: sum(trial.state == state for trial in ended) for state in (FINISHED, STOPPED, FAILED)}
        counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        head = Text(f"{self._outlook(standing)}; {counts or 'none has ended'}, {len(running)} running")
        table = Table("trial", "state", "score", "augmentation", box=None, pad_edge=False)
        best = sorted((trial for trial in ended if trial.score is not None), key=lambda t: -(t.score or 0))[:SHOWN]
        for trial in best:
            table.add_row(str(trial.number), trial.state, f"{trial.score:.4f}", Text(describe(trial, standing.space)))
        for number, (step, steps, score) in running:
            share = f"step {step}/{steps}" if step else "training"
            table.add_row(str(number), share, "" if score is None else f"{score:.4f}", "")
        return Group(head, table)


def line_of(trial: Trial, space: Space) -> str:
    """A trial in one line."""
    if trial.state == FAILED:
        return f"trial {trial.number} failed after {format_duration(trial.seconds)}: {trial.reason}"
    score = "" if trial.score is None else f"{trial.score:.4f} "
    return f"trial {trial.number} {trial.state}: {score}with {describe(trial, space)}"


def describe(trial: Trial, space: Space) -> str:
    """The operations of a trial, and what it changed of the config."""
    return " · ".join(
        [space.text(trial.parameters), *(f"{name} {short(value)}" for name, value in trial.changes.items())]
    )
