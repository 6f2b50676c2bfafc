"""The backend with fixed shapes against the batched one, and that it never looks at what was drawn."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rayssl.pipeline.augment.batched_backend import apply_table, pack, unpack
from rayssl.pipeline.augment.defaults import simclr_views
from rayssl.pipeline.augment.fixed_backend import apply_arrays, arrays_of
from rayssl.pipeline.augment.spec import OPERATIONS, Spec

EVERY = Spec(tuple(kind(p=0.6) for kind in OPERATIONS.values() if kind.name != "solarize"))  # which jumps
SPECS = {
    **{name: Spec((kind(p=0.5),)) for name, kind in OPERATIONS.items()},
    "simclr, 32 px": simclr_views(image_size=32, channels=3, mirror=True)[0],
    "simclr, 96 px": simclr_views(image_size=96, channels=3, mirror=True)[0],
    "simclr, 8 px": simclr_views(image_size=8, channels=3, mirror=True)[0],
    "every": EVERY,
    "nothing": Spec(),
}


def photos(n: int, channels: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 6, 7, channels))
    return torch.from_numpy(coarse.repeat(5, axis=1).repeat(5, axis=2).astype(np.uint8))


class OnTheDevice(TorchDispatchMode):
    """Fails where something would have to wait for the device, or to be sent to it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "equal"), name
        return function(*args, **(kwargs or {}))


def by_arrays(spec: Spec, images: torch.Tensor, size: int, seed: int) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    n = len(images)
    table = spec.draw(seed=seed, epoch=0, ids=np.arange(1, n + 1), view=0)
    arrays = arrays_of(spec, table, np.broadcast_to(images.shape[1:3], (n, 2)), size)
    order = sorted(range(len(arrays)), key=lambda number: arrays[number].dtype != np.int64)
    sent = unpack(pack([arrays[number] for number in order]), [arrays[number] for number in order])
    tensors = [sent[order.index(number)] for number in range(len(arrays))]
    with OnTheDevice():
        views = apply_arrays(spec, iter(tensors), images, size)
    return views, [(array.dtype.name, *array.shape) for array in arrays]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", SPECS)
def test_as_the_batched_backend(name, channels):
    spec, images, size = SPECS[name].restricted(channels), photos(40, channels), 24
    table = spec.draw(seed=3, epoch=0, ids=np.arange(1, 41), view=0)
    expected = apply_table(spec, table, images, size)
    found, _ = by_arrays(spec, images, size, 3)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=0.3 / 255, rtol=0)


@pytest.mark.parametrize("name", SPECS)
def test_shapes_do_not_depend_on_the_draws(name):
    shapes = [by_arrays(SPECS[name], photos(4, 3), 16, seed)[1] for seed in range(6)]
    assert all(one == shapes[0] for one in shapes)
