"""E-SSL: SimCLR's loss plus a weighted rotation loss on a smaller third view."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.config import method_config, method_name, override
from pipeline.encoders import build_encoder
from pipeline.losses import nt_xent
from pipeline.methods.base import Batch, Traits
from pipeline.methods.essl import ESSL, ESSLConfig
from pipeline.methods.parts import all_turns
from pipeline.recipes import build_recipe

TRAITS = Traits(image_size=16, channels=3, mirror=True)


def build(**values) -> ESSL:
    torch.manual_seed(0)
    return ESSL(ESSLConfig(**values), build_encoder("resnet-tiny", channels=3, image_size=16), TRAITS)


def batch() -> Batch:
    views = list(torch.rand(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    return Batch(views, torch.arange(1, 5), None, seed=0, epoch=0, step=0)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_loss_is_the_sum_of_both(weight):
    method, given = build(rotation_weight=weight, temperature=0.2), batch()
    output = method(given)
    z1, z2 = method.projector(method.encoder(torch.cat(given.views[:2]))).chunk(2)
    images, turns = all_turns(F.avg_pool2d(given.views[2], 2))
    rotation = F.cross_entropy(method.predictor(method.encoder(images)), turns)
    torch.testing.assert_close(output.loss, nt_xent(z1, z2, 0.2) + weight * rotation)
    torch.testing.assert_close(output.logs["train/rotation_loss"], rotation.detach())


def test_turned_images_have_half_the_side():
    method, sizes = build(), []
    method.encoder.register_forward_pre_hook(lambda module, given: sizes.append(tuple(given[0].shape)))
    method(batch())
    assert sizes == [(8, 3, 16, 16), (16, 3, 8, 8)]


def test_gradients_reach_every_parameter():
    method = build()
    method(batch()).loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_default_views_are_three_and_never_turned():
    views = ESSL.default_views(TRAITS)
    assert len(views) == 3
    assert not {"rotation", "quarter_turn"} & {operation.name for operation in views[2].operations}


def test_a_recipe_is_told_from_simclrs():
    assert method_name(build_recipe("essl-cifar10")) == "essl"
    assert override(build_recipe("essl-cifar10"), {"method.rotation-weight": "0.1"}).method.rotation_weight == 0.1
    assert method_name(build_recipe("simclr-cifar10")) == "simclr"
    assert method_config("essl").rotation_weight == 0.4
