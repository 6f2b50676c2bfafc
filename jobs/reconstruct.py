"""rayssl reconstruct RUN: what an autoencoder makes of evaluation images, in pictures and figures."""

import sys

import click

from rayssl.jobs.cli import PLACE, parse, run_argument, run_folder
from rayssl.jobs.decoding import counting, open_shown, out_folder, show
from rayssl.jobs.main import run_verb

SUMMARY = (
    "Reconstruct the evaluation images of a run: pictures, an error for each image, and the likelihood or bounds of it "
    "where the model has one. With --encoder FOLDER a fine-tuned encoder of the same network goes under the run's "
    "decoder."
)


def main(argv: list[str]) -> int:
    """Parse, reconstruct, print the figures."""
    arguments: list[click.Parameter] = [
        run_argument(),
        click.Option(["--encoder"], metavar="FOLDER", help="a run that was fine-tuned, or a folder with its encoder"),
        click.Option(
            ["--draws"], type=click.IntRange(min=0), default=64, help="posterior samples for the IWAE bound [64]"
        ),
    ]
    parsed = parse("reconstruct", SUMMARY, argv, arguments, flags=("--out",), only=PLACE)
    run = run_folder(parsed)
    from rayssl.pipeline.base.lease import writer_lock
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.evaluation.measure import write_evaluation
    from rayssl.pipeline.generate.reconstruct import reconstruct

    with Display() as display:
        trained = open_shown(run, parsed.values["encoder"], display)
        out = out_folder(run, parsed, "reconstruct" if trained.own_encoder else "reconstruct-finetuned")

        records = reconstruct(trained, out, parsed.values["draws"], counting(display, f"{run.name} reconstruct"))
        if trained.own_encoder:
            with writer_lock(run):
                write_evaluation(run, records)
    figures = {record["metric"]: record["value"] for record in records}
    return show(out, figures, parsed)


if __name__ == "__main__":
    sys.exit(run_verb("reconstruct", sys.argv[1:]))
