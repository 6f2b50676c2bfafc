"""Images come to an index, go from it, and are compared with what it knows: by path and by what their files hold."""

import fnmatch
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.config import IndexConfig
from rayssl.pipeline.data.image_files import image_files
from rayssl.pipeline.search.build import build, write
from rayssl.pipeline.search.changes import Change, Known, apply, is_worn
from rayssl.pipeline.search.columns import columns_of
from rayssl.pipeline.search.generations import Generation, current, has_generations, read_generation
from rayssl.pipeline.search.index import check_embeddings, check_matches
from rayssl.pipeline.search.items import Items
from rayssl.pipeline.search.queries import Asked, squares_of
from rayssl.pipeline.search.query import OpenIndex

BLOCK = 4096  # images that are embedded before they are written
GONE = 0.1  # share of the images whose absence is rather a disk that is not there

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageFile:
    """A file that may be indexed."""

    file: Path
    path: str  # what it is called in the index
    content: bytes  # 16 bytes
    source: str | None  # the folder or file that it was added with


@dataclass
class Outcome:
    """What a change has done."""

    added: list[int] = field(default_factory=list)  # ids
    removed: list[int] = field(default_factory=list)
    moved: int = 0
    unchanged: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (path, why)

    @property
    def told(self) -> str:
        """In a line."""
        parts = [f"{len(self.added):,} added", f"{len(self.removed):,} removed"]
        parts += [f"{self.moved:,} moved"] if self.moved else []
        parts.append(f"{self.unchanged:,} unchanged")
        parts += [f"{len(self.unreadable):,} unreadable"] if self.unreadable else []
        return ", ".join(parts)


def add_images(opened: OpenIndex, paths: Sequence[str | Path], progress: Progress | None = None) -> Outcome:
    """Add the images of files and folders, by the function that queries are embedded by.

    One that is there with the same content stays; with other content it gets a new id, and the old one goes. What
    cannot be read is set aside. What is told as added is on the disk. `opened` stays as it was: open the index again.
    Raises UserError for a path that is not there, and where another process writes the run.
    """
    files, unreadable = _files_of(opened, paths)
    with writer_lock(opened.run):
        before = _writable(opened)
        outcome = Outcome(unreadable=unreadable)
        known = _by_path(before.living())
        new, replaced = [], dict[str, int]()
        for one in files:
            id_, content = known.get(one.path, (None, b""))
            if id_ is not None and content == one.content:
                outcome.unchanged += 1
                continue
            if id_ is not None:
                replaced[one.path] = id_
            new.append(one)
        after = _embed_all(opened, before, new, replaced, outcome, progress)
        _settle(opened, after)
    return outcome


def remove_images(opened: OpenIndex, wanted: Sequence[str | int]) -> Outcome:
    """Remove images by id, by path or by a pattern of paths; raises UserError for one that fits none."""
    with writer_lock(opened.run):
        before = _writable(opened)
        items = before.living()
        found = {id_ for one in wanted for id_ in _ids_of(opened, items, str(one))}
        if len(found) >= len(items):
            raise UserError(f"--remove fits all {len(items):,} images of the index: leave some")
        go = np.array(sorted(found), dtype=np.int64)
        after, _ = apply(_folder(opened), before, Change(go=go))
        _settle(opened, after)
    return Outcome(removed=go.tolist(), unchanged=len(items) - len(go))


def sync_images(
    opened: OpenIndex, place: str | None = None, *, yes: bool = False, progress: Progress | None = None
) -> Outcome:
    """Make the index what the run's folder, and those that were added to it, hold by now.

    Images are the same by path and content, else by content, in the order of their paths: these have moved and keep
    their ids. The rest is embedded, or goes. `place`: where the run's images are now. Raises UserError where they are
    no files, and where more than a tenth of them have gone, unless `yes` says that this is meant.
    """
    with writer_lock(opened.run):
        before = _writable(opened)
        items = before.living()
        root = Path(os.path.abspath(place)) if place is not None else opened.place
        waiting = before.manifest.get("waiting", [])
        files = list(_files_to_compare(items, root, waiting))
        plan = compare(items, files)
        _check_files(items, plan, root)
        if len(plan.vanished) > GONE * len(items) and not yes:
            raise UserError(
                f"{len(plan.vanished):,} of {len(items):,} images are gone from {root}: bring them back (is a disk not "
                "mounted?), or say that it is meant with --yes"
            )
        if len(plan.gone) >= len(items) and not plan.new:
            raise UserError(f"{root} holds no image any more: the index would be empty")
        outcome = Outcome(moved=plan.moved, unchanged=plan.unchanged)
        known = Known(
            [one.path for one in plan.known],
            _contents(plan.known),
            [one.source for one in plan.known],
        )
        moved_to = None if place is None else str(root)
        after, _ = apply(_folder(opened), before, Change(go=plan.gone, ids=plan.ids, known=known, place=moved_to))
        outcome.removed = plan.gone.tolist()
        after = _embed_all(opened, after, plan.new, {}, outcome, progress)
        after, _ = apply(_folder(opened), after, Change(nothing_waits=bool(waiting)))
        _settle(opened, after)
    return outcome


