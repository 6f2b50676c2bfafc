"""rayssl finetune RUN: train the encoder and a classifier on few labels."""

import sys

import click

from rayssl.jobs.cli import parse, run_argument, run_folder
from rayssl.jobs.main import run_verb
from rayssl.jobs.start import run_stage
from rayssl.pipeline.base.errors import UserError

GROUPS = ("finetune.", "cluster.")
SUMMARY = (
    "Train the encoder and a classifier together on few labels: mean and deviation over stratified draws. Several "
    "--labels-per-class give a curve; with --scratch the same network without pre-training stands beside it."
)


def main(argv: list[str]) -> int:
    """Parse, fine-tune with each amount of labels, print the accuracies."""
    arguments: list[click.Parameter] = [
        run_argument(),
        click.Option(["--label-fraction"], metavar="SHARE", help="share of the labels, e.g. 0.01 [0.1]"),
        click.Option(["--labels-per-class"], metavar="N,…", help="instead of the fraction"),
        click.Option(["--scratch"], is_flag=True, help="also the same network without pre-training"),
    ]
    parsed = parse("finetune", SUMMARY, argv, arguments, flags=("--cluster.workers", "--cluster.address"))
    run = run_folder(parsed)
    if parsed.values["label_fraction"] is not None:
        parsed.changes["finetune.label_fraction"] = parsed.values["label_fraction"]
    if parsed.values["scratch"]:
        parsed.changes["finetune.scratch"] = True
    amounts = amounts_of(parsed.values["labels_per_class"], parsed.values["label_fraction"])
    for number, amount in enumerate(amounts, 1):
        if amount:
            parsed.changes["finetune.labels_per_class"] = amount
        code = run_stage("finetune", run, parsed, GROUPS, _is_figure, quiet=number < len(amounts))
    return code


def amounts_of(per_class: str | None, fraction: str | None) -> list[str]:
    """Labels a class, one after the other; "none" where a fraction is asked for; "" where nothing is said."""
    if per_class is None:
        return [""] if fraction is None else ["none"]
    amounts = [amount.strip() for amount in per_class.split(",")]
    for amount in amounts:
        if not amount.isdigit() or int(amount) == 0:
            raise UserError(
                f"--labels-per-class is '{amount}' (finetune.labels_per_class): give numbers from 1 on, e.g. 1,10"
            )
    return amounts


def _is_figure(name: str) -> bool:
    return name.startswith("finetune@") or "/finetune@" in name


if __name__ == "__main__":
    sys.exit(run_verb("finetune", sys.argv[1:]))
