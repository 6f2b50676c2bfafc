"""Losses of the methods.

Shapes: W workers, B images on this worker, N = W·B images in the global batch, D dimensions.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rayssl.pipeline.base.collectives import gather_with_grad, rank

ROWS = 1024  # of the similarity matrix at a time: memory grows with N and not with N²


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """NT-Xent over the global batch (Chen et al., "SimCLR", 2020, §2.1 and Algorithm 1).

    `z1`, `z2` (B, D) are this worker's slices of the two views' projections, any length. Each row's loss is
    −log softmax over its cosine similarities / temperature to the 2N − 1 others, at the other view of the same image.
    A worker computes its own 2B of the 2N rows against all of them: the mean of the results over workers is the loss
    of the global batch, and with DistributedDataParallel's mean the gradients are those of one process.
    Computed in fp32 (fp64 stays fp64), also under autocast. Memory: ROWS × 2N numbers, whatever N.
    """
    return nt_xent_of_views((z1, z2), temperature)


def nt_xent_of_views(projections: Sequence[Tensor], temperature: float) -> Tensor:
    """NT-Xent of V ≥ 2 views of every image, (B, D) each: the mean over all pairs of views of one image.

    Every pair of views as in Tian et al., "Contrastive multiview coding", ECCV 2020 (there the "full graph"). A pair's
    softmax is over its own similarity and those to all views of other images: the further views of the same image are
    no negatives. With two views it is `nt_xent`, which says what else holds here, too.
    """
    with torch.autocast(projections[0].device.type, enabled=False):
        own = F.normalize(at_least_float32(torch.cat(list(projections))), dim=1)
        loss: Tensor = _NtXent.apply(own, gather_with_grad(own), temperature, len(projections))
        return loss


def nt_xent_at_chance(images: int, views: int) -> float:
    """The loss of a global batch whose projections are all equal: log(2N − 1) with two views of N images."""
    return math.log(1 + views * (images - 1))


class _NtXent(torch.autograd.Function):
    """The similarities are computed a block of rows at a time, and again on the way back instead of being kept."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, others: Tensor, temperature: float, views: int) -> Tensor:
        ctx.temperature = temperature
        partners = _partners(len(own), views, own.device)
        found = [_split(block, partners[rows]) for rows, block in _logits(own, others, temperature)]
        positives, negatives = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(own, others, positives, negatives)
        return F.softplus(negatives[:, None] - positives, threshold=40.0).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        own, others, positives, negatives = ctx.saved_tensors
        pairs = positives.shape[1]
        partners = _partners(len(own), pairs + 1, own.device)
        missed = torch.sigmoid(negatives[:, None] - positives)  # what each pair's softmax leaves to the negatives
        grad_own, grad_others = torch.empty_like(own), torch.zeros_like(others)
        for rows, block in _logits(own, others, ctx.temperature):
            block.sub_(negatives[rows, None]).exp_().mul_(missed[rows].sum(dim=1, keepdim=True))
            block.scatter_(1, partners[rows], -missed[rows])
            torch.mm(block, others, out=grad_own[rows])
            grad_others.addmm_(block.T, own[rows])
        scale = grad / (ctx.temperature * len(own) * pairs)
        return grad_own.mul_(scale), grad_others.mul_(scale), None, None


def _logits(own: Tensor, others: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of own · othersᵀ / temperature, −∞ where a row meets itself: a row is no negative of itself."""
    first = rank() * len(own)  # where this worker's rows stand among all
    for start in range(0, len(own), ROWS):
        rows = slice(start, min(start + ROWS, len(own)))
        block = (own[rows] / temperature) @ others.T
        block.diagonal(first + start).fill_(-torch.inf)
        yield rows, block


def _split(block: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """(R, V − 1) logits of a block's positives, and (R,) log Σ exp of its negatives', finite where there are none."""
    positives = block.gather(1, partners)
    negatives = block.scatter_(1, partners, -torch.inf).logsumexp(dim=1)
    return positives, negatives.clamp_(min=torch.finfo(block.dtype).min / 2)


def _partners(rows: int, views: int, device: torch.device) -> Tensor:
    """(rows, V − 1) where the other views of each of this worker's rows stand among all rows."""
    others = torch.arange(1, views, device=device) * (rows // views)
    return rank() * rows + (torch.arange(rows, device=device)[:, None] + others) % rows


def at_least_float32(x: Tensor) -> Tensor:
    """bf16 and fp16 as fp32; fp32 and fp64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
