"""Without a process group everything is one worker. Two workers: tests/distributed."""

import pytest
import torch
from torch import nn

from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.training.batch_norm import GlobalBatchNorm, use_global_batch_norm


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten(), nn.BatchNorm1d(144)
    )


def test_one_worker_needs_no_group():
    x = torch.rand(3, 2, requires_grad=True)
    assert (collectives.rank(), collectives.world_size()) == (0, 1)
    assert collectives.broadcast_object({"a": 1}) == {"a": 1}
    assert collectives.any_rank(True)
    assert not collectives.any_rank(False)
    collectives.barrier()
    assert collectives.gather_with_grad(x) is x
    assert torch.equal(collectives.gather_rows(x), x)
    assert not collectives.gather_rows(x).requires_grad
    assert torch.equal(collectives.mean_over_ranks(x), x)


def test_every_batch_norm_is_replaced_and_keeps_its_state():
    plain, converted = network(), network()
    plain(torch.rand(5, 3, 8, 8))
    converted.load_state_dict(plain.state_dict())
    weight = converted[1][0].weight
    found = use_global_batch_norm(converted)
    assert found is converted
    assert [type(m) for m in converted.modules() if "Norm" in type(m).__name__] == [GlobalBatchNorm, GlobalBatchNorm]
    assert converted[1][0].weight is weight
    assert list(converted.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(converted.state_dict().values(), plain.state_dict().values()))


def test_a_layer_alone_is_replaced_with_its_settings():
    layer = nn.BatchNorm2d(3, eps=0.1, momentum=0.3, affine=False).eval()
    found = use_global_batch_norm(layer)
    assert isinstance(found, GlobalBatchNorm)
    assert (found.eps, found.momentum, found.weight, found.training) == (0.1, 0.3, None, False)
    assert use_global_batch_norm(nn.BatchNorm1d(2, track_running_stats=False)).running_mean is None


@pytest.mark.parametrize("training", [True, False])
def test_one_worker_is_torchs_own(training):
    plain = network().train(training)
    converted = use_global_batch_norm(network()).train(training)
    x = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(converted(x), plain(x))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[name], value)


def test_statistics_of_many_values_are_more_exact_than_torchs():
    x = (torch.randn(64, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 + 5).contiguous(
        memory_format=torch.channels_last
    )
    layers = [layer(4, momentum=1.0) for layer in (GlobalBatchNorm, nn.BatchNorm2d)]
    exact = x.double().mean(dim=(0, 2, 3))
    ours, torchs = ((layer(x), (layer.running_mean - exact).abs().max())[1] for layer in layers)
    assert ours < 1e-6
    assert ours < torchs


def test_one_value_a_channel_is_refused():
    with pytest.raises(UserError, match=r"increase --train\.batch-size"):
        GlobalBatchNorm(4)(torch.rand(1, 4))


def test_a_shape_without_channels_is_refused():
    with pytest.raises(ValueError, match="3 dimensions"):
        GlobalBatchNorm(4)(torch.rand(2, 4, 3))
