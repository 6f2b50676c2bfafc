"""rayssl cluster RUN: images in clusters, with the most central ones of each."""

import json
import sys

import click

from rayssl.jobs.cli import PLACE, parse, run_argument, run_folder
from rayssl.jobs.curation import DATA, opened, table_of
from rayssl.jobs.decoding import out_folder
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import say

SUMMARY = (
    "Put images into clusters by their vectors, with the most central images of each, a contact sheet for each, and "
    "purity and NMI where there are labels."
)
METHODS = ("kmeans", "hdbscan", "meanshift", "dbscan")
SHOWN = 30


def main(argv: list[str]) -> int:
    """Parse, cluster, print the largest ones."""
    arguments: list[click.Parameter] = [
        run_argument(),
        DATA,
        click.Option(["--clusters"], metavar="N|auto", default="auto", help="how many, for kmeans [auto]"),
        click.Option(["--method"], type=click.Choice(METHODS), default="kmeans", help="[kmeans]"),
    ]
    parsed = parse("cluster", SUMMARY, argv, arguments, flags=("--data.path", "--out"), only=PLACE)
    method, number = parsed.values["method"], number_of(parsed.values["clusters"])
    if number is not None and method != "kmeans":
        raise UserError(f"--clusters {number}: {method} finds their number by itself; leave it out, or use kmeans")
    run = run_folder(parsed)
    out = out_folder(run, parsed, "cluster")
    from rayssl.pipeline.base.progress import PlainConsole
    from rayssl.pipeline.curation.clusters import find_clusters

    with opened(run, parsed) as (subject, _):
        figures = find_clusters(subject, method, number, out)
    console = PlainConsole()
    columns = {"cluster": "", "images": ",", "class": "", "share": ".2f", "central": ""}
    console.print(table_of(figures["largest"][:SHOWN], columns))
    agreement = [f"{name} {figures[name]:.3f}" for name in ("purity", "nmi", "ari") if name in figures]
    console.print(", ".join([f"{figures['clusters']:,} clusters, {figures['in_none']:,} images in none", *agreement]))
    say(f"written to  {out}: clusters.png, sheets/, clusters.parquet", file=sys.stderr)
    if parsed.values["json"]:
        print(json.dumps({"out": str(out), **figures}))
    return 0


def number_of(text: str) -> int | None:
    """How many clusters, or None for auto; raises UserError for anything else."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--clusters is '{text}': auto, or a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(run_verb("cluster", sys.argv[1:]))
