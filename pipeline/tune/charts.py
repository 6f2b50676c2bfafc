"""Sections of a search's report that draw or count over all of its trials, and the figures that they show.

As in rayssl.pipeline.report.figures an SVG holds nothing but numbers: names are HTML beside it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.evaluation.metrics import interval_of_mean
from rayssl.pipeline.report.figures import INK, PALETTE, line_chart, plain_chart, svg_of
from rayssl.pipeline.report.html import bar, bullets, data_table, escape, grid, paragraph
from rayssl.pipeline.report.run_data import NothingToShowError
from rayssl.pipeline.tune.objectives import NEED_LABELS, WITHOUT_LABELS
from rayssl.pipeline.tune.space import FAMILIES, Parameter, Space, applies
from rayssl.pipeline.tune.trials import FINISHED, STOPPED, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

STATE_COLOURS = {FINISHED: PALETTE[0], STOPPED: PALETTE[1]}
BEST_COLOUR = PALETTE[2]
LOW, HIGH = PALETTE[0], PALETTE[1]  # colours of the lowest and the highest score
LEAST_FOR_IMPORTANCE = 8  # finished trials
LEAST_FOR_CORRELATION = 5
REPEATS, TREES = 10, 100  # of the forest
LITTLE = 0.1  # R² below which a forest has learned next to nothing
MOST_LINES = 200  # of the parallel coordinates
DEEPEST = 0.6  # opacity of the highest cell's colour: text stays readable on light and on dark


def finished(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that went through all their steps and have a score."""
    return [trial for trial in trials if trial.state == FINISHED and trial.score is not None]


# Objective against time


def time_section(trials: Sequence[Trial]) -> str:
    """Every trial's score when it ended, and the best until then."""
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        raise NothingToShowError("no trial has a score")
    figure, axes = _chart()
    for state, colour in STATE_COLOURS.items():
        own = [trial for trial in scored if trial.state == state]
        axes.plot([_end(trial) for trial in own], _scores(own), "o", color=colour, markersize=4)
    axes.step(*best_so_far(trials), where="post", color=BEST_COLOUR, linewidth=1.6)
    legend = _legend({**STATE_COLOURS, "best so far": BEST_COLOUR})
    return grid([svg_of(figure) + legend]) + paragraph("x: minutes since the search began; y: score.", "quiet")


def best_so_far(trials: Sequence[Trial]) -> tuple[Floats, Floats]:
    """Minutes at which trials ended, and the highest score until then, of finished trials.

    Of those stopped early only where none has finished: their scores are of fewer steps.
    """
    scored = finished(trials) or [trial for trial in trials if trial.score is not None]
    scored.sort(key=_end)
    return np.array([_end(trial) for trial in scored]), np.maximum.accumulate(_scores(scored))


def _end(trial: Trial) -> float:
    return (trial.began + trial.seconds) / 60


# Importance


@dataclass(frozen=True)
class Importance:
    """What the forest's R² loses without an operation, or another parameter; ± a standard deviation over repeats."""

    name: str
    value: float
    spread: float


def importance_section(trials: Sequence[Trial], space: Space) -> str:
    """How much the scores hang on every operation, and the mean scores with and without it."""
    explained, found = importances(trials, space)
    widest = max(max(one.value + one.spread for one in found), 1e-9)
    bars = [
        bar(one.name, one.value / widest, f"{one.value:.2f} ± {one.spread:.2f}", PALETTE[0], one.spread / widest)
        for one in found
    ]
    words = (
        f"A random forest, asked about trials that it has not seen, explains {100 * max(explained, 0):.0f} % of the "
        "variance of their scores; a bar is how much of that share is lost when the parameters of one operation are "
        f"shuffled together among the trials (± a standard deviation over {REPEATS} forests). About 0: no trace of an "
        "influence. All this is correlation among the candidates that were tried, not cause and effect, and a searcher "
        "that prefers some candidates shifts it."
    )
    doubts = ["The forest explains next to nothing, so the bars are mostly noise."] if explained < LITTLE else []
    figure = f'<div class="bars">{"".join(bars)}</div>{paragraph(words, "quiet")}{bullets(doubts, "remarks")}'
    return figure + _on_and_off_table(trials, space)


