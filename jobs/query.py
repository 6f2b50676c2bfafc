"""rayssl query RUN IMAGE…: the most similar images of a run."""

import json
import sys

import click

from jobs.cli import parse, run_argument, run_folder
from jobs.main import run_verb

SUMMARY = "The most similar images of a run to some image files, with cosine scores."


def main(argv: list[str]) -> int:
    """Parse, search, print the neighbours."""
    arguments = [
        run_argument(),
        click.Argument(["images"], nargs=-1, required=True, metavar="IMAGE..."),
        click.Option(["-k", "k"], type=click.IntRange(min=1), default=10, help="neighbours an image [10]"),
        click.Option(["--save"], metavar="FILE", help="a picture of queries and neighbours (PNG)"),
    ]
    parsed = parse("query", SUMMARY, argv, arguments, flags=())
    run = run_folder(parsed)
    from pipeline.query import query

    results = query(run, list(parsed.values["images"]), parsed.values["k"])
    if parsed.values["save"]:
        save(run, results, parsed.values["save"])
    if parsed.values["json"]:
        print(json.dumps(results))
        return 0
    for result in results:
        print(result["query"])
        for found in result["neighbors"]:
            label = "" if found["label"] is None else f"  {found['label']}"
            print(f"  {found['rank']:>3}  {found['score']:.4f}  {found['path']}{label}")
    return 0


def save(run: object, results: list[dict[str, object]], path: str) -> None:
    """Write the gallery."""
    from pathlib import Path

    from pipeline.gallery import save_run_gallery

    save_run_gallery(Path(str(run)), results, Path(path))
    print(f"gallery  {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_verb("query", sys.argv[1:]))
