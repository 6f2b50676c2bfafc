"""Vectors of a run with what is known of their images, as they are written and read."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Images
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.run.folder import data_name
from rayssl.pipeline.search.apply import check_own_encoder
from rayssl.pipeline.search.embeddings import Embeddings, load_embeddings
from rayssl.pipeline.search.store import FOLDER, has_search, read_search, search_hash


def embeddings_folder(run: Path, name: str, prefix: str) -> Path:
    """embeddings/<data>, or embeddings/<data>/baseline/<name> for a baseline."""
    return run / "embeddings" / name / prefix


def describe_vectors(work: Work, images: list[Images], vectors: NDArray[np.float32], split: str) -> Embeddings:
    """Vectors with the ids, paths and labels of their images."""
    labels = [part.labels for part in images]
    known = [part for part in labels if part is not None]
    digests = [part.digests for part in images if part.digests is not None]
    return Embeddings(
        ids=np.concatenate([part.ids for part in images]),
        paths=[path for part in images for path in part.paths],
        labels=np.concatenate(known) if len(known) == len(labels) else None,
        vectors=vectors,
        class_names=work.dataset.class_names,
        encoder_hash=encoder_hash(work.run),
        data_fingerprint=work.dataset.fingerprint,
        split=split,
        data=work.dataset.name,
        data_path=work.dataset.path,
        contents=np.concatenate(digests) if len(digests) == len(images) else None,
    )


def test_images(work: Work) -> Images:
    """The test split, or no images at all."""
    return work.dataset.test if work.dataset.test is not None else work.dataset.train.select(np.arange(0))


def load_splits(run: Path, name: str) -> dict[str, Embeddings]:
    """The run's embeddings by split; raises UserError where they are missing or of another encoder."""
    splits = load_splits_in(run / "embeddings" / name)
    if splits["train"].encoder_hash != encoder_hash(run):
        raise UserError(f"{run}/embeddings are of another encoder: `rayssl embed {run}` makes them again")
    return splits


def searched_splits(run: Path, name: str) -> dict[str, Embeddings]:
    """The vectors that are searched, by split: those that were chosen, else those of the last stage."""
    found = search_hash(run)
    if found is None:
        return load_splits(run, name)
    splits = load_splits_in(run / "embeddings" / name / FOLDER)
    if splits["train"].encoder_hash != found:
        raise UserError(
            f"{run}/embeddings/{name}/{FOLDER} are of another search: `rayssl embed {run}` makes them again"
        )
    return splits


def check_search(run: Path) -> None:
    """Raises UserError where the searched vectors are not whole, or the run's encoder is another one now."""
    searched_splits(run, data_name(run))
    if has_search(run):
        check_own_encoder(run, read_search(run))


def load_splits_in(folder: Path) -> dict[str, Embeddings]:
    """The embeddings of train and test (which may be empty)."""
    return {split: load_embeddings(folder / f"{split}.parquet") for split in ("train", "test")}
