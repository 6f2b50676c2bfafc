"""rayssl probe RUN: linear probes on every stage of the encoder."""

import sys

from rayssl.jobs.cli import parse, run_argument, run_folder
from rayssl.jobs.main import run_verb
from rayssl.jobs.start import run_stage

GROUPS = ("probe.", "cluster.")


def main(argv: list[str]) -> int:
    """Parse, run the stage, print its figures."""
    parsed = parse(
        "probe",
        "Linear probes on every stage of the encoder, and on the baselines.",
        argv,
        [run_argument()],
        flags=("--cluster.workers", "--cluster.address"),
    )
    run = run_folder(parsed)
    return run_stage("probe", run, parsed, GROUPS, lambda name: "probe/" in name)


if __name__ == "__main__":
    sys.exit(run_verb("probe", sys.argv[1:]))
