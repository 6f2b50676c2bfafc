"""Tells a watch of the steps of Lightning's trainer, of whichever of its packages the callback's class is."""

import time
from typing import Any

from common import Waiting, Watch


def watching(callback: type[Any], watch: Watch, waiting: Waiting) -> Any:
    """A callback; between the end of a step and the start of the next the trainer waits for a batch."""

    class Watching(callback):
        ended = None

        def on_train_start(self, *rest: Any) -> None:
            waiting.start()
            self.ended = time.perf_counter()

        def on_train_batch_start(self, *rest: Any) -> None:
            waiting.seconds += time.perf_counter() - self.ended

        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            self.ended = time.perf_counter()
            if not watch.step():
                trainer.should_stop = True

    return Watching()
