"""What a run is searched by, as files: its networks, its vectors, and that there is nothing chosen any more."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base import seals
from rayssl.pipeline.base.files import delete, listed
from rayssl.pipeline.models.export import export_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.search.store import FOLDER, Origin, Search
from rayssl.pipeline.stages.search_sources import UNTRAINED, Source

Floats = NDArray[np.float32]


def placed(work: Work, source: Source) -> Origin:
    """The source's origin, with its encoder in the run folder where it has to be, or may be, there."""
    if source.encoder is None or source.origin.encoder is not None:
        return source.origin
    if source.name != UNTRAINED and not work.config.search.copy_weights:
        return source.origin
    place = f"{FOLDER}/{source.name}"
    export_encoder(source.encoder.cpu(), work.run / place, {"method": None})
    return replace(source.origin, encoder=place, name=None, weights=None, hash=encoder_hash(work.run / place))


def drop_unused(run: Path, places: Sequence[str | None]) -> None:
    """Encoders of an earlier choice."""
    for folder in listed(run / FOLDER):
        if f"{FOLDER}/{folder.name}" not in places:
            seals.forget_folder(folder)
            delete(folder)


def save_vectors(work: Work, search: Search, train: Floats, test: Floats) -> None:
    """embeddings/<data>/search/."""
    from rayssl.pipeline.search.described import describe_vectors, embeddings_folder, test_images
    from rayssl.pipeline.search.embeddings import save_embeddings

    folder = embeddings_folder(work.run, work.dataset.name, FOLDER)
    parts = {"train": ([work.dataset.train, work.dataset.val], train), "test": ([test_images(work)], test)}
    for split, (images, vectors) in parts.items():
        described_ = describe_vectors(work, images, vectors, split)
        save_embeddings(replace(described_, encoder_hash=search.hash), folder / f"{split}.parquet")


def forget(run: Path) -> None:
    """Remove what a run was searched by: its last stage is searched again."""
    from rayssl.pipeline.search.store import FILE, TENSORS

    files = (run / FILE, run / TENSORS)
    seals.forget(*files)
    for path in files:
        delete(path)
    seals.note(*files)  # that they are not there
    for folder in (run / FOLDER, *listed(run, f"embeddings/*/{FOLDER}")):
        seals.forget_folder(folder)
        delete(folder)
