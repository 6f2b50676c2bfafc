"""The run folder: the only thing passed between stages. One writer at a time, a manifest, a log of metrics."""

import fcntl
import hashlib
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import replacing, write_json, writing

if TYPE_CHECKING:
    from pipeline.data import Dataset

SCHEMA = 1
COMMIT = "RAYSSL_COMMIT"  # variable by which a job is told the commit of its code
PACKAGES = ("rayssl", "torch", "torchvision", "ray", "albumentations", "faiss-gpu", "faiss-cpu", "numpy")


@contextmanager
def writer_lock(run: Path, wait_s: float = 30.0) -> Iterator[None]:
    """Be the only writer of a run folder; a dead writer's lock is gone with it.

    Waits, because a worker outlives its killed driver by some seconds. Raises UserError when it stays taken.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"{run} cannot be written: {error.strerror}: choose another place") from None
    with lock as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise UserError(
                        f"{run} is being written by {file.read().strip() or 'another process'}: "
                        "wait for it or stop it, or use another --out"
                    ) from None
                time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def read_manifest(run: Path) -> dict[str, Any]:
    """manifest.json; raises UserError where the folder is no run, is damaged, or has another schema version."""
    path = run / "manifest.json"
    try:
        values: Any = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        raise UserError(f"{run} is not a run folder (no manifest.json): give the folder a run wrote to") from None
    except ValueError:  # also what json and decoding raise
        raise UserError(f"{path} is damaged (not JSON): `rayssl verify {run}` lists what is whole") from None
    if values.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {values.get('schema')!r}: this version reads schema {SCHEMA}")
    return values


def winner_of(path: Path) -> Path:
    """The run folder that is meant: of a race its winner's; any other folder itself.

    Raises UserError for a race that has no winner yet, or whose race.json is damaged.
    """
    race = path / "race.json"
    if not race.is_file():
        return path
    try:
        winner: Any = json.loads(race.read_text(encoding="utf-8"))["winner"]
        inside = winner is None or (isinstance(winner, str) and Path(winner).name == winner)
    except (OSError, ValueError, KeyError, TypeError):
        inside, winner = False, None
    if not inside:
        raise UserError(f"{race} is damaged (no winner in it): restore it, or start the race again in a new --out")
    if winner is None:
        raise UserError(f"the race in {path} has no winner yet: the command that started it goes on")
    return path / str(winner)


def recorded(run: Path, dataset: "Dataset") -> "Dataset | None":
    """The images as the run knows them, by its name and fingerprint of them; None where they, or labels, are others.

    A run that is older than the scheme of fingerprints is compared by the one that it was started with.
    """
    data = read_manifest(run).get("data") if (run / "manifest.json").exists() else None
    known = dataset.known_as(data["fingerprint"]) if data else None
    return None if known is None or data is None else replace(known, name=data["name"])


def as_recorded(run: Path, dataset: "Dataset") -> "Dataset":
    """`recorded`; UserError where the images, or their labels, are not those that the run was started with."""
    known = recorded(run, dataset)
    if known is None:
        raise UserError(
            f"{dataset.path}, or its labels, has changed since {run} was started: use another --out, or bring back "
            f"what was there, or say where it is now with --data.path NEW; `rayssl embed {run} --data.path "
            f"{dataset.path}` embeds what is there now, as data of its own"
        )
    return known


def update_manifest(run: Path, changes: Mapping[str, Any]) -> None:
    """Replace top-level keys of the manifest, whole or not at all."""
    path = run / "manifest.json"
    values = read_manifest(run) if path.exists() else {"schema": SCHEMA, "stages": {}}
    write_json(path, {**values, **changes})


def describe_software() -> dict[str, Any]:
    """Commit, versions and machine, for the manifest."""
    return {"commit": _commit(), "versions": _versions(), "machine": _machine()}


def stage_done(run: Path, stage: str, key: str) -> bool:
    """Whether a stage has ended with this very key (see `stage_key`)."""
    if not (run / "manifest.json").exists():
        return False
    done: bool = read_manifest(run)["stages"].get(stage, {}).get("key") == key
    return done


def mark_stage(run: Path, stage: str, key: str, seconds: float, **facts: Any) -> None:
    """Record that a stage has ended."""
    stages = read_manifest(run)["stages"]
    stages[stage] = {"key": key, "seconds": round(seconds, 2), "finished": time.strftime("%FT%T%z"), **facts}
    update_manifest(run, {"stages": stages})


def stage_key(*parts: Any) -> str:
    """A short hash of what a stage depends on: its part of the config and its inputs' hashes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class MetricsLog:
    """metrics.jsonl: one object a step or report. Appended to; cut back to the checkpoint on resume."""

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"

    def cut_back(self, stage: str, step: int) -> None:
        """Drop the rows of `stage` from `step` on, and a last line that was cut off by a crash."""
        if not self.path.exists():
            return
        with replacing(self.path) as temporary, temporary.open("w") as file:
            for row in self.rows():  # one by one: a long run's log need not fit in memory
                if row.get("stage") != stage or row.get("step", -1) < step:
                    file.write(json.dumps(row) + "\n")

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Append rows and hand them to the operating system: they survive the death of this process."""
        if rows:
            with writing(self.path), self.path.open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))

    def rows(self) -> Iterator[dict[str, Any]]:
        """All whole rows; a line that a crash cut off is left out."""
        if not self.path.exists():
            return
        with self.path.open() as file:
            for line in file:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue


def _commit() -> str | None:
    folder = Path(__file__).parent
    call = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(COMMIT) or None  # a submitted job's code is a copy


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
