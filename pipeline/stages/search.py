"""The stage that decides what a run is searched by: sees, compares, chooses on validation images, writes the vectors.

Everything at hand takes part: descriptors, pixels, the untrained network, every stage of the trained one, pretrained
networks on this machine, and pairs of the best. Shapes: N images, D numbers.
"""

from typing import Any

import numpy as np

from rayssl.pipeline.base import collectives
from rayssl.pipeline.features import LAST
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.search.choice import (
    Candidate,
    refit,
)
from rayssl.pipeline.search.parts import Vectors
from rayssl.pipeline.search.store import Search, write_search
from rayssl.pipeline.stages.search_choice import decide
from rayssl.pipeline.stages.search_files import drop_unused, forget, placed, save_vectors
from rayssl.pipeline.stages.search_names import wanted_of
from rayssl.pipeline.stages.search_sources import Look, compared, find_sources, own_name


def choose_vectors(work: Work) -> Search | None:
    """Choose what the run is searched by and write it down; None: the last stage, as it is. All workers alike.

    Raises UserError for `search.vectors` that there are not.
    """
    settings = work.config.search
    if settings.vectors == LAST and settings.whiten is not True:
        if work.is_main:
            forget(work.run)
        return None
    look = Look(work, {source.name: source for source in find_sources(work)})
    look.rows = {split: compared(getattr(work.dataset, split), split, work) for split in ("train", "val")}
    wanted = wanted_of(settings.vectors, look.sources, own_name(work.config))
    single = wanted if wanted is not None else [seen for source in look.sources.values() for seen in source.seen]
    train, val = (look(single, split, some=True) for split in ("train", "val"))
    decided: Any = None
    if work.is_main:
        decided = decide(work, look, single, train, val)
    vectors, candidates, facts, dim = collectives.broadcast_object(decided)
    return finish(work, look, vectors, candidates, facts, dim)


def finish(
    work: Work, look: Look, vectors: Vectors, candidates: list[Candidate], facts: dict[str, Any], dim: int
) -> Search | None:
    """Fit the chosen maps to train and validation together, write them and the vectors of all images."""
    seen = [part.seen for part in vectors.parts]
    raw = {split: look(seen, split) for split in ("train", "val", "test")}
    if not work.is_main:
        return None
    both = [np.concatenate([a, b]) for a, b in zip(raw["train"], raw["val"], strict=True)]
    vectors = refit(vectors, both, dim)
    origins = [placed(work, look.sources[one.source]) for one in seen]
    found = vectors(both), vectors(raw["test"])
    facts = {**facts, "data": work.dataset.name, "data_fingerprint": work.dataset.fingerprint}
    search = write_search(work.run, vectors, origins, found[0].shape[1], candidates, facts)
    look.memory.clear()
    drop_unused(work.run, [origin.encoder for origin in origins])
    save_vectors(work, search, *found)
    work.reporter.message(f"search: {facts['told']}; --search.vectors last undoes it")
    return search
