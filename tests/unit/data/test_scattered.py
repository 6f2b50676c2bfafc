"""scattered-digits: the same everywhere, and no digit on both sides of a split."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.data.scattered import RENDERS, scatter

SIZES = {"train": 3 * 1258, "val": 180, "test": 359}


Scattered = dict[str, list[tuple[Any, int]]]


def scatter_changed(change: Callable[[Any], None]) -> Scattered:
    """What is made of other digits than scikit-learn's."""
    digits = load_digits()
    change(digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn.datasets.load_digits", lambda: digits)
        return scatter()


@pytest.fixture(scope="module")
def numbered() -> Scattered:
    """As it is, but for the labels: what is drawn says which digit it was."""
    return scatter_changed(lambda digits: digits.update(target=np.arange(len(digits.target))))


def test_it_is_the_same_every_time(numbered: Scattered) -> None:
    one, other = scatter(), numbered
    pixels = [hashlib.sha256(b"".join(i.tobytes() for i, _ in made["test"])).hexdigest() for made in (one, other)]
    assert pixels[0] == pixels[1]
    labels = load_digits().target
    assert [label for _, label in one["train"]] == [labels[number] for _, number in other["train"]]


def test_every_digit_is_in_one_split(numbered: Scattered) -> None:
    drawn = {split: [label for _, label in examples] for split, examples in numbered.items()}
    assert {split: len(set(labels)) for split, labels in drawn.items()} == {
        "train": 1258,
        "validation": 180,
        "test": 359,
    }
    assert sorted(set(drawn["train"]) | set(drawn["validation"]) | set(drawn["test"])) == list(range(1797))
    assert len(drawn["train"]) == RENDERS * len(set(drawn["train"]))
    assert len(drawn["test"]) == len(set(drawn["test"]))


def test_clutter_is_cut_from_training_digits(numbered: Scattered) -> None:
    """Where only training digits have ink, test images show clutter alone; where only the others have, it is bare."""
    blank = load_digits().images.copy()
    blank[[number for _, number in numbered["test"]]] = 0
    without = [np.asarray(image) for image, _ in scatter_changed(lambda digits: digits.update(images=blank))["test"]]
    full = [np.asarray(image) for image, _ in numbered["test"]]
    assert all((a >= b).all() and (a > b).any() for a, b in zip(full, without))
    assert all(image.any() for image in without)


def test_it_opens_by_name_with_splits_of_its_own() -> None:
    data = open_dataset("scattered-digits")
    assert {"train": len(data.train), "val": len(data.val), "test": len(data.test)} == SIZES