def set_columns(opened: OpenIndex, file: Path) -> list[str]:
    """Columns of a table, joined by path, for `where`, in the place of those that were there; what is to be said."""
    with writer_lock(opened.run):
        before = _writable(opened)
        columns, told = columns_of(before.living(), opened.place, file)
        apply(_folder(opened), before, Change(columns=columns))
    return told


@dataclass(frozen=True)
class Plan:
    """What has become of the images of an index."""

    new: list[ImageFile]
    gone: Ints  # ids
    vanished: Ints  # ids of those whose path is not there any more
    ids: Ints  # of images that are known otherwise by now
    known: list[ImageFile]  # what they are known by
    moved: int
    unchanged: int


def compare(items: Items, files: Sequence[ImageFile]) -> Plan:
    """Items and files by path and content, then by content in the order of paths.

    An image whose content is not known is taken for what is at its path.
    """
    left = dict(_by_path(items))
    rest, kept = list[ImageFile](), list[tuple[int, ImageFile]]()
    unchanged = 0
    for one in files:
        id_, content = left.get(one.path, (None, b""))
        if id_ is None or (content is not None and content != one.content):
            rest.append(one)
            continue
        unchanged += 1
        del left[one.path]
        if content is None:
            kept.append((id_, one))
    by_content = defaultdict[bytes, list[tuple[str, int]]](list)
    for path, (id_, content) in sorted(left.items()):
        if content is not None:
            by_content[content].append((path, id_))
    new = list[ImageFile]()
    moved = dict[int, ImageFile]()
    for one in sorted(rest, key=lambda one: one.path):
        if by_content[one.content]:
            moved[by_content[one.content].pop(0)[1]] = one
        else:
            new.append(one)
    there = {one.path for one in files}
    gone = [id_ for id_, _ in left.values() if id_ not in moved]
    vanished = [id_ for path, (id_, _) in left.items() if id_ not in moved and path not in there]
    known = [*kept, *moved.items()]
    return Plan(
        new,
        np.array(sorted(gone), dtype=np.int64),
        np.array(vanished, dtype=np.int64),
        np.array([id_ for id_, _ in known], dtype=np.int64),
        [one for _, one in known],
        len(moved),
        unchanged,
    )


def _check_files(items: Items, plan: Plan, root: Path) -> None:
    """Raises UserError where the run's images were never files of a folder, so that none can be compared."""
    own = items.table.filter(pc.is_null(items.table["source"]))
    if not plan.unchanged and own["content"].null_count == len(own):
        raise UserError(f"{root}: the images of this index are no files of a folder: only these can be compared")


def _folder(opened: OpenIndex) -> Path:
    return opened.run / "index" / opened.name


def _writable(opened: OpenIndex) -> Generation:
    """The current generation, which fits the run; an index of an older form is built again first."""
    folder = _folder(opened)
    if not has_generations(folder):
        built = build(opened.run, opened.name, _settings(opened), None, "", lambda text: None)
        write(folder, built)
    found = read_generation(folder, current(folder))
    check_matches(found.manifest, opened.hash, found.manifest["data_fingerprint"])
    check_embeddings(found.manifest, opened.run)
    return found


def _settings(opened: OpenIndex) -> IndexConfig:
    return configuration.load(opened.run / "config.json").index


def _settle(opened: OpenIndex, generation: Generation) -> None:
    """Build a new base where much has come and gone."""
    if is_worn(generation):
        facts = generation.manifest
        built = build(opened.run, opened.name, _settings(opened), generation, facts.get("key") or "", lambda text: None)
        write(_folder(opened), built)


