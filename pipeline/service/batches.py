"""Images that are asked for at the same time are seen by the encoder together.

Nobody waits for a batch to fill: while one is seen, the next gathers.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.search.queries import Asked, squares_of
from rayssl.pipeline.search.query import OpenIndex

MOST_WAITING = 128  # images
MOST_AT_ONCE = 32  # images in a batch
PATIENCE = 30.0  # seconds that an image may wait for its vector

Floats = NDArray[np.float32]


class BusyError(Exception):
    """As many images wait as may, or one has waited as long as it may."""


class _Waiting(NamedTuple):
    opened: OpenIndex
    image: bytes
    vector: "Future[Floats]"


class Embedder:
    """One thread that makes vectors of images; every other part of the service waits for it here."""

    def __init__(self, saw: Callable[[int], None], most_waiting: int = MOST_WAITING) -> None:
        """`saw` is told the size of every batch."""
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._work, name="embedder", daemon=True)
        self._saw = saw

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End when what waits is done."""
        self._queue.put(None)
        self._thread.join()

    def waiting(self) -> int:
        """Images in the queue."""
        return self._queue.qsize()

    async def embed(self, opened: OpenIndex, image: bytes) -> Floats:
        """(d,) of an encoded image, as `opened` searches by. Raises UserError for what is no image, BusyError."""
        waiting = _Waiting(opened, image, Future())
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            raise BusyError("too many images wait to be seen") from None
        try:
            return await asyncio.wait_for(asyncio.wrap_future(waiting.vector), PATIENCE)
        except TimeoutError:
            raise BusyError(f"the image was not seen within {PATIENCE:.0f} seconds") from None

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, last = self._gathered(first)
            for opened in {id(one.opened): one.opened for one in batch}.values():
                self._answer(opened, [one for one in batch if one.opened is opened])
            if last:
                return

    def _gathered(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        """What waits now and is still wanted, and whether the end was among it."""
        batch = [first]
        while len(batch) < MOST_AT_ONCE:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return _wanted(batch), True
            batch.append(following)
        return _wanted(batch), False

    def _answer(self, opened: OpenIndex, batch: Sequence[_Waiting]) -> None:
        self._saw(len(batch))
        asked = [Asked("the image", one.image) for one in batch]
        try:
            vectors = opened.encode(squares_of(asked, opened.encode.channels, opened.shown))
        except Exception as error:  # every one of them is told, and the thread goes on
            for one in batch:
                one.vector.set_exception(error)
            return
        for one, image, vector in zip(batch, asked, vectors, strict=True):
            if image.problem is None:
                one.vector.set_result(vector)
            else:
                one.vector.set_exception(UserError(image.problem))


def _wanted(batch: list[_Waiting]) -> list[_Waiting]:
    """Those that nobody has ceased to wait for."""
    return [one for one in batch if one.vector.set_running_or_notify_cancel()]
