"""The first signal asks for a checkpoint, the second one ends the process."""

import os
import signal
import threading
from typing import Any

import pytest

from rayssl.pipeline.base.reporter import LocalReporter, Silent, handle_signals


def test_rows_and_messages_are_shown() -> None:
    shown: list[dict[str, Any]] = []
    reporter = LocalReporter(shown.append)
    reporter.progress({"stage": "pretrain", "step": 1})
    reporter.message("hello")
    assert shown == [{"stage": "pretrain", "step": 1}, {"message": "hello"}]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop(kind: signal.Signals) -> None:
    reporter = LocalReporter(lambda row: None)
    before = signal.getsignal(kind)
    with reporter.stop_on_signals():
        assert not reporter.should_stop()
        os.kill(os.getpid(), kind)
        assert reporter.should_stop()
    assert signal.getsignal(kind) == before
    assert reporter.should_stop()


def test_a_second_interrupt_is_the_usual_one() -> None:
    reporter = LocalReporter(lambda row: None)

    def interrupt_twice() -> None:
        with reporter.stop_on_signals():
            os.kill(os.getpid(), signal.SIGINT)
            assert reporter.should_stop()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()


def test_handlers_come_back_after_an_error() -> None:
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(kind) for kind in kinds]
    with pytest.raises(RuntimeError), handle_signals(lambda number: None):
        raise RuntimeError
    assert [signal.getsignal(kind) for kind in kinds] == before


def test_the_number_of_the_signal_is_told() -> None:
    numbers: list[int] = []
    with handle_signals(numbers.append):
        os.kill(os.getpid(), signal.SIGTERM)
    assert numbers == [signal.SIGTERM]


def test_in_a_thread_there_are_no_handlers() -> None:
    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    ended: list[str] = []

    def work() -> None:
        with handle_signals(lambda number: None):
            ended.append("worked")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == ["worked"]
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before


def test_silent_never_stops() -> None:
    reporter = Silent()
    reporter.progress({})
    reporter.message("")
    assert not reporter.should_stop()
