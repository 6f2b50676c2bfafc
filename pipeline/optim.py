"""Optimisers and the learning rate."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.errors import UserError, nearest

OPTIMIZERS = ("sgd", "adamw", "lars")
REFERENCE_BATCH = 256  # learning rates are given for this batch (Goyal et al., 2017, §2.1)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in up to two groups: weights decay; biases and normalisation (ndim ≤ 1) do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: str,
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> Optimizer:
    """The optimiser "sgd", "adamw" or "lars" over the model's trainable parameters.

    `learning_rate` is the final one: see `scaled_learning_rate`. AdamW keeps its own moments (0.9, 0.999): momentum and
    nesterov are not for it. On a GPU the fused kernels of torch are used. Raises UserError for an unknown name, or for
    nesterov without momentum.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer '{name}'{nearest(name, OPTIMIZERS)}: known are {', '.join(OPTIMIZERS)}")
    if nesterov and momentum == 0 and name != "adamw":
        raise UserError("nesterov with momentum 0 means nothing: give a momentum, for instance 0.9")
    groups = parameter_groups(model, weight_decay)
    if name == "lars":
        return LARS(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov)
    fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, fused=fused)


class LARS(Optimizer):
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


def scaled_learning_rate(base: float, batch_size: int, optimizer: str) -> float:
    """`base` is for a batch of 256 and grows with the global batch (Goyal et al., 2017, §2.1), but not for AdamW."""
    return base if optimizer == "adamw" else base * batch_size / REFERENCE_BATCH


def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up to `peak`, which the last warm-up step has, then a cosine to zero at `total_steps`.

    Loshchilov and Hutter, "SGDR", 2017, eq. 5 without restarts. A pure function of `step`, 0 … total_steps − 1.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * min(1.0, progress)))
