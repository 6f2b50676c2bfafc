"""A race on one's own images, on this machine or a cluster."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.launch.plan import new_folder
from rayssl.pipeline.launch.resources import check_resources, resources_of, training_machine
from rayssl.pipeline.launch.torchrun import under_torchrun

if TYPE_CHECKING:
    from rayssl.pipeline.race.live_table import Board as RaceBoard
    from rayssl.pipeline.race.parts import Race, Track


def race(
    changes: Mapping[str, Any],
    *,
    candidates: str | None = None,
    minutes: float = 15.0,
    out: Path | str | None = None,
    command: str,
    board: "RaceBoard",
    began: float,
) -> "Race":
    """Let candidates race on the images of `data.path` in `changes`, or go on with the race in `out`."""
    from rayssl.pipeline.race.begin import plan_race
    from rayssl.pipeline.race.candidates import plain_config
    from rayssl.pipeline.race.networks import found_networks
    from rayssl.pipeline.race.story import run_race

    if under_torchrun():
        raise UserError("torchrun starts `run RECIPE` and `pretrain`: a race starts its trials itself")
    config = plain_config(changes)
    if config.cluster.workers > 1:
        raise UserError(f"--cluster.workers is {config.cluster.workers}: the trials of a race have one worker each")
    check_resources(config)
    planned = plan_race(
        changes,
        candidates,
        minutes,
        Path(out) if out is not None else None,
        found_networks(),
        began=began,
        shown=board,
        command=command,
        machine=training_machine(config),
    )

    def open_track() -> "AbstractContextManager[Track]":
        from rayssl.pipeline.cluster.race import open_track as connect

        return connect(planned.out, resources_of(config), board)

    with new_folder(planned.out), writer_lock(planned.out):
        run_race(planned, open_track)
    return planned