def _embed_all(
    opened: OpenIndex,
    before: Generation,
    files: Sequence[ImageFile],
    replaced: dict[str, int],
    outcome: Outcome,
    progress: Progress | None,
) -> Generation:
    """Embed and write, block by block; an image that cannot be read replaces none."""
    for start in range(0, len(files), BLOCK):
        block = files[start : start + BLOCK]
        asked = [Asked(one.path, one.file) for one in block]
        encode = opened.encode
        vectors = encode(squares_of(asked, encode.channels, opened.shown))
        rows = [row for row, one in enumerate(asked) if one.problem is None]
        outcome.unreadable += [(one.name, one.problem) for one in asked if one.problem is not None]
        come = [block[row] for row in rows]
        go = np.array([replaced[one.path] for one in come if one.path in replaced], dtype=np.int64)
        known = Known([one.path for one in come], _contents(come), [one.source for one in come])
        before, ids = apply(_folder(opened), before, Change(come=known, vectors=vectors[rows], go=go))
        outcome.added += ids.tolist()
        outcome.removed += go.tolist()
        if progress is not None:
            progress(min(start + BLOCK, len(files)), len(files))
    return before


def _contents(files: Sequence[ImageFile]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(one.content for one in files), np.uint8).reshape(-1, 16)


def _by_path(items: Items) -> dict[str, tuple[int, bytes | None]]:
    """Id and content by path."""
    contents = items.table["content"].to_pylist()
    return dict(zip(items.paths.to_pylist(), zip(items.ids.tolist(), contents, strict=True), strict=True))


def _called(file: Path, place: Path) -> str:
    """What a file is called in an index: relative to the run's images where it lies among them, else absolute."""
    return file.relative_to(place).as_posix() if file.is_relative_to(place) else str(file)


def _files_of(opened: OpenIndex, paths: Sequence[str | Path]) -> tuple[list[ImageFile], list[tuple[str, str]]]:
    """The image files of files and folders, each once, and those that are none, or cannot be named."""
    found, unreadable = dict[str, ImageFile](), list[tuple[str, str]]()
    for one in paths:
        source = os.path.abspath(os.path.expanduser(one))
        images = list(_images_below(str(one), opened.place, source))
        if not images and os.path.isfile(source):
            unreadable.append((source, f"image {source} cannot be read: it is no image"))
        elif not images:
            raise UserError(f"{source} holds no images")
        for image in images:
            if is_text(image.path):
                found[image.path] = image
            else:
                unreadable.append((image.path, "its name is not valid UTF-8"))
    return list(found.values()), unreadable


def _images_below(path: str, place: Path, source: str | None) -> Iterator[ImageFile]:
    root, keys, digests = image_files(path)
    for key, content in zip(keys, digests, strict=True):
        file = root / key
        yield ImageFile(file, _called(file, place), content.tobytes(), source)


def is_text(path: str) -> bool:
    """Whether a name can be written as UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files_to_compare(items: Items, root: Path, waiting: Sequence[str]) -> Iterator[ImageFile]:
    """The image files of the run's folder, and of what was added from elsewhere, each once."""
    seen = set[str]()
    sources = {*waiting, *(one for one in items.table["source"].unique().to_pylist() if one is not None)}
    for path, source in [(str(root), None), *((one, one) for one in sorted(sources) if os.path.exists(one))]:
        if source is None and not root.is_dir():
            continue  # all of it is gone
        for image in _images_below(path, root, source):
            if image.path not in seen and is_text(image.path):
                seen.add(image.path)
                yield image


def _ids_of(opened: OpenIndex, items: Items, wanted: str) -> list[int]:
    """The ids that an id, a path or a pattern means."""
    number = int(wanted) if wanted.isdecimal() and len(wanted) < 20 else 0
    if 0 < number < 2**63 and items.rows(np.array(number))[()] >= 0:
        return [number]
    paths = items.paths.to_pylist()
    absolute = _called(Path(os.path.abspath(os.path.expanduser(wanted))), opened.place)
    rows = [row for row, path in enumerate(paths) if path in (wanted, absolute)]
    if not rows:
        fits = re.compile(fnmatch.translate(wanted)).match
        rows = [row for row, path in enumerate(paths) if fits(path)]
    if not rows:
        raise UserError(f"--remove {wanted} is no id, path or pattern of the {len(items):,} images of the index")
    return [int(one) for one in items.ids[rows]]
