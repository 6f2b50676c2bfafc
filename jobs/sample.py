"""rayssl sample RUN: new images from a variational autoencoder or a PixelCNN."""

import sys

import click

from rayssl.jobs.cli import PLACE, parse, run_argument, run_folder
from rayssl.jobs.decoding import counting, open_shown, out_folder, show
from rayssl.jobs.main import run_verb

SUMMARY = (
    "New images from a model's prior: a sheet, the pixels, and how far they are from the training images. A "
    "conditional model draws a row of every class; a PixelCNN draws pixel by pixel."
)


def main(argv: list[str]) -> int:
    """Parse, draw, print the figures."""
    arguments: list[click.Parameter] = [
        run_argument(),
        click.Option(["--count"], type=click.IntRange(min=1), help="images [64], or of each class [10]"),
        click.Option(
            ["--codes"],
            type=click.Choice(["prior", "fitted"]),
            default="prior",
            help="drawn from the prior, or from a Gaussian fitted to those of the training images [prior]",
        ),
        click.Option(["--seed"], type=click.IntRange(min=0), default=0, help="random seed [0]"),
    ]
    parsed = parse("sample", SUMMARY, argv, arguments, flags=("--out",), only=PLACE)
    run = run_folder(parsed)
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.generate.sample import sample

    with Display() as display:
        trained = open_shown(run, None, display)
        out = out_folder(run, parsed, "samples")

        count = parsed.values["count"] or (10 if getattr(trained.method, "conditions", 0) else 64)
        tell = counting(display, f"{run.name} sample")
        found = sample(trained, count, parsed.values["seed"], out, tell, parsed.values["codes"])
    return show(out, found, parsed)


if __name__ == "__main__":
    sys.exit(run_verb("sample", sys.argv[1:]))
