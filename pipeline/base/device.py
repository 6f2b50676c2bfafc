"""The device that this process computes on, and in which precision."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast, or nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def exact_products(precision: str) -> Iterator[None]:
    """In fp32, products of 24 bits: a GPU may round factors to 11 (TF32)."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def resolve_precision(precision: str, device: torch.device) -> str:
    """auto: bf16 where the processor computes in it, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if has_bf16 else "fp32"


def plain_precision(precision: str) -> str:
    """What a trained network is used in: single precision also where it was trained in double, as it is kept so."""
    return "fp32" if precision == "fp64" else precision


def choose_device() -> torch.device:
    """The GPU this worker was given, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def to_float(images: Tensor, device: torch.device, precision: str) -> Tensor:
    """uint8 (B, H, W, C) → floats in [0, 1], (B, C, H, W), channels last in memory."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).to(dtype).div_(255)
