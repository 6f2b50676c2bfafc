"""What the verbs that use a run's decoder share."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayssl.jobs.cli import Parsed
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import say

if TYPE_CHECKING:
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.generate.decoder import Trained


def open_shown(run: Path, encoder: str | None, display: "Display") -> "Trained":
    """Open a trained run and show how its images are read."""
    from rayssl.pipeline.generate.decoder import open_trained

    return open_trained(run, None if encoder is None else Path(encoder), counting(display, "reading images"))


def counting(display: "Display", stage: str) -> Callable[[int, int], None]:
    """Shows how far something has come."""
    return lambda done, total: display({"stage": stage, "done": done, "total": total})


def out_folder(run: Path, parsed: Parsed, name: str) -> Path:
    """--out, or a folder in the run; raises UserError, before anything is computed, where something else is there."""
    out = Path(parsed.values["out"]) if parsed.values["out"] else run / name
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{out} is not a folder: give --out a folder, or a new name")
    return out


def show(out: Path, figures: Mapping[str, Any], parsed: Parsed) -> int:
    """The figures, a line each, and where the pictures are."""
    for name, value in figures.items():
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        say(f"{name:<36} {text}", file=sys.stderr)
    say(f"{'written to':<36} {out}", file=sys.stderr)
    if parsed.values["json"]:
        print(json.dumps({"out": str(out), **figures}))
    return 0
