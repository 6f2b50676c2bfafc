"""rayssl sync RUN: the index becomes what the folder of the images holds by now."""

import json
import sys

import click

from rayssl.jobs.cli import PLACE, parse, run_argument, run_folder
from rayssl.jobs.main import run_verb

SUMMARY = (
    "Compare a run's folder of images, and folders that were added to its index, with the index, by what the files "
    "hold: new images are embedded and added, those that are gone are removed, those that moved keep their ids. "
    "Nothing is trained."
)


def main(argv: list[str]) -> int:
    """Parse, compare, tell what was done."""
    arguments: list[click.Parameter] = [
        run_argument(),
        click.Option(["--data"], metavar="NAME", help="which data set's index, where a run has several"),
        click.Option(["--yes"], is_flag=True, help="also where more than a tenth of the images are gone"),
    ]
    parsed = parse("sync", SUMMARY, argv, arguments, flags=("--data.path",), only=PLACE)
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.launch.index import sync_index

    run, place = run_folder(parsed, other_images=True), parsed.changes.get(PLACE[0])
    with Display() as display:
        done = sync_index(run, parsed.values["data"], place, display, yes=parsed.values["yes"])
    if parsed.values["json"]:
        print(json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("sync", sys.argv[1:]))
