"""An index under random changes, kills and readers, against a plain dictionary and an index that is built again.

More than the suite's few steps: `RAYSSL_STEPS=500 pytest tests/unit/search/test_living_index.py`.
"""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray
from PIL import Image

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.data import Dataset, open_dataset, sample_id
from rayssl.pipeline.features.whitening import fit_whitening
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.models.export import export_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.folder import update_manifest
from rayssl.pipeline.search.embeddings import Embeddings, load_embeddings, save_embeddings, vector_column
from rayssl.pipeline.search.generations import current, read_generation, write_manifest, write_parts
from rayssl.pipeline.search.index import build_index, search
from rayssl.pipeline.search.ingest import Outcome, add_images, remove_images, sync_images
from rayssl.pipeline.search.live import LiveIndex
from rayssl.pipeline.search.queries import images_of, squares_of
from rayssl.pipeline.search.query import OpenIndex, open_index
from rayssl.pipeline.stages.index import run_index
from rayssl.pipeline.stages.start import data_facts

SIDE, IMAGES, CONTENTS = 8, 40, 60
STEPS = int(os.environ.get("RAYSSL_STEPS", "0"))
LOADS = int(os.environ.get("RAYSSL_LOADS", "30"))
Floats = NDArray[np.float32]
KILLS = st.just(0) | st.integers(1, 60)  # operations on files until a writer is killed; 0: it is not


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
        for i in range(3):
            (self.other / f"{i}.png").write_bytes(self.made.contents[-1 - i])
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

    def write(self, inside: bool, name: int, content: int) -> None:
        """A new image, or another at an old path."""
        place = (self.images / "a" if inside else self.other) / f"{name}.png"
        place.write_bytes(self.made.contents[content])

    def delete(self, which: int) -> None:
        if files := self.files():
            files[which % len(files)].unlink()

    def move(self, which: int, name: int) -> None:
        if files := self.files():
            file = files[which % len(files)]
            file.rename(file.parent / f"{name}.png")

    # Changes of the index

    @rule(
        what=st.sampled_from(["add", "remove", "write", "add", "remove", "sync", "delete", "move", "build", "read"]),
        kill=KILLS,
        which=st.lists(st.integers(0, 3) | st.integers(0, 50), min_size=1, max_size=3),
        name=st.integers(0, 7),
        content=st.integers(0, CONTENTS - 1),
        flag=st.booleans(),
    )
    def step(self, what: str, kill: int, which: list[int], name: int, content: int, flag: bool) -> None:
        """One of all, drawn here: of several rules hypothesis would leave some out of each example."""
        steps: dict[str, Callable[[], None]] = {
            "write": lambda: self.write(flag, name, content),
            "delete": lambda: self.delete(which[0]),
            "move": lambda: self.move(which[0], 100 + name),
            "add": lambda: self.add(kill),
            "remove": lambda: self.remove(kill, which, flag),
            "sync": lambda: self.sync(kill),
            "build": self.build_again,
            "read": self.readers_keep_what_they_opened,
        }
        steps[what]()

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

    def remove(self, kill: int, which: list[int], by: bool) -> None:
        before = dict(self.expected)
        ids = sorted(before, key=lambda id_: (not before[id_][0].startswith("/"), id_))  # what was added first
        go = {ids[one % len(ids)] for one in which}
        if len(go) >= len(ids):
            return
        wanted: list[str | int] = [one if by else before[one][0] for one in sorted(go)]
        after = {id_: one for id_, one in before.items() if id_ not in go}
        outcome = self.attempt(kill, lambda index: remove_images(index, wanted))
        self.settle([after.__eq__] if outcome is not None else [after.__eq__, before.__eq__])

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

    def build_again(self) -> None:
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
    examples, steps = (max(1, STEPS // 50), 50) if STEPS else (6, 20)
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


def test_readers_open_the_old_index_or_the_new_while_it_is_rewritten(made: Made, tmp_path: Path) -> None:
    """A writer in another process adds and removes an image until it is told to stop; 1,000 loads: RAYSSL_LOADS."""
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    other = tmp_path / "other.png"
    other.write_bytes(made.contents[-1])
    stop = tmp_path / "stop"
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[4])\n"
        "from test_living_index import opened\n"
        "from rayssl.pipeline.search.ingest import add_images, remove_images\n"
        "run, image, stop = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])\n"
        "while not stop.exists():\n"
        "    add_images(opened(run), [image]); remove_images(opened(run), [image])\n"
        "    print('written', flush=True)\n"
    )
    words = [sys.executable, "-c", program, str(run), str(other), str(stop), str(Path(__file__).parent)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        sizes = [len(open_index(run)) for _ in range(LOADS)]
        stop.touch()
        written = 1 + len(writer.stdout.readlines())
    assert writer.returncode == 0
    assert written > 1  # it was written again while it was read
    assert set(sizes) <= {IMAGES, IMAGES + 1}


def test_a_new_image_at_an_old_path_is_another(made: Made, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    file = tmp_path / "new.png"
    ids = []
    for content in made.contents[50:53]:
        file.write_bytes(content)
        outcome = add_images(opened(run), [file])
        ids += outcome.added
        assert outcome.removed == ids[-2:-1]
        assert add_images(opened(run), [str(file), tmp_path]).unchanged == 1
    assert ids[0] == sample_id(str(file))
    assert len(set(ids)) == 3
    (found,) = opened(run).search(file.read_bytes(), k=1)
    assert (found["neighbors"][0]["id"], found["neighbors"][0]["label"]) == (ids[-1], None)
    assert found["neighbors"][0]["score"] == pytest.approx(1, abs=1e-6)
    index = opened(run)
    assert str(file) not in [one["path"] for one in index.search(file, k=5)[0]["neighbors"]]
    row = index.items.rows(np.array(ids[-1]))
    assert index.items.table["split"][int(row)].as_py() == "added"


def test_what_cannot_be_read_is_set_aside_and_what_is_not_there_is_refused(made: Made, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "good.png").write_bytes(made.contents[50])
    (tmp_path / "new" / "cut.png").write_bytes(made.contents[51][:40])
    (tmp_path / "text.txt").write_text("no image")
    outcome = add_images(opened(run), [tmp_path / "new", tmp_path / "text.txt"])
    assert len(outcome.added) == 1
    assert [path for path, _ in outcome.unreadable] == [str(tmp_path / "text.txt"), str(tmp_path / "new" / "cut.png")]
    before = {path: path.read_bytes() for path in (run / "index").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        add_images(opened(run), [tmp_path / "new", tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"--remove 7 is no id, path or pattern of the 41 images"):
        remove_images(opened(run), ["a/0.png", 7])
    with pytest.raises(UserError, match=r"--remove fits all 41 images of the index: leave some"):
        remove_images(opened(run), ["*"])
    assert before == {path: path.read_bytes() for path in (run / "index").rglob("*") if path.is_file()}
    gone = remove_images(opened(run), ["a/?.png", str(tmp_path / "new/good.png")]).removed
    assert len(gone) == 6
    assert outcome.added[0] in gone
    assert not np.isin(gone, opened(run).items.ids).any()
    again = add_images(opened(run), [tmp_path / "new" / "good.png"]).added
    assert again != outcome.added
    assert remove_images(opened(run), again).removed == again
    assert not np.isin(again, opened(run).items.ids).any()


def test_a_folder_that_is_not_mounted_empties_no_index(made: Made, tmp_path: Path) -> None:
    run, images = tmp_path / "run", tmp_path / "images"
    shutil.copytree(made.run, run)
    shutil.copytree(made.folder, images)
    assert sync_images(opened(run), str(images)).told == "0 added, 0 removed, 40 unchanged"
    shutil.move(images, tmp_path / "away")
    with pytest.raises(UserError, match=r"40 of 40 images are gone from .*images: .*--yes"):
        sync_images(opened(run), str(images))
    for path in sorted((tmp_path / "away" / "a").glob("*.png"))[:4]:
        path.unlink()
    (tmp_path / "away" / "b" / "1.png").rename(tmp_path / "away" / "moved.png")
    assert sync_images(opened(run), str(tmp_path / "away")).told == "0 added, 4 removed, 1 moved, 35 unchanged"
    assert opened(run).place == tmp_path / "away"
    assert sync_images(opened(run)).told == "0 added, 0 removed, 36 unchanged"


def test_added_vectors_that_are_not_finite_are_refused_and_not_left_out(made: Made, tmp_path: Path) -> None:
    run, new = tmp_path / "run", tmp_path / "new.png"
    shutil.copytree(made.run, run)
    new.write_bytes(made.contents[50])
    add_images(opened(run), [new])
    (folder,) = (run / "index").iterdir()
    found = read_generation(folder, current(folder))
    lost = np.full((1, found.manifest["dim"]), np.nan, np.float32)
    place = found.additions.schema.get_field_index("vector")
    table = found.additions.set_column(place, found.additions.schema.field("vector"), vector_column(lost))
    parts = {**found.manifest["parts"], **write_parts(folder, found.name, {"additions": table})}
    write_manifest(folder, found.name, {**found.manifest, "parts": parts})
    with pytest.raises(UserError, match="added vectors hold NaN"):
        open_index(run)


@pytest.mark.parametrize("at", range(1, 26, 3))
def test_what_was_added_outlives_a_damaged_base_and_a_kill_while_it_is_built_again(
    at: int, made: Made, tmp_path: Path
) -> None:
    run, new = tmp_path / "run", tmp_path / "new.png"
    shutil.copytree(made.run, run)
    new.write_bytes(made.contents[50])
    (id_,) = add_images(opened(run), [new]).added
    base = next(run.glob("index/*/g*/index.faiss"))
    base.write_bytes(base.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"index\.faiss is damaged"):
        open_index(run)
    with killed_at(at):
        run_index(run)
    run_index(run)
    assert len(open_index(run)) == IMAGES + 1
    assert id_ in open_index(run).items.ids


def test_what_was_added_waits_for_a_new_encoder_and_is_embedded_by_sync(made: Made, tmp_path: Path) -> None:
    run, new = tmp_path / "run", tmp_path / "new.png"
    shutil.copytree(made.run, run)
    new.write_bytes(made.contents[50])
    add_images(opened(run), [new])
    remove_images(opened(run), ["a/0.png"])
    torch.manual_seed(1)
    export_encoder(build_encoder("cnn-small", channels=3, image_size=SIDE), run)
    for file in (run / "embeddings").rglob("*.parquet"):
        save_embeddings(replace(load_embeddings(file), encoder_hash=encoder_hash(run)), file)
    told: list[str] = []
    run_index(run, told.append)
    assert len(open_index(run)) == IMAGES - 1
    assert ["sync" in one for one in told] == [True]
    run_index(run, told.append)
    assert len(told) == 1
    outcome = sync_images(opened(run), str(made.folder))
    assert outcome.told == "2 added, 0 removed, 39 unchanged"  # and a/0.png, whose file is there
    assert {str(new), "a/0.png"} <= set(open_index(run).items.paths.to_pylist())


@pytest.mark.parametrize(
    "factory", ["Flat", "HNSW16", "IVF4,Flat", "IVF4,SQ8", "SQfp16", "PCA8,Flat", "PQ8x4,RFlat", "PQ8x4fs"]
)
@pytest.mark.parametrize("whiten", [False, True])
def test_what_came_and_went_is_found_as_in_an_index_of_what_is_there(factory: str, whiten: bool) -> None:
    rng = np.random.default_rng(0)
    x, ids = rng.normal(size=(900, 16)).astype(np.float32), rng.permutation(2**62 - np.arange(900))
    queries = rng.normal(size=(5, 16)).astype(np.float32)
    whitening = fit_whitening(normalise(x)) if whiten else None
    base = build_index(x[:800], ids[:800], factory, whitening)
    gone = np.sort(ids[:80])
    live = LiveIndex(base, gone, ids[800:], normalise(x[800:]))
    assert (live.ntotal, live.d) == (820, 16)
    scores, found = search(live, queries, 30)
    assert not np.isin(found, gone).any()
    assert np.isin(found, ids[800:]).any()
    assert (np.diff(scores, axis=1) <= 0).all()
    exact, _ = search(build_index(x[80:], ids[80:], "Flat", whitening), queries, 30)
    if factory in ("Flat", "HNSW16", "SQfp16"):
        np.testing.assert_allclose(scores, exact, atol=2e-3)
    only = np.sort(rng.choice(ids, 60, replace=False))
    _, chosen = live.search(normalise(queries), 60, only)
    wanted = set(only.tolist()) - set(gone.tolist())
    for row in chosen.tolist():
        assert set(row) - {-1} <= wanted
        if not factory.startswith("HNSW"):
            assert set(row) - {-1} == wanted  # however few are chosen, all of them are found


def test_a_program_that_searches_with_tensors_changes_nothing() -> None:
    """faiss.contrib.torch_utils puts a search of its own in the place of FAISS', for the whole process."""
    code = (
        "import faiss, faiss.contrib.torch_utils, numpy as np\n"
        "from rayssl.pipeline.search.live import LiveIndex\n"
        "base = faiss.IndexIDMap2(faiss.IndexFlatIP(4)); points = np.eye(4, dtype=np.float32)\n"
        "base.add_with_ids(points, np.arange(4))\n"
        "scores, ids = LiveIndex(base, gone=np.array([2])).search(points[2:3], 2, np.array([0, 2, 3]))\n"
        "assert sorted(ids[0].tolist()) == [0, 3], ids\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