def importances(trials: Sequence[Trial], space: Space) -> tuple[float, list[Importance]]:
    """(R² of a random forest on trials that it has not seen, importance of every operation and other parameter).

    Permutation importance (Breiman, "Random forests", Machine Learning 45, 2001, section 10): out of bag, so that what
    has no influence comes out near 0, and with all parameters of an operation permuted together. Only finished trials
    count; largest first. Raises NothingToShowError where there are too few, or their scores are all alike.
    """
    from sklearn.ensemble import RandomForestRegressor

    ended = finished(trials)
    if len(ended) < LEAST_FOR_IMPORTANCE:
        raise NothingToShowError(f"{_trials(len(ended))} finished: at least {LEAST_FOR_IMPORTANCE} are needed")
    scores = _scores(ended)
    if np.ptp(scores) == 0:
        raise NothingToShowError("all scores are alike")
    names, places = positions(ended, space)
    groups = _groups(names)
    explained, losses = np.empty(REPEATS), np.empty((REPEATS, len(groups)))
    for repeat in range(REPEATS):
        forest = RandomForestRegressor(TREES, random_state=repeat, n_jobs=1).fit(places, scores)
        unseen = _unseen(forest, len(places))
        explained[repeat] = _explained(forest, unseen, places, scores)
        for i, (group, columns) in enumerate(groups.items()):
            shuffled = places.copy()
            shuffled[:, columns] = places[permutation(len(places), repeat, "importance", group)][:, columns]
            losses[repeat, i] = explained[repeat] - _explained(forest, unseen, shuffled, scores)
    spreads = losses.std(axis=0, ddof=1)
    found = [Importance(name, float(losses[:, i].mean()), float(spreads[i])) for i, name in enumerate(groups)]
    return float(explained.mean()), sorted(found, key=lambda one: -one.value)


