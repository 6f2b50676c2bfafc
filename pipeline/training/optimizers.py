"""Optimisers and the learning rate."""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rayssl.pipeline.base.errors import UserError, nearest

OPTIMIZERS = ("sgd", "adamw", "lars", "muon")
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5  # of Muon, as published
VANISHING = 1e-15  # a norm below which squares of single precision begin to
SMALL = 2**18  # numbers in a parameter; up to so many one thread is quicker than two (docs/speed.md)
VECTOR_RATE = 5.0  # of Muon: the rate of biases and normalisation in units of the matrices'; tried on CIFAR-10
REFERENCE_BATCH = 256  # learning rates are given for this batch (Goyal et al., 2017, §2.1)


def set_learning_rate(optimizer: Optimizer, rate: float | Tensor) -> None:
    """The same rate for every parameter group, times the group's scale."""
    for group in optimizer.param_groups:
        scale = group.get("scale", 1.0)
        group["lr"] = rate if scale == 1 else rate * scale


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    *,
    learning_rate: float,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> Optimizer:
    """The optimiser "sgd", "adamw", "lars" or "muon" over groups of parameters: see `models.trainable`.

    `learning_rate` is the final one: see `scaled_learning_rate`. AdamW keeps its own moments (0.9, 0.999): momentum and
    nesterov are not for it; Muon is always Nesterov's. On a GPU the fused kernels of torch are used. Raises UserError
    for an unknown name, or for nesterov without momentum.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer '{name}'{nearest(name, OPTIMIZERS)}: known are {', '.join(OPTIMIZERS)}")
    if nesterov and momentum == 0 and name != "adamw":
        raise UserError("nesterov with momentum 0 means nothing: give a momentum, for instance 0.9")
    if name == "lars":
        return LARS(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov)
    if name == "muon":
        return Muon(groups, lr=learning_rate, momentum=momentum)
    fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, fused=fused)


class JointOptimizer(Optimizer):
    """Several optimisers by name, which take their steps one by one; saved and restored as one.

    The groups and states are those of the parts, one part after the other.
    """

    def __init__(self, parts: Mapping[str, Optimizer]) -> None:
        groups = [group for part in parts.values() for group in part.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], {})
        self.parts = dict(parts)
        self._join()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Not of all at once: each of `parts` takes its own."""
        raise NotImplementedError("its parts take their steps one by one")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Every part's, from a `state_dict` of the whole."""
        first, groups = 0, iter(state_dict["param_groups"])
        for part in self.parts.values():
            own = [next(groups) for _ in part.param_groups]
            stop = first + sum(len(group["params"]) for group in own)
            state = {
                number - first: state_dict["state"][number] for number in state_dict["state"] if first <= number < stop
            }
            shifted = [{**group, "params": [n - first for n in group["params"]]} for group in own]
            part.load_state_dict({"state": state, "param_groups": shifted})
            first = stop
        self._join()

    def state_dict(self) -> dict[str, Any]:
        """As any optimiser's: parameters are numbered through all parts."""
        self._join()
        return super().state_dict()

    def _join(self) -> None:
        """The groups are the parts' own, so that a learning rate that is set here is set there."""
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]
        self.state.clear()
        for part in self.parts.values():
            self.state.update(part.state)


class OneByOne(Optimizer, ABC):
    """An optimiser that takes its parameters one after the other."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; `closure` recomputes the loss where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)
        return loss

    @abstractmethod
    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """One step of a parameter that has a gradient."""


class LARS(OneByOne):
    """SGD with momentum whose step for each weight is scaled by trust · ‖w‖ / ‖g + λw‖.

    You, Gitman and Ginsburg, "Large batch training of convolutional networks", 2017, Algorithm 1, in the form of
    SimCLR's published code: the norm of gradient and decay together, where the paper adds their norms. Parameters
    with ndim ≤ 1 take plain momentum steps (SimCLR, Chen et al., 2020, appendix B.6).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, defaults)

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        update = parameter.grad.add(parameter, alpha=group["weight_decay"])
        if parameter.ndim > 1:
            update.mul_(trust_ratio(parameter, update, group["trust"]))
        update.mul_(group["lr"])
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(update)
        parameter.sub_(update.add_(velocity, alpha=group["momentum"]) if group["nesterov"] else velocity)


def trust_ratio(weight: Tensor, update: Tensor, trust: float) -> Tensor:
    """trust · ‖weight‖ / ‖update‖, or 1 where either norm is zero; a scalar on the device."""
    weight_norm, update_norm = weight.norm(), update.norm()
    usable = (weight_norm > 0) & (update_norm > 0)
    return torch.where(usable, trust * weight_norm / update_norm, torch.ones_like(weight_norm))


