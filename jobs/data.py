"""rayssl data PATH: what is concluded about a folder's images; nothing is trained."""

import json
import sys
from dataclasses import fields
from pathlib import Path

import click

from rayssl.jobs.cli import FLAGS, check_paths, parse
from rayssl.jobs.main import run_verb

SUMMARY = (
    "Say how images are read, and why: splits, classes, sizes, channels, values, what is left out. A contact sheet "
    "shows some images of every class in every split."
)
OPTIONS = tuple(name for name in FLAGS if name.startswith("--data.") and name != "--data.path")


def main(argv: list[str]) -> int:
    """Parse, open, say, draw."""
    arguments = [
        click.Argument(["path"], metavar="PATH"),
        click.Option(["--sheet"], metavar="FILE", help="the contact sheet, a PNG [NAME-sheet.png]; none: no sheet"),
    ]
    parsed = parse("data", SUMMARY, argv, arguments, flags=OPTIONS)
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.config import Config, DataConfig, override

    check_paths("data", parsed.changes, [f"data.{one.name}" for one in fields(DataConfig) if one.name != "path"])
    from rayssl.pipeline.data.concluded import facts, lines
    from rayssl.pipeline.data.regular import check_target
    from rayssl.pipeline.data.sheet import write_sheet
    from rayssl.pipeline.run.images import open_data

    changes = {**parsed.changes, "data.path": parsed.values["path"]}
    if parsed.values["sheet"] not in (None, "none"):
        check_target(Path(parsed.values["sheet"]), "--sheet")
    config = override(Config(recipe="data", data=DataConfig(path="")), changes)
    with Display() as display:
        row = {"stage": "reading images"}
        dataset = open_data(config, lambda done, total: display({**row, "done": done, "total": total}), strict=True)
        for line in lines(dataset):
            display({"message": line})
        sheet = Path(parsed.values["sheet"] or f"{dataset.name}-sheet.png")
        if parsed.values["sheet"] != "none":
            write_sheet(dataset, sheet)
            display({"message": f"  sheet    {sheet}"})
    if parsed.values["json"]:
        print(json.dumps(facts(dataset)))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("data", sys.argv[1:]))
