"""The promise: is what a run is searched by, chosen on validation images, never much worse than the best there was?

    python benchmarks/choice.py runs/grocery/simclr-folder runs/cells/simclr-folder …

For run folders whose choice is stored already: makes every candidate anew on train and validation together, reads
the test images once for all of them, and prints for each run the chosen candidate, the best one, the regret (points of
kNN top-1, k = 20, T = 0.07), and the loss against the best baseline with its paired 95 % interval; then the same with
the labels hidden, where the choice is a guess. `--out FILE` keeps the table as JSON, `--candidates` prints them all.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from runs import facts

from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.models.descriptors import DESCRIPTORS
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.search.choice import Material, Tried, paired_error, refit
from rayssl.pipeline.search.parts import PIXELS
from rayssl.pipeline.search.store import has_search, read_search
from rayssl.pipeline.stages.search_choice import by_agreement, compare, labels_of, mixture, most_numbers
from rayssl.pipeline.stages.search_sources import Look, compared, find_sources

BASELINES = (*DESCRIPTORS, PIXELS, "untrained")


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--candidates", action="store_true")
    options = parser.parse_args()
    found = [measure(run, show=options.candidates) for run in options.runs]
    for one in found:
        print(line(one))
    regrets = {kind: [one[kind]["regret"] for one in found] for kind in ("labels", "hidden")}
    for kind, values in regrets.items():
        print(f"regret, {kind}: mean {np.mean(values):.2f}, largest {max(values):.2f} points over {len(values)} runs")
    if options.out is not None:
        options.out.write_text(json.dumps({**facts("choice", ""), "runs": found}, indent=2) + "\n")
    return 0


def measure(run: Path, *, show: bool) -> dict[str, Any]:
    """A run's candidates on test images, after its choice was stored."""
    if not has_search(run):
        raise SystemExit(f"{run} has no search.json: the last stage is searched")
    stored = read_search(run)
    work = Work.open(run, Silent())
    look = Look(work, {source.name: source for source in find_sources(work)})
    look.rows = {split: compared(getattr(work.dataset, split), split, work) for split in ("train", "val")}
    seen = [one for source in look.sources.values() for one in source.seen]
    train, val = (look(seen, split, some=True) for split in ("train", "val"))
    labels = labels_of(work, look)
    assert labels is not None
    tried = compare(work, look, seen, train, val, labels)
    hidden = mixture(by_agreement(tried), look, most_numbers(work.config))
    correct = on_test(work, look, [*tried, hidden])
    scores = {name: 100 * float(right.mean()) for name, right in correct.items()}
    baselines = {one.candidate.name for one in tried if one.candidate.source in BASELINES}
    if show:
        for one in sorted(tried, key=lambda one: -scores[one.candidate.name]):
            name = one.candidate.name
            print(f"{scores[name]:6.2f} test  {100 * one.candidate.score:6.2f} val  {one.candidate.bytes:5d} B  {name}")
    return {
        "run": str(run),
        "candidates": len(tried),
        "test": len(next(iter(correct.values()))),
        "rank_correlation": rank_correlation(tried, scores),
        "labels": outcome(stored.vectors.label, scores, correct, baselines),
        "hidden": outcome(hidden.candidate.name, scores, correct, baselines),
    }


def on_test(work: Work, look: Look, tried: list[Tried]) -> dict[str, NDArray[np.bool_]]:
    """Candidate → which test images its neighbours name rightly; maps fitted to train and validation together."""
    dataset, evaluate = work.dataset, work.config.evaluate
    assert dataset.test is not None
    (rows, known), (asked, labels) = dataset.train.join(dataset.val).labelled(), dataset.test.labelled()
    material = Material(known, labels, evaluate.k, evaluate.temperature)
    found = {}
    for one in tried:
        seen = [part.seen for part in one.vectors.parts]
        raw = {split: look(seen, split) for split in ("train", "val", "test")}
        both = [np.concatenate([a, b]) for a, b in zip(raw["train"], raw["val"], strict=True)]
        vectors = refit(one.vectors, both, most_numbers(work.config))
        found[one.candidate.name] = material.correct(vectors(both)[rows], vectors(raw["test"])[asked])
    return found


def outcome(
    chosen: str, scores: dict[str, float], correct: dict[str, NDArray[np.bool_]], baselines: set[str]
) -> dict[str, Any]:
    """Against the best candidate and the best baseline, in points."""
    best, baseline = max(scores, key=lambda name: scores[name]), max(baselines, key=lambda name: scores[name])
    return {
        "chosen": chosen,
        "score": scores[chosen],
        "best": best,
        "best_score": scores[best],
        "regret": scores[best] - scores[chosen],
        "baseline": baseline,
        "loss": scores[baseline] - scores[chosen],
        "interval": 196 * paired_error(correct[chosen], correct[baseline]),
    }


def rank_correlation(tried: list[Tried], scores: dict[str, float]) -> dict[str, float]:
    """Spearman's, of the agreement of candidates (which needs no labels) with kNN of test images."""
    from scipy.stats import spearmanr

    agreed = {one.candidate.name: one.candidate.score for one in by_agreement(tried)}
    names = list(agreed)
    return {"agreement": float(spearmanr([agreed[n] for n in names], [scores[n] for n in names]).statistic)}


def line(one: dict[str, Any]) -> str:
    """A run in two lines."""
    lines = [f"{one['run']}: {one['candidates']} candidates, {one['test']} test images"]
    for kind in ("labels", "hidden"):
        told = one[kind]
        lines.append(
            f"  {kind:<7} {told['chosen']} {told['score']:.1f}; best {told['best']} {told['best_score']:.1f}: regret "
            f"{told['regret']:.2f}; {-told['loss']:+.2f} ± {told['interval']:.2f} of {told['baseline']}"
        )
    lines.append(f"  agreement, which needs no labels, ranks them with {one['rank_correlation']['agreement']:+.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