def _groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Columns by operation; a value of the config is a group of its own."""
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        operation = name.split(".")[0]
        groups.setdefault(operation if operation in FAMILIES else name, []).append(column)
    return groups


def _unseen(forest: Any, rows: int) -> NDArray[np.bool_]:
    """(trees, rows): whether a tree has not learned from a row."""
    seen = np.zeros((len(forest.estimators_), rows), dtype=bool)
    for tree, drawn in enumerate(forest.estimators_samples_):
        seen[tree, drawn] = True
    return ~seen


def _explained(forest: Any, unseen: NDArray[np.bool_], places: NDArray[np.float32], scores: Floats) -> float:
    """R² of the mean, for every row of `places`, over the trees that have not learned from it."""
    answers = np.stack([tree.predict(places, check_input=False) for tree in forest.estimators_])
    means = (answers * unseen).sum(axis=0) / unseen.sum(axis=0)
    return 1 - float(((means - scores) ** 2).mean() / scores.var())


def positions(trials: Sequence[Trial], space: Space) -> tuple[list[str], NDArray[np.float32]]:
    """Names of the parameters that are not fixed, and their values (N, parameters), each within its range as 0 … 1.

    What belongs to an operation that a trial does not apply is 0: a strength nobody saw explains nothing.
    """
    names = [name for name, parameter in space.parameters.items() if not parameter.fixed]
    rows = [space.without_idle(trial.parameters) for trial in trials]
    values = [[_position(space.parameters[name], row[name]) for name in names] for row in rows]
    return names, np.array(values, dtype=np.float32).reshape(len(rows), len(names))


def _position(parameter: Parameter, value: float | str) -> float:
    value = parameter.clip(value)
    if parameter.values:
        return parameter.values.index(value) / (len(parameter.values) - 1)
    scale = math.log if parameter.log else float
    low, high = scale(parameter.low), scale(parameter.high)
    return (scale(float(value)) - low) / (high - low)


def _on_and_off_table(trials: Sequence[Trial], space: Space) -> str:
    rows = [[escape(name), *map(_mean_text, on_and_off(trials, name))] for name in space.operations]
    words = (
        "Mean score of the finished trials that apply an operation, and of those that do not, with its 95 % interval "
        "(Student's t); in brackets the number of trials."
    )
    return data_table(["operation", "with it", "without it"], rows) + paragraph(words, "quiet")


def on_and_off(trials: Sequence[Trial], operation: str) -> tuple[Floats, Floats]:
    """Scores of the finished trials that apply an operation, and of those that do not."""
    ended = finished(trials)
    scores = _scores(ended)
    on = np.array([is_on(trial, operation) for trial in ended], dtype=bool)
    return scores[on], scores[~on]


def is_on(trial: Trial, operation: str) -> bool:
    """Whether a trial applies an operation."""
    return applies(trial.parameters, operation)


def _mean_text(scores: Floats) -> str:
    if len(scores) < 2:
        return f"{scores[0]:.4f} (1)" if len(scores) else "–"
    from scipy.stats import t

    low, high = interval_of_mean(scores, float(t.ppf(0.975, len(scores) - 1))) or (math.nan, math.nan)
    return f"{scores.mean():.4f}, {low:.4f} to {high:.4f} ({len(scores)})"


# Parallel coordinates


def parallel_section(trials: Sequence[Trial], space: Space) -> str:
    """A line a finished trial across all parameters, coloured by score."""
    ended = sorted(finished(trials), key=lambda trial: trial.score or 0.0)
    if len(ended) < 2:
        raise NothingToShowError(f"{_trials(len(ended))} finished: at least 2 are needed")
    shown = [ended[int(row)] for row in np.unique(np.linspace(0, len(ended) - 1, MOST_LINES).round())]
    names, places = positions(shown, space)
    axes_texts = [f"{i}: {name}, {range_text(space.parameters[name])}" for i, name in enumerate(names, start=1)]
    words = (
        "Each line is a finished trial"
        + (f", {len(shown)} of {len(ended)} evenly by rank" if len(shown) < len(ended) else "")
        + "; a numbered axis is a parameter, from the lowest value at the bottom to the highest at the top, on a "
        "logarithmic scale where its range has one. Parameters of operations that a trial does not apply are at the "
        "bottom. The best trial is thick."
    )
    ends = _legend({f"lowest score, {ended[0].score:.4f}": LOW, f"highest, {ended[-1].score:.4f}": HIGH})
    blocks = [_parallel_chart(places, _scores(shown)) + ends, bullets(axes_texts, "quiet")]
    return grid(blocks) + paragraph(words, "quiet")


def _parallel_chart(places: NDArray[np.float32], scores: Floats) -> str:
    figure, axes = _chart(height=2.8)
    x = np.arange(1, places.shape[1] + 1)
    for row, colour, last in zip(places, _blends(scores), [False] * (len(places) - 1) + [True]):
        axes.plot(x, row, color=colour, linewidth=2.6 if last else 1.0, alpha=1.0 if last else 0.7)
    axes.set_xticks(x)
    axes.set_yticks([])
    axes.grid(axis="x", color=INK, alpha=0.3, linewidth=0.8)
    return svg_of(figure)


def _blends(scores: Floats) -> list[tuple[float, ...]]:
    """Colours from LOW to HIGH."""
    from matplotlib.colors import to_rgb

    low, high = np.array(to_rgb(LOW)), np.array(to_rgb(HIGH))
    return [tuple(low + share * (high - low)) for share in _shares(scores)]


def range_text(parameter: Parameter) -> str:
    """E.g. 0.08 to 0.9, or none, gaussian."""
    if parameter.values:
        return ", ".join(value if isinstance(value, str) else f"{value:g}" for value in parameter.values)
    step = f" in steps of {parameter.step:g}" if parameter.step is not None else ""
    return f"{parameter.low:g} to {parameter.high:g}{step}{', logarithmic' * parameter.log}"


# Pairs of operations


def pairs_section(trials: Sequence[Trial], operations: Sequence[str], *, alone: bool) -> str:
    """A table of scores by two operations, coloured; `alone`: of the trials that apply nothing else."""
    cells = pair_scores(trials, operations, alone=alone)
    if len(operations) < 2 or not cells:
        raise NothingToShowError("it needs two operations, and finished trials that apply them")
    means = {pair: float(np.mean(scores)) for pair, scores in cells.items()}
    shares = dict(zip(means, _shares(np.array(list(means.values())))))

    def cell(pair: tuple[str, str]) -> str:
        if pair not in means:
            return "–"
        count = "" if alone else f" ({len(cells[pair])})"
        colour = f"rgba(66,105,208,{DEEPEST * shares[pair]:.2f})"
        return f'<div style="background:{colour};padding:0.2rem 0.4rem">{means[pair]:.4f}{count}</div>'

    rows = [[escape(row), *(cell((row, column)) for column in operations)] for row in operations]
    words = (
        "Score of each two operations together; on the diagonal, of the operation alone."
        if alone
        else "Mean score of the finished trials that apply both operations, whatever else they apply, and how many "
        "there are; on the diagonal, of those that apply the one."
    )
    return data_table(["", *map(escape, operations)], rows) + paragraph(f"{words} Darker: higher.", "quiet")


def pair_scores(
    trials: Sequence[Trial], operations: Sequence[str], *, alone: bool
) -> dict[tuple[str, str], list[float]]:
    """Scores of the finished trials that apply two operations, both ways round; (a, a): that apply a.

    `alone`: of those that apply nothing else, as in figure 5 of Chen et al., "A simple framework for contrastive
    learning of visual representations", ICML 2020.
    """
    cells: dict[tuple[str, str], list[float]] = {}
    for trial in finished(trials):
        on = [name for name in operations if is_on(trial, name)]
        for pair in itertools.product(on, on):
            if not alone or len(on) == len(set(pair)):
                cells.setdefault(pair, []).append(float(trial.score or 0.0))
    return cells


# Agreement of the objectives


def agreement_section(trials: Sequence[Trial], *, labelled: bool) -> str:
    """Whether the objectives without labels put the trials in the order that labels do."""
    if not labelled:
        raise NothingToShowError("the images have no labels")
    found = rank_correlations(trials)
    if not found:
        raise NothingToShowError(
            f"it needs {LEAST_FOR_CORRELATION} finished trials with scores by labels and without, and not all alike"
        )
    rows = [
        [escape(one["objective"]), escape(one["against"]), f"{one['rho']:.2f}", _interval_text(one), f"{one['n']}"]
        for one in found
    ]
    charts = [
        f"<h3>{escape(one['objective'])} against {escape(one['against'])}</h3>"
        + _scatter_chart(*_both(trials, one["objective"], one["against"]))
        for one in found
    ]
    words = (
        "Spearman's rank correlation over the finished trials: 1, the same order; 0, none. The interval is by Fisher's "
        "z with the standard error of Bonett and Wright (2000), which takes the trials as independent draws: a "
        "searcher that comes back to good candidates, or a scheduler that lets only those finish, makes it too narrow "
        "and lowers the correlation. Charts: x, the score by labels; y, the one without."
    )
    table = data_table(["without labels", "by labels", "ρ", "95 % interval", "trials"], rows)
    return table + grid(charts) + paragraph(words, "quiet")


def rank_correlations(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Spearman's ρ of every objective without labels against every one by labels, over finished trials.

    Dicts with objective, against, rho, low, high (95 %) and n. The interval is tanh(atanh ρ ± 1.96 s) with
    s² = (1 + ρ²/2) / (n − 3): Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations", Psychometrika 65, 2000. At ρ = ±1 it has no width, so low and high are None. Pairs of objectives with
    fewer than five trials, or of which one is constant, are left out.
    """
    from scipy.stats import spearmanr

    found = []
    for against, objective in itertools.product(NEED_LABELS, WITHOUT_LABELS):
        x, y = _both(trials, objective, against)
        if len(x) < LEAST_FOR_CORRELATION or np.ptp(x) == 0 or np.ptp(y) == 0:
            continue
        rho = float(spearmanr(x, y).statistic)
        low, high = _interval_of_rho(rho, len(x))
        found.append({"objective": objective, "against": against, "rho": rho, "low": low, "high": high, "n": len(x)})
    return found


