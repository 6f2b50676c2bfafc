"""Before anything is written: the images, who takes part, and the race that is there already."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.race.candidates import Entry, Network, asked_networks, entries_of, narrowed, plain_config
from rayssl.pipeline.race.networks import sized
from rayssl.pipeline.race.parts import Race, Shown, reading_by, say_nothing, warning_by
from rayssl.pipeline.race.race_file import NAME, About, Ledger, load_ledger
from rayssl.pipeline.run.estimate import check_disk
from rayssl.pipeline.run.folder import stage_key
from rayssl.pipeline.run.identity import FREE, flatten
from rayssl.pipeline.run.resolve import open_and_resolve
from rayssl.pipeline.run.software import describe_software

UNLIKE = ("cluster.", "wandb", "data.path")  # options that make no other race


def plan_race(
    changes: Mapping[str, Any],
    names: str | None,
    minutes: float,
    out: Path | None,
    found: Sequence[Network],
    *,
    began: float,
    shown: Shown,
    command: str,
) -> Race:
    """Open the images, settle who takes part, and go on with a race that is there; nothing is written.

    Raises UserError for what cannot work, and where the folder holds another race or something else.
    """
    if not minutes > 0 or minutes != minutes or minutes == float("inf"):
        raise UserError(f"--minutes is {minutes:g}: give the minutes of the whole race, e.g. --minutes 15")
    asked = asked_networks(changes)
    config, dataset = open_and_resolve(plain_config(changes), say_nothing, reading_by(shown))
    if not len(dataset.val):
        raise UserError(
            f"{dataset.path} leaves no image to compare candidates by: hold out more (--data.val-fraction is "
            f"{config.data.val_fraction:g}), or give more labels, at least some of every class, or none"
        )
    check_disk(config, dataset, Path())
    networks = sized([*asked, *found], channels=dataset.channels, image_side=dataset.image_size, warn=warning_by(shown))
    # One split for all: what is held out is settled here.
    fixed = {**changes, "data.val_fraction": config.data.val_fraction}
    entries = narrowed(entries_of(fixed, networks), names)
    settings = settings_of(changes, names)
    out = out if out is not None else Path("runs") / f"{dataset.name}-{stage_key(dataset.path, settings)[:6]}"
    ledger = ledger_of(out, entries, dataset, settings, minutes)
    ledger.command, ledger.software = command, describe_software()
    return Race(out, entries, ledger, dataset, began, shown)


def settings_of(changes: Mapping[str, Any], names: str | None) -> dict[str, Any]:
    """What makes another race when it is changed."""
    paths = {path.replace("-", "_"): str(value) for path, value in changes.items()}
    kept = {path: value for path, value in paths.items() if not path.startswith(UNLIKE) and path not in FREE}
    listed = sorted(word.strip() for word in names.split(",")) if names is not None else None
    return {"options": dict(sorted(kept.items())), "candidates": listed}


def ledger_of(
    out: Path, entries: Sequence[Entry], dataset: Dataset, settings: dict[str, Any], minutes: float
) -> Ledger:
    """The ledger of the race in a folder, with candidates that are new; raises UserError where it is another race."""
    about = {entry.name: About(entry.kind, entry.text, entry.source) for entry in entries}
    trained = [entry.name for entry in entries if entry.trains]
    if not (out / NAME).exists():
        check_empty(out)
        return Ledger(settings, data_of(dataset), float(minutes), about, trained)
    ledger = load_ledger(out)
    old, new = flatten(ledger.settings), flatten(settings)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise UserError(
                f"{out} holds another race: {key.removeprefix('options.')} is {old.get(key)!r} there and "
                f"{new.get(key)!r} here: use another --out, or the same value"
            )
    same = dataset.known_as(ledger.data["fingerprint"]) is not None
    if not same and ledger.data["path"] != dataset.path:
        raise UserError(
            f"{out} holds a race on {ledger.data['path']}, and {dataset.path} has other images: use another --out"
        )
    if not same:
        raise UserError(
            f"{dataset.path}, or its labels, has changed since the race in {out} was started: use another --out, or "
            "bring back what was there, or give the folder where that is now"
        )
    ledger.data["path"] = dataset.path
    joined = {name: one for name, one in about.items() if name not in (*ledger.about, *ledger.left_out)}
    ledger.about |= joined
    ledger.trained += [name for name in trained if name in joined]
    if minutes > ledger.minutes or joined:
        ledger.finished = False
    ledger.minutes = max(float(minutes), ledger.minutes)
    return ledger


def check_empty(out: Path) -> None:
    """Raises UserError where a folder holds something that is not a race."""
    if "://" in str(out):
        raise UserError(f"--out {out} is a URL: give a folder, on storage that all workers share")
    if (out / "config.json").exists():
        raise UserError(f"--out {out} is the folder of one run, not of a race: give a new or empty folder")
    if out.exists() and (not out.is_dir() or {path.name for path in listed(out)} - {".lock"}):
        raise UserError(f"--out {out} is not empty and is not a race: give a new or empty folder")


def data_of(dataset: Dataset) -> dict[str, Any]:
    """What a race is of."""
    labels = dataset.val.labelled()[1]
    return {
        "name": dataset.name,
        "path": dataset.path,
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "val": len(dataset.val),
        "labelled": bool(len(labels)) and len(dataset.class_names or ()) > 1,
    }
