"""What a candidate does in its run folder: it is made, its step is timed, it trains for some steps and is searched."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.base.reporter import LocalReporter, Reporter
from rayssl.pipeline.config import Config
from rayssl.pipeline.models.export import export_encoder, load_encoder
from rayssl.pipeline.race.plan import Overhead
from rayssl.pipeline.run.auto import decide_and_keep, seconds_a_step
from rayssl.pipeline.run.build import count_steps, new_encoder
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.run.folder import own_data
from rayssl.pipeline.run.plan import Machine
from rayssl.pipeline.stages.start import prepare
from rayssl.pipeline.stages.story import main_writes, run_worker_stages

FIRST_STEPS, TIMED_STEPS = 3, 9  # from which a trial's speed is told, the first third as warm-up
LONG_SECONDS = 10.0  # that the timing may take beyond the first look
TRIAL = ("pretrain", "search")
WARMUP = 0.1  # largest share of a first round


def make_folder(config: Config, run: Path, command: str, warn: Callable[[str], None], machine: Machine) -> None:
    """The run folder of a candidate that trains on such a machine, where it is not there yet."""
    if not (run / "config.json").exists():
        prepare(config, run, command=command, warn=warn, progress=lambda done, total: None, machine=machine)


class Clock(LocalReporter):
    """Also adds up how long the parts of a search take that a trial has to do again."""

    def __init__(self, show: Callable[[dict[str, Any]], None], own: str) -> None:
        super().__init__(show)
        self.seconds = {f"search/{own}/": 0.0, "search/compare": 0.0}
        self._last = time.monotonic()

    def progress(self, row: dict[str, Any]) -> None:
        """A row comes after what it tells of."""
        now = time.monotonic()
        for beginning in self.seconds:
            if str(row["stage"]).startswith(beginning):
                self.seconds[beginning] += now - self._last
        self._last = now
        super().progress(row)

    def overhead(self) -> Overhead:
        """What a trial will take beside training."""
        seeing, comparing = self.seconds.values()
        return Overhead(round(seeing, 2), round(seeing + comparing, 2))


def search_untrained(run: Path, reporter: Reporter) -> None:
    """Export the encoder as it comes, and choose what the run is searched by."""
    with writer_lock(run):
        if not has_encoder(run):
            encoder = new_encoder(configuration.load(run / "config.json"))
            export_encoder(encoder, run, {"method": None}, data=own_data(run)["name"])
    run_worker_stages(run, ["search"], reporter)


def has_encoder(run: Path) -> bool:
    """Whether the run has an encoder that can be read."""
    try:
        load_encoder(run)
    except UserError:
        return False
    return True


def set_steps(run: Path, steps: int | None, threads: int, vectors: str = "auto") -> None:
    """Give a trial its steps in all, None: as they are, its threads, and the vectors that it is compared by."""
    config = configuration.load(run / "config.json")
    train = replace(config.train, threads=threads)
    if steps is not None:
        per_epoch, _ = count_steps(config, own_data(run)["train"])
        # Of a longer plan: a short round would be nothing else.
        warmup = min(train.warmup_epochs, WARMUP * steps / max(1, per_epoch))
        train = replace(train, steps=steps, warmup_epochs=warmup)
    with writer_lock(run):
        search = replace(config.search, vectors=vectors)
        configuration.save(replace(config, train=train, search=search), run / "config.json")


def time_step(run: Path, reporter: Reporter) -> float:
    """Seconds a step, after what `auto` leaves open is settled."""
    with main_writes(run):
        work = decide_and_keep(Work.open(run, reporter))
        first = seconds_a_step(work, FIRST_STEPS)
        return first if first * TIMED_STEPS > LONG_SECONDS else seconds_a_step(work, TIMED_STEPS)


def run_trial(run: Path, reporter: Reporter) -> None:
    """Train up to the run's steps, from its own checkpoint if it has one, and choose what it is searched by."""
    run_worker_stages(run, list(TRIAL), reporter)
