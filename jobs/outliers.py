"""rayssl outliers RUN: images that are unlike all others, and pictures that are wrong by themselves."""

import json
import sys

import click

from rayssl.jobs.cli import PLACE, parse, run_argument, run_folder
from rayssl.jobs.curation import DATA, opened, table_of
from rayssl.jobs.decoding import out_folder
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.terminal import say

SUMMARY = (
    "Rank all images by how far away the 20th nearest other one is, as the last stage of the encoder sees them. In the "
    "same table: blurred, dark, bright and flat pictures, odd sizes and shapes."
)


def main(argv: list[str]) -> int:
    """Parse, rank, print the first ones."""
    arguments: list[click.Parameter] = [run_argument(), DATA]
    parsed = parse("outliers", SUMMARY, argv, arguments, flags=("--data.path", "--out"), only=PLACE)
    run = run_folder(parsed)
    out = out_folder(run, parsed, "outliers")
    from rayssl.pipeline.base.progress import PlainConsole
    from rayssl.pipeline.curation.outliers import find_outliers
    from rayssl.pipeline.curation.quality import measure_quality

    with opened(run, parsed, last=True) as (subject, progress):
        figures = find_outliers(subject, measure_quality(subject.images, progress), out)
    console = PlainConsole()
    console.print(table_of(figures["first"], {"distance": ".3f", "path": "", "label": "", "flags": ""}))
    flagged = ", ".join(f"{count:,} {name}" for name, count in figures["flagged"].items() if count)
    console.print(f"pictures: {flagged or 'nothing wrong'}, of {figures['images']:,}")
    say(f"written to  {out}: outliers.png, outliers.parquet", file=sys.stderr)
    if parsed.values["json"]:
        print(json.dumps({"out": str(out), **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("outliers", sys.argv[1:]))
