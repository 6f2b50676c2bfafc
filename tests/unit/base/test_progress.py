"""What a person reads while a run goes on."""

import io
from typing import Any

import pytest
from rich.console import Console

from rayssl.pipeline.base import progress
from rayssl.pipeline.base.progress import Display, format_bytes, format_duration

TRAINING = {
    "run": "simclr-digits", "stage": "pretrain", "step": 4, "epoch": 0, "train/loss": 2.5, "train/lr": 0.1,
    "perf/images_per_s": 12345.0, "perf/data_wait": 0.25, "health/std": 0.9, "stop": 20, "steps_per_epoch": 8,
}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def show(clock: Clock, rows: list[tuple[float, dict[str, Any]]]) -> list[str]:
    """Lines on something that is no terminal, of rows that come after so many seconds each."""
    text = io.StringIO()
    with Display(Console(file=text, width=200)) as display:
        for seconds, row in rows:
            clock.now += seconds
            display(row)
    return text.getvalue().splitlines()


def test_a_training_row(clock: Clock) -> None:
    (line,) = show(clock, [(0, TRAINING)])
    assert line == (
        "simclr-digits pretrain: epoch 1/3, step 5/20, loss 2.5, 12,345 images/s, data wait 25%, spread 0.90"
    )


def test_a_collapse_is_named(clock: Clock) -> None:
    lines = show(clock, [(0, TRAINING), (60, {**TRAINING, "health/std": 0.01})])
    assert "spread 0.01 (collapsing)" in lines[-1]


def test_codes_that_begin_close_together_do_not_collapse(clock: Clock) -> None:
    lines = show(clock, [(0, {**TRAINING, "health/std": 0.01}), (60, {**TRAINING, "health/std": 0.04})])
    assert "collapsing" not in "".join(lines)


def test_the_time_left(clock: Clock) -> None:
    later = {**TRAINING, "step": 9}  # 5 steps in 60 s, 10 steps left
    lines = show(clock, [(0, TRAINING), (60, later)])
    assert lines[-1].endswith(", 2 min left")


def test_the_time_left_starts_anew_with_a_stage(clock: Clock) -> None:
    other = {**TRAINING, "stage": "finetune/0", "step": 19}
    lines = show(clock, [(0, TRAINING), (60, {**TRAINING, "step": 9}), (60, other)])
    assert "left" not in lines[-1]


def test_plain_lines_are_few(clock: Clock) -> None:
    rows = [(1.0, {**TRAINING, "step": step}) for step in range(20)]
    assert len(show(clock, rows)) == 2
    assert len(show(clock, [(0, {"stage": name, "done": 1, "total": 2}) for name in "abc"])) == 3


def test_counting_and_messages(clock: Clock) -> None:
    rows: list[tuple[float, dict[str, Any]]] = [
        (0.0, {"stage": "reading images", "done": 1200, "total": 60000}),
        (0.0, {"run": "r", "stage": "index"}),
        (0.0, {"message": "[bold]as it is[/bold]"}),
    ]
    assert show(clock, rows) == ["reading images: 1,200/60,000", "r index: …", "[bold]as it is[/bold]"]


def test_a_terminal_gets_a_live_line(clock: Clock) -> None:
    text = io.StringIO()
    with Display(Console(file=text, force_terminal=True, width=200)) as display:
        display(TRAINING)
        display({"message": "hello"})
    assert "hello" in text.getvalue()
    assert "step 5/20" in text.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "1.5 min"), (569, "9.5 min"), (570, "10 min"), (5400, "1 h 30 min"),
     (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 MB"), (12e6, "12 MB"), (3.44e9, "3.4 GB")])
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_each_worker_group_has_its_own_line_and_time_left(clock: Clock) -> None:
    one, two = {**TRAINING, "group": 0}, {**TRAINING, "run": "rotnet-digits", "group": 1}
    lines = show(
        clock,
        [(0, one), (0, two), (1, one), (1, two), (58, {**one, "step": 9}), (0, {**two, "step": 14})],
    )
    assert [line.split(" pretrain:")[0] for line in lines] == ["simclr-digits", "rotnet-digits"] * 2
    assert lines[2].endswith(", 2 min left")
    assert lines[3].endswith(", 29 s left")


def test_the_line_of_a_group_goes_when_it_has_ended() -> None:
    text = io.StringIO()
    with Display(Console(file=text, force_terminal=True, width=200)) as display:
        display({**TRAINING, "group": 0})
        display({**TRAINING, "run": "rotnet-digits", "group": 1})
        both = display._live.get_renderable().plain  # type: ignore[union-attr]
        display({"group": 0, "ended": True})
        left = display._live.get_renderable().plain  # type: ignore[union-attr]
    assert [line.split()[0] for line in both.splitlines()] == ["simclr-digits", "rotnet-digits"]
    assert [line.split()[0] for line in left.splitlines()] == ["rotnet-digits"]
