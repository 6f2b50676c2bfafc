"""E-SSL: SimCLR's loss plus a weighted rotation loss on a smaller third view."""

import pytest
import torch
from torch.nn import functional as F

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import method_config, method_name, override
from rayssl.pipeline.methods.base import Batch, Traits
from rayssl.pipeline.methods.essl import ESSL, ESSLConfig
from rayssl.pipeline.methods.heads import all_turns
from rayssl.pipeline.methods.losses import nt_xent
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.recipes import build_recipe

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


@pytest.mark.parametrize("count", [2, 3])
def test_the_last_view_is_turned_at_half_the_side(count):
    method, seen = build(views=count), []
    method.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    views = list(torch.rand(count + 1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    method(Batch(views, torch.arange(1, 5), None, seed=0, epoch=0, step=0))
    assert [tuple(images.shape) for images in seen] == [(4 * count, 3, 16, 16), (16, 3, 8, 8)]
    torch.testing.assert_close(seen[1], all_turns(F.avg_pool2d(views[-1], 2))[0])


def test_gradients_reach_every_parameter():
    method = build()
    method(batch()).loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_an_encoder_of_one_size_is_refused():
    for name in ("mlp", "conv"):
        with pytest.raises(UserError, match=f"essl also shows the encoder images of 8 pixels: {name} built for 16"):
            ESSL(ESSLConfig(), build_encoder(name, channels=3, image_size=16), TRAITS)


def test_default_views_are_three_and_never_turned():
    views = ESSL.default_views(TRAITS)
    assert len(views) == 3
    assert ESSL.views_for(ESSLConfig(), TRAITS) == views
    assert ESSL.views_for(ESSLConfig(views=4), TRAITS) == (*views[:1] * 4, views[2])
    assert not {"rotation", "quarter_turn"} & {operation.name for operation in views[2].operations}


def test_a_recipe_is_told_from_simclrs():
    assert method_name(build_recipe("essl-cifar10")) == "essl"
    assert override(build_recipe("essl-cifar10"), {"method.rotation-weight": "0.1"}).method.rotation_weight == 0.1
    assert method_name(build_recipe("simclr-cifar10")) == "simclr"
    assert method_config("essl").rotation_weight == 0.4
