"""`rayssl.pipeline.base.randomness` on the device: the same hash of the same key gives the same bits, on CPU and GPU.

torch has no unsigned 64-bit arithmetic: int64 wraps round to the same bits, and a logical shift is a shift and a mask.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rayssl.pipeline.base.randomness import name_key


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def hash_key(parts: Sequence[int | str | Tensor]) -> Tensor:
    """`base.randomness.hash_key` as int64 with the same bits; at least one part must be an int64 tensor.

    Tensors must be on one device and broadcast against each other; a str part stands for `name_key` of it.
    """
    device = next(part.device for part in parts if isinstance(part, Tensor))
    state = torch.zeros((), dtype=torch.int64, device=device)
    for part in parts:
        number = name_key(part) if isinstance(part, str) else part
        state = _mix(state ^ number)
    return state


def uniform(parts: Sequence[int | str | Tensor], n: int) -> Tensor:
    """`rayssl.pipeline.base.randomness.uniform` on the device: (*key shape, n) draws in [0, 1), float64."""
    return _shift_right(_element_hash(parts, n), 11).double().mul_(2.0**-53)


def normal(parts: Sequence[int | str | Tensor], n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(*key shape, n) draws of N(0, 1) by Box and Muller (1958). Draw i is the same whatever `n`.

    One hash makes two draws from 32-bit uniforms, so no draw is larger than 6.7. fp32 and fp64 give the same draws up
    to rounding, and so may the same draw at another place of a tensor: torch's vectorised functions round differently.
    """
    bits = _element_hash(parts, (n + 1) // 2)
    radius = _shift_right(bits, 32).add_(1).to(dtype).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(0xFFFFFFFF).to(dtype).mul_(2 * math.pi * 2.0**-32)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return pairs.flatten(-2)[..., :n]


def _element_hash(parts: Sequence[int | str | Tensor], n: int) -> Tensor:
    state = hash_key(parts)[..., None]
    return _mix(state ^ torch.arange(n, dtype=torch.int64, device=state.device))


def _mix(z: Tensor) -> Tensor:
    """splitmix64's increment and finaliser, in place."""
    z.add_(_GOLDEN)
    z.bitwise_xor_(_shift_right(z, 30)).mul_(_MIX_1)
    z.bitwise_xor_(_shift_right(z, 27)).mul_(_MIX_2)
    return z.bitwise_xor_(_shift_right(z, 31))


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """A logical shift: the sign bit must not be copied."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
