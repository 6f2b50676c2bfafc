"""rayssl profile RECIPE: where a training step's time goes."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rayssl.jobs.cli import RUN_FLAGS, parse
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import plain

if TYPE_CHECKING:
    from rich.console import Console

    from rayssl.pipeline.stages.profile import Profile

SUMMARY = (
    "Where the time of a training step goes, and how near it is to what this machine can do. One process, without Ray; "
    "nothing is trained or kept but a trace."
)
UNUSED = ("--out", "--wandb", "--index.factory", "--train.epochs", "--train.minutes")


def main(argv: list[str]) -> int:
    """Parse, measure, print the table."""
    steps = click.Option(["--steps"], type=click.IntRange(min=1), default=20, metavar="N", help="steps to measure [20]")
    trace = click.Option(["--trace"], default="trace.json", metavar="FILE", help="for a trace viewer [trace.json]")
    flags = [name for name in RUN_FLAGS if name not in UNUSED and not name.startswith("--cluster.")]
    parsed = parse("profile", SUMMARY, argv, [click.Argument(["recipe"], metavar="RECIPE"), steps, trace], flags)
    path = Path(parsed.values["trace"])
    if not path.absolute().parent.is_dir():
        raise UserError(f"--trace {path}: {path.absolute().parent} is not a folder")
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.config import override
    from rayssl.pipeline.launch.opened import open_for_profile
    from rayssl.pipeline.recipes import build_recipe
    from rayssl.pipeline.stages.profile import profile_run

    with Display() as display:
        work = open_for_profile(override(build_recipe(parsed.values["recipe"]), parsed.changes), display)
        display({"message": f"measuring {parsed.values['steps']} steps on {work.device} in {work.precision} …"})
        found = profile_run(work, parsed.values["steps"], path)
    show(found, display.console)
    display.console.print(plain(f"trace    {path} (ui.perfetto.dev or chrome://tracing opens it)"), soft_wrap=True)
    if parsed.values["json"]:
        values = {**dataclasses.asdict(found), "images_per_s": found.images_per_s, "floor_ms": found.floor.ms}
        print(json.dumps({**values, "trace": str(path)}))
    return 0


def show(found: "Profile", console: "Console") -> None:
    """The table, the floor, the operators."""
    floor, whole = found.floor, sum(found.parts.values())
    lines = [
        f"{found.images_per_s:,.0f} images/s: {found.step_ms:.1f} ms a step of {found.batch_size} images, of which "
        f"{found.waiting:.1%} waits for data",
        *made_quick(found),
        "",
        "part by part (the device is waited for between them)",
    ]
    for part, ms in found.parts.items():
        lines.append(f"  {part:<14} {ms:9.1f} ms {ms / whole:6.1%}")
        if part == "forward" and found.encoder_ms:
            lines.append(f"    {'encoder':<12} {found.encoder_ms:9.1f} ms {found.encoder_ms / whole:6.1%}")
    lines += [
        f"beside the step, in the loader: {found.loader_ms:.1f} ms a batch and thread",
        "",
        f"floor    {floor.ms:.1f} ms: {floor.flops / 1e9:,.1f} GFLOP at {floor.flops_per_s / 1e9:,.0f} GFLOP/s, "
        f"{floor.bytes / 1e6:,.0f} MB at {floor.bytes_per_s / 1e9:,.1f} GB/s; reached {floor.ms / found.step_ms:.0%}",
        "",
        "the most expensive operators, their own time a step",
        *(f"  {name:<50} {ms:9.1f} ms" for name, ms in found.operators),
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def made_quick(found: "Profile") -> list[str]:
    """What training does to its step, if anything."""
    if found.recorded:
        return ["network compiled, the whole step one CUDA graph; the parts below are launched one by one"]
    return ["network compiled"] if found.compiled else []


if __name__ == "__main__":
    sys.exit(run_verb("profile", sys.argv[1:]))
