"""How a race is going, on the terminal (stderr): a live table, or a line for every trial that has ended."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from rayssl.pipeline.base.progress import PLAIN_SECONDS, LiveConsole, format_duration
from rayssl.pipeline.base.terminal import plain
from rayssl.pipeline.race.race_file import FAILED, Ledger


class Board(LiveConsole):
    """Shows a race; takes the rows that stages report, too (see rayssl.pipeline.base.reporter)."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._doing: dict[str, str] = {}  # candidate → what it does now
        self._ledger: Ledger | None = None
        self._last_plain = 0.0

    def __call__(self, row: dict[str, Any]) -> None:
        """Show one row of a stage."""
        if "message" in row:
            return self.say(row["message"])
        name, stage = str(row.get("run", "")), row["stage"]
        self._doing[name] = f"{stage} {_progress(row)}".strip()
        if self._live is None and time.monotonic() - self._last_plain >= PLAIN_SECONDS:
            self._last_plain = time.monotonic()
            self.say(f"{name} {self._doing[name]}".strip())
        self._draw()

    def stand(self, ledger: Ledger) -> None:
        """Show how it stands."""
        self._ledger = ledger
        for name in ledger.names:
            if ledger.last(name) is not None:
                self._doing.pop(name, None)
        self._draw()

    def _draw(self) -> None:
        if self._live is not None and self._ledger is not None:
            self._live.update(table(self._ledger, self._doing))


def table(ledger: Ledger, doing: Mapping[str, str]) -> Table:
    """Candidates with their scores so far, and what they do now."""
    drawn = Table("candidate", "round", "steps", "score", "searched by", "", box=None, pad_edge=False)
    for name in ledger.names:
        last = ledger.last(name)
        now = doing.get(name, "")
        if last is None:
            drawn.add_row(name, "", "", "", "", now)
            continue
        state = f"failed: {plain(last.reason)}" if last.state == FAILED else now
        drawn.add_row(
            name, str(last.round or ""), str(last.steps or ""), _score(ledger, last.score), last.vectors, state
        )
    return drawn


def line_of(ledger: Ledger, name: str) -> str:
    """A candidate that has ended a round, in a line."""
    last = ledger.last(name)
    assert last is not None
    where = f"round {last.round}: " if last.round else ""
    if last.state == FAILED:
        return f"{where}{name} failed: {last.reason}"
    steps = f" after {last.steps} steps" if last.steps else ""
    return f"{where}{name} {_score(ledger, last.score)}{steps} ({format_duration(last.seconds)})"


def _score(ledger: Ledger, score: float | None) -> str:
    if score is None:
        return ""
    return f"{100 * score:.1f} %" if ledger.data.get("labelled") else f"{score:.3f}"


def _progress(row: Mapping[str, Any]) -> str:
    if "step" in row:
        return f"{row['step'] + 1}/{row['stop']}"
    return f"{row['done']:,}/{row['total']:,}" if "total" in row else ""
