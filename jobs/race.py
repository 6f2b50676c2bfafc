"""rayssl race DIR: which embedding suits one's own images."""

import json
import sys
import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from rayssl.jobs.cli import Parsed, command_line, parse
from rayssl.jobs.main import leave, run_verb
from rayssl.pipeline.base.errors import UserError

if TYPE_CHECKING:
    from rayssl.pipeline.race.live_table import Board
    from rayssl.pipeline.race.parts import Race

SUMMARY = (
    "Which embedding suits your images? Candidates race within a time budget: colour histogram, HOG, untrained "
    "network, frozen networks whose weights are on this machine, what is distilled or adapted from them, SimCLR, "
    "E-SSL, RotNet, an autoencoder. Leaves a run folder each, a report and a recommendation; every verb given the "
    "race's folder means its winner. The same command again goes on where it was stopped."
)
FLAGS = (
    "--out",
    "--data.path",
    "--data.limit",
    "--data.image-size",
    "--data.labels",
    "--encoder.name",
    "--encoder.weights",
    "--train.seed",
    "--cluster.gpu-per-worker",
    "--cluster.address",
    "--wandb",
)
MINUTES = 15.0
THEN = ("tune",)


def main(argv: list[str]) -> int:
    """Parse, race, print the recommendation."""
    argument = click.Argument(["place"], metavar="DIR|OUT", required=False)
    choose = click.Option(["--choose"], metavar="NAME", help="let another candidate of the race OUT be its winner")
    parsed = parse("race", SUMMARY, argv, [argument, *race_options(hidden=False), choose], flags=FLAGS)
    place, chosen = parsed.values["place"], parsed.values["choose"]
    if chosen is not None:
        return run_choose(parsed, place, chosen)
    if place is not None:
        if (Path(place) / "race.json").is_file():
            raise UserError(f"{place} is a race: name the images to go on with it, or a winner with --choose NAME")
        if parsed.changes.setdefault("data.path", place) != place:
            raise UserError(f"images are named twice, {place} and --data.path {parsed.changes['data.path']}: name one")
    if "data.path" not in parsed.changes:
        raise UserError("no images given: rayssl race DIR (a folder, parquet, tar shards or a data set's name)")
    return run_race(parsed)


def race_options(*, hidden: bool = True) -> list[click.Option]:
    """Options of a race that are no path of the config."""
    return [
        click.Option(["--minutes"], metavar="M", help=f"of a race, start to end [{MINUTES:g}]; more of them go on"),
        click.Option(["--candidates"], metavar="NAMES", hidden=hidden, help="only these, e.g. frozen,distill,simclr"),
        click.Option(["--then"], metavar="tune", hidden=hidden, help="search for the winner's augmentation afterwards"),
    ]


def refuse_race_options(parsed: Parsed) -> None:
    """Raises UserError where an option of a race stands beside a recipe, or without images."""
    for name in ("minutes", "candidates", "then"):
        if parsed.values[name] is not None:
            if parsed.values["recipe"] is None:
                raise UserError(f"--{name} {parsed.values[name]} is for a race: name the images, --data.path DIR")
            instead = ": --train.minutes is that of a recipe" if name == "minutes" else ""
            raise UserError(f"--{name} {parsed.values[name]} is for a race, without a recipe{instead}")


def run_race(parsed: Parsed) -> int:
    """Race, show the outcome, and what was asked for afterwards."""
    began = time.monotonic()
    then = parsed.values["then"]
    if then is not None and then not in THEN:
        raise UserError(f"--then {then}: there is only --then tune")
    minutes = minutes_of(parsed.values["minutes"])
    from rayssl.pipeline.launch.race import race
    from rayssl.pipeline.race.live_table import Board

    with Board() as board:
        done = race(
            parsed.changes,
            candidates=parsed.values["candidates"],
            minutes=minutes,
            out=parsed.values["out"],
            command=command_line(),
            board=board,
            began=began,
        )
    show(done, board, parsed)
    return run_then(done, board) if then else 0


def minutes_of(text: str | None) -> float:
    """The budget; raises UserError for what is no positive number."""
    try:
        minutes = float(text) if text is not None else MINUTES
    except ValueError:
        raise UserError(f"--minutes is {text!r}: give a number of minutes, e.g. --minutes 15") from None
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes is {text}: give the minutes of the whole race, e.g. --minutes 15")
    return minutes


def run_choose(parsed: Parsed, place: str | None, name: str) -> int:
    """Let another candidate be the winner."""
    if place is None or parsed.changes:
        raise UserError("--choose NAME takes the folder of a race and nothing else: rayssl race OUT --choose NAME")
    from rayssl.pipeline.base.lease import writer_lock
    from rayssl.pipeline.race.end import overrule
    from rayssl.pipeline.race.live_table import Board

    out = Path(place)
    if not (out / "race.json").is_file():
        raise UserError(f"{out} is not a race (no race.json): --choose NAME needs the folder of one")
    with Board() as board, writer_lock(out):
        done = overrule(out, name, board)
    show(done, board, parsed)
    return 0


def show(race: "Race", board: "Board", parsed: Parsed) -> None:
    """The recommendation, and where to look."""
    from rayssl.pipeline.data.concluded import facts

    say = board.say
    say("")
    for line in race.ledger.told:
        say(line)
    say("")
    say(f"report   {race.out / 'report.html'}")
    say(f"search   rayssl query {quote(str(race.out))} IMAGE -k 10")
    if parsed.values["json"]:
        found = {
            "race": str(race.out), "winner": race.ledger.winner, "candidates": race.ledger.final,
            "data": facts(race.dataset),
        }  # fmt: skip
        print(json.dumps(found))


def run_then(race: "Race", board: "Board") -> int:
    """Search for the augmentation of the winner's recipe, where it trains from scratch."""
    from rayssl.pipeline.race.candidates import SCRATCH

    ledger = race.ledger
    winner = ledger.about[ledger.winner or ""]
    if winner.kind not in SCRATCH:
        board.say(
            f"--then tune: nothing to tune: the winner ({winner.text}) is not trained from scratch, so no augmentation "
            "of a recipe decides about it"
        )
        return 0
    own = {name: value for name, value in ledger.settings["options"].items() if not name.startswith("method.")}
    options = {"data.path": ledger.data["path"], **own}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    argv = [f"{winner.kind}-folder", *words, "--out", f"{race.out}-tune"]
    board.say("")
    board.say(f"rayssl tune {' '.join(map(quote, argv))}")
    return run_verb("tune", argv)


if __name__ == "__main__":
    leave(run_verb("race", sys.argv[1:]))
