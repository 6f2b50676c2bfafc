"""Several workers as one: plain torch.distributed, and every function works without a process group too (one worker).

Shapes: W workers, B rows on this worker, D columns, C channels.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """This worker's number, 0 … W − 1."""
    return dist.get_rank() if _initialized() else 0


def world_size() -> int:
    """The number of workers, W."""
    return dist.get_world_size() if _initialized() else 1


def barrier() -> None:
    """Wait until every worker is here."""
    any_rank(False)


def broadcast_object(x: T) -> T:
    """Rank 0's object, on every worker. It is pickled on the way: between the workers of one run only."""
    if world_size() == 1:
        return x
    objects = [x]
    dist.broadcast_object_list(objects, src=0, device=_device())
    return objects[0]


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any worker; all must call it."""
    if world_size() == 1:
        return flag
    raised = torch.tensor([int(flag)], device=_device())
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean over workers of a tensor (a new one; no gradient)."""
    x = x.detach().clone()
    if world_size() == 1:
        return x
    total = x.to(_device())
    dist.all_reduce(total)
    return (total / world_size()).to(x.device)


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all workers in rank order, without gradient: (B_r, …) → (Σ B_r, …). B_r may differ between workers."""
    x = x.detach()
    if world_size() == 1:
        return x
    counts = gather(torch.tensor([len(x)], device=_device())).tolist()
    padded = torch.zeros((max(counts), *x.shape[1:]), dtype=x.dtype, device=_device())
    padded[: len(x)] = x
    slices = torch.split(gather(padded), max(counts))
    return torch.cat([rows[:count] for rows, count in zip(slices, counts)]).to(x.device)


def gather_with_grad(x: Tensor) -> Tensor:
    """(B, D) → (W·B, D) in rank order; B must be the same on every worker.

    The backward pass sums over workers. So, where every worker's loss depends on all workers' rows, the mean that
    DistributedDataParallel takes is the gradient of the mean loss: no factor of W is left over.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _GatherWithGrad.apply(x)
    return gathered


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return gather(x.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(x: Tensor) -> Tensor:
    """Equal (B, …) of every worker → (W·B, …)."""
    gathered = torch.empty((world_size() * len(x), *x.shape[1:]), dtype=x.dtype, device=x.device)
    dist.all_gather_into_tensor(gathered, x)
    return gathered


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    """Where the group's backend wants its tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
