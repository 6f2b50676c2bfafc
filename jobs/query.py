"""rayssl query RUN IMAGE…: the most similar images of a run.

Exit codes: 0: every image was answered; 3: some could not be read, and are told; 2: none could, or other wrong input.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from rayssl.jobs.cli import PLACE, Parsed, parse, run_argument, run_folder
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import say

SUMMARY = (
    "The most similar images of a run to some images, with cosine scores. IMAGE is a file, a folder or a URL. One that "
    "cannot be read does not stop the others: exit code 3; 2 where none can be read."
)
SOME_UNREAD = 3


def main(argv: list[str]) -> int:
    """Parse, search, print the neighbours."""
    arguments: list[click.Parameter] = [
        run_argument(),
        click.Argument(["images"], nargs=-1, metavar="IMAGE..."),
        click.Option(["-k", "k"], type=click.IntRange(min=1), default=10, help="neighbours an image [10]"),
        click.Option(["--data"], metavar="NAME", help="which data set's index, where a run has several"),
        click.Option(["--where"], metavar="EXPR", help="only images of which it is true, e.g. \"label = 'cat'\""),
        click.Option(["--server"], metavar="URL", help="ask what `rayssl serve` serves there, without RUN"),
        click.Option(["--run", "served"], metavar="NAME", help="which run, where the server has several"),
        click.Option(["--token-file"], metavar="FILE", help="the server's token [RAYSSL_TOKEN]"),
        click.Option(["--save"], metavar="FILE", help="a picture of queries and neighbours, .png, .jpg, .pdf …"),
    ]
    parsed = parse("query", SUMMARY, argv, arguments, flags=(), only=PLACE)
    if parsed.values["server"] is not None:
        return told(ask_server(parsed), parsed)
    if not parsed.values["images"]:
        raise UserError("Missing argument 'IMAGE...': see rayssl query --help")
    run = run_folder(parsed)
    save, data = parsed.values["save"], parsed.values["data"]
    from rayssl.pipeline.search.gallery import picture_format, save_run_gallery
    from rayssl.pipeline.search.queries import images_of
    from rayssl.pipeline.search.query import open_index, reads_below_zero

    asked = images_of(list(parsed.values["images"]), signed=reads_below_zero(run))
    if save is not None:
        picture_format(Path(save), len(asked))  # before anything is computed
    opened = open_index(run, data)
    results = opened.search(asked, k=parsed.values["k"], where=parsed.values["where"])
    tell_fewer(results, parsed.values["k"])
    if save is not None:
        save_run_gallery(run, results, Path(save), data, asked, opened.place)
        say(f"gallery  {save}", file=sys.stderr)
    return told(results, parsed)


def ask_server(parsed: Parsed) -> list[dict[str, Any]]:
    """The answers of a server; with it, all words are images."""
    from rayssl.pipeline.service.client import connect
    from rayssl.pipeline.service.tokens import token_from

    if refused := [name for name in ("save", "data", "where") if parsed.values[name] is not None]:
        raise UserError(f"--{refused[0]} needs the run folder: leave out --server, or --{refused[0]}")
    file = parsed.values["token_file"]
    token = token_from(None if file is None else Path(file), os.environ)
    server = connect(parsed.values["server"], token, parsed.values["served"])
    return server.search([parsed.values["run"], *parsed.values["images"]], k=parsed.values["k"])


def told(results: list[dict[str, Any]], parsed: Parsed) -> int:
    """Print the answers; gives the exit code."""
    if parsed.values["json"]:
        print(json.dumps(results))
    else:
        show(results)
    return SOME_UNREAD if any("error" in result for result in results) else 0


def tell_fewer(results: list[dict[str, Any]], k: int) -> None:
    """Say where --where leaves fewer neighbours than were asked for."""
    fewest = min((len(result["neighbors"]) for result in results if "error" not in result), default=k)
    if fewest < k:
        say(f"--where is true of {fewest} other images only: fewer than the {k} that -k asks for", file=sys.stderr)


def show(results: list[dict[str, Any]]) -> None:
    """The neighbours of every image, or why there are none."""
    for result in results:
        say(result["query"])
        if "error" in result:
            say(f"  {result['error']}", file=sys.stderr)
        for found in result["neighbors"]:
            label = "" if found["label"] is None else f"  {found['label']}"
            say(f"  {found['rank']:>3}  {found['score']:.4f}  {found['path']}{label}")


if __name__ == "__main__":
    sys.exit(run_verb("query", sys.argv[1:]))
