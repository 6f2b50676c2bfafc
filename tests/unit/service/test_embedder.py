"""Images that wait together are seen together; what is too much is refused, and nobody is left waiting."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.search.query import OpenIndex
from rayssl.pipeline.service import batches
from rayssl.pipeline.service.batches import BusyError, Embedder
from rayssl.pipeline.service.opened import View


@pytest.fixture
def sizes() -> list[int]:
    """Of the batches that were seen."""
    return []


@pytest.fixture
def embedder(sizes: list[int]) -> Iterator[Embedder]:
    """Not started: what is asked for gathers."""
    embedder = Embedder(sizes.append, most_waiting=8)
    yield embedder
    if embedder._thread.is_alive():
        embedder.stop()


async def asked(embedder: Embedder, opened: OpenIndex, images: list[bytes]) -> list[object]:
    """The answers to several at once, which wait before the embedder starts."""
    tasks = [asyncio.ensure_future(embedder.embed(opened, image)) for image in images]
    await asyncio.sleep(0)
    embedder.start()
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def test_those_that_wait_are_seen_together_and_get_their_own(
    embedder: Embedder, sizes: list[int], view: View, images: Path
) -> None:
    files = [(images / "red" / f"{i}.png").read_bytes() for i in range(5)]
    found = asyncio.run(asked(embedder, view.opened, [*files[:3], b"no image", *files[3:]]))
    assert sizes == [6]
    assert isinstance(found.pop(3), UserError)
    for file, vector in zip(files, found, strict=True):
        alone = view.opened.search(file, k=1)[0]["neighbors"][0]
        again = view.opened.search(vectors=np.asarray(vector), k=1)[0]["neighbors"][0]
        assert (again["id"], again["score"]) == (alone["id"], pytest.approx(alone["score"], abs=1e-6))


def test_more_than_may_wait_are_told_so_and_the_others_answered(embedder: Embedder, view: View, images: Path) -> None:
    file = (images / "red" / "1.png").read_bytes()
    found = asyncio.run(asked(embedder, view.opened, [file] * 11))
    assert [isinstance(one, BusyError) for one in found] == [False] * 8 + [True] * 3


def test_who_waits_too_long_is_told_and_not_seen_later(
    embedder: Embedder, sizes: list[int], view: View, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PATIENCE", 0.01)
    file = (images / "red" / "1.png").read_bytes()
    with pytest.raises(BusyError):
        asyncio.run(embedder.embed(view.opened, file))
    embedder.start()
    embedder.stop()
    assert sizes in ([], [0])


def test_a_fault_is_told_to_its_batch_and_the_thread_goes_on(
    embedder: Embedder, view: View, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = (images / "red" / "1.png").read_bytes()

    async def both() -> tuple[object, object]:
        with monkeypatch.context() as patch:
            patch.setattr("rayssl.pipeline.service.batches.squares_of", fails)
            (first,) = await asked(embedder, view.opened, [file])
        return first, await embedder.embed(view.opened, file)

    first, second = asyncio.run(both())
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(second, np.ndarray)


def fails(*_: object) -> None:
    raise ZeroDivisionError


def test_every_one_of_many_at_once_is_answered(sizes: list[int], view: View, images: Path) -> None:
    embedder = Embedder(sizes.append)
    embedder.start()
    file = (images / "red" / "1.png").read_bytes()
    found = list[object]()

    def ask() -> None:
        found.append(asyncio.run(embedder.embed(view.opened, file)))

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    embedder.stop()
    assert sum(sizes) == len(found) == 24
    for one in found:
        assert np.array_equal(np.asarray(one), np.asarray(found[0])) or np.allclose(
            np.asarray(one), np.asarray(found[0]), atol=1e-6
        )
