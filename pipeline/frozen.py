"""Features of images by what is not trained, a network or a descriptor, kept in the cache by content.

Shapes: N images, D features.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import distributed
from pipeline.data import Images
from pipeline.data.cache import keep_floats, kept_floats
from pipeline.embed import embed_images
from pipeline.encoders import Encoder
from pipeline.models.descriptors import DESCRIPTORS, describe

BLOCK = 1024  # images that a descriptor sees at a time

Progress = Callable[[int, int], None]


def frozen_features(
    source: Encoder | str,
    images_at: Callable[[int], tuple[Images, str]],
    *,
    device: torch.device,
    precision: str,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """(N, D) float32 features by a frozen encoder, or by the descriptor of that name, at its own image size.

    `images_at` gives the images read for a number of pixels a side, and the fingerprint of what they are read from.
    Every worker gets all features.
    """
    size = DESCRIPTORS[source].size if isinstance(source, str) else source.image_size
    images, fingerprint = images_at(size)
    if isinstance(source, str):
        kind = f"{source} {DESCRIPTORS[source].version}"
    else:
        kind = f"{digest_of(source)} {device.type} {precision}"
    key = key_of(kind, fingerprint, images.ids)
    # Rank 0's, whichever workers have them: workers must not disagree by a rounding.
    main = distributed.rank() == 0
    found = distributed.broadcast_object(kept_floats(key, len(images)) if main else None)
    if found is None:
        if isinstance(source, str):
            found = _described(source, images, progress)
        else:
            found = embed_images(source, images, device=device, precision=precision, progress=progress)
        if main:
            keep_floats(key, found)
    return found


def digest_of(encoder: Encoder) -> str:
    """Hex digest of an encoder's weights, name, image size and normalisation: of what decides its features."""
    digest = hashlib.sha256(f"{encoder.name} {encoder.stem} {encoder.image_size} {encoder.channels}".encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def key_of(source: str, fingerprint: str, ids: NDArray[np.int64]) -> str:
    """What features are kept under."""
    digest = hashlib.sha256(f"features\0{source}\0{fingerprint}\0".encode())
    digest.update(ids.astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def _described(name: str, images: Images, progress: Progress | None) -> NDArray[np.float32]:
    chosen = DESCRIPTORS[name]
    found = np.empty((len(images), chosen.dim), dtype=np.float32)
    for start in range(0, len(images), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(images)))
        found[rows] = describe(name, images.square(rows, chosen.size))
        if progress is not None:
            progress(int(rows[-1]) + 1, len(images))
    return found


def _bytes(value: Tensor) -> bytes:
    plain = value.detach().cpu().contiguous()
    return (
        plain.view(torch.uint8).numpy().tobytes()
        if plain.ndim
        else plain.reshape(1).view(torch.uint8).numpy().tobytes()
    )
