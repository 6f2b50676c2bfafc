"""NT-Xent against the paper's algorithm written slowly, a closed form, and two peers' implementations, in float64.

That the gradients are right with several workers is tested in tests/distributed.
"""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from rayssl.pipeline.methods import losses
from rayssl.pipeline.methods.losses import nt_xent, nt_xent_of_views


def projections(n: int = 6, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    return z[0].requires_grad_(), z[1].requires_grad_()


def algorithm_1(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Chen et al., 2020, Algorithm 1, line by line; z_{2k−1} and z_{2k} are the views of image k (here from 0)."""
    n = len(z1)
    z = [view[k] for k in range(n) for view in (z1, z2)]

    def s(i: int, j: int) -> Tensor:
        return (z[i] @ z[j]) / (z[i].square().sum().sqrt() * z[j].square().sum().sqrt())

    def ell(i: int, j: int) -> Tensor:
        others = [torch.exp(s(i, k) / temperature) for k in range(2 * n) if k != i]
        return -torch.log(torch.exp(s(i, j) / temperature) / sum(others))

    return sum(ell(2 * k, 2 * k + 1) + ell(2 * k + 1, 2 * k) for k in range(n)) / (2 * n)


def value_and_gradients(loss_of, z1: Tensor, z2: Tensor) -> tuple[Tensor, ...]:
    loss = loss_of(z1, z2)
    return (loss.detach(), *torch.autograd.grad(loss, (z1, z2)))


def lightly(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=temperature)(z1, z2)


def metric_learning(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Its classes are ours to name: the two views of an image are one class."""
    from pytorch_metric_learning.losses import NTXentLoss

    labels = torch.arange(len(z1)).repeat(2)
    return NTXentLoss(temperature=temperature)(torch.cat([z1, z2]), labels)


@pytest.mark.parametrize("other", [algorithm_1, lightly, metric_learning])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
def test_value_and_gradients(other, temperature):
    ours = value_and_gradients(lambda a, b: nt_xent(a, b, temperature), *projections())
    theirs = value_and_gradients(lambda a, b: other(a, b, temperature), *projections())
    for found, expected in zip(ours, theirs):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def every_pair(z: Tensor, temperature: float) -> Tensor:
    """Views (V, N, D): −log of each pair's share among itself and the views of other images, one pair at a time."""
    views, n, _ = z.shape
    z = z / z.norm(dim=2, keepdim=True)
    losses_of_pairs = []
    for image in range(n):
        for a, b in permutations(range(views), 2):
            negatives = [z[a, image] @ z[v, other] for v in range(views) for other in range(n) if other != image]
            exponents = torch.exp(torch.stack([z[a, image] @ z[b, image], *negatives]) / temperature)
            losses_of_pairs.append(-torch.log(exponents[0] / exponents.sum()))
    return torch.stack(losses_of_pairs).mean()


@pytest.mark.parametrize("rows", [3, 1024])
@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_more_views_than_two(views, temperature, rows, monkeypatch):
    monkeypatch.setattr(losses, "ROWS", rows)
    z = torch.randn(views, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found, expected = nt_xent_of_views(tuple(z), temperature), every_pair(z, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(loss, z)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("views", [2, 4])
def test_one_image_alone_has_nothing_to_learn(views):
    z = torch.randn(views, 1, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = nt_xent_of_views(tuple(z), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert z.grad.abs().max() == 0.0


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_equal_embeddings_give_log_of_the_others(n):
    z = torch.ones(n, 3, dtype=torch.float64)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(math.log(2 * n - 1), abs=1e-12)


def test_length_of_projections_does_not_matter():
    z1, z2 = projections()
    torch.testing.assert_close(nt_xent(3 * z1, 0.1 * z2, 0.5), nt_xent(z1, z2, 0.5))


def test_a_low_temperature_does_not_overflow():
    z1, _ = projections()
    loss = nt_xent(z1.float(), z1.float(), 1e-3)  # exp(1000) is infinite
    assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_half_precision_is_computed_in_fp32():
    z1, z2 = (z.detach().bfloat16() for z in projections(32, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(z1, z2, 0.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), nt_xent(z1.double(), z2.double(), 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_blocks_of_rows_change_nothing(rows, monkeypatch):
    whole = value_and_gradients(lambda a, b: nt_xent(a, b, 0.2), *projections())
    monkeypatch.setattr(losses, "ROWS", rows)
    for found, expected in zip(value_and_gradients(lambda a, b: nt_xent(a, b, 0.2), *projections()), whole):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_whole_matrix_of_similarities_is_never_kept(monkeypatch):
    monkeypatch.setattr(losses, "ROWS", 16)
    z1, z2 = (torch.randn(64, 4, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        sizes: list[int] = []
        nt_xent(z1, z2, 0.2)
    assert max(sizes) <= 128 * 4
