"""rayssl index RUN: a FAISS index over the embeddings; with --add and --remove, images come to it and go from it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rayssl.jobs.cli import Parsed, command_line, parse, run_argument, run_folder
from rayssl.jobs.main import run_verb
from rayssl.jobs.start import plan_on_run
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import say

SUMMARY = (
    "A FAISS index over the embeddings of all images of a run, with its recall measured against exact search. "
    "--add and --remove change an index that is there, without training or building it again."
)

FLAGS = ("--index.factory", "--index.memory", "--index.recall", "--search.vectors", "--search.whiten")


def main(argv: list[str]) -> int:
    """Parse, build or change, print where the index is."""
    rest, lists = take_lists(argv, ("--add", "--remove"))
    options = [  # taken above, each with all words up to the next option; here for --help
        click.Option(["--add"], metavar="DIR|FILE...", help="embed and add these images"),
        click.Option(["--remove"], metavar="ID|PATH|PATTERN...", help="remove these images"),
        click.Option(["--columns"], metavar="FILE", help="CSV or parquet with a column path, for query --where"),
        click.Option(["--data"], metavar="NAME", help="of which data set's index, where a run has several"),
    ]
    parsed = parse("index", SUMMARY, rest, [run_argument(), *options], flags=FLAGS)
    run = run_folder(parsed)
    if lists:
        return change(run, parsed, lists)
    return rebuild(run, parsed)


def take_lists(argv: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split off options that take all words up to the next option."""
    rest: list[str] = []
    lists: dict[str, list[str]] = {}
    place = rest
    for word in argv:
        name, equals, value = word.partition("=")
        if name in names:
            place = lists.setdefault(name, [])
            place += [value] if equals else []
        elif word.startswith("--") or word == "-h":
            place = rest
            rest.append(word)
        else:
            place.append(word)
    return rest, lists


def change(run: Path, parsed: Parsed, lists: dict[str, list[str]]) -> int:
    """Add and remove, in this order."""
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.launch.index import add_to_index, remove_from_index

    if parsed.values["columns"] is not None:
        raise UserError("--columns goes with no other change: give it in a command of its own")
    if parsed.changes:
        raise UserError(f"--{next(iter(parsed.changes))} builds an index: leave it out with {next(iter(lists))}")
    for name, words in lists.items():
        if not words:
            raise UserError(f"{name} has no value: say which images, e.g. {name} DIR")
    done = []
    with Display() as display:
        if "--add" in lists:
            done.append(add_to_index(run, parsed.values["data"], lists["--add"], display))
        if "--remove" in lists:
            done.append(remove_from_index(run, parsed.values["data"], lists["--remove"], display))
    if parsed.values["json"]:
        print(json.dumps(done[0] if len(done) == 1 else done))
    return 0


def rebuild(run: Path, parsed: Parsed) -> int:
    """Build what has to be built, and tell all indices of the run."""
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.launch.embed import search_anew
    from rayssl.pipeline.launch.index import set_columns_of_index
    from rayssl.pipeline.launch.runs import changed_config
    from rayssl.pipeline.run.folder import read_manifest
    from rayssl.pipeline.search.index import load_live
    from rayssl.pipeline.stages.index import run_index
    from rayssl.pipeline.stages.query_networks import keep_query_networks

    plan = plan_on_run(run, parsed, ("index",), ("index.", "search."), command_line())
    with changed_config(run, plan.configs[0]), Display() as display:
        search_anew(run, display, asked=any(path.startswith("search.") for path in parsed.changes))
        run_index(run, lambda text: say(f"warning: {text}", file=sys.stderr))
        keep_query_networks(run, lambda text: say(text, file=sys.stderr))
        if parsed.values["columns"] is not None:
            set_columns_of_index(run, parsed.values["data"], Path(parsed.values["columns"]), display)
    facts = read_manifest(run)
    name = facts["data"]["name"]
    done = {stage.partition("/")[2] or name: f for stage, f in facts["stages"].items() if stage.startswith("index")}
    for data, found in done.items():
        found["vectors"] = found.get("vectors") and load_live(run / "index" / data)[0].ntotal  # with what came and went
    for data, found in done.items():
        say(f"index    {run / 'index' / data}: {line_of(found)}", file=sys.stderr)
    if parsed.values["json"]:
        print(json.dumps({"run": str(run), "indices": done}))
    return 0


def line_of(found: dict[str, Any]) -> str:
    """An index in words; the manifest, which somebody may have edited, tells the numbers."""
    vectors, recall = found.get("vectors"), found.get("recall")
    if not isinstance(vectors, int) or recall is None:
        raise UserError("manifest.json does not say how many vectors the index holds: remove index/ and build it again")
    return f"{vectors:,} vectors, recall {recall:.3f} against exact search"


if __name__ == "__main__":
    sys.exit(run_verb("index", sys.argv[1:]))
