"""What several stages see of a run: its encoders, and their features of its images."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.data import Images
from rayssl.pipeline.features.extract import PRECISION, embed_images, stage_features
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.run.build import new_encoder
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.search.described import test_images
from rayssl.pipeline.stages.search_networks import frozen_names

BASELINE = "random-init"


def encoders_to_compare(work: Work) -> Iterator[tuple[str, Encoder]]:
    """The trained encoder, then the same network as it was initialised, then the weights it started from.

    Of a run that trains nothing its encoder alone.
    """
    yield "", load_encoder(work.run).to(work.device)
    if work.config.method is None:
        return
    yield f"baseline/{BASELINE}/", new_encoder(work.config, weights=False).to(work.device)
    if work.config.encoder.weights is not None:
        yield "baseline/pretrained/", new_encoder(work.config).to(work.device)


def embeddings_of(work: Work, encoder: Encoder, prefix: str, split: str) -> NDArray[np.float32]:
    """(N, D) features of a split: those that the probe has made already, or just these."""
    if f"{prefix}{split}" in work.features:
        return work.features[f"{prefix}{split}"]["features"]
    if prefix or work.config.method is None:  # nothing trains it: it is seen once, whichever runs ask
        return work.frozen(encoder, split, frozen_names(encoder) if split != "test" and not prefix else ())
    images = split_of(work, split)
    progress = counting(work, f"{prefix}embed/{split}")
    return embed_images(encoder, images, device=work.device, precision=PRECISION, progress=progress)


def split_of(work: Work, split: str) -> Images:
    """The images of train, val or test."""
    images: Images = test_images(work) if split == "test" else getattr(work.dataset, split)
    return images


def counting(work: Work, stage_name: str) -> Callable[[int, int], None]:
    """Reports how far a stage has come."""

    def show(done: int, total: int) -> None:
        work.reporter.progress({"run": work.run.name, "stage": stage_name, "done": done, "total": total})

    return show


def features_of(work: Work, encoder: Encoder, prefix: str, split: str) -> dict[str, NDArray[np.float32]]:
    """Features of every stage for a split; kept, because the probe and the embeddings need the same ones."""
    key = f"{prefix}{split}"
    if key not in work.features:
        work.features[key] = stage_features(
            encoder,
            split_of(work, split),
            pool=work.config.probe.pool,
            device=work.device,
            precision=PRECISION,
            progress=counting(work, f"{prefix}features/{split}"),
        )
    return work.features[key]