def _interval_of_rho(rho: float, n: int) -> tuple[float | None, float | None]:
    if abs(rho) > 1 - 1e-12:
        return None, None
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def _interval_text(found: Mapping[str, Any]) -> str:
    return "–" if found["low"] is None else f"{found['low']:.2f} to {found['high']:.2f}"


def _both(trials: Sequence[Trial], objective: str, against: str) -> tuple[Floats, Floats]:
    """(scores by labels, scores without) of the finished trials that have both."""
    own = [trial.scores for trial in finished(trials) if {objective, against} <= trial.scores.keys()]
    return np.array([scores[against] for scores in own]), np.array([scores[objective] for scores in own])


def _scatter_chart(x: Floats, y: Floats) -> str:
    figure, axes = _chart()
    axes.plot(x, y, "o", color=PALETTE[0], markersize=4)
    return svg_of(figure)


# Population


def population_section(best: Trial | None, space: Space) -> str:
    """How the parameters of the best trial changed while it was trained."""
    if best is None or not best.schedule:
        raise NothingToShowError("the best trial kept its parameters to the end")
    steps = np.array([row["step"] for row in best.schedule], dtype=np.float64)
    charts, texts = [], []
    for name, parameter in space.parameters.items():
        values = [row["parameters"][name] for row in best.schedule]
        if any(isinstance(value, str) for value in (*values, *parameter.values)):
            texts.append(f"{name}: {', '.join(map(str, values))}")
        elif len(set(values)) > 1:
            chart = line_chart([(steps, np.array(values, dtype=np.float64), PALETTE[0])])
            charts.append(f"<h3>{escape(name)}</h3>{chart}")
    words = f"Trial {best.number}; x: optimiser step at which the value was measured. What never changed is left out."
    return grid(charts) + bullets(texts) + paragraph(words, "quiet")


# Pieces


def _chart(height: float = 2.2) -> "tuple[Figure, Axes]":
    figure, axes = plain_chart(height)
    axes.margins(0.04)
    return figure, axes


def _legend(colours: Mapping[str, str]) -> str:
    dots = {name: f'<i class="dot" style="background:{colour}"></i>' for name, colour in colours.items()}
    return f'<p class="legend">{"".join(f"<span>{dot}{escape(name)}</span>" for name, dot in dots.items())}</p>'


def _scores(trials: Sequence[Trial]) -> Floats:
    return np.array([trial.score for trial in trials], dtype=np.float64)


def _shares(values: Floats) -> Floats:
    """Values as 0 (lowest) … 1 (highest); all 1 where they are alike."""
    width = np.ptp(values)
    return np.asarray((values - values.min()) / width if width else np.ones(len(values)))


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"
