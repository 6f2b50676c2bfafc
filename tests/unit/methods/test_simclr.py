"""SimCLR: projector, loss of the right pairs, logs."""

import pytest
import torch
from torch import nn

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import method_config
from rayssl.pipeline.methods.base import Batch, Traits
from rayssl.pipeline.methods.heads import build_projector
from rayssl.pipeline.methods.losses import nt_xent, nt_xent_of_views
from rayssl.pipeline.methods.simclr import SimCLR, SimCLRConfig
from rayssl.pipeline.models.encoder import build_encoder

TRAITS = Traits(image_size=8, channels=3, mirror=True)


def build(**values) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(SimCLRConfig(**values), build_encoder("resnet-tiny", channels=3, image_size=8), TRAITS)


def batch_of(*views: torch.Tensor) -> Batch:
    return Batch(list(views), torch.arange(1, len(views[0]) + 1), None, seed=0, epoch=0, step=0)


def test_projector_has_two_or_three_layers():
    two, three = (build_projector(16, 32, 8, layers=n) for n in (2, 3))
    assert [type(m) for m in two] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [tuple(m.weight.shape) for m in three if isinstance(m, nn.Linear)] == [(32, 16), (32, 32), (8, 32)]


def test_projector_is_as_wide_as_asked():
    assert build().projector[0].out_features == 2 * build().encoder.dim
    assert build(projector_hidden=20, projector_dim=6).projector[-1].weight.shape == (6, 20)


def test_loss_is_that_of_both_views_normalised_together():
    method = build(temperature=0.2)
    a, b = torch.rand(2, 4, 3, 8, 8)
    output = method(batch_of(a, b))
    z = method.projector(method.encoder(torch.cat([a, b])))
    torch.testing.assert_close(output.loss, nt_xent(z[:4], z[4:], 0.2))
    assert output.features.shape == (8, method.encoder.dim)
    assert not output.features.requires_grad


def test_all_views_are_used():
    method, views = build(temperature=0.2), torch.rand(3, 4, 3, 8, 8)
    z = method.projector(method.encoder(torch.cat(list(views)))).chunk(3)
    torch.testing.assert_close(method(batch_of(*views)).loss, nt_xent_of_views(z, 0.2))


def test_equal_views_have_similarity_one():
    images = torch.rand(4, 3, 8, 8)
    output = build()(batch_of(images, images))
    assert output.logs["train/positive_similarity"].item() == pytest.approx(1.0, abs=1e-5)
    assert not output.logs["train/positive_similarity"].requires_grad


def test_gradients_reach_every_parameter():
    method = build()
    method(batch_of(*torch.rand(2, 4, 3, 8, 8))).loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_default_views_are_two():
    assert len(SimCLR.default_views(TRAITS)) == 2
    assert SimCLR.views_for(SimCLRConfig(), TRAITS) == SimCLR.default_views(TRAITS)
    assert SimCLR.views_for(SimCLRConfig(views=5), TRAITS) == SimCLR.default_views(TRAITS)[:1] * 5


@pytest.mark.parametrize(
    "values", [{"temperature": 0.0}, {"projector_layers": 4}, {"projector_dim": 0}, {"tau": 1}, {"views": 1}]
)
def test_values_out_of_range_are_refused(values):
    with pytest.raises(UserError, match=f"--method.{next(iter(values))}"):
        method_config("simclr", **values)
