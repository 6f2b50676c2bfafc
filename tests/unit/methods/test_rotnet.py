"""RotNet: the turns, their labels and the loss."""

import math

import pytest
import torch

from rayssl.pipeline.methods.base import Batch, Traits
from rayssl.pipeline.methods.heads import all_turns
from rayssl.pipeline.methods.rotnet import RotNet, RotNetConfig
from rayssl.pipeline.models.encoder import build_encoder

TRAITS = Traits(image_size=8, channels=1, mirror=True)


def build() -> RotNet:
    torch.manual_seed(0)
    return RotNet(RotNetConfig(), build_encoder("resnet-tiny", channels=1, image_size=8), TRAITS)


def batch_of(images: torch.Tensor) -> Batch:
    return Batch([images], torch.arange(1, len(images) + 1), None, seed=0, epoch=0, step=0)


def test_turns_are_counter_clockwise_and_labelled():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    turned, turns = all_turns(image.view(1, 1, 2, 2))
    by_hand = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert turns.tolist() == [0, 1, 2, 3]
    assert turned[:, 0].tolist() == by_hand


def test_every_image_is_there_in_every_turn():
    images = torch.rand(3, 2, 5, 5)
    turned, turns = all_turns(images)
    assert turned.shape == (12, 2, 5, 5)
    assert turned.is_contiguous(memory_format=torch.channels_last)
    for position, (image, turn) in enumerate(zip(turned, turns.tolist())):
        assert torch.equal(image, torch.rot90(images[position % 3], turn, dims=(1, 2)))


def test_an_undecided_classifier_costs_log_four():
    method = build()
    torch.nn.init.zeros_(method.classifier.weight)
    torch.nn.init.zeros_(method.classifier.bias)
    output = method(batch_of(torch.rand(5, 1, 8, 8)))
    assert output.loss.item() == pytest.approx(math.log(4))
    assert output.logs["train/rotation_accuracy"].item() == pytest.approx(0.25)  # argmax takes turn 0 everywhere
    assert output.features.shape == (20, method.encoder.dim)
    assert not output.features.requires_grad


def test_turns_of_an_oriented_image_are_learnt():
    method = build()
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    ramp = torch.linspace(0, 1, 8).view(1, 1, 8, 1).expand(16, 1, 8, 8) + 0.05 * torch.rand(16, 1, 8, 8)
    for _ in range(20):
        output = method(batch_of(ramp.clamp(0, 1)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.logs["train/rotation_accuracy"].item() == 1.0


def test_default_view_is_one_and_does_not_turn():
    (view,) = RotNet.default_views(TRAITS)
    assert not any("turn" in name or "rotation" in name for name in str(view.to_dict()).lower().split("'")[3::2])


def test_gradients_reach_every_parameter():
    method = build()
    method(batch_of(torch.rand(4, 1, 8, 8))).loss.backward()
    assert all(p.grad is not None for p in method.parameters())
