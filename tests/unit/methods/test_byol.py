"""BYOL: the loss against the paper's equations written slowly and a peer's, the moving average, what is trained."""

import math

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor, nn

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import method_config
from rayssl.pipeline.methods.base import Batch, Traits
from rayssl.pipeline.methods.byol import BYOL, BYOLConfig, momentum_at, normalised_error
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.models.trainable import freeze_stages

TRAITS = Traits(image_size=8, channels=3, mirror=True)


def build(*, frozen: int = 0, **values) -> BYOL:
    torch.manual_seed(0)
    encoder = build_encoder("resnet-tiny", channels=3, image_size=8)
    if frozen:
        freeze_stages(encoder, frozen)
    return BYOL(BYOLConfig(**values), encoder, TRAITS).train()


def batch_of(*views: Tensor) -> Batch:
    return Batch(list(views), torch.arange(1, len(views[0]) + 1), None, seed=0, epoch=0, step=0)


def images(seed: int = 0) -> Tensor:
    return torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def equation_2(prediction: Tensor, target: Tensor) -> Tensor:
    """Row by row: the squared distance of the two on the unit sphere."""
    rows = [q / q.norm() - z / z.norm() for q, z in zip(prediction, target, strict=True)]
    return torch.stack([row @ row for row in rows]).mean()


def test_error_is_the_papers_and_a_peers():
    q, z = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(normalised_error(q, z), equation_2(q, z))
    torch.testing.assert_close(normalised_error(q, z), 2 + 2 * NegativeCosineSimilarity()(q, z))


def test_loss_predicts_each_view_from_the_other():
    method = build().double()
    with torch.no_grad():  # else the target still is the network
        for parameter in method.target_encoder.parameters():
            parameter.mul_(1.1)
    v1, v2 = images().double()
    both = torch.cat([v1, v2])
    q1, q2 = method.predictor(method.projector(method.encoder(both))).chunk(2)
    z1, z2 = method.target_projector(method.target_encoder(both)).chunk(2)
    torch.testing.assert_close(method(batch_of(v1, v2)).loss, equation_2(q1, z2) + equation_2(q2, z1))


def test_only_the_network_has_gradients():
    method = build()
    method(batch_of(*images())).loss.backward()
    with_gradients = {name for name, p in method.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in with_gradients} == {"encoder", "projector", "predictor"}
    trained = [p for group in method.parameter_groups(0.1) for p in group["params"]]
    assert len(trained) == len(with_gradients)


def test_momentum_grows_from_its_base_to_one_over_the_plan():
    assert momentum_at(0, 100, 0.9) == pytest.approx(0.9)
    assert momentum_at(50, 100, 0.9) == pytest.approx(0.95)
    assert 1 - momentum_at(99, 100, 0.9) == pytest.approx(0.1 * (1 + math.cos(0.99 * math.pi)) / 2)
    assert momentum_at(100, 100, 0.9) == 1


def test_target_follows_as_a_moving_average():
    method = build(momentum=0.9)
    before = [p.clone() for p in method.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    method.after_step(25, 100)
    momentum = momentum_at(25, 100, 0.9)
    for old, new, followed in zip(before, method.target_encoder.parameters(), method.encoder.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * followed)


def test_targets_batch_norm_sees_its_own_batches():
    method = build()
    layers = [layer for layer in method.target_encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [layer.running_mean.clone() for layer in layers]
    method(batch_of(*images()))
    assert layers
    assert all(not torch.equal(old, layer.running_mean) for old, layer in zip(before, layers, strict=True))


def test_frozen_stages_keep_their_statistics_in_the_target_too():
    method = build(frozen=1)
    states = [
        [layer.training for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
        for encoder in (method.encoder, method.target_encoder)
    ]
    assert states[0] == states[1]
    assert len(set(states[0])) == 2  # some of each


def test_the_network_is_kept_and_not_the_target():
    method = build()
    assert method.kept() is method.encoder
    assert method.kept_prefix() == "encoder."
    assert method.encoders() == [method.encoder, method.target_encoder]


@pytest.mark.parametrize("values", [{"momentum": 1.5}, {"hidden": 0}, {"projector_dim": 0}])
def test_bad_settings_are_refused(values):
    with pytest.raises(UserError, match=f"--method.{next(iter(values))}"):
        method_config("byol", **values)
