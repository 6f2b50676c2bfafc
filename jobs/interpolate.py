"""rayssl interpolate RUN A B: from one image to another by way of their codes; or a grid over a code of two numbers."""

import sys

import click

from rayssl.jobs.cli import PLACE, parse, run_argument, run_folder
from rayssl.jobs.decoding import open_shown, out_folder, show
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.errors import UserError

SUMMARY = (
    "Decode the way from image A to image B: straight between the codes, along an arc where the code has a Gaussian "
    "prior. A and B are image files or numbers of evaluation images. --grid N: N × N vectors of a 2-D latent space."
)


def main(argv: list[str]) -> int:
    """Parse, decode, print where the picture is."""
    arguments: list[click.Parameter] = [
        run_argument(),
        click.Argument(["ends"], nargs=-1, metavar="[A B]"),
        click.Option(["--steps"], type=click.IntRange(min=2), default=9, help="images on the way, ends included [9]"),
        click.Option(["--grid"], type=click.IntRange(min=2), metavar="N", help="side of a grid over a 2-D code"),
        click.Option(["--label"], metavar="CLASS", help="which class, for a conditional model"),
    ]
    parsed = parse("interpolate", SUMMARY, argv, arguments, flags=("--out",), only=PLACE)
    run, values, ends = run_folder(parsed), parsed.values, parsed.values["ends"]
    if values["grid"] is None and len(ends) != 2:
        raise UserError(f"interpolate takes two images and {len(ends)} are named: rayssl interpolate RUN A B")
    if values["grid"] is not None and ends:
        raise UserError(f"--grid {values['grid']} draws all codes and {ends[0]} is one image: leave one of them out")
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.generate.interpolate import draw_grid, interpolate

    with Display() as display:
        trained = open_shown(run, None, display)
        out = out_folder(run, parsed, "interpolate")
        if values["grid"] is not None:
            found = draw_grid(trained, values["grid"], values["label"], out)
        else:
            found = interpolate(trained, ends[0], ends[1], values["steps"], values["label"], out)
    return show(out, {name: value for name, value in found.items() if not isinstance(value, list)}, parsed)


if __name__ == "__main__":
    sys.exit(run_verb("interpolate", sys.argv[1:]))
