"""The report over one run, or over several."""

from pathlib import Path


def run_report(runs: list[Path], out: Path) -> list[str]:
    """report.html over one run, or over several with comparison.json beside it; returns what is damaged."""
    from rayssl.pipeline.report import write_comparison, write_report

    damaged = write_report(runs, out / "report.html")
    if len(runs) > 1:
        write_comparison(runs, out / "comparison.json")
    return damaged
