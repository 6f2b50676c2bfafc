"""rayssl evaluate RUN: kNN, k-means, retrieval and health of the embeddings."""

import json
import sys

from jobs.cli import command_line, parse, run_argument, run_folder
from jobs.main import run_verb
from jobs.start import plan_on_run

GROUPS = ("evaluate.",)


def main(argv: list[str]) -> int:
    """Parse, run the stage, print its figures."""
    parsed = parse(
        "evaluate",
        "kNN, k-means, retrieval and health of the embeddings, beside a random encoder and raw pixels.",
        argv,
        [run_argument()],
        flags=(),
    )
    run = run_folder(parsed)
    from pipeline.evaluate import read_evaluation
    from pipeline.launch import proceed
    from pipeline.progress import Display

    with Display() as display:
        proceed(plan_on_run(run, parsed, ("evaluate",), GROUPS, command_line()), display)
    flat = {
        name: value
        for name, value in read_evaluation(run)["flat"].items()
        if not name.startswith(("probe", "finetune", "reconstruct"))
    }
    for name, value in flat.items():
        display.console.print(f"{name:<45} {value:.4f}", soft_wrap=True)
    if parsed.values["json"]:
        print(json.dumps({"run": str(run), "flat": flat}))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("evaluate", sys.argv[1:]))
