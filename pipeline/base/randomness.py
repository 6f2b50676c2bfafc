"""Randomness as a function of a key, not as a state.

Every draw is a hash of (seed, epoch, sample id, view, operation, element). So a draw does not depend on how
many processes work, in which order they do, or what was drawn before. The hash chains the finaliser of splitmix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) over the parts of the key.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def name_key(name: str) -> int:
    """A fixed 63-bit integer for the name of an operation or purpose, e.g. "crop" or "order"."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def mix(state: NDArray[np.uint64], part: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """Fold one part of a key into the state: splitmix64's increment and finaliser (wraps modulo 2^64)."""
    with np.errstate(over="ignore"):
        z = (state ^ part) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def hash_key(parts: Sequence[int | str | NDArray[np.int64]]) -> NDArray[np.uint64]:
    """Hash of a key whose parts broadcast against each other; a str part stands for `name_key` of it."""
    state = np.zeros((), dtype=np.uint64)
    for part in parts:
        number = name_key(part) if isinstance(part, str) else part
        state = mix(state, np.asarray(number, dtype=np.int64).astype(np.uint64))
    return np.asarray(state)


def uniform(parts: Sequence[int | str | NDArray[np.int64]], n: int) -> NDArray[np.float64]:
    """`n` uniform draws in [0, 1) for every key: shape (*key shape, n). Draw i is the same whatever `n`."""
    state = hash_key(parts)[..., None]
    bits = mix(state, np.arange(n, dtype=np.uint64))
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def permutation(n: int, *parts: int | str) -> NDArray[np.int64]:
    """A random order of 0 … n − 1, a function of the key alone."""
    return np.argsort(hash_key([*parts, np.arange(n, dtype=np.int64)]), kind="stable").astype(np.int64)
