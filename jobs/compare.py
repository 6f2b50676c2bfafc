"""rayssl compare RUN…: the figures of several runs beside each other, with paired intervals."""

import json
import sys
from pathlib import Path

import click

from rayssl.jobs.cli import parse
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import say

SUMMARY = (
    "The figures of several runs beside each other. Where test images are the same: by how much kNN differs from the "
    "first run's, with a paired 95 % interval, and how alike both see the images (CKA)."
)
FORMS = ("csv", "latex", "html")


def main(argv: list[str]) -> int:
    """Parse, compare, print, write the tables that are asked for."""
    runs_argument = click.Argument(["runs"], nargs=-1, required=True, metavar="RUN...")
    files = [click.Option([f"--{form}"], metavar="FILE", help=f"the table as {form}") for form in FORMS]
    parsed = parse("compare", SUMMARY, argv, [runs_argument, *files], flags=(), only=())
    from rich.table import Table

    from rayssl.pipeline.base.progress import PlainConsole
    from rayssl.pipeline.data.regular import check_target
    from rayssl.pipeline.report.compare import compare_runs, save_csv, save_html, save_latex
    from rayssl.pipeline.run.folder import read_manifest, winner_of

    asked = {form: Path(parsed.values[form]) for form in FORMS if parsed.values[form]}
    for form, path in asked.items():
        check_target(path, f"--{form}")
    if len({path.absolute() for path in asked.values()}) < len(asked):
        raise UserError(
            f"{', '.join(f'--{form} {path}' for form, path in asked.items())}: each needs a file of its own"
        )
    runs = [winner_of(Path(run)) for run in parsed.values["runs"]]
    for run in runs:
        read_manifest(run)
    compared = compare_runs(runs)
    # A column a run: there are more metrics than fit beside each other.
    table = Table("", *(row[0] for row in compared.rows))
    for number, metric in enumerate(compared.header[1:], start=1):
        table.add_row(metric, *(row[number] for row in compared.rows))
    PlainConsole().print(table)
    for form, path in asked.items():
        {"csv": save_csv, "latex": save_latex, "html": save_html}[form](compared, path)
        say(f"{form:<8} {path}", file=sys.stderr)
    if parsed.values["json"]:
        print(json.dumps(compared.figures))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("compare", sys.argv[1:]))
