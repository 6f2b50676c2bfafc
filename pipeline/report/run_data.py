"""A run with everything its sections draw from, and small pieces of HTML. All text from outside is escaped here."""

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.report.html import escape, grid, paragraph
from rayssl.pipeline.report.results import Run
from rayssl.pipeline.run.metrics_log import MetricsLog

if TYPE_CHECKING:
    from rayssl.pipeline.data import Dataset
    from rayssl.pipeline.search.embeddings import Embeddings


Curve = tuple["array[float]", "array[float]"]  # 8 bytes a number, where a list of a long run's takes 32


class NothingToShowError(Exception):
    """A section, or one run's part of it, has nothing to show; the text says why."""


@dataclass
class Material:
    """A run, its colour (#rrggbb) and its data set, or the reason why that cannot be opened."""

    run: Run
    colour: str
    opened: "Dataset | UserError"

    @property
    def dataset(self) -> "Dataset":
        """The data set; raises UserError where it cannot be opened any more."""
        if isinstance(self.opened, UserError):
            raise self.opened
        return self.opened

    @cached_property
    def curves(self) -> "dict[str, Curve]":
        """Metric → (steps, values) of pre-training."""
        found: dict[str, Curve] = {}
        log = MetricsLog(self.run.folder)
        log.check()
        for row in log.rows():
            if row.get("stage") == "pretrain":
                _add_row(found, row)
        return found

    @cached_property
    def embeddings(self) -> "dict[str, Embeddings]":
        """Split → embeddings, of the run's own data where the folder has several.

        Raises NothingToShowError where there are none, UserError where a file is damaged.
        """
        from rayssl.pipeline.search.embeddings import files_of, load_embeddings

        folder = self._embeddings_folder()
        return {path.stem: load_embeddings(path) for path in files_of(folder)}

    def split(self, name: str) -> "Embeddings":
        """The embeddings of one split with at least one row; raises NothingToShowError where there are none."""
        found = self.embeddings.get(name)
        if found is None or len(found.ids) == 0:
            raise NothingToShowError(f"no embeddings of the {name} split")
        return found

    def _embeddings_folder(self) -> Path:
        parent = self.run.folder / "embeddings"
        folders = [path for path in listed(parent) if path.is_dir()]
        if not folders:
            raise NothingToShowError(f"no embeddings: `rayssl embed {self.run.folder}` writes them")
        own = self.run.manifest.get("data", {}).get("name")
        return next((folder for folder in folders if folder.name == own), folders[0])


def load_material(runs: Sequence[Run], colours: Sequence[str]) -> list[Material]:
    """The runs with their data sets, each opened once."""
    opened: dict[str, Dataset | UserError] = {}
    for run in runs:
        key = _data_key(run)
        if key not in opened:
            opened[key] = _open(run)
    return [Material(run, colour, opened[_data_key(run)]) for run, colour in zip(runs, colours, strict=True)]


def title_of(material: Material, detail: str = "") -> str:
    """Heading of one run's part of a section, with its colour."""
    dot = f'<i class="dot" style="background:{material.colour}"></i>'
    return f"<h3>{dot}{escape(material.run.label)}{escape(detail)}</h3>"


def each_run(materials: Sequence[Material], draw: Callable[[Material], str], kind: str = "") -> str:
    """What `draw` makes of every run, with a word for those that have nothing to show.

    Raises NothingToShowError where no run has anything.
    """
    blocks, reasons = [], []
    for material in materials:
        try:
            body = draw(material)
            blocks.append(title_of(material) + body if len(materials) > 1 else body)
        except (NothingToShowError, UserError) as reason:
            reasons.append(f"{material.run.label}: {reason}" if len(materials) > 1 else str(reason))
    if not blocks:
        raise NothingToShowError("; ".join(dict.fromkeys(reasons)))
    return grid(blocks, kind) + "".join(paragraph(reason, "quiet") for reason in reasons)


def _add_row(found: "dict[str, Curve]", row: dict[str, Any]) -> None:
    step = row.get("step")
    for key, value in row.items():
        if "/" in key and isinstance(value, (int, float)) and isinstance(step, int):
            steps, values = found.setdefault(key, (array("d"), array("d")))
            steps.append(step)
            values.append(value)


def _data_key(run: Run) -> str:
    known = run.manifest.get("data", {}).get("fingerprint")
    return json.dumps([run.config["data"], run.config["train"]["seed"], known], sort_keys=True)


def _open(run: Run) -> "Dataset | UserError":
    from rayssl.pipeline.data import Reading, of_classes, open_dataset
    from rayssl.pipeline.run.folder import as_recorded

    data = run.config["data"]
    names = ("image_size", "channels", "limit", "val_fraction", "loader", *(one.name for one in fields(Reading)))
    try:
        before = {"range": "type", "background": "white"}  # of runs that do not say
        given = before | {name: data[name] for name in names if name in data}
        found = open_dataset(data["path"], seed=run.config["train"]["seed"], strict=False, **given)
        found = as_recorded(run.folder, found) if run.manifest.get("data") else found
        return of_classes(found, data["classes"]) if data.get("classes") else found
    except UserError as error:
        return error
