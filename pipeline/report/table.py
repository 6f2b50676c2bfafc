"""The comparison: rows of runs and baselines, columns of metrics, each figure with its ±, and what follows from it."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.report.results import SCHEMA, Estimate, Run, load_runs

if TYPE_CHECKING:
    from rich.console import Console

BASELINES = {
    "raw-pixels": "raw pixels", "color-histogram": "colour histogram", "hog": "HOG", "random-init": "random encoder"
}  # fmt: skip
UNTRAINED = "random-init"
PRETRAINED = "pretrained"  # weights of the run's network; of others "pretrained-NAME"
OWN_IMAGES = "rayssl run simclr-folder --data.path DIR"
SMALL_TEST_SET = 1_000  # below it the 95 % interval of an accuracy is at least about ± 1 point wide
WHOLE_NAME = 16  # characters of a name that are never broken


@dataclass(frozen=True)
class Column:
    """A metric of the table."""

    metric: str
    title: str
    percent: bool = True  # shown as 100 × value; larger is better
    about: str = ""


@dataclass(frozen=True)
class Row:
    """A run or a baseline; `estimates` by metric."""

    label: str
    baseline: bool
    estimates: dict[str, Estimate]
    data: str  # path of the images
    seed: int | None  # None: a baseline that stands for those of all seeds

    def has_baseline(self, other: "Row") -> bool:
        """Whether this run's figures are to be compared with those of a baseline."""
        return other.baseline and other.data == self.data and other.seed in (None, self.seed)


KNN = Column("knn/top1", "kNN", about="nearest neighbours vote on frozen features")
WHITENED = Column("knn-whitened/top1", "kNN of whitened embeddings")
PROBE = Column(
    "probe/top1", "linear probe", about="linear classifier on frozen features, layer chosen on validation images"
)
ACC = Column("cluster/acc", "k-means ACC", about="clusters matched one-to-one with classes")
NMI = Column("cluster/nmi", "k-means NMI", about="information that clusters and classes share")
HEALTH = (
    Column("health/std", "spread", percent=False, about="mean standard deviation a dimension × √D; 0 = collapsed"),
    Column("health/rankme", "RankMe", percent=False, about="effective number of dimensions in use"),
    Column("health/uniformity", "uniformity", percent=False, about="more negative = spread more evenly on the sphere"),
    Column("health/alignment", "alignment", percent=False, about="distance between two views of one image"),
)


def columns_of(runs: Sequence[Run]) -> list[Column]:
    """The columns that have a figure; those of health where the images have no labels."""
    labelled = [KNN, PROBE, *_finetune_columns(runs), ACC, NMI]
    rows = rows_of(runs, [*labelled, *HEALTH])
    found = [column for column in labelled if _has_figures(rows, column)]
    return found or [column for column in HEALTH if _has_figures(rows, column)]


def rows_of(runs: Sequence[Run], columns: Sequence[Column]) -> list[Row]:
    """One row a run, then one a baseline. Runs that share data and encoder share theirs, untrained networks by seed."""
    own = [Row(run.label, False, _estimates(run, columns, ""), run.data_path, run.seed) for run in runs]
    return own + _baseline_rows(runs, columns)


def best_of(rows: Sequence[Row], column: Column) -> set[str]:
    """Labels of the rows with the largest figure; empty for columns without a better or worse."""
    values = {row.label: row.estimates[column.metric].value for row in rows if column.metric in row.estimates}
    if not column.percent or len(values) < 2:
        return set()
    largest = max(values.values())
    return {label for label, value in values.items() if math.isclose(value, largest, abs_tol=1e-12)}


def format_estimate(estimate: Estimate | None, percent: bool) -> str:
    """E.g. "98.9 ± 1.1" (percent) or "45.2" (plain, three significant digits); "–" for None."""
    if estimate is None:
        return "–"
    if not percent:
        text = f"{estimate.value:.3g}"
        return text if estimate.half_width is None else f"{text} ± {estimate.half_width:.2g}"
    text = f"{100 * estimate.value:.1f}"
    return text if estimate.half_width is None else f"{text} ± {100 * estimate.half_width:.1f}"


