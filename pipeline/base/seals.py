"""Which files of a folder are finished, by their sha256; every reader compares what it reads.

A run folder notes this in manifest.json, the folder of a search or race in files.json: `files` by path, and in
`writing` what was there before a file was rewritten. The note is gone before the file changes and comes back when it is
intact, so whenever a process is killed, a file is what the note says, or it is told to be unfinished. `seal` is the
sha256 of all the rest of the note itself.

A file is hashed in full once; then size, times and inode, remembered in the user's cache folder, stand for it.
"""

import atexit
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from rayssl.pipeline.base.atomic import placing
from rayssl.pipeline.base.cache_folder import cache_dir
from rayssl.pipeline.base.documents import DamagedError, load, open_regular, parse, read_bytes
from rayssl.pipeline.base.errors import UserError

RUN, OTHERS = "manifest.json", "files.json"  # where the notes of a run are, and those of a search or race
TRIALS = "trials/"  # what a search has in a folder; in a race the folders are runs with notes of their own
UPWARDS = 6  # folders between a file and the one that notes it
HOLLOW, FILLED = 1 << 30, 100  # bytes from which a file must not be a hole but for a hundredth
SETTLED = 0.1  # seconds after which a change shows in a file's times, whatever their granularity
TRIES = 20  # a reader beside a writer

Stamp = list[int]  # size, times and place of a file
Values = dict[str, Any]


@dataclass(frozen=True)
class Noted:
    """A file of a folder that was finished, or is being written again; `fault` is None where it is as it was."""

    path: Path
    fault: str | None
    unfinished: bool = False


# What is written


def started(folder: Path) -> None:
    """From now on the files of this folder are noted, in files.json; a run does so in its manifest."""
    if store_of(folder) is None:
        if os.path.lexists(folder / OTHERS):
            raise UserError(f"{folder / OTHERS} is damaged: `rayssl verify {folder} --repair --yes` removes it")
        folder.mkdir(parents=True, exist_ok=True)
        update(folder / OTHERS, lambda values: {**values, "schema": 1, "files": {}})


@contextmanager
def rewriting(path: Path) -> Iterator[None]:
    """The file is written within the block, and noted when that ends well."""
    forget(path)
    yield
    note(path)


def check_stays(path: Path) -> None:
    """Raises UserError where a folder on the way to a file of a run, search or race is a link to another place."""
    store = _store_above(path)
    if store is not None and not path.parent.resolve().is_relative_to(store.parent.resolve()):
        raise UserError(
            f"{path.parent} is a link to {path.parent.resolve()}: nothing is written outside of {store.parent}: put a "
            "folder in its place"
        )


def put_noted(temporary: Path, path: Path) -> None:
    """A whole file takes its place, and is noted."""
    with rewriting(path):
        os.replace(temporary, path)


def forget(*paths: Path) -> None:
    """The files are about to change, or to go."""
    for store, names in _by_store(paths).items():
        if noted := names & files_of(store).keys():
            update(store, lambda values, noted=noted: _without(values, noted))  # type: ignore[misc]


def forget_folder(folder: Path) -> None:
    """All files in a folder are about to go; what was there before is not unfinished but gone."""
    for store, names in _by_store([folder]).items():
        prefixes = tuple(f"{name}/" for name in names)
        if any(name.startswith(prefixes) for name in (*files_of(store), *_told(store, "writing"))):
            update(store, lambda values, prefixes=prefixes: _without_folders(values, prefixes))  # type: ignore[misc]


def note(*paths: Path) -> None:
    """The files are whole now; those that are not there are gone for good."""
    for store, names in _by_store(paths).items():
        sealed = {name: _sealed(store.parent, name) for name in names}
        update(store, lambda values, sealed=sealed: _with(values, sealed))  # type: ignore[misc]


def update(store: Path, change: Callable[[Values], Values]) -> None:
    """Change a note, whole or not at all, one process at a time."""
    with _alone(store.parent):
        before = parse(read_bytes(store)) if store.exists() else {}
        values = {key: value for key, value in change(before).items() if key != "seal"}
        if values.get("files") is not None:
            values["seal"] = seal_of(values)
        _write(store, values, put_noted)


