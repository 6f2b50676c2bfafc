"""rayssl mislabelled RUN: images whose label disagrees with those of their neighbours."""

import json
import sys

import click

from rayssl.jobs.cli import PLACE, parse, run_argument, run_folder
from rayssl.jobs.curation import DATA, opened, table_of
from rayssl.jobs.decoding import out_folder
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.terminal import say

SUMMARY = (
    "Images whose label disagrees with those of their nearest neighbours, which vote on it; the doubt is by how much "
    "of the votes another class is ahead. Changes no label."
)


def main(argv: list[str]) -> int:
    """Parse, vote, print the most doubtful ones."""
    arguments: list[click.Parameter] = [run_argument(), DATA]
    parsed = parse("mislabelled", SUMMARY, argv, arguments, flags=("--data.path", "--out"), only=PLACE)
    run = run_folder(parsed)
    out = out_folder(run, parsed, "mislabelled")
    from rayssl.pipeline.base.progress import PlainConsole
    from rayssl.pipeline.curation.mislabelled import find_mislabelled

    with opened(run, parsed) as (subject, _):
        figures = find_mislabelled(subject, out)
    console = PlainConsole()
    console.print(table_of(figures["first"], {"doubt": ".2f", "label": "", "suggested": "", "path": ""}))
    console.print(f"{figures['doubted']:,} of {figures['labelled']:,} labels are doubted by their neighbours")
    say(f"written to  {out}: mislabelled.png, mislabelled.parquet", file=sys.stderr)
    if parsed.values["json"]:
        print(json.dumps({"out": str(out), **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("mislabelled", sys.argv[1:]))
