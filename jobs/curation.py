"""What the verbs that look for something in a data set share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayssl.jobs.cli import Parsed
from rayssl.jobs.decoding import counting

if TYPE_CHECKING:
    from rich.table import Table

    from rayssl.pipeline.curation.subject import Subject

DATA = click.Option(["--data"], metavar="NAME", help="which data set, where a run has several")

Progress = Callable[[int, int], None]


@contextmanager
def opened(run: Path, parsed: Parsed, *, last: bool = False) -> "Iterator[tuple[Subject, Progress]]":
    """The data set that is named, and what shows how far a look at its images has come; `last`: see `open_subject`."""
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.curation.subject import open_subject

    with Display() as display:
        reading = counting(display, "reading images")
        subject = open_subject(run, parsed.values["data"], reading, display.say, last=last)
        yield subject, counting(display, "looking at images")


def table_of(rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str]) -> "Table":
    """Some columns of rows, by name, with how their values are written; what is not there is left blank."""
    from rich.table import Table

    table = Table()
    for name in formats:
        table.add_column(name, overflow="fold")
    for row in rows:
        values = (row[name] for name in formats)
        table.add_row(*(_written(value, how) for value, how in zip(values, formats.values(), strict=True)))
    return table


def _written(value: Any, how: str) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value:{how}}"
