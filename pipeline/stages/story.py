"""The story of a run: the stages that need the encoder on a device, in order.

Each reads the run folder, does one thing, writes the run folder and marks itself done there. With the same inputs
again it does nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.base.reporter import Reporter
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.run.auto import decide_and_keep
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.stages.done import already_done, is_done, key_of, stage
from rayssl.pipeline.stages.embed import run_embed
from rayssl.pipeline.stages.finetune import run_finetune
from rayssl.pipeline.stages.labels import has_labels
from rayssl.pipeline.stages.pretrain import run_pretrain
from rayssl.pipeline.stages.probe import run_probe
from rayssl.pipeline.stages.search import choose_vectors


def run_search(work: Work) -> None:
    """Choose the vectors that are searched, on validation images, among everything at hand, and write them."""
    key = key_of("search", work.run, work.config, work.dataset)
    if already_done(work, "search", key):
        return
    with stage(work, "search", key) as facts:
        found = choose_vectors(work)
        if found is not None:
            facts.update(vectors=found.vectors.label, score=found.facts["score"])


WORKER_STAGES: dict[str, Callable[[Work], None]] = {
    "pretrain": run_pretrain,
    "probe": run_probe,
    "finetune": run_finetune,
    "embed": run_embed,
    "search": run_search,
}


def run_worker_stages(run: Path, names: list[str], reporter: Reporter) -> None:
    """The stages that need the encoder on a device, in order. Every worker calls it alike.

    Raises Stopped when asked to stop, UserError where the input is wrong.
    """
    with main_writes(run):
        work = Work.open(run, reporter)
        if "pretrain" in names:
            work = decide_and_keep(work)
        for name in names:
            WORKER_STAGES[name](work)


def pending(run: Path, names: list[str], config: Config, dataset: Dataset) -> list[str]:
    """Which of the worker stages have something to do; what needs labels is left out where there are none."""
    if not has_labels(dataset):
        names = [name for name in names if name not in ("probe", "finetune")]
    if "pretrain" in names and not is_done(run, "pretrain", key_of("pretrain", run, config, dataset)):
        return names
    return [name for name in names if not is_done(run, name, key_of(name, run, config, dataset))]


@contextmanager
def main_writes(run: Path) -> Iterator[None]:
    """The run's lock on rank 0; the others wait until it is held."""
    if collectives.rank() == 0:
        with writer_lock(run):
            collectives.barrier()
            yield
    else:
        collectives.barrier()
        yield
