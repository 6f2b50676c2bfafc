"""metrics.jsonl: one row a step or report, cut back to the checkpoint that a run goes on from."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.atomic import writing
from rayssl.pipeline.base.documents import LONGEST_LINE, DamagedError, fit, open_regular, parse
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import replacing
from rayssl.pipeline.base.lease import open_own
from rayssl.pipeline.base.schemas import Row
from rayssl.pipeline.base.seals import check, fits, forget


class MetricsLog:
    """metrics.jsonl: one object a step or report. Appended to; cut back to the checkpoint on resume.

    Its hash is noted when a stage has ended; while one logs it is unfinished.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / "metrics.jsonl"

    def cut_back(self, stage: str, step: int) -> None:
        """Drop the rows of `stage` from `step` on, and a last line that was cut off by a crash."""
        if not os.path.lexists(self.path):
            return
        with replacing(self.path) as temporary, temporary.open("w") as file:
            for row in self.rows(all_whole=False):  # one by one: a long run's log need not fit in memory
                if row.get("stage") != stage or row.get("step", -1) < step:
                    file.write(json.dumps(row) + "\n")
        forget(self.path)  # it will be appended to

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Append rows and hand them to the operating system: they survive the death of this process."""
        if rows:
            forget(self.path)
            with writing(self.path), open_own(self.path, os.O_WRONLY | os.O_APPEND, "a") as file:
                file.write("".join(json.dumps(_finite(row)) + "\n" for row in rows))

    def rows(self, *, all_whole: bool = True) -> Iterator[dict[str, Any]]:
        """All whole rows; a last line that a crash cut off is left out.

        Raises UserError where another is damaged, unless these are left out too.
        """
        number, remedy = 0, f"remove it, and `rayssl report {self.run}` shows the rest"
        older = fits(self.path) is None  # or of a stage at work
        try:
            with open_regular(self.path) as file:
                while line := file.readline(LONGEST_LINE + 1):
                    number += 1
                    row = _row(line, older) if all_whole else _whole_row(line, older)
                    if row is not None:
                        yield row
        except FileNotFoundError:
            return
        except DamagedError as error:
            where = f"line {number} of {self.path}" if number else str(self.path)
            raise UserError(f"{where} is damaged ({error}): {remedy}") from None

    def check(self) -> None:
        """Raises UserError where the rows are not those that the last stage ended with."""
        check(self.path, f"its curves are lost: restore it, or `rayssl verify {self.run} --repair --yes` forgets it")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row without figures that are no numbers, which JSON has no word for."""
    return {key: value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}


def _row(line: bytes, older: bool) -> dict[str, Any] | None:
    """A row of metrics.jsonl; None for a line that was not written to its end.

    Older versions wrote NaN where a figure was none: such a figure is left out.
    """
    if len(line) > LONGEST_LINE:
        raise DamagedError(f"more than {LONGEST_LINE:,} bytes")
    try:
        row: dict[str, Any] = parse(line, no_numbers=older)
        row = _finite(row) if isinstance(row, dict) else row
        fit(row, Row)
    except DamagedError:
        if not line.endswith(b"\n"):
            return None
        raise
    return row


def _whole_row(line: bytes, older: bool) -> dict[str, Any] | None:
    try:
        return _row(line, older)
    except DamagedError:
        return None
