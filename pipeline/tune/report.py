"""What a search has found, as one HTML file that needs nothing from anywhere else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from rayssl.pipeline.augment import gallery, view_from_dict
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_text
from rayssl.pipeline.base.progress import format_duration
from rayssl.pipeline.report.galleries import SHEET, image_address
from rayssl.pipeline.report.html import bullets, data_table, escape, grid, paragraph
from rayssl.pipeline.report.page import draw_sections, render_page
from rayssl.pipeline.report.run_data import NothingToShowError
from rayssl.pipeline.tune import charts
from rayssl.pipeline.tune.charts import rank_correlations
from rayssl.pipeline.tune.search import command_to_use, load_search
from rayssl.pipeline.tune.space import FAMILIES, Space, short
from rayssl.pipeline.tune.trials import FAILED, FINISHED, STOPPED, Trial, best_trial, load_trials

__all__ = ["rank_correlations", "write_tune_report"]

SHOWN = 15  # of the best trials
ENDS = 2  # so many of the best and of the worst trials are shown on images
IMAGES = 6
DRAWS = 7  # of every image


@dataclass(frozen=True)
class SearchedData:
    """The images, as search.json has them."""

    name: str
    path: str
    fingerprint: str
    train: int
    val: int
    image_size: int
    channels: int
    labelled: bool


@dataclass(frozen=True)
class SearchedEncoder:
    """The network of every trial."""

    name: str


@dataclass(frozen=True)
class SearchedConfig:
    """What the report needs of the trials' config."""

    encoder: SearchedEncoder


@dataclass(frozen=True)
class Searched:
    """What the report shows of search.json."""

    recipe: str
    objective: str
    searcher: str
    scheduler: str
    trials: int
    seed: int
    steps: int
    space: Space
    data: SearchedData
    config: SearchedConfig
    changes: dict[str, str]  # of the recipe, by path
    command: str
    commit: str | None
    versions: dict[str, str]
    machine: str


@dataclass(frozen=True)
class Findings:
    """A search, the trials of it that have ended, and images to show candidates on."""

    folder: Path
    search: Searched
    trials: list[Trial]
    images: Sequence[NDArray[np.uint8]]  # each (H, W, C)
    size: int  # of a view, in pixels

    @property
    def ranked(self) -> list[Trial]:
        """The trials that have a score, best first: those that finished, then those stopped early."""
        scored = [trial for trial in self.trials if trial.score is not None]
        return sorted(scored, key=lambda trial: (trial.state != FINISHED, -(trial.score or 0.0), trial.number))


def write_tune_report(folder: Path, images: Sequence[NDArray[np.uint8]] = (), *, size: int = 32) -> Path:
    """Write `folder`/tune-report.html from search.json and the trials that have ended, whole or not at all.

    `images` (H, W, C) are what the best and worst candidates are shown on, as views of `size` pixels. What there is
    nothing to show of is named at the end. Raises UserError where search.json is missing or damaged, or a trial's file.
    """
    search = read_search(folder)
    trials = [_as_it_ended(trial, search.space, folder) for trial in load_trials(folder)]
    found = Findings(folder, search, trials, images[:IMAGES], size)
    parts, left_out = draw_sections(SECTIONS, found)
    title = f"Augmentation for {search.recipe} on {search.data.name}"
    subtitle = f"{len(trials)} of {search.trials} trials, {search.steps:,} steps each, by {search.objective}"
    path = folder / "tune-report.html"
    write_text(path, render_page(title, subtitle, parts, left_out))
    return path


def read_search(folder: Path) -> Searched:
    """search.json; raises UserError where it is missing, damaged or of another version."""
    values = load_search(folder)
    try:
        search = TypeAdapter(Searched).validate_python(values)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(_damaged(folder, f"{where} is missing or no such value")) from None
    for name in search.space.operations:
        needed = [f"{name}.{key}" for key in FAMILIES[name].parameters] if name in FAMILIES else [name]
        for parameter in needed:
            if parameter not in search.space.parameters:
                raise UserError(_damaged(folder, f"its space has no {parameter}"))
    return search