def seal_of(values: Mapping[str, Any]) -> str:
    """The sha256 of all values but the seal itself."""
    rest = {key: value for key, value in values.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# What is read


def check(path: Path, remedy: str) -> None:
    """Raises UserError where a file is not as it was when it was finished; `remedy` says what repairs it.

    Nothing is known of files that are being written, and of folders that are older than these notes.
    """
    store = _store_above(path)
    if store is None:
        return
    name = path.absolute().relative_to(store.parent).as_posix()
    for _ in range(TRIES):
        sealed = files_of(store).get(name)
        if sealed is None:
            return
        fault = _fault(store.parent, name, sealed, Stamps.of(store.parent))
        if fault is None:
            return
        if files_of(store).get(name) == sealed:
            raise UserError(f"{path} is damaged ({fault}): {remedy}")


def fits(path: Path) -> bool | None:
    """Whether a file is as it was when it was finished; None where nothing is known of it."""
    store = _store_above(path)
    if store is None or path.absolute().relative_to(store.parent).as_posix() not in files_of(store):
        return None
    try:
        check(path, "")
    except UserError:
        return False
    return True


def digest(path: Path) -> str:
    """The sha256 of a file, which is hashed in full once; empty for what is not a file, or not there."""
    store = _store_above(path)
    folder = store.parent if store is not None else path.absolute().parent
    try:
        return Stamps.of(folder).digest(path.absolute().relative_to(folder).as_posix())
    except (DamagedError, FileNotFoundError, NotADirectoryError):
        return ""


def check_filled(handle: int) -> None:
    """Raises DamagedError for a large file that is next to nothing but a hole: its zeros would be read for hours."""
    size, found, place = os.fstat(handle).st_size, 0, 0
    if size <= HOLLOW:
        return
    try:
        while place < size and found < size // FILLED:
            start = os.lseek(handle, place, os.SEEK_DATA)
            place = os.lseek(handle, start, os.SEEK_HOLE)
            found += place - start
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data behind this place; else the file system does not tell
            return
    finally:
        os.lseek(handle, 0, os.SEEK_SET)
    if found < size // FILLED:
        raise DamagedError(f"a hole: of {size:,} bytes {found:,} are there")


def noted_hash(path: Path) -> str | None:
    """The sha256 of a file as it was noted; None where it was not."""
    store = _store_above(path)
    sealed = files_of(store).get(path.absolute().relative_to(store.parent).as_posix()) if store is not None else None
    return None if sealed is None else str(sealed["sha256"])


def forget_stamps(folder: Path) -> None:
    """From now on every file of a folder is read in full once more, whatever was remembered of it."""
    Stamps._kept[folder.absolute()] = Stamps(folder.absolute())


def audit(folder: Path) -> Iterator[Noted]:
    """Every file that is noted, compared with its note."""
    store = store_of(folder)
    if store is None:
        return
    stamps = Stamps.of(store.parent)
    for name, sealed in sorted(files_of(store).items()):
        yield Noted(folder / name, _fault(folder, name, sealed, stamps))
    for name, sealed in sorted(_told(store, "writing").items()):
        if name in files_of(store):
            continue
        same = sealed is not None and _fault(folder, name, sealed, stamps) is None
        if not same:
            yield Noted(folder / name, None, unfinished=True)
        else:
            yield Noted(folder / name, None)
    stamps.save()


def damaged_of(folder: Path, *beginnings: str) -> list[str]:
    """The noted files, among those whose path begins so, that are not as they were."""
    store = store_of(folder)
    if store is None:
        return []
    names = {**_told(store, "writing"), **files_of(store)}
    stamps = Stamps.of(folder)
    return [
        name
        for name, sealed in names.items()
        if name.startswith(beginnings) and (sealed is None or _fault(folder, name, sealed, stamps) is not None)
    ]


def is_unfinished(folder: Path) -> bool:
    """Whether a stage or some files of a folder are at work, or were when a process was killed."""
    store = store_of(folder)
    return store is not None and bool(_told(store, "writing") or running_stage(folder))


def running_stage(folder: Path) -> str | None:
    """The stage of a run that has begun and has not ended."""
    store = store_of(folder)
    running: str | None = (_values(store) or {}).get("running") if store is not None else None
    return running


def store_of(folder: Path) -> Path | None:
    """The file that notes what is finished in a folder; None where the folder is older, or nobody's."""
    for name in (RUN, OTHERS):
        if _is_store(folder / name):
            return folder / name
    return None


def files_of(store: Path) -> Values:
    """The noted files by path."""
    return _told(store, "files")


class Stamps:
    """sha256 of files of a folder, remembered by size, times and inode."""

    _kept: ClassVar[dict[Path, "Stamps"]] = {}  # in this process

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, list[Any]] = {}
        self.changed = False

    @classmethod
    def of(cls, folder: Path) -> "Stamps":
        """Those of a folder, with what was remembered of it."""
        folder = folder.absolute()
        if folder not in cls._kept:
            if not cls._kept:
                atexit.register(save_stamps)
            cls._kept[folder] = found = cls(folder)
            found.known = _remembered(_memory(folder))
        return cls._kept[folder]

    def digest(self, name: str) -> str:
        """The sha256 of a file; raises DamagedError where it is none, OSError where it cannot be read."""
        with open_regular(self.folder / name) as file:
            stamp = _stamp(os.fstat(file.fileno()))
            if name in self.known and self.known[name][:-1] == stamp:
                return str(self.known[name][-1])
            check_filled(file.fileno())
            found = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
            after = os.fstat(file.fileno())
        if _stamp(after) == stamp and time.time() - max(after.st_mtime, after.st_ctime) > SETTLED:
            self.known[name] = [*stamp, found]
            self.changed = True
        return found

    def save(self) -> None:
        """Remember for other processes what was hashed here."""
        if self.changed and (memory := _memory(self.folder)) is not None:
            with suppress(OSError, UserError):  # a cache that cannot be written costs time alone
                _write(memory, self.known, os.replace)
            self.changed = False


