"""Whether a stage has something to do: by a key of what it depends on, and by what it has left."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.seals import damaged_of, fits
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.evaluation.baselines import VERSIONS
from rayssl.pipeline.evaluation.records import lost_of, read_evaluation, verb_of
from rayssl.pipeline.generate.decoder import read_decoder
from rayssl.pipeline.methods import load_method
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.onnx_file import FILE, MANIFEST
from rayssl.pipeline.run.build import count_steps
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.run.data_paths import as_started
from rayssl.pipeline.run.folder import begin_stage, data_name, mark_stage, stage_done, stage_key, update_manifest
from rayssl.pipeline.run.identity import identity
from rayssl.pipeline.search.described import check_search, load_splits
from rayssl.pipeline.search.store import FOLDER
from rayssl.pipeline.training.checkpoint import list_checkpoints


def key_of(name: str, run: Path, config: Config, dataset: Dataset) -> str:
    """A hash of all that a worker stage depends on: with the same key there is nothing to do."""
    if name == "pretrain":
        _, steps = count_steps(config, len(dataset.train))
        return stage_key(name, steps, identity(as_started(run, config)), dataset.fingerprint)
    own: Any = dataclasses.asdict(config).get(name)
    if name == "search":
        own = [own, config.evaluate.k, config.evaluate.temperature, config.data.val_fraction]
    if name == "probe":
        own = [own, VERSIONS]
    return stage_key(name, own, encoder_hash(run), dataset.fingerprint)


def is_done(run: Path, name: str, key: str) -> bool:
    """Whether a worker stage has ended with this key and what it wrote is still there and whole."""
    if not stage_done(run, name, key) or changed_since(run, name):
        return False
    if name == "pretrain":
        method = configuration.method_name(configuration.load(run / "config.json"))
        keeps = method is not None and load_method(method).exports_decoder
        return is_whole(lambda: load_encoder(run)) and (not keeps or is_whole(lambda: read_decoder(run)))
    if name == "embed":
        return is_whole(lambda: load_splits(run, data_name(run)))
    if name == "search":
        return is_whole(lambda: check_search(run))
    return has_records(run, {"probe": "probe/", "finetune": "finetune@"}[name])


def changed_since(run: Path, name: str) -> bool:
    """Whether what a stage wrote is not as it was, where it can be made again without training again."""
    data = data_name(run)
    own = {
        "pretrain": ("encoder", "MODEL_CARD.md", "decoder", "figures/"),
        "finetune": ("finetuned/", "checkpoints/finetune.json"),
        "embed": tuple(f"embeddings/{data}/{part}" for part in ("train", "test", "baseline/")),
        "search": ("search", f"embeddings/{data}/{FOLDER}/"),
    }.get(name)
    if own is None or (name == "pretrain" and not list_checkpoints(run / "checkpoints")):
        return False
    return any(not name.endswith((FILE, MANIFEST)) for name in damaged_of(run, *own))  # which `index` makes again alone


def is_whole(read: Callable[[], object]) -> bool:
    """Whether something can be read."""
    try:
        read()
    except UserError:
        return False
    return True


def has_records(run: Path, beginning: str) -> bool:
    """Whether evaluation.json has a figure whose name begins so, and all that its stage computes is true."""
    try:
        found = read_evaluation(run)
    except UserError:
        return False
    verb = verb_of(beginning)
    changed = verb == "evaluate" and fits(run / "evaluation.json") is False
    has = any(name.startswith(beginning) for name in found["flat"])
    return has and not changed and not lost_of(verb, found["set_aside"])


def already_done(work: Work, name: str, key: str) -> bool:
    """`is_done`, decided on rank 0: the manifest may change between one worker's look and another's."""
    return collectives.broadcast_object(is_done(work.run, name, key) if work.is_main else None) is True


@contextmanager
def stage(work: Work, name: str, key: str) -> Iterator[dict[str, Any]]:
    """Announce a stage, and mark it done with its time when it ends well."""
    began = time.perf_counter()
    facts: dict[str, Any] = {}
    work.reporter.progress({"run": work.run.name, "stage": name})
    with at_work(work.run, name) if work.is_main else nullcontext():
        yield facts
    if work.is_main:
        mark_stage(work.run, name, key, time.perf_counter() - began, **facts)
    collectives.barrier()


@contextmanager
def at_work(run: Path, name: str) -> Iterator[None]:
    """A stage that is told to be at work, and no longer where the input turns out to be wrong: nothing goes on then."""
    begin_stage(run, name)
    try:
        yield
    except UserError:
        update_manifest(run, {"running": None})
        raise
