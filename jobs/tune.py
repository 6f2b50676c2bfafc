"""rayssl tune RECIPE: search for the augmentation that suits the images."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rayssl.jobs.cli import Parsed, command_line, parse
from rayssl.jobs.main import run_verb
from rayssl.jobs.start import concluded
from rayssl.pipeline.base.terminal import plain

if TYPE_CHECKING:
    from rayssl.pipeline.tune.live_table import Board
    from rayssl.pipeline.tune.search import Search
    from rayssl.pipeline.tune.trials import Trial

SUMMARY = (
    "Try augmentations on your own images: each trial trains RECIPE for a part of its steps and is measured on "
    "validation images, by their labels or without any. Leaves best.json for --augment.spec, trials.parquet and "
    "tune-report.html. The same command again goes on where it was stopped."
)
FLAGS = (
    "--out",
    "--data.path",
    "--data.limit",
    "--tune.space",
    "--tune.parameters",
    "--tune.objective",
    "--tune.search",
    "--tune.scheduler",
    "--tune.trials",
    "--tune.concurrent",
    "--tune.share",
    "--train.epochs",
    "--encoder.name",
    "--train.seed",
    "--cluster.workers",
    "--cluster.gpu-per-worker",
    "--cluster.address",
    "--wandb",
)


def main(argv: list[str]) -> int:
    """Parse, search, print what is best and how it is used."""
    parsed = parse("tune", SUMMARY, argv, [click.Argument(["recipe"], metavar="RECIPE")], flags=FLAGS)
    from rayssl.pipeline.tune.live_table import Board

    with Board() as board:
        search, best = run(parsed, board)
    shown = board.console.print
    shown(f"\nreport   {search.out / 'tune-report.html'}", soft_wrap=True)
    if best is not None:
        from rayssl.pipeline.tune.search import command_to_use

        shown(plain(f"best     trial {best.number}: {search.objective} {best.score:.4f}"), soft_wrap=True)
        command = command_to_use(search.out, search.config.recipe, search.changes, best)
        shown(plain(f"use it   {command}"), soft_wrap=True)
    else:
        shown("no trial has a score: the report has the reasons", soft_wrap=True)
    if parsed.values["json"]:
        found = {"trial": best.number, "score": best.score, "spec": str(search.out / "best.json")} if best else None
        told = {"search": str(search.out), "objective": search.objective, "best": found}
        print(json.dumps({**told, "data": concluded(search.out, "search.json")}))
    return 0 if best is not None else 1


def run(parsed: Parsed, board: "Board") -> "tuple[Search, Trial | None]":
    """Plan the search and run what is left of it."""
    from rayssl.pipeline.config import override
    from rayssl.pipeline.launch.tune import run_tuning
    from rayssl.pipeline.recipes import build_recipe
    from rayssl.pipeline.run.identity import run_name
    from rayssl.pipeline.tune.search import parse_settings

    recipe = parsed.values["recipe"]
    own = {name.removeprefix("tune."): value for name, value in parsed.changes.items() if name.startswith("tune.")}
    changes = {name: value for name, value in parsed.changes.items() if not name.startswith("tune.")}
    config = replace(override(build_recipe(recipe), changes), recipe=recipe)
    named = {
        **changes,
        **{f"tune.{name}": value for name, value in own.items() if name not in ("trials", "concurrent")},
    }
    out = Path(parsed.values["out"] or Path("runs") / f"{run_name(config, named)}-tune")
    return run_tuning(config, parse_settings(own), out, command_line(), board, changes=changes)


if __name__ == "__main__":
    sys.exit(run_verb("tune", sys.argv[1:]))
