"""Features of images by a frozen encoder, split over the workers."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import distributed
from pipeline.data.dataset import Images
from pipeline.encoders import Encoder
from pipeline.train import autocast, to_float

BATCH = 256


def embed_images(
    encoder: Encoder,
    images: Images,
    *,
    device: torch.device,
    precision: str,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """(N, D) float32 features in the order of `images`; every worker gets all of them."""
    return extract(encoder, images, lambda x: {"features": encoder(x)}, device, precision, progress)["features"]


def stage_features(
    encoder: Encoder,
    images: Images,
    *,
    pool: int,
    device: torch.device,
    precision: str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """For every stage of the encoder (N, D_s) float32: maps averaged to at most pool × pool cells, then flattened."""

    def pooled(x: Tensor) -> dict[str, Tensor]:
        return {name: pool_map(value, pool) for name, value in encoder.stages(x).items()}

    return extract(encoder, images, pooled, device, precision, progress)


def pool_map(value: Tensor, pool: int) -> Tensor:
    """(B, C, H, W) → (B, C·h·w) with h, w ≤ pool by averaging; (B, D) as it is."""
    if value.ndim == 2:
        return value
    cells = (min(pool, value.shape[2]), min(pool, value.shape[3]))
    return nn.functional.adaptive_avg_pool2d(value, cells).flatten(1)


def extract(
    encoder: nn.Module,
    images: Images,
    features_of: Callable[[Tensor], dict[str, Tensor]],
    device: torch.device,
    precision: str,
    progress: Callable[[int, int], None] | None,
) -> dict[str, NDArray[np.float32]]:
    """Run `features_of` over the images in evaluation mode: each worker a contiguous slice, gathered on all."""
    encoder.eval()
    size = int(encoder.image_size)  # type: ignore[arg-type]
    bounds = np.linspace(0, len(images), distributed.world_size() + 1).astype(int)
    mine = np.arange(bounds[distributed.rank()], bounds[distributed.rank() + 1])
    parts: list[dict[str, Tensor]] = []
    # One empty batch where there is nothing to do: the shapes must be known on every worker.
    for start in range(0, max(len(mine), 1), BATCH):
        indices = mine[start : start + BATCH]
        pixels = torch.from_numpy(images.square(indices, size)) if len(indices) else _no_pixels(encoder, size)
        with torch.inference_mode(), autocast(device, precision):
            found = features_of(to_float(pixels, device, precision))
        parts.append({name: value.float().cpu() for name, value in found.items()})
        if progress is not None:
            progress(min(start + BATCH, len(mine)), len(mine))
    return {
        name: distributed.gather_rows(torch.cat([part[name] for part in parts]).to(device)).cpu().numpy()
        for name in parts[0]
    }


def _no_pixels(encoder: nn.Module, size: int) -> Tensor:
    return torch.zeros((0, size, size, int(encoder.channels)), dtype=torch.uint8)  # type: ignore[arg-type]
