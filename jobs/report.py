"""rayssl report RUN…: report.html over one run or several."""

import json
import sys
from pathlib import Path

import click

from rayssl.jobs.cli import PLACE, note_place, parse
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import plain

SUMMARY = "A self-contained report.html over one run, or over several with comparison.json beside it."


def main(argv: list[str]) -> int:
    """Parse, write, print where the report is."""
    runs_argument = click.Argument(["runs"], nargs=-1, required=True, metavar="RUN...")
    parsed = parse("report", SUMMARY, argv, [runs_argument], flags=("--data.path", "--out"), only=PLACE)
    from rayssl.pipeline.base.progress import PlainConsole
    from rayssl.pipeline.report import print_comparison
    from rayssl.pipeline.run.folder import read_manifest, winner_of
    from rayssl.pipeline.stages.report import run_report

    runs = [winner_of(Path(run)) for run in parsed.values["runs"]]
    for run in runs:
        read_manifest(run)
    if PLACE[0] in parsed.changes and len(runs) > 1:
        raise UserError("--data.path says where the images of one run are now: name one RUN with it")
    note_place(runs[0], parsed)
    out = Path(parsed.values["out"] or (runs[0] if len(runs) == 1 else runs[0].parent))
    damaged = run_report(runs, out)
    console = PlainConsole()
    print_comparison(runs, console)
    console.print(plain(f"report   {out / 'report.html'}"), soft_wrap=True)
    if parsed.values["json"]:
        print(json.dumps({"report": str(out / "report.html")}))
    if damaged:
        raise UserError(f"the report lacks what is damaged: {'; '.join(damaged)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("report", sys.argv[1:]))
