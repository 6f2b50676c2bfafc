"""The seam between the stages and whatever runs them: one process, torchrun or Ray."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Interrupted(Exception):  # noqa: N818
    """Asked to stop by a signal; checkpoints are written."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Reporter(Protocol):
    """How a stage speaks to the outside. Rows and messages come from rank 0 alone."""

    def progress(self, row: dict[str, Any]) -> None:
        """One row for a person: {"stage", "step", "stop", …} while training, {"stage", "done", "total"} elsewhere."""

    def message(self, text: str) -> None:
        """One line for a person."""

    def should_stop(self) -> bool:
        """Whether the run was asked to write a checkpoint and stop."""


class LocalReporter:
    """Shows progress in this process; `stop_on_signals` makes Ctrl-C and SIGTERM ask for a checkpoint first."""

    def __init__(self, show: Callable[[dict[str, Any]], None]) -> None:
        self._show = show
        self._stop = threading.Event()

    def progress(self, row: dict[str, Any]) -> None:
        """Show the row."""
        self._show(row)

    def message(self, text: str) -> None:
        """Show the text."""
        self._show({"message": text})

    def should_stop(self) -> bool:
        """True once a signal came."""
        return self._stop.is_set()

    @contextlib.contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks to stop, a second one ends the process as usual."""
        with handle_signals(lambda _: self._stop.set()):
            yield


class Silent:
    """Reports nothing and never stops: for a worker that is not rank 0, and for tests."""

    def progress(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def should_stop(self) -> bool:
        """Never."""
        return False


@contextlib.contextmanager
def handle_signals(on_first: Callable[[int], None]) -> Iterator[None]:
    """Call `on_first` at the first Ctrl-C or SIGTERM; at the second, do what was done before.

    In a thread it does nothing: Python hands signals to the main thread, whose handlers stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    # None: set by something that is not Python, which alone could put it back.
    before = {kind: signal.getsignal(kind) or signal.SIG_DFL for kind in kinds}

    def restore() -> None:
        for kind in kinds:
            signal.signal(kind, before[kind])

    def first(number: int, _: Any) -> None:
        restore()
        on_first(number)

    for kind in kinds:
        signal.signal(kind, first)
    try:
        yield
    finally:
        restore()