def save_stamps() -> None:
    """Remember for other processes what was hashed in this one."""
    for stamps in Stamps._kept.values():
        stamps.save()


def _memory(folder: Path) -> Path | None:
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    try:
        return cache_dir() / "facts" / f"stamps-{key}.json"
    except UserError:
        return None


def _remembered(memory: Path | None) -> dict[str, list[Any]]:
    try:
        values = parse(read_bytes(memory)) if memory is not None else {}
    except (OSError, DamagedError):
        return {}
    return values if isinstance(values, dict) and all(isinstance(one, list) for one in values.values()) else {}


def _write(path: Path, values: Values, put: Callable[[Path, Path], None]) -> None:
    with placing(path, put) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _stamp(found: os.stat_result) -> Stamp:
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _sealed(folder: Path, name: str) -> Values | None:
    stamps = Stamps.of(folder)
    try:
        size = os.stat(folder / name).st_size
        return {"size": size, "sha256": stamps.digest(name)}
    except (FileNotFoundError, NotADirectoryError, DamagedError):
        return None


def _fault(folder: Path, name: str, sealed: Mapping[str, Any], stamps: Stamps) -> str | None:
    try:
        size = os.stat(folder / name).st_size
        if size == sealed["size"] and stamps.digest(name) == sealed["sha256"]:
            return None
        with open_regular(folder / name):
            pass
    except (FileNotFoundError, NotADirectoryError):
        return "it is gone"
    except DamagedError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if size != sealed["size"]:
        return f"{size:,} bytes, not the {sealed['size']:,} that were written"
    return "its sha256 is not that of what was written"


def _without(values: Values, names: Iterable[str]) -> Values:
    files, writing = dict(values.get("files") or {}), dict(values.get("writing") or {})
    for name in names:
        writing[name] = files.pop(name, None)
    return {**values, "files": files, "writing": writing}


def _without_folders(values: Values, prefixes: tuple[str, ...]) -> Values:
    kept = {
        key: {name: one for name, one in (values.get(key) or {}).items() if not name.startswith(prefixes)}
        for key in ("files", "writing")
    }
    return {**values, **kept}


def _with(values: Values, sealed: Mapping[str, Values | None]) -> Values:
    files, writing = dict(values.get("files") or {}), dict(values.get("writing") or {})
    for name, one in sealed.items():
        writing.pop(name, None)
        files.pop(name, None)
        if one is not None:
            files[name] = one
    return {**values, "files": dict(sorted(files.items())), "writing": writing}


def _by_store(paths: Iterable[Path]) -> dict[Path, set[str]]:
    found: dict[Path, set[str]] = {}
    for path in paths:
        store = _store_above(path)
        if store is not None and path.absolute() != store:
            name = path.absolute().relative_to(store.parent).as_posix()
            if store.name == RUN or "/" not in name or name.startswith(TRIALS):
                found.setdefault(store, set()).add(name)
    return found


def _store_above(path: Path) -> Path | None:
    for folder in list(path.absolute().parents)[:UPWARDS]:
        if (store := store_of(folder)) is not None:
            return store
    return None


def _is_store(path: Path) -> bool:
    return _values(path) is not None


def _told(store: Path, key: str) -> Values:
    return dict((_values(store) or {}).get(key) or {})


_read: dict[Path, tuple[Stamp, Values | None]] = {}  # notes by path, as long as they are unchanged


def _values(path: Path) -> Values | None:
    """A note that is whole; None for anything else of that name."""
    try:
        stamp = _stamp(os.stat(path))
    except OSError:
        return None
    if path not in _read or _read[path][0] != stamp:
        _read[path] = stamp, _load(path)
    return _read[path][1]


def _load(path: Path) -> Values | None:
    from rayssl.pipeline.base.schemas import Files

    try:
        values = load(path, Files, "")
    except (UserError, OSError):
        return None
    return values if values.get("files") is not None and values.get("seal") == seal_of(values) else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time changes the note of a folder; where a file system knows no locks, nobody waits."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
