"""evaluation.json as it is read: figures that are what was computed, from what the run folder holds now.

A record carries the hash of the encoder and of the embeddings that it was computed from, and a seal over all of it. One
that was changed afterwards, or is of other embeddings, is set aside: nothing shows it, and its stage computes it again.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.documents import load
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.schemas import EncoderFile, Evaluation
from rayssl.pipeline.base.seals import digest, fits, noted_hash, seal_of
from rayssl.pipeline.models.identity import hash_of_encoder

FILE = "evaluation.json"
VERBS = {"probe/": "probe", "finetune@": "finetune", "reconstruct/": "reconstruct", "likelihood/": "reconstruct"}
_BASELINE = re.compile(r"baseline/([^/]+)/")


def read_evaluation(run: Path | str) -> dict[str, Any]:
    """evaluation.json of a run; raises UserError where it is missing, damaged or of another schema version.

    `records` and `flat` have what is true, `set_aside` the metrics of the rest.
    """
    path = Path(run) / FILE
    remedy = f"remove it and run `rayssl evaluate {run}`"
    values = load(path, Evaluation, remedy, f"{path} does not exist: `rayssl evaluate {run}` writes it")
    whole = fits(path)
    encoder = encoder_hash_in(Path(run))
    true: list[dict[str, Any]] = []
    lost: list[str] = []
    for record in values["records"]:
        if _is_true(record, Path(run), whole, encoder):
            true.append(record)
        else:
            lost.append(record["metric"])
    flat = values["flat"] if whole is not False and not lost else flat_of(true)
    return {**values, "records": true, "flat": flat, "set_aside": lost}


def flat_of(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Metric → value, of the test split where there is one, and of several data sets of the last."""
    ordered = sorted(records, key=lambda record: record.get("split") == "test")
    return dict(sorted({record["metric"]: record["value"] for record in ordered}.items()))


def sealed(record: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """A record with what it was computed from, and its seal."""
    encoder = encoder_hash_in(run)
    own = encoder is not None and record["checkpoint"] == encoder[:12]
    found = {**record, "encoder": encoder if own else None, "embeddings": _embeddings_of(record, run)}
    return {**found, "seal": seal_of(found)}


def lost_of(stage: str, set_aside: Sequence[str]) -> list[str]:
    """The metrics among those set aside that a stage computes."""
    return [metric for metric in set_aside if verb_of(metric) == stage]


def verb_of(metric: str) -> str:
    """The command that computes a figure."""
    name = _BASELINE.sub("", metric)
    return next((verb for beginning, verb in VERBS.items() if name.startswith(beginning)), "evaluate")


def told_of(run: Path, set_aside: Sequence[str]) -> str:
    """A line about figures that are not shown; empty where there are none."""
    if not set_aside:
        return ""
    verbs = dict.fromkeys(verb_of(metric) for metric in set_aside)
    commands = ", ".join(f"`rayssl {verb} {run}`" for verb in verbs)
    more = f" and {len(set_aside) - 3} more" if len(set_aside) > 3 else ""
    return (
        f"{', '.join(set_aside[:3])}{more} in {run / FILE}: changed after it was computed, or of other embeddings than "
        f"the run has: not shown; {commands} computes it again"
    )


def encoder_hash_in(run: Path) -> str | None:
    """The same of a run's encoder; None where there is no whole encoder.json."""
    try:
        return hash_of_encoder(load(run / "encoder.json", EncoderFile, ""))
    except (UserError, OSError):
        return None


def _is_true(record: Mapping[str, Any], run: Path, whole: bool | None, encoder: str | None) -> bool:
    if "seal" not in record:
        return whole is not False  # of an older version; in a file that was changed nobody knows which
    if record["seal"] != seal_of(record):
        return False
    if record.get("encoder") is not None and encoder is not None and record["encoder"] != encoder:
        return False
    return all(noted_hash(run / path) in (None, found) for path, found in (record.get("embeddings") or {}).items())


def _embeddings_of(record: Mapping[str, Any], run: Path) -> dict[str, str] | None:
    """Path → sha256 of the embeddings that a figure is of; None where it is of none."""
    metric = record["metric"]
    if verb_of(metric) != "evaluate" or metric.startswith("choice/"):
        return None
    folder = Path("embeddings", record["data"])
    if metric.startswith("search/"):
        folder /= "search"
    elif (match := _BASELINE.match(metric)) and (run / folder / "baseline" / match[1]).is_dir():
        folder = folder / "baseline" / match[1]
    paths = [folder / f"{split}.parquet" for split in ("train", "test")]
    return {path.as_posix(): digest(run / path) for path in paths if (run / path).is_file()} or None
