"""rayssl pretrain RECIPE: train an encoder and export it."""

import json
import sys
from shlex import quote

import click

from rayssl.jobs.cli import command_line, parse
from rayssl.jobs.main import leave, run_verb
from rayssl.jobs.start import concluded, plan_of, stop_early
from rayssl.pipeline.base.terminal import plain

SUMMARY = "Train an encoder by a recipe and export it; the same command again continues where it stopped."


def main(argv: list[str]) -> int:
    """Parse, train, print where the encoder is."""
    parsed = parse("pretrain", SUMMARY, argv, [click.Argument(["recipe"], metavar="RECIPE")])
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.launch.runs import start

    plan = plan_of(parsed, ("pretrain",), command_line())
    with Display() as display:
        start(plan, display)
    if stop_early():
        return 0
    run = plan.folders[0]
    display.console.print(plain(f"encoder  {run / 'encoder.safetensors'}"), soft_wrap=True)
    display.console.print(
        plain(f"next     rayssl embed {quote(str(run))}, rayssl probe {quote(str(run))}"), soft_wrap=True
    )
    if parsed.values["json"]:
        from rayssl.pipeline.evaluation.doubts import warnings_of

        print(json.dumps({"run": str(run), "data": concluded(run), "warnings": warnings_of(run)}))
    return 0


if __name__ == "__main__":
    leave(run_verb("pretrain", sys.argv[1:]))
