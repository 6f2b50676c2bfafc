"""Which runs of a command train at the same time."""

import os

from rayssl.pipeline.stages.start import Prepared


def grouped(prepared: list[Prepared]) -> list[list[Prepared]]:
    """The runs in as many groups as this machine has room for, each group about as long as the others."""
    groups: list[list[Prepared]] = [[] for _ in range(_at_a_time(prepared))]
    for longest in sorted(prepared, key=lambda p: p.seconds, reverse=True):
        min(groups, key=lambda group: (seconds_of(group), len(group))).append(longest)
    return groups


def seconds_of(group: list[Prepared]) -> float:
    """What the runs of a group take, one after the other."""
    return sum(p.seconds for p in group)


def _at_a_time(prepared: list[Prepared]) -> int:
    """Runs that have room beside each other on this machine's cores.

    One, unless each says how many threads it computes with: what runs beside it must change no bit of it.
    """
    from rayssl.pipeline.cluster.train import cluster_address

    threads = [p.config.train.threads or 0 for p in prepared]
    asked = prepared[0].config.cluster
    alone = asked.workers > 1 or asked.cpu_per_worker is not None or cluster_address(asked.address) is not None
    if alone or not all(threads) or any(p.machine.device != "cpu" for p in prepared):
        return 1
    return max(1, min(len(prepared), (os.cpu_count() or 1) // max(threads)))
