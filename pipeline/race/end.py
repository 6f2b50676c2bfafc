"""The end of a race: its winner, made searchable, and what is said of all."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.base.reporter import LocalReporter
from rayssl.pipeline.race.candidates import FROZEN
from rayssl.pipeline.race.finals import Final, compare, descriptors
from rayssl.pipeline.race.networks import weights_line
from rayssl.pipeline.race.outcome import Circumstances, recommendation
from rayssl.pipeline.race.parts import Race, Shown, warning_by
from rayssl.pipeline.race.race_file import FAILED, load_ledger
from rayssl.pipeline.run.machine import this_machine
from rayssl.pipeline.run.own_images import open_own
from rayssl.pipeline.stages.evaluate import run_evaluate
from rayssl.pipeline.stages.index import run_index
from rayssl.pipeline.stages.query_networks import keep_query_networks
from rayssl.pipeline.stages.report import run_report
from rayssl.pipeline.stages.story import run_worker_stages

BASELINES = ("color-histogram", "hog", "pixels")


def finish(race: Race, *, stopped: bool) -> list[str]:
    """Compare all, make the winner searchable, read the test images once, and write the reports."""
    ledger = race.ledger
    finals = compare_all(race, ledger.winner if ledger.chosen_by == "hand" else None)
    if not finals:
        return ["nothing has been compared yet: the same command goes on"]
    ledger.winner = finals[0].name
    # What it is searched by is settled here where it was stopped before its own search.
    run_worker_stages(race.run_of(ledger.winner), ["embed", "search"], LocalReporter(race.shown))
    finals = compare_all(race, ledger.winner)
    ledger.final = [dataclasses.asdict(one) for one in finals]
    baselines = baselines_of(race)
    ledger.told = recommendation(finals, baselines, circumstances(race, stopped))
    race.keep()
    write_results(race, finals)
    ledger.finished = not stopped
    race.keep()
    return ledger.told


def compare_all(race: Race, winner: str | None) -> list[Final]:
    """All candidates, the winner first: the given one, or who finds best."""
    return compare({name: race.run_of(name) for name in race.ledger.names}, race.ledger.about, winner)


def write_results(race: Race, finals: Sequence[Final]) -> None:
    """Index, test images and report of the winner; a report over all."""
    run, shown = race.run_of(finals[0].name), race.shown
    shown({"run": run.name, "stage": "index"})
    run_index(run, warning_by(shown))
    keep_query_networks(run, lambda text: shown({"message": text}))
    shown({"run": run.name, "stage": "evaluate"})
    run_evaluate(run)
    shown({"run": run.name, "stage": "report"})
    run_report([run], run)
    run_report([race.run_of(one.name) for one in finals], race.out)


def baselines_of(race: Race) -> dict[str, float]:
    """The scores of what needs no network."""
    try:
        found = descriptors(race.run_of(race.ledger.names[0]), BASELINES)
    except UserError:
        return {}
    return {name: one.score for name, one in found.items()}


def circumstances(race: Race, stopped: bool) -> Circumstances:
    """What the advice depends on."""
    ledger = race.ledger
    gains = {}
    for name in ledger.trained:
        scores = [one.score for one in ledger.results.get(name, []) if one.score is not None]
        if len(scores) > 1:
            gains[name] = scores[-1] - scores[-2]
    return Circumstances(
        labelled=ledger.data["labelled"],
        minutes=ledger.minutes,
        gains=gains,
        networks=sum(one.kind == FROZEN for one in ledger.about.values()),
        by_hand=ledger.chosen_by == "hand",
        stopped=stopped,
        skipped=[] if stopped else [name for name in ledger.trained if ledger.last(name) is None],
        failed={name: last.reason for name in ledger.names if (last := ledger.last(name)) and last.state == FAILED},
        weights_line=weights_line(race.dataset.channels),
    )


def overrule(out: Path, name: str, shown: Shown) -> Race:
    """Let another candidate be the winner of a race; raises UserError where it cannot."""
    ledger = load_ledger(out)
    able = [one["name"] for one in ledger.final]
    if name not in able:
        raise UserError(
            f"--choose {name}{nearest(name, able)}: what can be chosen in {out}: {', '.join(able) or 'nothing yet'}"
        )
    first = out / ledger.names[0]
    config = configuration.load(first / "config.json")
    dataset = open_own(first, config)
    ledger.winner, ledger.chosen_by = name, "hand"
    race = Race(out, [], ledger, dataset, this_machine(config), time.monotonic(), shown)
    finish(race, stopped=not ledger.finished)
    return race
