"""What a search leaves when it ends: the best trial's files, and the report."""

from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.tune.search import Search
from rayssl.pipeline.tune.trials import Trial, best_trial, load_trials, save_table


def write_results(search: Search, dataset: Dataset) -> Trial | None:
    """trials.parquet, best.json and tune-report.html from the trials that have ended; returns the best of them."""
    from rayssl.pipeline.tune.report import write_tune_report

    trials = load_trials(search.out)
    best = best_trial(trials)
    if trials:
        save_table(search.out, trials)
    if best is not None:
        # One view does for any number of them, so that the file fits other methods too.
        alike = all(view == best.views[0] for view in best.views)
        write_json(search.out / "best.json", {"views": best.views[:1] if alike else best.views})
    shown = [dataset.val[row] for row in range(min(6, len(dataset.val)))]
    write_tune_report(search.out, shown, size=dataset.image_size)
    return best
