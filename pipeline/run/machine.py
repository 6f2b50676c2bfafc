"""The machine that a run is trained on."""

import os
from collections.abc import Sequence

from rayssl.pipeline import config as configuration
from rayssl.pipeline.config import Config
from rayssl.pipeline.run.identity import flatten
from rayssl.pipeline.run.plan import Machine


def has_gpu() -> bool:
    """Whether torch sees a GPU here."""
    import torch

    return torch.cuda.is_available()


def this_machine(config: Config) -> Machine:
    """This machine as the workers of a run have it if they run here: without its GPUs where none is asked for."""
    gpu = has_gpu() and config.cluster.gpu_per_worker != 0
    return Machine("cuda" if gpu else "cpu", os.cpu_count() or 1, config.cluster.workers)


def describe_sizes(config: Config, machine: Machine, paths: Sequence[str]) -> list[str]:
    """The values at paths that a recipe has for this kind of machine, as a line to announce; none where none are."""
    if config.train.steps is not None or config.train.minutes is not None:  # beside which epochs say nothing
        paths = [path for path in paths if path != "train.epochs"]
    if not paths:
        return []
    values = flatten(configuration.to_dict(config))
    told = ", ".join(f"{path} {values[path]}" for path in paths)
    return [f"  sizes    for {'a GPU' if machine.device == 'cuda' else 'a CPU'}, where training runs: {told}"]