class Muon(OneByOne):
    """Momentum whose step for each weight matrix is made nearly orthogonal: every direction moves about as far.

    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024: Nesterov's momentum, then
    `orthogonalised`, times √max(1, rows / columns); weights decay by lr · weight_decay · w. A convolution is the matrix
    of outputs × (inputs · kernel). Parameters with ndim ≤ 1 take plain momentum steps at VECTOR_RATE times the rate.
    torch's own Muon takes no convolutions, and rounds to bf16, which would let the number of workers show.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; on a GPU of all matrices of a shape at once: to ask for a small one takes longer than to do it."""
        if not all(parameter.is_cuda for group in self.param_groups for parameter in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_together(group)
        return loss

    def _step_together(self, group: dict[str, Any]) -> None:
        """The rate may be a tensor: a CUDA graph would keep a number as it is."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        for alike in by_shape(parameters):
            velocities = [self._velocity(parameter) for parameter in alike]
            gradients: list[Tensor] = [parameter.grad for parameter in alike if parameter.grad is not None]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, gradients)
            if alike[0].ndim <= 1:
                torch._foreach_sub_(alike, torch._foreach_mul(velocities, VECTOR_RATE * group["lr"]))
                continue
            ahead = torch.stack(torch._foreach_add(gradients, velocities, alpha=group["momentum"])).flatten(2)
            rows, columns = ahead.shape[1:]
            steps = orthogonalised(ahead).mul(group["lr"] * max(1.0, rows / columns) ** 0.5)
            torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(alike, steps.view(-1, *alike[0].shape).unbind())

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        with threads_for(parameter):
            self._move(parameter, group)

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity: Tensor = state["momentum_buffer"]
        return velocity

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        velocity = self._velocity(parameter).mul_(group["momentum"]).add_(parameter.grad)
        if parameter.ndim <= 1:
            parameter.sub_(velocity, alpha=VECTOR_RATE * group["lr"])
            return
        ahead = parameter.grad.add(velocity, alpha=group["momentum"]).flatten(1)
        rows, columns = ahead.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        step = orthogonalised(ahead).view(parameter.shape)
        parameter.sub_(step, alpha=group["lr"] * max(1.0, rows / columns) ** 0.5)


def by_shape(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Those of one shape together, in the order in which the shapes come."""
    found: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        found.setdefault(parameter.shape, []).append(parameter)
    return list(found.values())


def orthogonalised(matrix: Tensor) -> Tensor:
    """(M, N), or K of them (K, M, N), with singular values brought near 1, most of them into 0.7 … 1.2; zeros stay.

    Five Newton–Schulz steps X ← (aI + bXXᵀ + c(XXᵀ)²) X from X = matrix / ‖matrix‖ (Jordan et al., 2024). All factors
    are polynomials of the first XXᵀ, so they are multiplied first, M × M, and X once. A small singular value grows by
    at most a⁵ = 485 times: noise of rounding stays noise.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    norm = norms(x)
    if x.is_cuda or float(norm.min()) < VANISHING:  # a GPU is not asked, as it would have to be waited for
        x = x / power_of_two(x)  # changes no bit of what can be done without
        norm = norms(x)
    x = x / norm.clamp(min=torch.finfo(x.dtype).tiny)
    a, b, c = NEWTON_SCHULZ
    square = x @ x.mT
    product: Any = None
    multiply_and_add = torch.addmm if x.ndim == 2 else torch.baddbmm
    for step in range(NEWTON_SCHULZ_STEPS):
        factor = multiply_and_add(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < NEWTON_SCHULZ_STEPS:
            square = factor @ (square @ factor)
    found: Tensor = product @ x
    return found.mT if tall else found


def norms(x: Tensor) -> Tensor:
    """Of a matrix (M, N), or of each of K of them (K, M, N), that one as (K, 1, 1)."""
    found: Tensor = x.norm() if x.ndim == 2 else x.norm(dim=(1, 2), keepdim=True)
    return found


def power_of_two(matrix: Tensor) -> Tensor:
    """The smallest power of two above every entry of a matrix (..., M, N), as (..., 1, 1); 1 for zeros."""
    largest = torch.linalg.vector_norm(matrix, torch.inf, dim=(-2, -1), keepdim=True)
    mantissa, _ = torch.frexp(largest)
    return torch.where(largest > 0, largest / mantissa, torch.ones_like(largest))


@contextlib.contextmanager
def threads_for(parameter: Tensor) -> Iterator[None]:
    """One thread on a CPU for a small parameter: to wake the others takes longer than what they would do."""
    threads = torch.get_num_threads()
    if parameter.is_cuda or threads == 1 or parameter.numel() > SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def scaled_learning_rate(base: float, batch_size: int, optimizer: str) -> float:
    """`base` is for a batch of 256 and grows with the global batch (Goyal et al., 2017, §2.1).

    Not for AdamW and Muon, whose steps are as long whatever the gradient's size.
    """
    return base if optimizer in ("adamw", "muon") else base * batch_size / REFERENCE_BATCH


def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up to `peak`, which the last warm-up step has, then a cosine to zero at `total_steps`.

    Loshchilov and Hutter, "SGDR", 2017, eq. 5 without restarts. A pure function of `step`, 0 … total_steps − 1.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * min(1.0, progress)))
