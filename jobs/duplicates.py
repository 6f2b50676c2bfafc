"""rayssl duplicates RUN: images that are there more than once, and those that two splits share."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from rayssl.jobs.cli import PLACE, parse, run_argument, run_folder
from rayssl.jobs.curation import DATA, opened
from rayssl.jobs.decoding import out_folder
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import say

if TYPE_CHECKING:
    from rayssl.pipeline.base.progress import PlainConsole

SUMMARY = (
    "Images that are there more than once: exact copies by their pixels, near copies by comparing nearest neighbours. "
    "Counts those that training and test images share, and lists what to keep and what to drop; nothing is removed."
)


def main(argv: list[str]) -> int:
    """Parse, find, print the figures."""
    arguments: list[click.Parameter] = [
        run_argument(),
        DATA,
        click.Option(["--threshold"], metavar="auto|X", default="auto", help="similarity of near copies, 0 … 1 [auto]"),
    ]
    parsed = parse("duplicates", SUMMARY, argv, arguments, flags=("--data.path", "--out"), only=PLACE)
    threshold = threshold_of(parsed.values["threshold"])
    run = run_folder(parsed)
    out = out_folder(run, parsed, "duplicates")
    from rayssl.pipeline.base.progress import PlainConsole
    from rayssl.pipeline.curation.duplicates import find_duplicates

    with opened(run, parsed) as (subject, progress):
        figures = find_duplicates(subject, threshold, out, progress)
    show(figures, PlainConsole())
    say(f"written to  {out}: duplicates.png, duplicates.parquet, keep-drop.csv", file=sys.stderr)
    if parsed.values["json"]:
        print(json.dumps({"out": str(out), **figures}))
    return 0


def threshold_of(text: str) -> float | None:
    """A similarity, or None for auto; raises UserError for anything else."""
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise UserError(f"--threshold is '{text}': auto, or a similarity above 0 and up to 1, such as 0.95")
    return value


def show(figures: dict[str, Any], console: "PlainConsole") -> None:
    """Leaks between splits first, then the groups, then the curve."""
    from rich.table import Table

    for name, pairs in figures["leaks"].items():
        console.print(f"leak: {pairs:,} pairs of images are in {name.replace('/', ' and ')}")
    if figures["leaked_test"]:
        console.print(f"leak: {figures['leaked_test']:,} test images have a copy among training or validation images")
    console.print(
        f"{figures['copies']:,} of {figures['images']:,} images have a copy, in {figures['groups']:,} groups "
        f"({figures['exact']:,} are exact copies); {figures['drop']:,} could be dropped"
    )
    if figures["copies"] > figures["exact"]:
        console.print("Pictures with little in them are alike by chance: look at duplicates.png before any is dropped")
    table = Table("similarity of at least", "pairs", "groups")
    for row in figures["curve"]:
        mark = f" ← {figures['threshold_by']}" if row["threshold"] == figures["threshold"] else ""
        table.add_row(f"{row['threshold']:.3f}{mark}", f"{row['pairs']:,}", f"{row['groups']:,}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_verb("duplicates", sys.argv[1:]))
