"""rayssl index RUN: a FAISS index over the embeddings."""

import json
import sys
from typing import Any

from rayssl.jobs.cli import command_line, parse, run_argument, run_folder
from rayssl.jobs.main import run_verb
from rayssl.jobs.start import plan_on_run
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import say

SUMMARY = "A FAISS index over the embeddings of all images of a run, with its recall measured against exact search."

FLAGS = ("--index.factory", "--search.vectors", "--search.whiten")


def main(argv: list[str]) -> int:
    """Parse, build, print where the index is."""
    parsed = parse("index", SUMMARY, argv, [run_argument()], flags=FLAGS)
    run = run_folder(parsed)
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.launch.embed import search_anew
    from rayssl.pipeline.launch.runs import changed_config
    from rayssl.pipeline.run.folder import read_manifest
    from rayssl.pipeline.stages.index import run_index
    from rayssl.pipeline.stages.query_networks import keep_query_networks

    plan = plan_on_run(run, parsed, ("index",), ("index.", "search."), command_line())
    with changed_config(run, plan.configs[0]), Display() as display:
        search_anew(run, display, asked=any(path.startswith("search.") for path in parsed.changes))
        run_index(run, lambda text: say(f"warning: {text}", file=sys.stderr))
        keep_query_networks(run, lambda text: say(text, file=sys.stderr))
    facts = read_manifest(run)
    name = facts["data"]["name"]
    done = {stage.partition("/")[2] or name: f for stage, f in facts["stages"].items() if stage.startswith("index")}
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
