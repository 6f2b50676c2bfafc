"""rayssl anomalies RUN: the evaluation images that are least like the training images."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayssl.jobs.cli import PLACE, READING, Parsed, parse, run_argument, run_folder, said_of_others
from rayssl.jobs.decoding import counting, out_folder, show
from rayssl.jobs.main import run_verb

if TYPE_CHECKING:
    from rayssl.pipeline.base.progress import Display

SUMMARY = (
    "Rank evaluation images (test, else validation), or those of another folder, by how unusual they are: by "
    "reconstruction error, negative ELBO or likelihood if the run has such a model, and by distance to the nearest "
    "training images. With an AUROC if --normal, or the --data.classes of the run, say which classes are normal."
)


def main(argv: list[str]) -> int:
    """Parse, rank, print the figures."""
    arguments: list[click.Parameter] = [
        run_argument(),
        click.Option(["--normal"], metavar="CLASS,…", help="classes that are normal [what the run was trained on]"),
        click.Option(["-k", "k"], type=click.IntRange(min=1), default=5, help="neighbours for the distance [5]"),
    ]
    parsed = parse("anomalies", SUMMARY, argv, arguments, flags=("--data.path", "--out"), only=(*PLACE, *READING))
    run = run_folder(parsed, other_images=True)
    from rayssl.pipeline.base.progress import Display

    with Display() as display:
        out = out_folder(run, parsed, "anomalies")
        figures = rank(run, parsed, out, display)
    flat = {f"auroc/{name}": value for name, value in figures.pop("auroc", {}).items()}
    return show(out, {**figures, **flat}, parsed)


def rank(run: Path, parsed: Parsed, out: Path, display: "Display") -> dict[str, Any]:
    """Open the run and the images, and rank them."""
    from rayssl.pipeline.generate.anomalies import normal_images, rank_anomalies
    from rayssl.pipeline.launch.opened import open_for_anomalies

    values = parsed.values
    seen = open_for_anomalies(run, parsed.changes.get("data.path"), display, said_of_others(parsed))
    named = values["normal"].split(",") if values["normal"] else []
    if not named and set(seen.trained_on) <= set(seen.class_names or ()):
        named = list(seen.trained_on)
    return rank_anomalies(
        seen.encoder,
        seen.trained,
        seen.train,
        seen.images,
        normal_images(seen.images, seen.class_names, named),
        k=values["k"],
        device=seen.device,
        precision=seen.precision,
        out=out,
        progress=counting(display, f"{run.name} anomalies"),
    )


if __name__ == "__main__":
    sys.exit(run_verb("anomalies", sys.argv[1:]))
