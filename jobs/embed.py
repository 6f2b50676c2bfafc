"""rayssl embed RUN: embeddings of a run's images, of another folder, or of a folder by pretrained weights."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rayssl.jobs.cli import PLACE, READING, Parsed, check_paths, command_line, parse, run_folder, said_of_others
from rayssl.jobs.main import run_verb
from rayssl.jobs.start import concluded
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import plain

if TYPE_CHECKING:
    from rayssl.pipeline.config import Config

SUMMARY = (
    "Embeddings of a run's images; with --data.path of another folder's, by the same encoder. Without RUN but with "
    "--encoder.name and --encoder.weights: embed and index a folder without training."
)
FLAGS = ("--data.path", "--data.limit", "--data.image-size", "--encoder.name", "--encoder.weights", "--out")


def main(argv: list[str]) -> int:
    """Parse, embed, print where the embeddings are."""
    argument = click.Argument(["run"], required=False, metavar="[RUN]")
    parsed = parse("embed", SUMMARY, argv, [argument], flags=FLAGS)
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.launch.embed import embed_run, embed_without_training

    with Display() as display:
        if parsed.values["run"] is None:
            run = Path(parsed.values["out"] or "runs/pretrained")
            embed_without_training(untrained(parsed), run, command_line(), display)
            found = concluded(run)
        else:
            if parsed.values["out"]:
                raise UserError(
                    f"--out is {parsed.values['out']!r}: embed RUN writes into the run folder; leave it out"
                )
            check_paths("embed RUN", parsed.changes, [*PLACE, *READING])
            run = run_folder(parsed, other_images=True)
            found = embed_run(run, parsed.changes.get("data.path"), display, said_of_others(parsed))
    display.console.print(plain(f"embeddings  {run / 'embeddings'}"), soft_wrap=True)
    if parsed.values["json"]:
        print(json.dumps({"run": str(run), "data": found}))
    return 0


def untrained(parsed: Parsed) -> "Config":
    """The config of a run that only uses an encoder."""
    from rayssl.pipeline.config import Config, DataConfig, override
    from rayssl.pipeline.recipes import HELD_OUT

    missing = [f"--{name}" for name in ("encoder.name", "encoder.weights") if name not in parsed.changes]
    if missing:
        raise UserError(f"embed needs a RUN folder, or --encoder.name and --encoder.weights: {missing[0]} is not given")
    return override(Config(recipe="pretrained", data=DataConfig(path=""), plan=HELD_OUT), parsed.changes)


if __name__ == "__main__":
    sys.exit(run_verb("embed", sys.argv[1:]))
