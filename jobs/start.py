"""What the verbs that start or continue runs share."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rayssl.jobs.cli import Parsed, command_line
from rayssl.pipeline.base.terminal import plain, plain_lines

if TYPE_CHECKING:
    from rich.console import Console

    from rayssl.pipeline.launch.plan import Plan


def plan_of(parsed: Parsed, stages: tuple[str, ...], command: str) -> "Plan":
    """Configs and folders of a recipe, or of the default suite where none is named."""
    from rayssl.pipeline.config import override
    from rayssl.pipeline.launch.plan import Plan
    from rayssl.pipeline.recipes import DEFAULT_SUITE, build_recipe
    from rayssl.pipeline.run.identity import run_name

    recipe = parsed.values.get("recipe")
    names = [recipe] if recipe else list(DEFAULT_SUITE)
    configs = [override(build_recipe(name), parsed.changes) for name in names]
    configs = [replace(config, recipe=name) for config, name in zip(configs, names)]
    if recipe:
        out = Path(parsed.values["out"] or Path("runs") / run_name(configs[0], parsed.changes))
        return Plan(configs, [out], stages, out, command)
    out = Path(parsed.values["out"] or "runs/scattered-digits")
    return Plan(configs, [out / name for name in names], stages, out, command)


def plan_on_run(run: Path, parsed: Parsed, stages: tuple[str, ...], groups: tuple[str, ...], command: str) -> "Plan":
    """Stages on an existing run folder, whose config may be changed only within `groups`."""
    from rayssl.pipeline import config as configuration
    from rayssl.pipeline.base.errors import UserError
    from rayssl.pipeline.launch.plan import Plan

    for path in parsed.changes:
        if not path.startswith(groups):
            raise UserError(
                f"--{path} cannot be changed for an existing run (only {', '.join(g + '*' for g in groups)} can): "
                "start a new run with `rayssl run`"
            )
    config = configuration.override(configuration.load(run / "config.json"), parsed.changes)
    return Plan([config], [run], stages, run, command)


def run_stage(
    verb: str,
    run: Path,
    parsed: Parsed,
    groups: tuple[str, ...],
    shown: Callable[[str], bool],
    *,
    quiet: bool = False,
) -> int:
    """Run the stage that a verb is named after, and print its figures: those whose names are `shown`, unless quiet."""
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.evaluation.doubts import warnings_of
    from rayssl.pipeline.evaluation.records import read_evaluation
    from rayssl.pipeline.launch.runs import continue_runs

    with Display() as display:
        continue_runs(plan_on_run(run, parsed, (verb,), groups, command_line()), display)
    if quiet:
        return 0
    for text in warnings_of(run):
        display.console.print(plain(f"warning: {text}"), soft_wrap=True)
    flat = {name: value for name, value in read_evaluation(run)["flat"].items() if shown(name)}
    for name, value in flat.items():
        display.console.print(plain(f"{name:<45} {value:.4f}"), soft_wrap=True)
    if parsed.values["json"]:
        print(json.dumps({"run": str(run), "flat": flat, "warnings": warnings_of(run)}))
    return 0


def show_results(plan: "Plan", console: "Console") -> None:
    """The table, and where to look."""
    from rayssl.pipeline.evaluation.doubts import warnings_of
    from rayssl.pipeline.report import print_comparison

    print_comparison(plan.folders, console)
    for run in plan.folders:
        if told := searched_by(run):
            console.print(plain(f"search: {told}"), soft_wrap=True)
    console.print(plain_lines(f"\nreport   {plan.out / 'report.html'}"), soft_wrap=True)
    for run in plan.folders:
        for text in warnings_of(run):
            console.print(plain(f"warning: {run}: {text}"), soft_wrap=True)
    example = plan.folders[0]
    console.print(plain(f"search   rayssl query {quote(str(example))} IMAGE -k 10"), soft_wrap=True)


def searched_by(run: Path) -> str:
    """What a run is searched by, in a line; empty where it is the last stage."""
    from rayssl.pipeline.search.store import has_search, read_search

    return f"{read_search(run).facts['told']}; --search.vectors last undoes it" if has_search(run) else ""


def stop_early() -> bool:
    """Under torchrun only rank 0 has results to show."""
    return os.environ.get("RANK", "0") != "0"


def concluded(folder: Path, name: str = "manifest.json") -> "dict[str, object]":
    """What was concluded about the images of a run or a search."""
    if name == "manifest.json":
        from rayssl.pipeline.run.folder import own_data

        data: dict[str, Any] = own_data(folder)
    else:
        from rayssl.pipeline.tune.search import load_search

        data = load_search(folder)["data"]
    told: dict[str, object] = data.get("concluded") or {}
    return told
