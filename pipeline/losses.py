"""Losses of the methods.

Shapes: W workers, B images on this worker, N = W·B images in the global batch, D dimensions.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.distributed import gather_with_grad, rank


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """NT-Xent over the global batch (Chen et al., "SimCLR", 2020, §2.1 and Algorithm 1).

    `z1`, `z2` (B, D) are this worker's slices of the two views' projections, any length. Each row's loss is
    −log softmax over its cosine similarities / temperature to the 2N − 1 others, at the other view of the same image.
    A worker computes its own 2B of the 2N rows against all of them: the mean of the results over workers is the loss
    of the global batch, and with DistributedDataParallel's mean the gradients are those of one process.
    Computed in fp32 (fp64 stays fp64), also under autocast.
    """
    with torch.autocast(z1.device.type, enabled=False):
        own = F.normalize(at_least_float32(torch.cat([z1, z2])), dim=1)
        others = gather_with_grad(own)
        logits = (own / temperature) @ others.T  # (2B, 2N)
        row = torch.arange(len(own), device=own.device)
        first = rank() * len(own)  # where this worker's rows stand among all
        logits[row, first + row] = -torch.inf  # a row is no negative of itself
        return F.cross_entropy(logits, first + (row + len(z1)) % len(own))


def at_least_float32(x: Tensor) -> Tensor:
    """bf16 and fp16 as fp32; fp32 and fp64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
