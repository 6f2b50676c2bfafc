"""PixelCNN: what a pixel may see, exact probabilities, and sampling."""

import itertools
import math

import pytest
import torch

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.methods.base import Batch, Traits
from rayssl.pipeline.methods.pixelcnn import PixelCNN, PixelCNNConfig
from rayssl.pipeline.models.encoder import build_encoder


def build(size: int = 6, channels: int = 1, depth: int = 3, kernel: int = 3, width: int = 12, **values) -> PixelCNN:
    torch.manual_seed(0)
    sizes = {"depth": depth, "kernel": kernel, "latent_dim": width}
    encoder = build_encoder("pixelcnn", channels=channels, image_size=size, **sizes)
    return PixelCNN(PixelCNNConfig(**values), encoder, Traits(size, channels, True)).double().eval()


def scores(method: PixelCNN, x: torch.Tensor) -> torch.Tensor:
    """Logits (L, C, H, W) as a differentiable function of an image (C, H, W)."""
    logits = method.head(method.encoder.feature_map(x[None]))
    return logits.unflatten(1, (method.traits.channels, method.levels)).transpose(1, 2)[0]


@pytest.mark.parametrize(("channels", "kernel", "width"), [(1, 5, 12), (3, 3, 48), (3, 3, 3)])
def test_a_value_depends_on_those_before_it_and_on_all_within_reach(channels, kernel, width):
    size = 6
    method = build(size, channels, depth=4, kernel=kernel, width=width, levels=2)
    x = torch.rand(channels, size, size, dtype=torch.float64, requires_grad=True)
    found = scores(method, x)
    order = {
        place: n for n, place in enumerate((c, i, j) for i in range(size) for j in range(size) for c in range(channels))
    }
    for place in order:
        (gradient,) = torch.autograd.grad(found[(slice(None), *place)].sum(), x, retain_graph=True)
        seen = {tuple(index) for index in gradient.nonzero().tolist()}
        before = {other for other, number in order.items() if number < order[place]}
        assert seen <= before, f"{place} sees {seen - before}"
        rows = {(c, i, j) for c, i, j in before if abs(i - place[1]) <= 2 and abs(j - place[2]) <= 2}
        # A ReLU may shut the few channels of a narrow one.
        assert width < 4 or rows <= seen, f"{place} is blind to {rows - seen}"


@pytest.mark.parametrize(("channels", "size"), [(1, 3), (2, 2)])
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one(channels, size):
    method = build(size, channels, depth=2, kernel=2 * (size // 3) + 1, levels=2)
    values = torch.tensor(list(itertools.product((0.0, 1.0), repeat=channels * size * size)), dtype=torch.float64)
    nats = method.nats(values.view(-1, channels, size, size), [0, 0, torch.arange(1, len(values) + 1), 0])
    assert (-nats).exp().sum().item() == pytest.approx(1.0, abs=1e-9)


def test_loss_is_in_bits_a_value():
    method = build(levels=4)
    for parameter in method.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    output = method(Batch([torch.rand(3, 1, 6, 6).double()], torch.arange(1, 4), None, 0, 0, 0))
    assert output.loss.item() == pytest.approx(2.0)  # log2 4
    assert output.logs["train/nats"].item() == pytest.approx(36 * math.log(4))


def test_values_are_those_of_the_bytes():
    method = build(levels=256)
    x = (torch.arange(256).repeat(9)[: 6 * 6 * 64].view(64, 1, 6, 6) / 255).float()
    values = method.quantise(x, [0])
    assert torch.equal(values, (x * 255).round().long())
    torch.testing.assert_close(method.to_images(values).float(), x)


@torch.no_grad()
def test_samples_follow_the_seed_and_the_model():
    method = build(4, 1, levels=2)
    rows = []
    first = method.sample(400, 1, lambda done, total: rows.append((done, total)))
    assert rows == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(first, method.sample(400, 1, lambda done, total: None))
    assert not torch.equal(first, method.sample(400, 2, lambda done, total: None))
    # The first pixel sees nothing: its share of ones is the model's probability.
    logits, _ = method.predict(torch.zeros(1, 1, 4, 4, dtype=torch.int64))
    expected = logits[0, :, 0, 0, 0].softmax(0)[1].item()
    assert first[:, 0, 0, 0].mean().item() == pytest.approx(expected, abs=0.08)


@torch.no_grad()
def test_rows_out_of_reach_may_be_left_out():
    method = build(12, 1, depth=2, kernel=3, levels=2)
    values = torch.randint(0, 2, (2, 1, 12, 12))
    reach = method.encoder.net.reach
    whole, _ = method.predict(values)
    for row in range(reach, 12):
        part, _ = method.predict(values[:, :, row - reach : row + 1])
        torch.testing.assert_close(part[..., -1, :], whole[..., row, :])


def test_another_encoder_is_refused():
    encoder = build_encoder("deep", channels=1, image_size=8)
    with pytest.raises(UserError, match=r"needs a masked encoder, not deep: use --encoder\.name pixelcnn"):
        PixelCNN(PixelCNNConfig(), encoder, Traits(8, 1, True))
