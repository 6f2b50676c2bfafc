"""The run folder: the only thing passed between stages. One writer at a time, a manifest, a log of metrics."""

import hashlib
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.atomic import UNFINISHED, writing
from pipeline.base.documents import LONGEST_LINE, DamagedError, fit, load, open_regular, parse
from pipeline.base.errors import UserError
from pipeline.base.files import replacing
from pipeline.base.schemas import Manifest, RaceFile, Row
from pipeline.base.seals import check, fits, forget, note, seal_of, update

if TYPE_CHECKING:
    from pipeline.data import Dataset
from pipeline.base.lease import open_own

SCHEMA = 1


COMMIT = "RAYSSL_COMMIT"  # variable by which a job is told the commit of its code


PACKAGES = ("rayssl", "torch", "torchvision", "ray", "albumentations", "faiss-gpu", "faiss-cpu", "numpy")


def is_unstarted(run: Path) -> bool:
    """Whether a folder holds nothing, or what a command that was killed at its first file has left."""
    return all(path.name == ".lock" or path.name.endswith(UNFINISHED) for path in run.iterdir())


def read_manifest(run: Path) -> dict[str, Any]:
    """manifest.json; raises UserError where the folder is no run, is damaged, or has another schema version."""
    path = run / "manifest.json"
    remedy = "restore it, or remove it and give the command that started the run again; finished training is kept"
    missing = f"{run} is not a run folder (no manifest.json): give the folder a run wrote to"
    if (run / "config.json").exists():
        missing = f"{path} is gone: the command that started the run writes it anew; finished training is kept"
    values = load(path, Manifest, remedy, missing)
    if values.get("files") is not None and values.get("seal") != seal_of(values):
        raise UserError(f"{path} is damaged (it was changed after it was written): {remedy}")
    return {"stages": {}, **values}


def data_name(run: Path) -> str:
    """The name of the run's data set, a folder under embeddings/ and index/; a plain name, see the schema."""
    return str(own_data(run)["name"])


def own_data(run: Path) -> dict[str, Any]:
    """What the manifest tells of the run's images; raises UserError where it does not."""
    data: dict[str, Any] | None = read_manifest(run).get("data")
    if data is None:
        raise UserError(f"{run / 'manifest.json'} lacks data: give the command that started the run again")
    return data


def winner_of(path: Path) -> Path:
    """The run folder that is meant: of a race its winner's; any other folder itself.

    Raises UserError for a race that has no winner yet, or whose race.json is damaged.
    """
    race = path / "race.json"
    if not os.path.lexists(race):
        return path
    winner = read_race(path)["winner"]
    if winner is None:
        raise UserError(f"the race in {path} has no winner yet: the command that started it goes on")
    return path / str(winner)


def read_race(out: Path) -> dict[str, Any]:
    """race.json; raises UserError where it is missing, damaged or of another schema version."""
    path = out / "race.json"
    remedy = "restore it, or start the race again in a new --out"
    values = load(path, RaceFile, remedy, f"{out} is no race (no race.json): `rayssl race DIR` runs one")
    check(path, remedy)
    return values


def recorded(run: Path, dataset: "Dataset") -> "Dataset | None":
    """The images as the run knows them, by its name and fingerprint of them; None where they, or labels, are others.

    A run that is older than the scheme of fingerprints is compared by the one that it was started with.
    """
    data = read_manifest(run).get("data") if os.path.lexists(run / "manifest.json") else None
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
    if os.path.lexists(path):
        read_manifest(run)
    update(path, lambda values: {**(values or {"schema": SCHEMA, "stages": {}, "files": {}}), **changes})


def describe_software() -> dict[str, Any]:
    """Commit, versions and machine, for the manifest."""
    return {"commit": _commit(), "versions": _versions(), "machine": _machine()}


def stage_done(run: Path, stage: str, key: str) -> bool:
    """Whether a stage has ended with this very key (see `stage_key`)."""
    if not os.path.lexists(run / "manifest.json"):
        return False
    done: bool = read_manifest(run)["stages"].get(stage, {}).get("key") == key
    return done


def begin_stage(run: Path, stage: str) -> None:
    """Record that a stage is at work: until it has ended, files that belong together need not fit."""
    update_manifest(run, {"running": stage})


def mark_stage(run: Path, stage: str, key: str, seconds: float, **facts: Any) -> None:
    """Record that a stage has ended; the rows that it logged are whole."""
    note(run / "metrics.jsonl")
    stages = read_manifest(run)["stages"]
    stages[stage] = {"key": key, "seconds": round(seconds, 2), "finished": time.strftime("%FT%T%z"), **facts}
    update_manifest(run, {"stages": stages, "running": None})


def stage_key(*parts: Any) -> str:
    """A short hash of what a stage depends on: its part of the config and its inputs' hashes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class MetricsLog:
    """metrics.jsonl: one object a step or report. Appended to; cut back to the checkpoint on resume.

    Its hash is noted when a stage has ended; while one logs it is unfinished.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / "metrics.jsonl"

    def cut_back(self, stage: str, step: int) -> None:
        """Drop the rows of `stage` from `step` on, and a last line that was cut off by a crash."""
        if not os.path.lexists(self.path):
            return
        with replacing(self.path) as temporary, temporary.open("w") as file:
            for row in self.rows(all_whole=False):  # one by one: a long run's log need not fit in memory
                if row.get("stage") != stage or row.get("step", -1) < step:
                    file.write(json.dumps(row) + "\n")
        forget(self.path)  # it will be appended to

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Append rows and hand them to the operating system: they survive the death of this process."""
        if rows:
            forget(self.path)
            with writing(self.path), open_own(self.path, os.O_WRONLY | os.O_APPEND, "a") as file:
                file.write("".join(json.dumps(_finite(row)) + "\n" for row in rows))

    def rows(self, *, all_whole: bool = True) -> Iterator[dict[str, Any]]:
        """All whole rows; a last line that a crash cut off is left out.

        Raises UserError where another is damaged, unless these are left out too.
        """
        number, remedy = 0, f"remove it, and `rayssl report {self.run}` shows the rest"
        older = fits(self.path) is None  # or of a stage at work
        try:
            with open_regular(self.path) as file:
                while line := file.readline(LONGEST_LINE + 1):
                    number += 1
                    row = _row(line, older) if all_whole else _whole_row(line, older)
                    if row is not None:
                        yield row
        except FileNotFoundError:
            return
        except DamagedError as error:
            where = f"line {number} of {self.path}" if number else str(self.path)
            raise UserError(f"{where} is damaged ({error}): {remedy}") from None

    def check(self) -> None:
        """Raises UserError where the rows are not those that the last stage ended with."""
        check(self.path, f"its curves are lost: restore it, or `rayssl verify {self.run} --repair --yes` forgets it")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row without figures that are no numbers, which JSON has no word for."""
    return {key: value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}


def _row(line: bytes, older: bool) -> dict[str, Any] | None:
    """A row of metrics.jsonl; None for a line that was not written to its end.

    Older versions wrote NaN where a figure was none: such a figure is left out.
    """
    if len(line) > LONGEST_LINE:
        raise DamagedError(f"more than {LONGEST_LINE:,} bytes")
    try:
        row: dict[str, Any] = parse(line, no_numbers=older)
        row = _finite(row) if isinstance(row, dict) else row
        fit(row, Row)
    except DamagedError:
        if not line.endswith(b"\n"):
            return None
        raise
    return row


def _whole_row(line: bytes, older: bool) -> dict[str, Any] | None:
    try:
        return _row(line, older)
    except DamagedError:
        return None


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
