"""rayssl query RUN IMAGE…: the most similar images of a run."""

import json
import sys
from pathlib import Path

import click

from jobs.cli import PLACE, parse, run_argument, run_folder
from jobs.main import run_verb

SUMMARY = "The most similar images of a run to some image files, with cosine scores."


def main(argv: list[str]) -> int:
    """Parse, search, print the neighbours."""
    arguments: list[click.Parameter] = [
        run_argument(),
        click.Argument(["images"], nargs=-1, required=True, metavar="IMAGE..."),
        click.Option(["-k", "k"], type=click.IntRange(min=1), default=10, help="neighbours an image [10]"),
        click.Option(["--data"], metavar="NAME", help="which data set's index, where a run has several"),
        click.Option(["--save"], metavar="FILE", help="a picture of queries and neighbours (PNG)"),
    ]
    parsed = parse("query", SUMMARY, argv, arguments, flags=(), only=PLACE)
    run = run_folder(parsed)
    from pipeline.query import query, save_run_gallery

    results = query(run, list(parsed.values["images"]), parsed.values["k"], parsed.values["data"])
    if parsed.values["save"]:
        save_run_gallery(run, results, Path(parsed.values["save"]), parsed.values["data"])
        print(f"gallery  {parsed.values['save']}", file=sys.stderr)
    if parsed.values["json"]:
        print(json.dumps(results))
        return 0
    for result in results:
        print(result["query"])
        for found in result["neighbors"]:
            label = "" if found["label"] is None else f"  {found['label']}"
            print(f"  {found['rank']:>3}  {found['score']:.4f}  {found['path']}{label}")
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("query", sys.argv[1:]))
