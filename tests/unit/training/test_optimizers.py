"""Optimisers against plain versions; the learning rate against its closed form."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models.trainable import parameter_groups
from rayssl.pipeline.training.optimizers import (
    LARS,
    VECTOR_RATE,
    Muon,
    build_optimizer,
    learning_rate_at,
    orthogonalised,
    scaled_learning_rate,
    trust_ratio,
)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)).double()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_only_weights_decay():
    decayed, plain = parameter_groups(small_model(), 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(7, 5), (3, 7)]
    assert [tuple(p.shape) for p in plain["params"]] == [(7,), (7,), (7,), (3,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_left_out():
    model = small_model()
    model[0].requires_grad_(False)
    shapes = [tuple(p.shape) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert shapes == [(3, 7), (7,), (7,), (3,)]


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_against_a_plain_version(nesterov):
    model = small_model()
    rate, momentum, decay, trust = 0.3, 0.9, 0.01, 0.001
    optimizer = build_optimizer(
        "lars", parameter_groups(model, decay), learning_rate=rate, momentum=momentum, nesterov=nesterov
    )
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    velocities = {name: torch.zeros_like(w) for name, w in weights.items()}
    for seed in range(4):
        step(model, optimizer, seed)
        for name, parameter in model.named_parameters():
            w, g, v = weights[name], parameter.grad, velocities[name]
            adapted = parameter.ndim > 1
            g = g + (decay * w if adapted else 0.0)
            local = trust * frobenius(w) / frobenius(g) if adapted else 1.0
            v = momentum * v + rate * local * g
            w = w - (momentum * v + rate * local * g if nesterov else v)
            weights[name], velocities[name] = w, v
            torch.testing.assert_close(parameter.detach(), w, rtol=1e-10, atol=1e-12)


def test_muon_against_a_plain_version():
    """The polynomial of the singular values, by the singular value decomposition."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 30)).double()
    rate, momentum, decay = 0.02, 0.8, 0.5
    optimizer = build_optimizer("muon", parameter_groups(model, decay), learning_rate=rate, momentum=momentum)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    velocities = {name: torch.zeros_like(w) for name, w in weights.items()}
    for seed in range(4):
        x = torch.randn(8, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            w, g = weights[name], parameter.grad
            v = velocities[name] = momentum * velocities[name] + g
            if w.ndim == 1:
                w = w - VECTOR_RATE * rate * v
            else:
                matrix = (g + momentum * v).reshape(len(g), -1)
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                w = (1 - rate * decay) * w - rate * scale * plain_orthogonalised(matrix).reshape(w.shape)
            weights[name] = w
            torch.testing.assert_close(parameter.detach(), w, rtol=1e-9, atol=1e-11)


def test_muon_of_all_matrices_of_a_shape_at_once_is_muon_one_by_one():
    torch.manual_seed(0)
    shapes = [(8, 3, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3), (5, 8), (16, 5), (16, 5), (8,), (8,), (16,)]
    one_by_one, together = ([nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(2))
    with torch.no_grad():
        for a, b in zip(one_by_one, together, strict=True):
            b.copy_(a)
    optimizers = [Muon(some, lr=0.1, momentum=0.9, weight_decay=0.1) for some in (one_by_one, together)]
    for _ in range(3):
        for a, b in zip(one_by_one, together, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizers[0].step()
        with torch.no_grad():
            optimizers[1]._step_together(optimizers[1].param_groups[0])
    for a, b in zip(one_by_one, together, strict=True):
        torch.testing.assert_close(a, b)


def plain_orthogonalised(matrix: Tensor) -> Tensor:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / frobenius(matrix)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (16, 16)])
def test_orthogonalised_as_by_torch(shape):
    """torch's own optimiser, which rounds to bf16, on one matrix; and what it is for."""
    torch.manual_seed(2)
    weight, ours = nn.Parameter(torch.zeros(shape)), torch.randn(shape)
    theirs = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    weight.grad = ours.clone()
    theirs.step()
    found = orthogonalised(ours)
    expected = -weight.detach() / max(1.0, shape[0] / shape[1]) ** 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_orthogonalised_leaves_zeros():
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", [(6, 9), (2, 9, 6)])
def test_orthogonalised_is_the_same_of_any_multiple(shape):
    """As far down as numbers go: a dead layer's momentum decays until its squares vanish."""
    torch.manual_seed(3)
    matrix = torch.randn(shape)
    for exponent in (-120, -90, -20, 60):
        assert torch.equal(orthogonalised(matrix * 2.0**exponent), orthogonalised(matrix))
    assert orthogonalised(matrix * 2.0**-140).isfinite().all()
    together = torch.stack([torch.ones(3, 4), torch.full((3, 4), 1e-30), torch.zeros(3, 4)])
    first, second, third = orthogonalised(together)
    torch.testing.assert_close(first, second)
    assert not third.any()


def frobenius(x: Tensor) -> float:
    return math.sqrt(sum(value * value for value in x.flatten().tolist()))


def test_lars_leaves_out_the_ratio_where_a_norm_is_zero():
    zero, some = torch.zeros(2, 2), torch.full((2, 2), 3.0)
    assert trust_ratio(zero, some, 0.001) == 1.0
    assert trust_ratio(some, zero, 0.001) == 1.0
    assert trust_ratio(2 * some, some, 0.001) == pytest.approx(0.002)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "muon"])