def _damaged(folder: Path, reason: str) -> str:
    return f"{folder / 'search.json'} is damaged: {reason}: start the search again in a new --out"


def _as_it_ended(trial: Trial, space: Space, folder: Path) -> Trial:
    """With the parameters that it had in the end, where population-based training has changed them."""
    parameters = trial.schedule[-1]["parameters"] if trial.schedule else trial.parameters
    missing = sorted(space.parameters.keys() - parameters.keys())
    if missing:
        raise UserError(
            f"trial {trial.number} in {folder / 'trials'} is damaged (no {missing[0]}): remove it, and it is done again"
        )
    return replace(trial, parameters=parameters, changes=space.changes(parameters))


# Sections


def result_section(found: Findings) -> str:
    """The best trial, what it does to the images and how it is used."""
    counts = paragraph(_counts(found.trials))
    best = best_trial(found.trials)
    if best is None:
        return paragraph("No trial has a score yet.", "headline") + counts
    early = ", stopped early: none has finished" * (best.state == STOPPED)
    headline = f"Trial {best.number} is the best: {found.search.objective} {best.score:.4f}{early}."
    use = paragraph("A full run with it:") + f"<pre>{escape(_command(found, best))}</pre>"
    words = (
        "Higher is better for every objective. The best of many trials owes a part of its score to luck, and it was "
        "measured on validation images after a part of the recipe's steps: what the augmentation is worth, a "
        "full run tells, on test images."
    )
    parts = [paragraph(headline, "headline"), counts, _operations_table(found, best), use, paragraph(words, "quiet")]
    return "".join(parts)


def best_section(found: Findings) -> str:
    """The best trials, with all their scores."""
    ranked = found.ranked
    if not ranked:
        raise NothingToShowError("no trial has a score")
    objective = found.search.objective
    others = [name for name in dict.fromkeys(name for trial in ranked for name in trial.scores) if name != objective]
    changed = bool(found.search.space.config_paths)
    head = ["trial", "state", objective, *others, "augmentation", *["other values"] * changed]
    rows = [
        [
            str(trial.number),
            trial.state,
            f"{trial.score:.4f}",
            *(f"{trial.scores[name]:.4f}" if name in trial.scores else "–" for name in others),
            found.search.space.text(trial.parameters),
            *[", ".join(f"{name} {short(value)}" for name, value in trial.changes.items())] * changed,
        ]
        for trial in ranked[:SHOWN]
    ]
    more = f"The best {SHOWN} of {len(ranked)}. " if len(ranked) > SHOWN else ""
    words = paragraph(f"{more}p: the share of the images that an operation is applied to.", "quiet")
    return data_table([escape(cell) for cell in head], [[escape(cell) for cell in row] for row in rows]) + words


def looks_section(found: Findings) -> str:
    """What the best and the worst candidates make of some images."""
    if not found.images:
        raise NothingToShowError("no images at hand")
    if not found.ranked:
        raise NothingToShowError("no trial has a score")
    best, rest = found.ranked[:ENDS], found.ranked[ENDS:]
    blocks = [_looks(found, "Best", trial) for trial in best]
    blocks += [_looks(found, "Worst", trial) for trial in rest[-ENDS:]]
    words = "Each row is an image as it is, followed by draws of the first view."
    return grid(blocks, "broad") + paragraph(words, "quiet")


def failures_section(found: Findings) -> str:
    """The trials that failed, each with the reason."""
    failed = [trial for trial in found.trials if trial.state == FAILED]
    if not failed:
        raise NothingToShowError("no trial failed")
    rows = [[escape(trial.number), format_duration(trial.seconds), escape(trial.reason)] for trial in failed]
    return data_table(["trial", "after", "why"], rows)


