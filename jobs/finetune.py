"""rayssl finetune RUN: train the encoder and a classifier on few labels."""

import json
import sys

import click

from jobs.cli import command_line, parse, run_argument, run_folder
from jobs.main import run_verb
from jobs.start import plan_on_run

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
    from pipeline.evaluate import read_evaluation
    from pipeline.launch import proceed
    from pipeline.progress import Display

    with Display() as display:
        proceed(plan_on_run(run, parsed, ("finetune",), GROUPS, command_line()), display)
    flat = {name: value for name, value in read_evaluation(run)["flat"].items() if name.startswith("finetune@")}
    for name, value in flat.items():
        display.console.print(f"{name:<45} {value:.4f}", soft_wrap=True)
    if parsed.values["json"]:
        print(json.dumps({"run": str(run), "flat": flat}))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("finetune", sys.argv[1:]))
