"""What several methods are made of.

Shapes: B images, C channels of S × S pixels.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TURNS = 4


def build_projector(dim: int, hidden: int, out: int, *, layers: int) -> nn.Sequential:
    """An MLP of `layers` linear layers, (B, dim) → (B, out); BatchNorm and ReLU after all but the last."""
    widths = [dim] + [hidden] * (layers - 1)
    modules: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        modules += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules, nn.Linear(hidden, out))


def positive_similarity(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean cosine similarity of the two views of an image: 1 when the views cannot be told apart."""
    return F.cosine_similarity(z1, z2).mean()


def all_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, S, S) → (4B, C, S, S) and (4B,): all images turned by k · 90° counter-clockwise, and k, for k = 0 … 3."""
    turned = torch.cat([torch.rot90(images, k, dims=(2, 3)) for k in range(TURNS)])
    turns = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
    # A turned view has other strides, so `cat` would lose the layout that convolutions are fastest in.
    return turned.contiguous(memory_format=torch.channels_last), turns