def facts_section(found: Findings) -> str:
    """The command, the search, the images and the space."""
    search, data = found.search, found.search.data
    facts = {
        "recipe": search.recipe,
        "encoder": search.config.encoder.name,
        "objective": search.objective,
        "searcher": search.searcher,
        "scheduler": search.scheduler,
        "trials": f"{search.trials}, {search.steps:,} optimiser steps each",
        "seed": search.seed,
        "augmented": "the first view only" if search.space.one_branch else "every view",
        "data": f"{data.name}, {data.path}",
        "images": f"{data.train:,} train, {data.val:,} validation, {'with' if data.labelled else 'without'} labels",
        "image size": f"{data.image_size} × {data.image_size} pixels, channels: {data.channels}",
        "fingerprint": data.fingerprint[:12],
        "machine": search.machine,
        "commit": search.commit or "–",
        "versions": ", ".join(f"{name} {version}" for name, version in search.versions.items()),
    }
    space = [[escape(name), escape(charts.range_text(own))] for name, own in search.space.parameters.items()]
    return (
        f"<pre>{escape(search.command)}</pre>"
        + data_table(["", ""], [[name, escape(value)] for name, value in facts.items()])
        + f"<details><summary>The space</summary>{data_table(['parameter', 'range'], space)}</details>"
    )


def _population(found: Findings) -> str:
    if found.search.scheduler != "pbt":
        raise NothingToShowError("it needs --tune.scheduler pbt")
    return charts.population_section(best_trial(found.trials), found.search.space)


SECTIONS: tuple[tuple[str, Callable[[Findings], str]], ...] = (
    ("Result", result_section),
    ("Best trials", best_section),
    ("Objective against time", lambda found: charts.time_section(found.trials)),
    ("Importance of each operation", lambda found: charts.importance_section(found.trials, found.search.space)),
    ("Parallel coordinates", lambda found: charts.parallel_section(found.trials, found.search.space)),
    (
        "Pairs of operations",
        lambda found: charts.pairs_section(
            found.trials, found.search.space.operations, alone=found.search.searcher == "pairs"
        ),
    ),
    ("What the best and the worst augmentations look like", looks_section),
    (
        "Did the objectives without labels agree with labels?",
        lambda found: charts.agreement_section(found.trials, labelled=found.search.data.labelled),
    ),
    ("Population", _population),
    ("Failures", failures_section),
    ("What was run", facts_section),
)


# Pieces


def _operations_table(found: Findings, trial: Trial) -> str:
    space = found.search.space
    operations = space.spec(trial.parameters).operations
    if not operations:
        return paragraph("It leaves the images as they are.")
    rows = []
    for name, operation in zip(space.on(trial.parameters), operations, strict=True):
        own = {key: value for key, value in operation.to_dict().items() if key not in ("name", "p")}
        strengths = ", ".join(f"{key} {_setting(value)}" for key, value in own.items()) or "–"
        rows.append([escape(name), f"{100 * operation.p:.0f} %", escape(strengths)])
    changes = [f"{name}: {short(value)}" for name, value in trial.changes.items()]
    branch = paragraph("The first view only; the others are the plain image.") * space.one_branch
    return data_table(["operation", "share of images", "settings"], rows) + branch + bullets(changes)


def _setting(value: Any) -> str:
    return " to ".join(map(short, value)) if isinstance(value, list) else short(value)


def _command(found: Findings, trial: Trial) -> str:
    search = found.search
    return command_to_use(found.folder, search.recipe, search.changes, trial)


def _counts(trials: Sequence[Trial]) -> str:
    states = {state: sum(trial.state == state for trial in trials) for state in (FINISHED, STOPPED, FAILED)}
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    lasted = max((trial.began + trial.seconds for trial in trials), default=0.0)
    return f"Trials: {counts}; {format_duration(lasted)} in all."


def _looks(found: Findings, rank: str, trial: Trial) -> str:
    view = view_from_dict(trial.views[0])
    sheet = gallery(found.images, [view], size=found.size, seed=found.search.seed, n_draws=DRAWS)
    address = image_address(sheet, largest=SHEET, photograph=SHEET // 2)
    return (
        f"<h3>{rank}: trial {escape(trial.number)}, {trial.score:.4f}</h3>"
        f"{paragraph(found.search.space.text(trial.parameters), 'quiet')}"
        f'<figure class="picture"><img src="{address}" alt="augmented images"></figure>'
    )
