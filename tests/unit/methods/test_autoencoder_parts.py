"""The parts of autoencoders against closed forms, autograd and the layers of the reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.methods.autoencoders.bottlenecks import EXACT_CODES, gaussian_kl, jacobian_norm, one_hot, sparsity
from rayssl.pipeline.methods.autoencoders.corruptions import GaussianNoise, Masking, SaltAndPepper
from rayssl.pipeline.methods.autoencoders.decoders import (
    UpsamplingDecoder,
    build_decoder,
    count_halvings,
    halved,
    transposed_size,
)
from rayssl.pipeline.methods.autoencoders.reconstruction import bernoulli, build_reconstruction
from rayssl.pipeline.models.encoder import build_encoder

KEY = [0, 0, torch.arange(1, 201), 0, "corruption"]


def layers(net: nn.Module) -> list[tuple]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0], m.output_padding[0])
        for m in net.modules()
        if isinstance(m, kinds)
    ]


def test_convolutional_reference_has_the_layers_of_the_notes():
    encoder = build_encoder("conv", channels=1, image_size=28)
    assert layers(encoder.net) == [(1, 16, 3, 2, 1, 0), (16, 32, 3, 2, 1, 0), (32, 64, 7, 1, 0, 0)]
    decoder = build_decoder(encoder, 64)
    assert layers(decoder) == [(64, 32, 7, 1, 0, 0), (32, 16, 3, 2, 1, 1), (16, 1, 3, 2, 1, 1)]
    x, shapes = torch.rand(2, 1, 28, 28), []
    for part in (*encoder.net.children(),):
        x = part(x)
        shapes.append(tuple(x.shape[1:]))
    for part in decoder.layers:
        x = part(x)
        if isinstance(part, nn.ConvTranspose2d):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 14, 14), (32, 7, 7), (64, 1, 1), (32, 7, 7), (16, 14, 14), (1, 28, 28)]


@settings(max_examples=200)
@given(st.integers(1, 12), st.integers(1, 7), st.integers(1, 4), st.data())
def test_size_of_a_transposed_convolution(size, kernel, stride, data):
    padding = data.draw(st.integers(0, kernel - 1))
    output_padding = data.draw(st.integers(0, stride - 1))
    expected = transposed_size(size, kernel, stride, padding, output_padding)
    if expected < 1:
        return
    layer = nn.ConvTranspose2d(1, 1, kernel, stride, padding, output_padding)
    assert layer(torch.zeros(1, 1, size, size)).shape[-1] == expected


def test_decoder_returns_exactly_the_size_of_the_input():
    for size in (*range(2, 40), 64, 65, 97):
        encoder = build_encoder("conv", channels=2, image_size=size)
        assert build_decoder(encoder, encoder.dim)(torch.zeros(1, encoder.dim)).shape == (1, 2, size, size)


def test_halvings_mirror_strides_of_two():
    assert [halved(33, times) for times in range(4)] == [33, 17, 9, 5]
    assert [count_halvings(size, 4) for size in (4, 5, 8, 28, 32, 33)] == [0, 1, 1, 3, 3, 4]
    assert UpsamplingDecoder((16, 5, 5), 3, 19, None).eval()(torch.rand(1, 16, 5, 5)).shape == (1, 3, 19, 19)


def test_gaussian_noise_has_its_strength():
    grey = torch.full((200, 3, 8, 8), 0.5)
    weak = GaussianNoise(0.05)(grey, KEY) - grey  # ten standard deviations from a clip
    assert weak.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert weak.std().item() == pytest.approx(0.05, rel=0.01)
    strong = GaussianNoise(0.4)(grey, KEY)
    assert (strong.min(), strong.max()) == (0.0, 1.0)
    assert (strong == 0).float().mean().item() == pytest.approx(0.1056, abs=0.005)  # Φ(−0.5 / 0.4)


def test_salt_and_pepper_takes_its_share_in_equal_parts():
    grey = torch.full((200, 3, 16, 16), 0.5)
    spoilt = SaltAndPepper(0.3)(grey, KEY)
    assert set(spoilt.unique().tolist()) == {0.0, 0.5, 1.0}
    assert (spoilt == 0).float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (spoilt == 1).float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert torch.equal(spoilt[:, 0], spoilt[:, 2])  # a pixel in all its channels


@pytest.mark.parametrize(("share", "patch"), [(0.25, 1), (0.5, 4), (0.75, 3)])
def test_masking_takes_its_share_of_whole_patches(share, patch):
    images = torch.rand(200, 3, 16, 16) + 0.1
    masked = Masking(share, patch)(images, KEY)
    gone = masked == 0
    assert torch.equal(masked, torch.where(gone, 0.0, images))
    assert (gone.all(dim=1) == gone.any(dim=1)).all()  # a pixel is masked in all its channels
    assert gone.float().mean().item() == pytest.approx(share, abs=0.02)
    corners = gone[:, 0, ::patch, ::patch]
    assert torch.equal(corners.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :16, :16], gone[:, 0])


def test_everything_can_be_masked():
    assert Masking(1.0, 2)(torch.ones(200, 1, 4, 4), KEY).sum() == 0


def test_kl_against_torch():
    mean, log_variance = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros(()), torch.ones(())))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected.sum(dim=1))
    torch.testing.assert_close(gaussian_kl(torch.zeros(1, 4), torch.zeros(1, 4)), torch.zeros(1))


def test_sparsity_against_plain_loops():
    active = torch.sigmoid(torch.randn(7, 4, dtype=torch.float64))
    mean = active.mean(dim=0)
    p = mean.tolist()
    assert sparsity("log", active, mean, 0.1).item() == pytest.approx(sum(math.log(1 + q * q) for q in p))
    kl = sum(0.1 * math.log(0.1 / q) + 0.9 * math.log(0.9 / (1 - q)) for q in p)
    assert sparsity("kl", active, mean, 0.1).item() == pytest.approx(kl)
    assert sparsity("kl", active, torch.full((4,), 0.1, dtype=torch.float64), 0.1).item() == pytest.approx(0)
    rows = [sum(abs(a) for a in row) for row in active.tolist()]
    assert sparsity("l1", active, mean, 0.1).item() == pytest.approx(sum(rows) / 7)


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, EXACT_CODES + 3)).double()
    return net, torch.randn(5, 6, dtype=torch.float64, requires_grad=True)


def whole_norm(net: nn.Module, x: torch.Tensor, codes: int) -> float:
    """By the Jacobian of every image."""
    jacobians = [torch.autograd.functional.jacobian(lambda row: net(row)[:codes], row) for row in x.detach()]
    return float(np.mean([jacobian.square().sum() for jacobian in jacobians]))


@pytest.mark.parametrize("codes", [1, EXACT_CODES])
def test_jacobian_norm_is_exact_for_few_codes(codes):
    net, x = network()
    key = [0, 0, torch.arange(1, 6)]
    assert jacobian_norm(x, net(x)[:, :codes], key).item() == pytest.approx(whole_norm(net, x, codes))


def test_jacobian_norm_is_estimated_without_bias_for_many_codes():
    net, x = network()
    expected = whole_norm(net, x, EXACT_CODES + 3)
    draws = [jacobian_norm(x, net(x), [0, draw, torch.arange(1, 6)]).item() for draw in range(600)]
    error = np.std(draws) / len(draws) ** 0.5
    assert abs(np.mean(draws) - expected) < 4 * error
    assert error < 0.05 * expected
    assert jacobian_norm(x, net(x), None).item() == pytest.approx(expected)  # without a key nothing is drawn


def test_jacobian_norm_has_the_gradient_of_the_norm():
    """Of a linear layer: ‖W‖²_F, gradient 2 W."""
    layer = nn.Linear(6, 3, bias=False).double()
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    norm = jacobian_norm(x, layer(x), [0, 0, torch.arange(1, 6)])
    assert norm.item() == pytest.approx(layer.weight.square().sum().item())
    (gradient,) = torch.autograd.grad(norm, layer.weight)
    torch.testing.assert_close(gradient, 2 * layer.weight.detach())


@pytest.mark.parametrize("name", ["mse", "rmse", "gaussian"])
def test_reconstruction_losses_against_plain_loops(name):
    logits, x = torch.randn(3, 2, 2, 2, dtype=torch.float64), torch.rand(3, 2, 2, 2, dtype=torch.float64)
    found = build_reconstruction(name, "sigmoid", 0.3)(logits, x)
    for i in range(3):
        pairs = list(zip(torch.sigmoid(logits[i]).flatten().tolist(), x[i].flatten().tolist()))
        squares = sum((a - b) ** 2 for a, b in pairs)
        constant = math.log(0.3 * math.sqrt(2 * math.pi))
        expected = {
            "mse": squares / 8, "rmse": math.sqrt(squares / 8), "gaussian": squares / (2 * 0.09) + 8 * constant
        }[name]  # fmt: skip
        assert found[i].item() == pytest.approx(expected)


def test_bernoulli_sums_over_pixels():
    logits, x = torch.zeros(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(bernoulli(logits, x), torch.full((2,), 9 * math.log(2)))


def test_unknown_label_is_no_class():
    assert one_hot(torch.tensor([1, -1]), 3).tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("deep", {"latent_dim": 65}, "--encoder.latent-dim 65 is more than the 64 values of an image"),
        ("resnet-tiny", {"depth": 3}, "resnet-tiny does not take --encoder.depth 3"),
        ("conv", {"kernel": 9}, "a kernel of 9 must be odd and fit 8 pixels"),
        ("conv", {"kernel": 2}, "must be odd"),
        ("pixelcnn", {"kernel": 9}, "a kernel of 9 must be odd and fit 8 pixels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, sizes, message):
    with pytest.raises(UserError, match=message):
        build_encoder(name, channels=1, image_size=8, **sizes)


def test_widths_of_a_deep_encoder_narrow_evenly():
    encoder = build_encoder("deep", channels=1, image_size=28, latent_dim=32, depth=3)
    found = [m.out_features for m in encoder.net.modules() if isinstance(m, nn.Linear)]
    assert found == [270, 93, 32]
    decoder = build_decoder(encoder, 32)
    assert [m.out_features for m in decoder.modules() if isinstance(m, nn.Linear)] == [93, 270, 784]
