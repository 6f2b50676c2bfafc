"""The probe is softmax regression, chosen on validation data."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.evaluation.probe import fit_heads, probe

Split = tuple[NDArray[np.float32], NDArray[np.int64]]
CPU = torch.device("cpu")


def blobs(n: int, seed: int, spread: float, dims: int = 6, classes: int = 4) -> Split:
    """Gaussian clouds around fixed centres, with features of very different scales."""
    centres = np.random.default_rng(99).normal(size=(classes, dims))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    features = centres[labels] + spread * rng.normal(size=(n, dims))
    return (features * 10.0 ** np.arange(dims) + 5).astype(np.float32), labels.astype(np.int64)


def run(train: Split, val: Split, test: Split, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "classes": 4, "epochs": 30, "batch_size": 64, "learning_rates": (0.01, 0.1), "weight_decays": (0.0, 1e-3),
        "seed": 0, "device": CPU,
    }  # fmt: skip
    return probe(train, val, test, **{**settings, **changes})


def test_separable_classes_are_told_apart() -> None:
    result = run(blobs(400, 1, 0.1), blobs(100, 2, 0.1), blobs(200, 3, 0.1))
    assert result.val_accuracy > 0.98
    assert result.test_accuracy > 0.98
    assert result.test_correct == round(result.test_accuracy * 200)


def test_labels_without_meaning_give_chance() -> None:
    features, _ = blobs(600, 1, 0.5)
    labels = np.random.default_rng(0).integers(0, 4, 600)
    parts = [(features[a:b], labels[a:b]) for a, b in ((0, 200), (200, 300), (300, 600))]
    assert run(*parts).test_accuracy < 0.25 + 4 * np.sqrt(0.25 * 0.75 / 300)


def test_as_good_as_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, val, test = blobs(800, 1, 1.2), blobs(200, 2, 1.2), blobs(1000, 3, 1.2)
    peer = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(*train).score(*test)
    assert 0.5 < peer < 0.95
    assert abs(run(train, val, test).test_accuracy - peer) < 0.03


def test_all_is_chosen_on_val_and_never_on_test() -> None:
    # At rate 0 the head stays zero and always says class 0. Where val holds only class 0, that head is the best
    # there, although it is far behind on train and test.
    train, test = blobs(400, 1, 1.0), blobs(300, 3, 1.0)
    features, labels = blobs(400, 2, 1.0)
    rates = {"learning_rates": (0.0, 0.1), "weight_decays": (0.0,)}
    chosen = run(train, (features[labels == 0], labels[labels == 0]), test, **rates)
    assert (chosen.learning_rate, chosen.val_accuracy) == (0.0, 1.0)
    assert chosen.test_accuracy == np.mean(test[1] == 0)
    usual = run(train, (features, labels), test, **rates)
    assert usual.learning_rate == 0.1
    assert usual.test_accuracy > chosen.test_accuracy + 0.3
    mislabelled = run(train, (features, labels), (test[0], np.zeros_like(test[1])), **rates)
    assert (mislabelled.learning_rate, mislabelled.val_accuracy) == (0.1, usual.val_accuracy)


def test_the_scale_is_that_of_train() -> None:
    # Shifting a feature of all splits alike changes nothing; shifting test alone must.
    train, val, test = blobs(300, 1, 0.5), blobs(100, 2, 0.5), blobs(200, 3, 0.5)
    moved = run(train, val, (test[0] + np.float32(1e7), test[1]))
    assert moved.val_accuracy == run(train, val, test).val_accuracy
    assert moved.test_accuracy < run(train, val, test).test_accuracy


def fit_with_autograd(
    features: torch.Tensor, labels: torch.Tensor, rate: float, decay: float, classes: int, epochs: int, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same head by torch's own loss, gradient and optimiser."""
    head = torch.nn.Linear(features.shape[1], classes)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": decay}, {"params": [head.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    per_epoch = len(features) // batch
    steps = epochs * per_epoch
    for step in range(steps):
        order = permutation(len(features), 0, "probe", step // per_epoch)
        chosen = torch.from_numpy(order[step % per_epoch * batch :][:batch])
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head.weight.detach().T, head.bias.detach()


def test_the_written_out_gradient_is_autograds() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(50, 7), torch.randint(0, 3, (50,))
    grid = [(0.1, 0.0), (0.5, 1e-2), (0.01, 0.3)]
    weight, bias = fit_heads(features, labels, grid, classes=3, epochs=4, batch_size=16, seed=0)
    assert weight.shape == (3, 7, 3)
    assert bias.shape == (3, 3)
    for h, (rate, decay) in enumerate(grid):
        expected_weight, expected_bias = fit_with_autograd(features, labels, rate, decay, 3, 4, 16)
        torch.testing.assert_close(weight[h], expected_weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bias[h], expected_bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [1, 5])
def test_fewer_images_than_the_batch(n: int) -> None:
    train = blobs(n, 1, 0.1)
    result = run(train, blobs(20, 2, 0.1), blobs(20, 3, 0.1), batch_size=512)
    assert 0 <= result.test_accuracy <= 1


def test_a_constant_feature_does_no_harm() -> None:
    parts = [blobs(n, s, 0.1) for n, s in ((300, 1), (100, 2), (100, 3))]
    with_constant = [(np.concatenate([f, np.ones((len(f), 1), np.float32)], axis=1), y) for f, y in parts]
    assert run(*with_constant).test_accuracy > 0.98
