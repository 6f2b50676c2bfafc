"""rayssl finetune RUN: train the encoder and a classifier on few labels."""

import sys

import click

from jobs.cli import parse, run_argument, run_folder
from jobs.main import run_verb
from jobs.start import run_stage

GROUPS = ("finetune.", "cluster.")
SUMMARY = "Train the encoder and a classifier together on few labels: mean and deviation over stratified draws."


def main(argv: list[str]) -> int:
    """Parse, fine-tune, print the accuracy."""
    fraction = click.Option(["--label-fraction"], metavar="SHARE", help="share of the labels, e.g. 0.01 [0.1]")
    per_class = click.Option(["--labels-per-class"], metavar="N", help="instead of the fraction")
    arguments = [run_argument(), fraction, per_class]
    parsed = parse("finetune", SUMMARY, argv, arguments, flags=("--cluster.workers", "--cluster.address"))
    run = run_folder(parsed)
    for name in ("label_fraction", "labels_per_class"):
        if parsed.values[name] is not None:
            parsed.changes[f"finetune.{name}"] = parsed.values[name]
    return run_stage("finetune", run, parsed, GROUPS, lambda name: name.startswith("finetune@"))


if __name__ == "__main__":
    sys.exit(run_verb("finetune", sys.argv[1:]))