def explain_errors(columns: Sequence[Column]) -> str:
    """What the ± of these columns means."""
    text = "± is the half-width of the 95 % interval"
    finetune = any(column.metric.startswith("finetune@") for column in columns)
    return f"{text} (fine-tune: one standard deviation over draws of the labels)" if finetune else text


def headline(runs: Sequence[Run]) -> str:
    """The result in one sentence."""
    columns = columns_of(runs)
    if not columns:
        return "Nothing has been evaluated yet: `rayssl evaluate RUN` does it."
    column = columns[0]
    if not column.percent:
        return "Without enough labels, accuracy cannot be measured: only label-free statistics are shown."
    rows = [row for row in rows_of(runs, columns) if column.metric in row.estimates]
    own = [row for row in rows if not row.baseline]
    if not own:
        return "No run has been evaluated yet."
    best = max(own, key=lambda row: row.estimates[column.metric].value)
    reached = f"{best.label} reaches {_percent(best, column)} % {column.title}"
    others = [f"{row.label} {_versus(best, row, column)}" for row in rows if best.has_baseline(row)]
    return f"{reached}; {'; '.join(others)}." if others else f"{reached}."


def remarks(runs: Sequence[Run]) -> list[str]:
    """Plain words on how to read the figures: smoke tests, baselines that win, small test sets."""
    shown = columns_of(runs)
    columns = [column for column in shown if column.percent]
    rows = rows_of(runs, columns)
    found = [run.untrue for run in runs if run.untrue]
    if any(run.data_path == "digits" for run in runs):
        found.append(_digits_remark(rows))
    found += _seen_in_training(runs)
    found += _baselines_that_win(rows, columns)
    found += _whitening_helps(runs)
    found += _small_test_sets(rows, columns)
    if shown and not columns:
        found.append(
            "Without labels there is no accuracy; labels can be given by --data.labels FILE.csv (path, label)."
        )
    return found


def _seen_in_training(runs: Sequence[Run]) -> list[str]:
    """Test images that training saw as well."""
    found = []
    for run in runs:
        counts = run.manifest.get("data", {}).get("duplicates") or {}
        if counts.get("test_in_train"):
            found.append(
                f"{counts['test_in_train']:,} of {counts['test']:,} test images are also in training, pixel by pixel: "
                "accuracies are flattered."
            )
        if counts.get("val_in_train"):
            found.append(
                f"{counts['val_in_train']:,} of {counts['val']:,} validation images are also in training, pixel by "
                "pixel: what is chosen by them is flattered."
            )
    return list(dict.fromkeys(found))


def write_comparison(runs: Sequence[Path | str], out: Path | str) -> dict[str, Any]:
    """Write comparison.json, whole or not at all, and return it.

    {"schema": 1, "runs": [{"name", "recipe", "flat"}], "baselines": {label: {metric: value}}}, `flat` as in
    evaluation.json. Raises UserError where a folder is no run, or is damaged.
    """
    loaded = load_runs([Path(run) for run in runs])
    values = {
        "schema": SCHEMA,
        "runs": [{"name": run.name, "recipe": run.config.get("recipe", ""), "flat": run.flat} for run in loaded],
        "baselines": {label: _baseline_flat(run, name) for label, (run, name) in _baselines(loaded).items()},
    }
    write_json(Path(out), values)
    return values


