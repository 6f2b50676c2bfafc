"""Features of images by a frozen encoder, split over the workers."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.device import autocast, exact_products, to_float
from rayssl.pipeline.data.dataset import Images
from rayssl.pipeline.models.encoder import Encoder

PRECISION = "fp32"  # of features that are kept: those of a query, computed anew, must equal them
BATCH = 256  # images that are seen at a time: whole blocks go to a worker, so that features do not depend on how many
READERS = 8  # threads that read images for a GPU, at most


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
    """Run `features_of` over the images in evaluation mode: each worker some blocks of them, gathered on all."""
    encoder.eval()
    encoder.to(memory_format=torch.channels_last)  # a third quicker in bf16 on a CPU
    size = int(encoder.image_size)  # type: ignore[arg-type]
    mine = blocks_of(len(images), collectives.rank(), collectives.world_size())
    collected: dict[str, Tensor] = {}
    done = 0
    # One empty batch where there is nothing to do: the shapes must be known on every worker.
    for pixels in read_ahead(images, mine, size, device) if len(mine) else [_no_pixels(encoder, size)]:
        with torch.inference_mode(), exact_products(precision), autocast(device, precision):
            found = features_of(to_float(pixels, device, precision))
        if not collected:
            collected = {name: torch.empty((len(mine), *value.shape[1:])) for name, value in found.items()}
        for name, value in found.items():
            collected[name][done : done + len(pixels)].copy_(value)
        done += len(pixels)
        if progress is not None:
            progress(done, len(mine))
    return {name: collectives.gather_rows(value).numpy() for name, value in collected.items()}


def blocks_of(n: int, rank: int, workers: int) -> NDArray[np.int64]:
    """The rows of n that a worker sees: consecutive blocks of BATCH rows, the last of which may be smaller."""
    blocks = -(-n // BATCH)
    bounds = [min(n, BATCH * (blocks * one // workers)) for one in (rank, rank + 1)]
    return np.arange(*bounds)


def read_ahead(images: Images, indices: NDArray[np.int64], size: int, device: torch.device) -> Iterator[Tensor]:
    """Square pixels (B, size, size, C) of the images at `indices`, in order, read while earlier ones are embedded.

    Beside a GPU by several threads, because one cannot keep it busy; beside a CPU, whose cores are busy, by one.
    """
    threads = max(1, min(READERS, (os.cpu_count() or 1) // collectives.world_size())) if device.type == "cuda" else 1

    def read(rows: NDArray[np.int64]) -> Tensor:
        pixels = torch.from_numpy(images.square(rows, size))
        return pixels.pin_memory() if device.type == "cuda" else pixels

    waiting: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="embed") as pool:
        try:
            for start in range(0, len(indices), BATCH):
                waiting.append(pool.submit(read, indices[start : start + BATCH]))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _no_pixels(encoder: nn.Module, size: int) -> Tensor:
    return torch.zeros((0, size, size, int(encoder.channels)), dtype=torch.uint8)  # type: ignore[arg-type]
