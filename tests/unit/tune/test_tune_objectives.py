"""What a candidate is worth: known answers for known features, and what needs labels says so."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.evaluation import metrics
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.tune import objectives
from rayssl.pipeline.tune.objectives import OBJECTIVES, WORST, Material, check_objective, measurable, measure


class Pixels(nn.Module):
    """The image itself as features."""

    image_size, dim, channels = 8, 64, 1

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Nothing(Pixels):
    """The same features for every image, but for noise that says nothing."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.sin(1e4 * x.flatten(1))
        return torch.ones(len(x), self.dim) + 1e-3 * noise


def material(encoder: Any) -> Material:
    data = open_dataset("digits")
    return Material(encoder, data.train, data.val, 10, 0, torch.device("cpu"), "fp32")


def test_good_features_beat_features_that_say_nothing() -> None:
    good, bad = (measure(material(encoder), OBJECTIVES) for encoder in (Pixels(), Nothing()))
    for name in ("knn", "probe", "rotation", "rankme", "alignment-uniformity"):
        assert good[name] > bad[name] > WORST[name], name
    assert good["knn"] > 0.95
    assert good["rotation"] > 0.8  # digits have an up and down, and pixels show it


def test_the_rotation_objective_learns_on_training_images_and_is_tested_on_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    fit = objectives.probe

    def watch(train: Any, val: Any, test: Any, **settings: Any) -> Any:
        seen.extend([len(train[0]), len(val[0])])
        assert np.bincount(train[1]).tolist() == [len(train[1]) // 4] * 4
        return fit(train, val, test, **settings)

    monkeypatch.setattr(objectives, "probe", watch)
    own = material(Pixels())
    objectives.rotation(own)
    assert seen == [4 * len(own.train), 4 * len(own.held_out)]


def test_turned_features_are_those_of_turned_images() -> None:
    own = material(Pixels())
    images = own.held_out.select(np.arange(5))
    features, turns = objectives._turned_features(own, images)
    pixels = images.square(np.arange(5), 8)[..., 0] / np.float32(255)
    for row, (feature, turn) in enumerate(zip(features, turns)):
        expected = np.rot90(pixels[row // 4], turn)
        np.testing.assert_allclose(feature, expected.ravel(), atol=1e-6)


def test_alignment_and_uniformity_are_those_of_the_metrics() -> None:
    own = material(Pixels())
    images = objectives.at_most(own.held_out, objectives.ROTATED, 0)
    first, second = (objectives._view_features(own, images, view) for view in (0, 1))
    assert not np.allclose(first, second)
    value = measure(own, ["alignment-uniformity"])["alignment-uniformity"]
    assert value == pytest.approx(-sum(metrics.alignment_uniformity(first, second)))


def test_objectives_depend_on_the_seed_alone() -> None:
    encoder = build_encoder("cnn-small", channels=1, image_size=8).eval()
    names = ("knn", "rotation", "rankme", "alignment-uniformity")
    assert measure(material(encoder), names) == measure(material(encoder), names)


def test_what_needs_labels_is_refused_without() -> None:
    data = open_dataset("digits")
    data.val.labels = None
    assert measurable(10, data.val) == ["rotation", "rankme", "alignment-uniformity"]
    assert measurable(0, data.val) == ["rotation", "rankme", "alignment-uniformity"]
    with pytest.raises(UserError, match=r"--tune\.objective knn needs labels and photos has none: use rotation"):
        check_objective("knn", 0, data.val, "photos")
    check_objective("rotation", 0, data.val, "photos")


def test_images_without_a_label_are_neither_neighbours_nor_asked_about() -> None:
    own = material(Pixels())
    labels = own.train.labels
    assert labels is not None
    own.train.labels = np.where(np.arange(len(labels)) % 2, labels, -1)
    half = measure(replace(own, train=own.train), ["knn"])["knn"]
    own.train.labels = labels
    kept = own.train.select(np.arange(len(labels)) % 2 == 1)
    assert half == measure(replace(own, train=kept), ["knn"])["knn"]
