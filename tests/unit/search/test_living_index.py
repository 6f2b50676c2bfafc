"""An index under random changes, kills and readers, against a plain dictionary and an index that is built anew.

More than the suite's few steps: `RAYSSL_STEPS=500 pytest tests/unit/search/test_living_index.py`.
"""

import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray
from PIL import Image

from rayssl.pipeline import config as configuration
from rayssl.pipeline.data import Dataset, open_dataset
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.models.export import export_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.folder import update_manifest
from rayssl.pipeline.search.embeddings import Embeddings, save_embeddings
from rayssl.pipeline.search.index import build_index, search
from rayssl.pipeline.search.ingest import Outcome, add_images, remove_images, sync_images
from rayssl.pipeline.search.queries import images_of, squares_of
from rayssl.pipeline.search.query import OpenIndex, open_index
from rayssl.pipeline.stages.index import run_index
from rayssl.pipeline.stages.start import data_facts

SIDE, IMAGES, CONTENTS = 8, 40, 60
STEPS = int(os.environ.get("RAYSSL_STEPS", "0"))
Floats = NDArray[np.float32]


class Pixels:
    """In the place of the searched vectors' function: the pixels themselves, around grey."""

    channels = 3

    def __call__(self, images_at: Callable[[int], Any]) -> Floats:
        images = images_at(SIDE)
        squares = images.square(np.arange(len(images)), SIDE).reshape(len(images), SIDE * SIDE * 3)
        return np.asarray(squares, dtype=np.float32) / 255 - 0.5


@dataclass(frozen=True)
class Made:
    """A run whose images are 40 of the contents, and the encoded contents."""

    run: Path
    folder: Path
    contents: list[bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("living")
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(CONTENTS):
        path = base / "content.png"
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
        contents.append(path.read_bytes())
    folder, run = base / "images", base / "run"
    for i in range(IMAGES):
        place = folder / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(contents[i])
    make_run(run, open_dataset(str(folder), image_size=SIDE, loader="stream"))
    return Made(run, folder, contents)


def make_run(run: Path, dataset: Dataset) -> None:
    """A run folder as the stages leave it, with the pixels for embeddings."""
    torch.manual_seed(0)
    export_encoder(build_encoder("cnn-small", channels=3, image_size=SIDE), run)
    config = configuration.override(build_recipe("simclr-folder"), {"data.path": dataset.path})
    configuration.save(config, run / "config.json")
    update_manifest(run, {"data": data_facts(dataset)})
    assert dataset.test is not None
    for split, images in {"train": dataset.train.join(dataset.val), "test": dataset.test}.items():
        found = Embeddings(
            images.ids, images.paths, images.labels, Pixels()(lambda _, images=images: images), dataset.class_names,
            encoder_hash(run), dataset.fingerprint, split, dataset.name, dataset.path, images.digests,
        )  # fmt: skip
        save_embeddings(found, run / "embeddings" / dataset.name / f"{split}.parquet")
    run_index(run)


def opened(run: Path) -> OpenIndex:
    """The index of a run, which embeds by pixels."""
    found = open_index(run)
    found.__dict__["encode"] = Pixels()
    return found


class Killed(BaseException):
    """What no code of ours catches, as a kill."""


@contextmanager
def killed_at(n: int) -> Iterator[list[bool]]:
    """The n-th operation on files fails, and all after it: what is cleaned up then would not be after a kill.

    Gives whether that came to pass.
    """
    count, struck = itertools.count(1), [False]

    def dying(operation: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **more: Any) -> Any:
            if struck[0] or next(count) >= n:
                struck[0] = True
                raise Killed
            return operation(*args, **more)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "mkdir", "fsync", "chmod"):
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            yield struck
        except Killed:
            assert struck[0]