def print_comparison(runs: list[Path], console: "Console") -> None:
    """Print the table, the best figure of a column in bold, and plain words under it.

    Raises UserError where a folder is no run, or is damaged.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    loaded = load_runs(runs)
    columns = columns_of(loaded)
    if not columns:
        console.print(Text("Nothing has been evaluated yet: `rayssl evaluate RUN` does it."))
        return
    rows = rows_of(loaded, columns)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    figures = [_cells(rows, row, columns) for row in rows]
    # In a narrow window titles and long names are broken into lines; figures are whole, over the edge if need be.
    table.add_column("", overflow="fold", min_width=min(WHOLE_NAME, max(len(row.label) for row in rows)))
    for number, column in enumerate(columns):
        table.add_column(Text(column.title), justify="right", min_width=max(len(row[number]) for row in figures))
    for row, cells in zip(rows, figures):
        table.add_row(Text(row.label, style="dim" if row.baseline else ""), *cells)
    console.print(table, crop=False)
    if any(column.percent for column in columns):
        console.print(Text(f"Test split, %; {explain_errors(columns)}.", style="dim"))
    for remark in remarks(loaded):
        console.print(Text(remark))


def _cells(rows: Sequence[Row], row: Row, columns: Iterable[Column]) -> list[Any]:
    from rich.text import Text

    return [
        Text(
            format_estimate(row.estimates.get(column.metric), column.percent),
            style="bold" if row.label in best_of(rows, column) else "",
            no_wrap=True,
        )
        for column in columns
    ]


def _finetune_columns(runs: Sequence[Run]) -> list[Column]:
    pattern = re.compile(r"finetune@([^/]+)/top1")
    matches = {metric: match for run in runs for metric in run.flat if (match := pattern.fullmatch(metric))}
    return [
        Column(metric, f"fine-tune {match[1]}", about="whole network trained with few labels")
        for metric, match in sorted(matches.items())
    ]


def _has_figures(rows: Sequence[Row], column: Column) -> bool:
    return any(column.metric in row.estimates for row in rows)


def _estimates(run: Run, columns: Sequence[Column], prefix: str) -> dict[str, Estimate]:
    found = {column.metric: run.estimate(prefix + column.metric) for column in columns}
    return {metric: estimate for metric, estimate in found.items() if estimate is not None}


def _baseline_rows(runs: Sequence[Run], columns: Sequence[Column]) -> list[Row]:
    rows = [
        Row(label, True, _estimates(run, columns, f"baseline/{name}/"), run.data_path, _seed_of(run, name))
        for label, (run, name) in _baselines(runs).items()
    ]
    return [row for row in rows if row.estimates]


def _baselines(runs: Sequence[Run]) -> dict[str, tuple[Run, str]]:
    """Label → the run that has the baseline, and its name there; told apart by data, encoder and seed that differ.

    Those that nothing is drawn for depend on no seed, but for which images are held out: one run's stand for all.
    """
    found: dict[tuple[str, ...], tuple[Run, str]] = {}
    for name in _names(runs):
        for run in sorted(runs, key=lambda run: -len(_baseline_flat(run, name))):
            if _baseline_flat(run, name):
                encoder = run.network if name == UNTRAINED else ""
                seed = _seed_of(run, name)
                details = (_plain(run, name), encoder, "" if seed is None else f"seed {seed}", run.data_path)
                found.setdefault(details, (run, name))
    varying = [len({detail for detail in column if detail}) > 1 for column in zip(*found, strict=True)]
    labels = {}
    for (plain, *parts), value in found.items():
        shown = [part for part, varies in zip(parts, varying[1:], strict=True) if varies and part]
        labels[f"{plain} ({', '.join(shown)})" if shown else plain] = value
    return labels


def _names(runs: Sequence[Run]) -> list[str]:
    """The baselines that any run may have: the four that need no weights, then what was pretrained."""
    found = {match[1] for run in runs for metric in run.flat if (match := re.match(r"baseline/([^/]+)/", metric))}
    return [*BASELINES, *sorted(name for name in found if name.startswith(PRETRAINED))]


def _plain(run: Run, name: str) -> str:
    """What people read for a baseline of a run."""
    if name == PRETRAINED:
        return f"pretrained {run.network}"
    return BASELINES.get(name, name.replace("-", " ", 1))


def _seed_of(run: Run, baseline: str) -> int | None:
    return run.seed if baseline == UNTRAINED else None


def _baseline_flat(run: Run, name: str) -> dict[str, float]:
    prefix = f"baseline/{name}/"
    return {key.removeprefix(prefix): value for key, value in run.flat.items() if key.startswith(prefix)}


def _percent(row: Row, column: Column) -> str:
    return format_estimate(row.estimates[column.metric], percent=True)


def _versus(best: Row, baseline: Row, column: Column) -> str:
    ours, theirs = best.estimates[column.metric], baseline.estimates[column.metric]
    text = f"{_percent(baseline, column)} %"
    if _indistinguishable(ours, theirs):
        return f"{text} (no clear difference)"
    return text if ours.value > theirs.value else f"{text} (better)"


def _indistinguishable(a: Estimate, b: Estimate) -> bool:
    """Whether the difference lies within its own 95 % interval, taking the two errors as independent."""
    if a.half_width is None or b.half_width is None:
        return a.value == b.value
    return abs(a.value - b.value) <= math.hypot(a.half_width, b.half_width)


def _small_test_sets(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    sizes: dict[str, int] = {}
    for column in columns:
        for row in rows:
            if n := _size(row, column):
                sizes.setdefault(row.data, n)
    of = {data: f" of {data}" if len(sizes) > 1 else "" for data in sizes}
    return [
        f"The test split{of[data]} has {size:,} images: differences within the ± mean nothing."
        for data, size in sizes.items()
        if size < SMALL_TEST_SET
    ]


def _baselines_that_win(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    found = []
    for row in (row for row in rows if not row.baseline):
        for baseline in filter(row.has_baseline, rows):
            lost = [column for column in columns if _loses(row, baseline, column)]
            clear = [column.title for column in lost if not _unclear(row, baseline, column)]
            unclear = [column.title for column in lost if _unclear(row, baseline, column)]
            words = [f"loses to {_phrase(baseline)} at {_and(clear)}"] if clear else []
            words += [f"is no better than {_phrase(baseline)} at {_and(unclear)}"] if unclear else []
            found += [f"{row.label} {' and '.join(words)}."] if words else []
    return found


def _searches_whitened(run: Run) -> bool:
    """Whether what the run searches by is whitened already."""
    vectors = run.manifest.get("stages", {}).get("search", {}).get("vectors")
    return "whitened" in str(vectors)


def _whitening_helps(runs: Sequence[Run]) -> list[str]:
    """Where neighbours are clearly better among whitened embeddings."""
    found = []
    searched = {run.label for run in runs if run.config.get("index", {}).get("whiten") or _searches_whitened(run)}
    for row in rows_of(runs, [KNN, WHITENED]):
        if row.baseline or len(row.estimates) < 2 or row.label in searched:
            continue
        plain, whitened = row.estimates[KNN.metric], row.estimates[WHITENED.metric]
        if whitened.value > plain.value and not _indistinguishable(plain, whitened):
            found.append(
                f"{row.label}: kNN of whitened embeddings is {_percent(row, WHITENED)} %; `rayssl index RUN "
                "--search.whiten true` searches them."
            )
    return found


def _loses(row: Row, baseline: Row, column: Column) -> bool:
    ours, theirs = row.estimates.get(column.metric), baseline.estimates.get(column.metric)
    return ours is not None and theirs is not None and ours.value < theirs.value


def _unclear(row: Row, baseline: Row, column: Column) -> bool:
    return _indistinguishable(row.estimates[column.metric], baseline.estimates[column.metric])


def _size(row: Row, column: Column) -> int | None:
    estimate = row.estimates.get(column.metric)
    return estimate.n if estimate else None


def _phrase(baseline: Row) -> str:
    counted = baseline.label.startswith((BASELINES["color-histogram"], BASELINES[UNTRAINED]))
    return f"a {baseline.label}" if counted else baseline.label


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _digits_remark(rows: Sequence[Row]) -> str:
    raw = next((row.estimates.get(KNN.metric) for row in rows if row.label == BASELINES["raw-pixels"]), None)
    how = f" (kNN {100 * raw.value:.1f} %)" if raw else ""
    return f"Digits are a smoke test which raw pixels nearly solve{how}: try your own images: {OWN_IMAGES}"
