"""The trials that have ended, a file each, and how far a population has come: what a search continues from."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.documents import DamagedError, load, made_of, parse, read_bytes
from rayssl.pipeline.base.files import delete, listed, move, replacing, write_json
from rayssl.pipeline.base.schemas import TrialFile
from rayssl.pipeline.base.seals import check

FINISHED, STOPPED, FAILED = "finished", "stopped early", "failed"


@dataclass(frozen=True)
class Trial:
    """One candidate and what became of it."""

    number: int
    state: str  # FINISHED, STOPPED or FAILED
    parameters: dict[str, Any]  # by name, see rayssl.pipeline.tune.space
    views: list[dict[str, Any]]  # specs, one a view
    changes: dict[str, Any]  # of the config, by path
    score: float | None  # of the objective, higher is better; None where it never got one
    scores: dict[str, float]  # of every objective that could be measured, higher is better
    curve: list[tuple[int, float]]  # (steps, score) at every report
    began: float  # seconds since the search began, of all its sessions together
    seconds: float
    reason: str = ""  # of a failure
    schedule: list[dict[str, Any]] = field(
        default_factory=list
    )  # population-based training: parameters at every report


def save_trial(folder: Path, trial: Trial) -> None:
    """trials/<number>.json, whole or not at all."""
    write_json(folder / "trials" / f"{trial.number:04d}.json", dataclasses.asdict(trial))


def load_trials(folder: Path) -> list[Trial]:
    """The trials that have ended, by number; raises UserError where a file is damaged."""
    trials = []
    for path in listed(folder / "trials", "[0-9]*.json"):
        remedy = "remove it, and its trial is done again"
        values = load(path, TrialFile, remedy)
        check(path, remedy)
        values["curve"] = [(int(step), float(score)) for step, score in values["curve"]]
        trials.append(made_of(Trial, values))
    return trials


def member_folder(folder: Path, number: int) -> Path:
    """Where a member of a population that has not ended is kept: checkpoint/ and rows.json, its reports so far."""
    return folder / "population" / f"{number:04d}"


def save_member(folder: Path, number: int, rows: Sequence[dict[str, Any]], copy: Callable[[Path], object]) -> None:
    """Keep what a member has come to, whole or not at all; `copy` copies its checkpoint to where it is told."""
    place = member_folder(folder, number)
    new, old = place.with_suffix(".new"), place.with_suffix(".old")
    for leftover in (new, old):
        delete(leftover)
    copy(new / "checkpoint")
    write_json(new / "rows.json", list(rows))
    if place.exists():
        move(place, old)
    move(new, place)
    delete(old)


def load_member(folder: Path, number: int) -> list[dict[str, Any]]:
    """A member's reports so far; none where nothing of it was kept."""
    try:
        rows: Any = parse(read_bytes(member_folder(folder, number) / "rows.json"))
    except (OSError, DamagedError):
        return []
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else []


def drop_member(folder: Path, number: int) -> None:
    """It has ended: its trial's file is all that is needed."""
    delete(member_folder(folder, number))


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The finished trial with the highest score; of those stopped early only where none has finished."""
    for state in (FINISHED, STOPPED):
        scored = [trial for trial in trials if trial.state == state and trial.score is not None]
        if scored:
            return max(scored, key=lambda trial: (trial.score, -trial.number))
    return None


def save_table(folder: Path, trials: Sequence[Trial]) -> None:
    """trials.parquet: a row a trial, with a column for every parameter and every objective."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "number": trial.number,
            "state": trial.state,
            "score": trial.score,
            "began": trial.began,
            "seconds": trial.seconds,
            "steps": trial.curve[-1][0] if trial.curve else 0,
            "reason": trial.reason,
            "views": json.dumps(trial.views),
            **{f"objective/{name}": value for name, value in trial.scores.items()},
            **{f"parameter/{name}": value for name, value in trial.parameters.items()},
        }
        for trial in trials
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(folder / "trials.parquet") as temporary:
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), temporary)
