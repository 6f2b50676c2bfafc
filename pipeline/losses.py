"""Losses of the methods.

Shapes: W workers, B images on this worker, N = W·B images in the global batch, D dimensions.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.distributed import gather_with_grad, rank

ROWS = 1024  # of the similarity matrix at a time: memory grows with N and not with N²


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """NT-Xent over the global batch (Chen et al., "SimCLR", 2020, §2.1 and Algorithm 1).

    `z1`, `z2` (B, D) are this worker's slices of the two views' projections, any length. Each row's loss is
    −log softmax over its cosine similarities / temperature to the 2N − 1 others, at the other view of the same image.
    A worker computes its own 2B of the 2N rows against all of them: the mean of the results over workers is the loss
    of the global batch, and with DistributedDataParallel's mean the gradients are those of one process.
    Computed in fp32 (fp64 stays fp64), also under autocast. Memory: ROWS × 2N numbers, whatever N.
    """
    with torch.autocast(z1.device.type, enabled=False):
        own = F.normalize(at_least_float32(torch.cat([z1, z2])), dim=1)
        loss: Tensor = _NtXent.apply(own, gather_with_grad(own), temperature)
        return loss


class _NtXent(torch.autograd.Function):
    """The similarities are computed a block of rows at a time, and again on the way back instead of being kept."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, others: Tensor, temperature: float) -> Tensor:
        ctx.temperature = temperature
        partner = others[_partners(len(own), own.device)]
        log_sums = [block.logsumexp(dim=1) for _, block in _logits(own, others, temperature)]
        ctx.save_for_backward(own, others, log_sum := torch.cat(log_sums))
        return log_sum.mean() - (own * partner).sum() / (temperature * len(own))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        own, others, log_sum = ctx.saved_tensors
        partners = _partners(len(own), own.device)
        grad_own, grad_others = torch.empty_like(own), torch.zeros_like(others)
        for rows, block in _logits(own, others, ctx.temperature):
            # d loss / d logits = softmax − 1 at the partner, over the number of rows.
            block.sub_(log_sum[rows, None]).exp_()
            block[torch.arange(len(block), device=own.device), partners[rows]] -= 1
            torch.mm(block, others, out=grad_own[rows])
            grad_others.addmm_(block.T, own[rows])
        scale = grad / (ctx.temperature * len(own))
        return grad_own.mul_(scale), grad_others.mul_(scale), None


def _logits(own: Tensor, others: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of own · othersᵀ / temperature, −∞ where a row meets itself: a row is no negative of itself."""
    first = rank() * len(own)  # where this worker's rows stand among all
    for start in range(0, len(own), ROWS):
        rows = slice(start, min(start + ROWS, len(own)))
        block = (own[rows] / temperature) @ others.T
        block.diagonal(first + start).fill_(-torch.inf)
        yield rows, block


def _partners(rows: int, device: torch.device) -> Tensor:
    """(rows,) where the other view of each of this worker's rows stands among all rows."""
    return rank() * rows + torch.arange(rows, device=device).roll(-rows // 2)


def at_least_float32(x: Tensor) -> Tensor:
    """bf16 and fp16 as fp32; fp32 and fp64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