def test_state_round_trip_continues_exactly(name):
    def build(model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(name, parameter_groups(model, 0.01), learning_rate=0.1)

    straight = small_model()
    optimizer = build(straight)
    for seed in range(3):
        step(straight, optimizer, seed)
    resumed = small_model()
    resumed.load_state_dict(straight.state_dict())
    again = build(resumed)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 6):
        step(straight, optimizer, seed)
        step(resumed, again, seed)
    for a, b in zip(straight.parameters(), resumed.parameters()):
        assert torch.equal(a, b)


def test_sgd_gets_its_settings():
    optimizer = build_optimizer(
        "sgd", parameter_groups(small_model(), 0.02), learning_rate=0.5, momentum=0.8, nesterov=True
    )
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.5, 0.8, True, 0.02)


def test_bad_choices_are_the_users_error():
    with pytest.raises(
        UserError, match=r"unknown optimizer 'adam' \(did you mean 'adamw'\?\): known are sgd, adamw, lars, muon"
    ):
        build_optimizer("adam", parameter_groups(small_model(), 0.0), learning_rate=0.1)
    with pytest.raises(UserError, match="nesterov with momentum 0"):
        build_optimizer("sgd", parameter_groups(small_model(), 0.0), learning_rate=0.1, momentum=0.0, nesterov=True)


def test_lars_closure_sees_gradients():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=1.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert weight[0, 0].item() == pytest.approx(1 - 0.001 * 2 / 4 * 2)


def test_scaled_learning_rate():
    assert scaled_learning_rate(0.06, 512, "sgd") == pytest.approx(0.12)
    assert scaled_learning_rate(0.06, 128, "lars") == pytest.approx(0.03)
    assert scaled_learning_rate(1e-3, 512, "adamw") == 1e-3
    assert scaled_learning_rate(0.05, 512, "muon") == 0.05


def test_learning_rate_over_a_run():
    rates = [learning_rate_at(step, 100, 10, 2.0) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)  # half of the cosine
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[99] < 0.001
    assert learning_rate_at(100, 100, 10, 2.0) == 0.0


def test_learning_rate_at_the_edges():
    assert learning_rate_at(0, 1, 0, 2.0) == 2.0
    assert [learning_rate_at(step, 3, 3, 3.0) for step in range(3)] == [1.0, 2.0, 3.0]
    assert learning_rate_at(150, 100, 0, 2.0) == 0.0
