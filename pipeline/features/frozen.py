"""Features of images by what is not trained, a network or a descriptor, kept in the cache by content.

Shapes: N images, D features.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayssl.pipeline.base import collectives
from rayssl.pipeline.data import Images
from rayssl.pipeline.data.cache import keep_floats, kept_floats
from rayssl.pipeline.features import LAST
from rayssl.pipeline.features.pooled import pooled_stages
from rayssl.pipeline.models.descriptors import DESCRIPTORS, describe
from rayssl.pipeline.models.encoder import Encoder

BLOCK = 1024  # images that a descriptor sees at a time

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]


def frozen_features(
    source: Encoder | str,
    images_at: Callable[[int], tuple[Images, str]],
    *,
    names: Sequence[str] = (),
    device: torch.device,
    precision: str,
    progress: Progress | None = None,
) -> Floats:
    """(N, D) float32 features by a frozen encoder, or by the descriptor of that name, at its own image size.

    `images_at` gives the images read for a number of pixels a side, and the fingerprint of what they are read from.
    Every worker gets all features. `names` of the encoder's stages are seen in the same pass and kept.
    """
    if isinstance(source, str):
        return descriptor_features(source, *images_at(DESCRIPTORS[source].size), progress)
    images, fingerprint = images_at(source.image_size)
    settings: dict[str, Any] = {"device": device, "precision": precision, "progress": progress}
    return frozen_stages(source, list(dict.fromkeys([*names, LAST])), images, fingerprint, **settings)[LAST]


def descriptor_features(name: str, images: Images, fingerprint: str, progress: Progress | None = None) -> Floats:
    """(N, D) float32 by the descriptor of that name of images that are read at its size."""
    key = key_of(f"{name} {DESCRIPTORS[name].version}", fingerprint, images.ids)
    found = _kept([key], len(images))[0]
    if found is None:
        found = _described(name, images, progress)
        _keep({key: found})
    return found


def describe_here(name: str, images: Images, fingerprint: str, progress: Progress | None = None) -> Floats:
    """`descriptor_features` in this process alone: other workers need not call it."""
    key = key_of(f"{name} {DESCRIPTORS[name].version}", fingerprint, images.ids)
    found = kept_floats(key, len(images))
    if found is None:
        found = _described(name, images, progress)
        keep_floats(key, found)
    return found


def frozen_stages(
    encoder: Encoder,
    names: Sequence[str],
    images: Images,
    fingerprint: str,
    *,
    device: torch.device,
    precision: str,
    progress: Progress | None = None,
) -> dict[str, Floats]:
    """Name (see features.pooled) → (N, D) float32 by a frozen encoder; what is not kept, in one pass."""
    digest = digest_of(encoder)
    kinds = {name: f"{digest} {device.type} {precision}{'' if name == LAST else f' {name}'}" for name in names}
    keys = {name: key_of(kind, fingerprint, images.ids) for name, kind in kinds.items()}
    found = dict(zip(names, _kept(list(keys.values()), len(images)), strict=True))
    if missing := [name for name in names if found[name] is None]:
        made = pooled_stages(encoder, missing, images, device=device, precision=precision, progress=progress)
        _keep({keys[name]: values for name, values in made.items()})
        found |= made
    return {name: values for name, values in found.items() if values is not None}


def _kept(keys: list[str], n: int) -> list[Floats | None]:
    """Rank 0's, whichever workers have them: workers must not disagree by a rounding."""
    found: Any = collectives.broadcast_object([kept_floats(key, n) for key in keys] if _is_main() else None)
    return found  # type: ignore[no-any-return]


def _keep(values: dict[str, Floats]) -> None:
    if _is_main():
        for key, one in values.items():
            keep_floats(key, one)


def _is_main() -> bool:
    return collectives.rank() == 0


def digest_of(encoder: Encoder) -> str:
    """Hex digest of an encoder's weights, name, image size and normalisation: of what decides its features."""
    built = f"{encoder.name} {encoder.stem} {encoder.image_size} {encoder.channels}"
    if encoder.epsilon is not None:
        built += f" {encoder.epsilon}"
    digest = hashlib.sha256(built.encode())
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
    # Flat first: sides of one pixel may have any stride.
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
