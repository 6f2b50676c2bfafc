"""What a network gives at its stages, pooled in several ways: raw material of vectors to search by.

Shapes: B images, C channels, H × W cells of a map, N images in all, D numbers.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rayssl.pipeline.data import Images
from rayssl.pipeline.features import LAST
from rayssl.pipeline.features.extract import extract
from rayssl.pipeline.models.encoder import Encoder

POOLS = ("avg", "2x2", "4x4", "gem")
GRIDS = {"2x2": 2, "4x4": 4}  # cells a side
STAGES = 4  # the last so many maps are looked at
WIDEST = 4096  # numbers of a pooled map
GEM_POWER = 3.0  # Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", 2018, §3.2

Floats = NDArray[np.float32]


def pool_map(value: Tensor, pool: str) -> Tensor:
    """(B, C, H, W) → (B, C · cells): "avg", "2x2" and "4x4" are averages of cells, "gem" a generalised mean of all.

    (B, D) stays as it is.
    """
    if value.ndim == 2:
        return value
    if pool == "gem":
        powers = value.float().clamp(min=1e-6).pow(GEM_POWER)
        return powers.mean(dim=(2, 3)).pow(1 / GEM_POWER)
    return F.adaptive_avg_pool2d(value, GRIDS.get(pool, 1)).flatten(1)


def names_of(encoder: Encoder) -> list[str]:
    """What `pooled_stages` can give of an encoder, "STAGE:POOL" of its last maps and at the end "last".

    An average that is the features themselves is left out, and what is wider than 4,096 numbers.
    """
    found: list[str] = []
    maps = {name: shape for name, shape in _shapes(encoder).items() if len(shape) == 3}
    for stage in list(maps)[-STAGES:]:
        channels, *sides = maps[stage]
        for pool in POOLS:
            cells = GRIDS.get(pool, 1)
            same = pool == "avg" and encoder.pools_last_map and stage == list(maps)[-1]
            if not same and min(sides) >= cells and channels * cells**2 <= WIDEST:
                found.append(f"{stage}:{pool}")
    return [*found, LAST]


def _shapes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def look(x: Tensor) -> Tensor:
        found = encoder.stages(x)
        shapes.update({name: tuple(value.shape[1:]) for name, value in found.items()})
        return found["features"]

    encoder.output_shape(look)
    return shapes


def pick(stages: dict[str, Tensor], name: str) -> Tensor:
    """The pooled output (B, D) that a name of `names_of` stands for."""
    stage, _, pool = name.partition(":")
    return stages["features"] if stage == LAST else pool_map(stages[stage], pool)


def pooled_stages(
    encoder: Encoder,
    names: Sequence[str],
    images: Images,
    *,
    device: torch.device,
    precision: str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Floats]:
    """Name → (N, D) float32 of the images in order, all in one pass; every worker gets all of them."""
    if list(names) == [LAST]:
        return extract(encoder, images, lambda x: {LAST: encoder(x)}, device, precision, progress)

    def compute(x: Tensor) -> dict[str, Tensor]:
        stages = encoder.stages(x)
        return {name: pick(stages, name) for name in names}

    return extract(encoder, images, compute, device, precision, progress)
