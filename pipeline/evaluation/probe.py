"""Linear probe: logistic regression on frozen, cached features; every choice is made on validation images.

Many heads (learning rate × weight decay) are trained side by side as one wide linear layer, since the features
are read once for all of them. The last epoch is what is reported.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayssl.pipeline.base.randomness import permutation


@dataclass(frozen=True)
class ProbeResult:
    """The head with the best validation accuracy."""

    val_accuracy: float
    test_accuracy: float
    test_correct: int
    learning_rate: float
    weight_decay: float


def probe(
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    val: tuple[NDArray[np.float32], NDArray[np.int64]],
    test: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    seed: int,
    device: torch.device,
) -> ProbeResult:
    """Fit all heads on `train`, choose one on `val`, score it once on `test`. Each is ((N, D), (N,))."""
    mean, std = train[0].mean(axis=0), train[0].std(axis=0) + 1e-6
    features, labels = _tensors(train, mean, std, device)
    grid = list(itertools.product(learning_rates, weight_decays))
    weight, bias = fit_heads(features, labels, grid, classes=classes, epochs=epochs, batch_size=batch_size, seed=seed)
    val_features, val_labels = _tensors(val, mean, std, device)
    accuracies = [_accuracy(weight[h], bias[h], val_features, val_labels) for h in range(len(grid))]
    best = int(np.argmax(accuracies))
    test_features, test_labels = _tensors(test, mean, std, device)
    accuracy = _accuracy(weight[best], bias[best], test_features, test_labels)
    correct = round(accuracy * len(test_labels))
    return ProbeResult(accuracies[best], accuracy, correct, *grid[best])


def fit_heads(
    features: Tensor,
    labels: Tensor,
    grid: Sequence[tuple[float, float]],
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """One linear head for each (learning rate, weight decay): weights (H, D, K) and biases (H, K).

    SGD with Nesterov momentum 0.9 and a cosine from each head's rate to zero; weight decay not on biases.
    """
    rates = torch.tensor([rate for rate, _ in grid], device=features.device)[:, None, None]
    decays = torch.tensor([decay for _, decay in grid], device=features.device)[:, None, None]
    weight = torch.zeros(len(grid), features.shape[1], classes, device=features.device)
    bias = torch.zeros(len(grid), 1, classes, device=features.device)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    batch_size = min(batch_size, len(features))
    steps = epochs * (len(features) // batch_size)
    for step in range(steps):
        epoch, position = divmod(step, len(features) // batch_size)
        if position == 0:
            order = torch.from_numpy(permutation(len(features), seed, "probe", epoch)).to(features.device)
        chosen = order[position * batch_size : (position + 1) * batch_size]
        x, y = features[chosen], labels[chosen]
        # The gradient of softmax cross-entropy, written out: all heads in two matrix products.
        error = torch.softmax(torch.matmul(x, weight) + bias, dim=2)
        error[:, torch.arange(len(y)), y] -= 1.0
        error /= len(y)
        gradients = [torch.matmul(x.T, error) + decays * weight, error.sum(dim=1, keepdim=True)]
        scale = 0.5 * (1 + np.cos(np.pi * step / steps))
        for parameter, moving, gradient in zip((weight, bias), velocity, gradients):
            moving.mul_(0.9).add_(gradient)
            parameter -= rates * scale * (gradient + 0.9 * moving)
    return weight, bias[:, 0]


def _tensors(
    split: tuple[NDArray[np.float32], NDArray[np.int64]],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    features = torch.from_numpy((split[0] - mean) / std)
    return features.to(device), torch.from_numpy(split[1]).to(device)


def _accuracy(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor) -> float:
    predictions = (features @ weight + bias).argmax(dim=1)
    return float((predictions == labels).double().mean())
