"""BatchNorm over the global batch: the same statistics whatever the number of workers."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.pipeline.base.collectives import gather, world_size
from rayssl.pipeline.base.errors import UserError

_TINY = 1e-12  # added to a variance where a kernel demands something


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the global batch: the statistics are those of all workers' equal slices together.

    Input (B, C) or (B, C, H, W). State-dict keys and buffers are those of nn.BatchNorm1d and nn.BatchNorm2d, and so are
    results, up to rounding. One worker on a CPU computes statistics as several do: torch's own, summed in fp32, are
    off by up to 1e-5. Below that precision (bf16), where that is little, they are torch's own, which takes half the
    time. torch's SyncBatchNorm refuses CPU tensors.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"input has {input.dim()} dimensions: expected (B, C) or (B, C, H, W)")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, H, W)."""
        if not self.training or (world_size() == 1 and (input.is_cuda or _is_low_precision(input))):
            return super().forward(input)
        self._check_input_dim(input)
        if world_size() * input.numel() == input.shape[1]:
            raise UserError("BatchNorm needs more than one value per channel: increase --train.batch-size")
        output, mean, variance = _GlobalBatchNorm.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._update_running(mean, variance, world_size() * input.numel() // input.shape[1])
        normalised: Tensor = output
        return normalised

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), momentum)


class ActivatedBatchNorm(GlobalBatchNorm):
    """The same of timm's BatchNormAct2d: what it normalises goes through `drop`, then through `act`."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W) and activate."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


def use_global_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every nn.BatchNorm1d and nn.BatchNorm2d inside `module` in place; parameters and buffers are kept.

    Also timm's, which have an activation inside. Returns `module`, or its replacement where it is itself such a layer.
    """
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return _as_global(module)
    for name, child in module.named_children():
        setattr(module, name, use_global_batch_norm(child))
    return module


def _as_global(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> GlobalBatchNorm:
    activated = hasattr(layer, "act")
    replacement = (ActivatedBatchNorm if activated else GlobalBatchNorm)(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats, device="meta"
    )
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(replacement, name, getattr(layer, name))
    if isinstance(replacement, ActivatedBatchNorm):
        replacement.drop, replacement.act = layer.drop, layer.act  # type: ignore[assignment]
    return replacement.train(layer.training)


class _GlobalBatchNorm(torch.autograd.Function):
    """Ioffe and Szegedy, "Batch normalization", 2015, Algorithm 1, with the sums of both passes over all workers."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        moments = _moments(x) if x.is_cuda or weight is None or not _is_low_precision(x) else _quick_moments(x, weight)
        if world_size() > 1:
            # Slices are of one size, so: global variance = mean of the variances + variance of the means. Unlike
            # E[x²] − E[x]² this loses no digits where the mean is large.
            means, variances = gather(moments).view(world_size(), 2, -1).unbind(1)
            moments = torch.stack([means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)])
        mean, variance = moments.to(torch.promote_types(x.dtype, torch.float32)).unbind()
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps))
        ctx.mark_non_differentiable(mean, variance)
        # With given statistics this is the element-wise part alone, fused.
        output = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        return output, mean, variance

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, _mean: Tensor, _variance: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        if world_size() == 1:
            wanted = [True, weight is not None, weight is not None]
            found = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, None, None, mean, inverse_std, True, 0.0, wanted
            )
            return (*found, None)
        dims = [d for d in range(x.dim()) if d != 1]
        per_channel = [-1 if d == 1 else 1 for d in range(x.dim())]
        grad_y = _at_least_float32(grad)
        normalised = (_at_least_float32(x) - mean.view(per_channel)) * inverse_std.view(per_channel)
        sums = torch.stack([grad_y.sum(dims), (grad_y * normalised).sum(dims)])
        grad_bias, grad_weight = sums.clone().unbind(0)
        dist.all_reduce(sums)
        count = world_size() * x.numel() // x.shape[1]
        mean_grad, mean_grad_normalised = (sums / count).view(2, *per_channel).unbind(0)
        scale = inverse_std if weight is None else inverse_std * weight
        grad_x = scale.view(per_channel) * (grad_y - mean_grad - normalised * mean_grad_normalised)
        if weight is None:
            return grad_x.to(x.dtype), None, None, None
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None


def _moments(x: Tensor) -> Tensor:
    """Mean and variance of every channel of (B, C) or (B, C, H, W), as (2, C) in float64.

    On a CPU image by image in fp32, and over the images in float64: an image's part does not depend on its batch, and
    the rest rounds to the same fp32 numbers however the images are spread over workers. A last bit that differs here
    is enough to open a ReLU in one run that stays shut in the other, and then gradients differ in the third digit.
    """
    x = _at_least_float32(x)
    if x.is_cuda:
        variance, mean = torch.var_mean(x, dim=[d for d in range(x.dim()) if d != 1], correction=0)
        return torch.stack([mean, variance]).double()
    means = x if x.dim() == 2 else x.mean(dim=(2, 3))
    total = means.double().var(dim=0, correction=0)
    if x.dim() == 4:
        total += (x - means[:, :, None, None]).square_().mean(dim=(2, 3)).double().mean(dim=0)
    return torch.stack([means.double().mean(dim=0), total])


def _quick_moments(x: Tensor, weight: Tensor) -> Tensor:
    """The same in fp32 for bf16 or fp16 on a CPU, by the one fused kernel that has both; `weight` (C,) is fp32."""
    _, mean, inverse_std = torch.native_batch_norm(x, weight, None, None, None, True, 0.0, _TINY)
    return torch.stack([mean, inverse_std.pow(-2) - _TINY])


def _is_low_precision(x: Tensor) -> bool:
    return x.element_size() < 4


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
