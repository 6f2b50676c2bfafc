"""A step in tensors of fixed shapes against a step piece by piece. To record it takes a GPU."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rayssl.pipeline.config import method_config
from rayssl.pipeline.methods import load_method
from rayssl.pipeline.methods.base import Method, MethodOutput, Traits
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.models.trainable import parameter_groups
from rayssl.pipeline.training.batches import Drawn, RawBatch
from rayssl.pipeline.training.cuda_graph import can_be_recorded
from rayssl.pipeline.training.optimizers import build_optimizer
from rayssl.pipeline.training.step import Step

TRAITS = Traits(image_size=16, channels=3, mirror=True)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
METHODS = ("simclr", "essl", "rotnet", "byol")
SEED, BATCH = 3, 12


def build(name: str) -> Method:
    torch.manual_seed(0)
    encoder = build_encoder("resnet-tiny", channels=3, image_size=16)
    return load_method(name)(method_config(name), encoder, TRAITS)


def drawn_batch(method: Method, step: int, size: int) -> RawBatch:
    rows = np.random.default_rng(step).permutation(40)[:BATCH]
    specs = method.default_views(TRAITS)
    tables = tuple(spec.draw(seed=SEED, epoch=step, ids=rows + 1, view=view) for view, spec in enumerate(specs))
    return RawBatch(
        Drawn(specs, tables, (size,) * len(specs), torch.from_numpy(rows), None, None),
        torch.from_numpy(rows + 1),
        None,
        step,
        step,
    )


def stepper(method: Method, optimizer: str, resident: Tensor, *, recorded: bool) -> Callable[[int, int], MethodOutput]:
    built = build_optimizer(optimizer, parameter_groups(method, 0.01), learning_rate=0.1)
    step = Step(
        method.train(), built, resident.device, "fp32", SEED, 8, clip_grad=1.0, resident=resident, captured=recorded
    )
    take_step = step.begin()

    def take(step: int, size: int) -> MethodOutput:
        rate = 0.02 / (1 + step)
        for group in built.param_groups:
            group["lr"] = rate
        return take_step(drawn_batch(method, step, size), rate)

    return take


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("name", METHODS)
def test_losses_and_weights_are_those_of_steps_piece_by_piece(name, optimizer, device):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 5, 3)).repeat(5, axis=1).repeat(4, axis=2)
    resident = torch.from_numpy(images.astype(np.uint8)).to(device)
    plain = build(name).to(device)
    fixed = copy.deepcopy(plain)
    take_plain = stepper(plain, optimizer, resident, recorded=False)
    take_fixed = stepper(fixed, optimizer, resident, recorded=True)
    for step in range(8):  # some steps at one size and some at another, more than are done before a recording
        size = 16 if step < 2 else 8
        expected, found = take_plain(step, size), take_fixed(step, size)
        torch.testing.assert_close(found.loss, expected.loss, rtol=2e-3, atol=1e-4)
        assert found.logs.keys() == expected.logs.keys()
    for ours, theirs in zip(fixed.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=5e-3)


def test_what_is_recorded():
    held = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    assert not can_be_recorded(load_method("simclr"), "sgd", held)  # which lies on the CPU
    assert not can_be_recorded(load_method("simclr"), "sgd", None)
    assert not load_method("autoencoder").deterministic  # it corrupts by the epoch and the images' ids