class Living(RuleBasedStateMachine):
    """Images on a disk, an index of them, and what the index should hold: id → (path, content)."""

    made: Made
    number = itertools.count()

    @initialize()
    def begin(self) -> None:
        self.base = self.made.run.parent / f"case{next(self.number)}"
        shutil.copytree(self.made.run, self.base / "run")
        shutil.copytree(self.made.folder, self.base / "images")
        self.run, self.images, self.other = self.base / "run", self.base / "images", self.base / "other"
        self.other.mkdir()
        self.sources = set[Path]()  # what was added and is still indexed
        self.kept = list[tuple[OpenIndex, dict[int, tuple[str, bytes]]]]()  # readers of before
        self.used = set[int]()  # ids that were ever given
        sync_images(opened(self.run), str(self.images))
        self.expected = self.held()
        assert len(self.expected) == IMAGES
        self.used |= set(self.expected)

    def teardown(self) -> None:
        if hasattr(self, "base"):
            shutil.rmtree(self.base)

    # Images on the disk

    def files(self) -> list[Path]:
        return sorted([*self.images.rglob("*.png"), *self.other.rglob("*.png")])

    def called(self, file: Path) -> str:
        return file.relative_to(self.images).as_posix() if file.is_relative_to(self.images) else str(file)

    @rule(inside=st.booleans(), name=st.integers(0, 60), content=st.integers(0, CONTENTS - 1))
    def write(self, inside: bool, name: int, content: int) -> None:
        """A new image, or another at an old path."""
        place = (self.images / "a" if inside else self.other) / f"{name}.png"
        place.write_bytes(self.made.contents[content])

    @rule(which=st.integers(0, 1000))
    def delete(self, which: int) -> None:
        if files := self.files():
            files[which % len(files)].unlink()

    @rule(which=st.integers(0, 1000), name=st.integers(100, 120))
    def move(self, which: int, name: int) -> None:
        if files := self.files():
            file = files[which % len(files)]
            file.rename(file.parent / f"{name}.png")

    # Changes of the index

    def held(self) -> dict[int, tuple[str, bytes]]:
        """What the index holds by now."""
        items = opened(self.run).items
        paths, contents = items.paths.to_pylist(), items.table["content"].to_pylist()
        assert len(set(paths)) == len(paths) == len(set(items.ids.tolist()))
        return dict(zip(items.ids.tolist(), zip(paths, contents, strict=True), strict=True))

    def attempt(self, kill: int, work: Callable[[OpenIndex], Outcome]) -> Outcome | None:
        """Work that may be killed at some operation; None where it was."""
        index = opened(self.run)
        self.kept = [*self.kept, (index, dict(self.expected))][-2:]
        with killed_at(kill if kill else 10**9) as struck:
            outcome = work(index)
        return None if struck[0] else outcome

    def digest_of(self, file: Path) -> bytes:
        return hashlib.sha256(file.read_bytes()).digest()[:16]

    def settle(self, allowed: list[Callable[[dict[int, tuple[str, bytes]]], bool]]) -> None:
        """What is there by now is one of the states that there may be."""
        found = self.held()
        assert any(fits(found) for fits in allowed), (found, self.expected)
        new = set(found) - set(self.expected)
        assert not new & self.used, "an id was given twice"
        self.used |= new
        self.expected = found

    @rule(kill=st.integers(0, 40))
    def add(self, kill: int) -> None:
        files = sorted(self.other.glob("*.png"))
        if not files:
            return
        before = dict(self.expected)
        there = {path: (id_, content) for id_, (path, content) in before.items()}
        want = {str(file): self.digest_of(file) for file in files}
        same = {path for path, content in want.items() if path in there and there[path][1] == content}
        outcome = self.attempt(kill, lambda index: add_images(index, [self.other]))

        def is_new(found: dict[int, tuple[str, bytes]]) -> bool:
            others = {id_: one for id_, one in before.items() if one[0] not in want or one[0] in same}
            return others.items() <= found.items() and set(found.values()) == {*others.values(), *want.items()}

        if outcome is not None:
            assert (len(outcome.added), outcome.unchanged) == (len(want) - len(same), len(same))
        self.settle([is_new] if outcome is not None else [is_new, before.__eq__])

    @rule(kill=st.integers(0, 40), which=st.lists(st.integers(0, 1000), min_size=1, max_size=3), by=st.booleans())
    def remove(self, kill: int, which: list[int], by: bool) -> None:
        before = dict(self.expected)
        ids = sorted(before)
        go = {ids[one % len(ids)] for one in which}
        if len(go) >= len(ids):
            return
        wanted: list[str | int] = [one if by else before[one][0] for one in sorted(go)]
        after = {id_: one for id_, one in before.items() if id_ not in go}
        outcome = self.attempt(kill, lambda index: remove_images(index, wanted))
        self.settle([after.__eq__] if outcome is not None else [after.__eq__, before.__eq__])

    @rule(kill=st.integers(0, 60))
    def sync(self, kill: int) -> None:
        before = dict(self.expected)
        whole = any(path.startswith("/") for path, _ in before.values())
        files = [file for file in self.files() if whole or file.is_relative_to(self.images)]
        want = Counter((self.called(file), self.digest_of(file)) for file in files)
        if not want:
            return

        def is_synced(found: dict[int, tuple[str, bytes]]) -> bool:
            stay = {id_: one for id_, one in before.items() if one in want}
            old, new = Counter(one[1] for one in before.values()), Counter(one[1] for one in found.values())
            kept = Counter(before[id_][1] for id_ in found if id_ in before)
            same_content = all(found[id_][1] == before[id_][1] for id_ in found if id_ in before)
            return (
                Counter(found.values()) == want and stay.items() <= found.items() and kept == old & new and same_content
            )

        outcome = self.attempt(kill, lambda index: sync_images(index, yes=True))
        if outcome is None:  # between moves and additions it may be in the middle; once more, and it is there
            self.used |= set(self.held()) - set(before)
            sync_images(opened(self.run), yes=True)
            self.expected = self.held()
            assert Counter(self.expected.values()) == want
        else:
            self.settle([is_synced])

    @rule()
    def build_anew(self) -> None:
        """A setting that changes the base: what came stays, what went stays away."""
        path = self.run / "config.json"
        config = configuration.load(path)
        other = {"auto": "IVF1,Flat", "IVF1,Flat": "auto"}[config.index.factory]
        configuration.save(configuration.override(config, {"index.factory": other}), path)
        run_index(self.run)
        self.settle([self.expected.__eq__])

    # What is found

    @invariant()
    def answers_are_those_of_a_fresh_index(self) -> None:
        if hasattr(self, "expected"):
            self.compare(opened(self.run), self.expected)

    @precondition(lambda self: getattr(self, "kept", None))
    @rule()
    def readers_keep_what_they_opened(self) -> None:
        for index, expected in self.kept:
            self.compare(index, expected)

    def compare(self, index: OpenIndex, expected: dict[int, tuple[str, bytes]]) -> None:
        by_digest = self.vectors()
        ids = np.array(sorted(expected), dtype=np.int64)
        vectors = np.stack([by_digest[expected[int(one)][1]] for one in ids])
        queries = np.stack([*list(by_digest.values())[:3], np.full(vectors.shape[1], 0.1, np.float32)])
        k = min(7, len(ids))
        assert len(index) == len(ids)
        found = index.search(vectors=queries, k=k)
        scores, _ = search(build_index(vectors, ids), queries, k)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for answer, best, query in zip(found, scores, queries, strict=True):
            told = [one["score"] for one in answer["neighbors"]]
            np.testing.assert_allclose(told, best, atol=1e-5)
            for one in answer["neighbors"]:
                assert one["path"] == expected[one["id"]][0]
                row = int(np.searchsorted(ids, one["id"]))
                assert one["score"] == pytest.approx(float(unit[row] @ query / np.linalg.norm(query)), abs=1e-5)

    def vectors(self) -> dict[bytes, Floats]:
        """Vector by digest of the content."""
        if not hasattr(type(self), "known"):
            asked = images_of([*self.made.contents])
            found = Pixels()(squares_of(asked, 3))
            digests = [hashlib.sha256(one).digest()[:16] for one in self.made.contents]
            type(self).known = dict(zip(digests, found, strict=True))
        return self.known

    known: dict[bytes, Floats]


def test_an_index_under_changes_and_kills_is_a_dictionary(made: Made) -> None:
    Living.made = made
    examples, steps = (max(1, STEPS // 50), 50) if STEPS else (6, 12)
    run_state_machine_as_test(
        Living,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=not STEPS,
            print_blob=False,
        ),
    )
