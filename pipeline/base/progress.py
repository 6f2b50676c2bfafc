"""What a person sees on the terminal (stderr): a live line, or plain lines when it is no terminal."""

import math
import time
from collections.abc import Iterable
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from rayssl.pipeline.base.terminal import plain, plain_lines

PLAIN_SECONDS = 10.0  # a plain line so often
RATE_MEMORY = 0.9  # of the moving average that the remaining time is made from


class PlainConsole(Console):
    """A terminal (stderr) that shows texts as they are: nothing in them is markup, or steers it."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text, made safe before it is laid out: the cells of tables are as wide as what they show."""
        return super().render_str(plain_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is drawn, its texts made safe; the controls of a live part are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain_lines(segment.text), segment.style)


class LiveConsole:
    """The terminal, with a part that is drawn again and again while the block lasts, where it is one."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PlainConsole()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=5, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(plain(text), soft_wrap=True, markup=False)


class Display(LiveConsole):
    """Shows the rows that stages report (see rayssl.pipeline.base.reporter).

    Where several worker groups are at work, a row tells its `group`, and each has a line of its own until a row says
    that it has `ended`.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._lines: dict[int, Line] = {}

    def __call__(self, row: dict[str, Any]) -> None:
        """Show one row."""
        if "message" in row:
            return self.say(row["message"])
        group = row.get("group", 0)
        if row.get("ended"):
            self._lines.pop(group, None)
        else:
            line = self._lines.setdefault(group, Line())
            line.take(row)
            if self._live is None and line.is_due():
                self.say(line.text)
        if self._live is not None:
            self._live.update(Text("\n".join(line.text for line in self._lines.values())))


class Line:
    """What one worker group does now."""

    def __init__(self) -> None:
        self.text = ""
        self._stage = ""
        self._begins = False
        self._last_plain = 0.0
        self._clock: tuple[int, float] | None = None
        self._rate = 0.0
        self._spread: float | None = None  # of the codes, when the stage began

    def take(self, row: dict[str, Any]) -> None:
        """Make the text of a row."""
        title = f"{row.get('run', '')} {row['stage']}".strip()
        self._begins = title != self._stage
        if self._begins:
            self._stage, self._clock, self._rate, self._spread = title, None, 0.0, None
        self.text = plain(f"{title}: {self._training(row) if 'step' in row else _counting(row)}")

    def is_due(self) -> bool:
        """Whether a plain line is: now and then, and when a stage begins."""
        due = self._begins or time.monotonic() - self._last_plain >= PLAIN_SECONDS
        if due:
            self._last_plain = time.monotonic()
        return due

    def _training(self, row: dict[str, Any]) -> str:
        done, total, per_epoch = row["step"] + 1, row["stop"], row["steps_per_epoch"]
        parts = [
            f"epoch {row['epoch'] + 1}/{math.ceil(total / per_epoch)}",
            f"step {done}/{total}",
            f"loss {row['train/loss']:.4g}",
            f"{row['perf/images_per_s']:,.0f} images/s",
            f"data wait {row['perf/data_wait']:.0%}",
        ]
        if "health/std" in row:
            parts.append(self._health(row["health/std"]))
        remaining = self._remaining(done, total)
        return ", ".join(parts) + (f", {format_duration(remaining)} left" if remaining is not None else "")

    def _health(self, spread: float) -> str:
        # Codes behind a ReLU begin close together in some networks: what counts is whether they come closer still.
        if self._spread is None:
            self._spread = spread
        return f"spread {spread:.2f}" + (" (collapsing)" if spread < min(0.1, self._spread) else "")

    def _remaining(self, done: int, total: int) -> float | None:
        now = time.monotonic()
        if self._clock is not None and done > self._clock[0] and now > self._clock[1]:
            rate = (done - self._clock[0]) / (now - self._clock[1])
            self._rate = RATE_MEMORY * self._rate + (1 - RATE_MEMORY) * rate if self._rate else rate
        self._clock = (done, now)
        return (total - done) / self._rate if self._rate else None


def _counting(row: dict[str, Any]) -> str:
    if "total" not in row:
        return "…"
    return f"{row['done']:,}/{row['total']:,}"


def format_duration(seconds: float) -> str:
    """E.g. 45 s, 2.5 min, 12 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 570:
        return f"{round(seconds / 30) / 2:g} min"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(count: float) -> str:
    """E.g. 12 MB, 3.4 GB."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
