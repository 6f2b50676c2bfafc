"""What a report needs of a run folder, read once. Torch-free, so that a comparison costs no start-up time."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.documents import load
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.schemas import ReportedConfig
from rayssl.pipeline.base.seals import check, fits
from rayssl.pipeline.evaluation.records import read_evaluation, told_of
from rayssl.pipeline.run.folder import read_manifest

SCHEMA = 1
METHOD_LABELS = {
    "simclr": "SimCLR", "essl": "E-SSL", "rotnet": "RotNet", "autoencoder": "Autoencoder", "pixelcnn": "PixelCNN",
    "distill": "Distilled",
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A figure with the half-width of its 95 % interval (None: no interval), sample size and protocol."""

    value: float
    half_width: float | None = None
    n: int | None = None
    protocol: str = ""


@dataclass(frozen=True)
class Run:
    """One run folder. `config` is the plain JSON of config.json, `records` those of evaluation.json."""

    folder: Path
    name: str  # unique among the runs of a report
    label: str  # what people read: the method, or the name where methods repeat
    config: dict[str, Any]
    manifest: dict[str, Any]
    records: tuple[dict[str, Any], ...]
    flat: dict[str, float]
    untrue: str = ""  # what is told of figures that are not shown

    @property
    def method(self) -> str:
        """Name of the method, e.g. "simclr"; empty where the encoder was not trained here."""
        return str((self.config.get("method") or {}).get("name", ""))

    @property
    def network(self) -> str:
        """Name of the encoder and, where it is not 1, its width: "resnet18", "resnet18 2×"."""
        name, width = self.config["encoder"]["name"], self.config["encoder"].get("width")
        return f"{name} {width}×" if (width or 1) > 1 else str(name)

    @property
    def data_path(self) -> str:
        """`data.path` of the config."""
        return str(self.config["data"]["path"])

    @property
    def seed(self) -> int:
        """`train.seed` of the config: what the untrained network depends on."""
        return int(self.config["train"]["seed"])

    @property
    def lost(self) -> str:
        """What is told of figures that are not shown because a file is damaged; empty where they are only stale."""
        damaged = any(fits(self.folder / name) is False for name in ("evaluation.json", "encoder.json"))
        return self.untrue if damaged else ""

    def estimate(self, metric: str) -> Estimate | None:
        """The figure that the flat view shows for `metric`, with what its record says; None where there is none."""
        value = self.flat.get(metric)
        if value is None:
            return None
        same = (record for record in self.records if record["metric"] == metric and record["value"] == value)
        record = next(same, {})
        return Estimate(value, _half_width(record), record.get("n"), str(record.get("protocol") or ""))


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in the given order; raises UserError where a folder is no run, or is damaged."""
    if not folders:
        raise UserError("no run folders given: name one or more, e.g. rayssl report runs/simclr-digits")
    configs = [_read(folder / "config.json") for folder in folders]
    names = _unique_names(folders)
    return [
        Run(folder, name, label, config, _manifest(folder), *_evaluation(folder))
        for folder, name, label, config in zip(folders, names, _labels(configs, names), configs, strict=True)
    ]


def _read(path: Path) -> dict[str, Any]:
    remedy = "restore it, or start the run again in a new --out"
    values = load(path, ReportedConfig, remedy, f"{path} does not exist: {path.parent} is not a run folder")
    check(path, remedy)
    return values


def _manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(folder) if os.path.lexists(folder / "manifest.json") else {}


def _evaluation(folder: Path) -> tuple[tuple[dict[str, Any], ...], dict[str, float], str]:
    if not os.path.lexists(folder / "evaluation.json"):
        gone = fits(folder / "evaluation.json") is False
        return (), {}, f"{folder / 'evaluation.json'} is gone: `rayssl evaluate {folder}` writes it" if gone else ""
    values = read_evaluation(folder)
    flat = {key: float(value) for key, value in values["flat"].items()}
    return tuple(values["records"]), flat, told_of(folder, values["set_aside"])


def _half_width(record: dict[str, Any]) -> float | None:
    interval = record.get("interval")
    return (interval[1] - interval[0]) / 2 if interval else None


def _unique_names(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder.resolve()) for folder in folders]


def _labels(configs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    methods = [(config.get("method") or {}).get("name") for config in configs]
    labels = [METHOD_LABELS.get(method) for method in methods if method]
    plain = [label for label in labels if label]
    return plain if len(set(plain)) == len(configs) else list(names)
