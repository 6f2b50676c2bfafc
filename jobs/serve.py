"""rayssl serve RUN…: a page and an HTTP interface to search the images of runs."""

import json
import sys
from pathlib import Path

import click

from rayssl.jobs.cli import PLACE, note_place, parse
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import say

OFFERED = 8  # runs that are named where none was given
SUMMARY = (
    "A page, and an HTTP interface, to search the images of runs. RUN is a run folder, or a folder of them. Any "
    "address but this machine's own asks for a token, which is printed; --token-file or RAYSSL_TOKEN gives one."
)


def main(argv: list[str]) -> int:
    """Parse, open, serve until it is stopped."""
    arguments: list[click.Parameter] = [
        click.Argument(["runs"], nargs=-1, metavar="RUN..."),
        click.Option(["--host"], default="127.0.0.1", metavar="ADDRESS", help="address to serve at [127.0.0.1]"),
        click.Option(["--port"], type=click.IntRange(0, 65535), default=8000, help="0: any that is free [8000]"),
        click.Option(["--allow-host"], multiple=True, metavar="NAME", help="another name that the server is called by"),
        click.Option(["--token-file"], metavar="FILE", help="a token that every request needs"),
        click.Option(["--data"], metavar="NAME", help="which data set's index, where runs have several"),
    ]
    parsed = parse("serve", SUMMARY, argv, arguments, flags=("--data.path",), only=PLACE)
    places = [Path(run) for run in parsed.values["runs"]]
    if not places:
        raise UserError(f"no run to serve: {_offered()}")
    from rayssl.pipeline.service.opened import open_runs, runs_in
    from rayssl.pipeline.service.server import serve

    if PLACE[0] in parsed.changes:
        if len(found := [run for place in places for run in runs_in(place)]) > 1:
            raise UserError("--data.path says where the images of one run are now: name one RUN with it")
        note_place(found[0], parsed)
    runs = open_runs(places, parsed.values["data"])
    file = parsed.values["token_file"]

    def at(url: str) -> None:
        say(f"serving  {', '.join(runs.by_name)}", file=sys.stderr)
        say(f"page     {url}", file=sys.stderr)
        if parsed.values["json"]:
            print(json.dumps({"url": url, "runs": list(runs.by_name)}), flush=True)

    serve(
        runs,
        parsed.values["host"],
        parsed.values["port"],
        names=parsed.values["allow_host"],
        token_file=None if file is None else Path(file),
        say=lambda text: say(text, file=sys.stderr),
        at=at,
    )
    return 0


def _offered() -> str:
    """What could be served of what is in runs/ here."""
    from rayssl.pipeline.service.opened import offered

    found = ", ".join(map(str, offered(Path("runs"))[:OFFERED]))
    return f"give one of {found}" if found else "give the folder that a run wrote to, such as runs/photos"


if __name__ == "__main__":
    sys.exit(run_verb("serve", sys.argv[1:]))
