"""rayssl evaluate RUN: kNN, k-means, retrieval and health of the embeddings."""

import sys

from rayssl.jobs.cli import parse, run_argument, run_folder
from rayssl.jobs.main import run_verb
from rayssl.jobs.start import run_stage

GROUPS = ("evaluate.",)


def main(argv: list[str]) -> int:
    """Parse, run the stage, print its figures."""
    parsed = parse(
        "evaluate",
        "kNN, k-means, retrieval and health of the embeddings, beside those of the baselines.",
        argv,
        [run_argument()],
        flags=(),
    )
    run = run_folder(parsed)
    return run_stage(
        "evaluate", run, parsed, GROUPS, lambda name: not name.startswith(("probe", "finetune", "reconstruct"))
    )


if __name__ == "__main__":
    sys.exit(run_verb("evaluate", sys.argv[1:]))
