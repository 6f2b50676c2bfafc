"""scattered-digits: the same everywhere, and no digit on both sides of a split."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.data.scattered import RENDERS, scatter

SIZES = {"train": 3 * 1258, "val": 180, "test": 359}


def test_it_is_the_same_every_time() -> None:
    one, other = scatter(), scatter()
    pixels = [hashlib.sha256(b"".join(i.tobytes() for i, _ in made["test"])).hexdigest() for made in (one, other)]
    assert pixels[0] == pixels[1]
    assert [label for _, label in one["train"]] == [label for _, label in other["train"]]


def test_every_digit_is_in_one_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels are replaced by the digits' numbers: what is drawn says which digit it was."""
    digits = load_digits()
    numbers = np.arange(len(digits.target))
    digits.target = numbers
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: digits)
    drawn = {split: [label for _, label in examples] for split, examples in scatter().items()}
    assert {split: len(set(labels)) for split, labels in drawn.items()} == {
        "train": 1258,
        "validation": 180,
        "test": 359,
    }
    assert sorted(set(drawn["train"]) | set(drawn["validation"]) | set(drawn["test"])) == numbers.tolist()
    assert len(drawn["train"]) == RENDERS * len(set(drawn["train"]))
    assert len(drawn["test"]) == len(set(drawn["test"]))


def test_clutter_is_cut_from_training_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only training digits have ink, test images show clutter alone; where only the others have, it is bare."""
    digits = load_digits()
    pixels, blank = digits.images, digits.images.copy()
    digits.target = np.arange(len(pixels))
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: digits)
    tested = [number for _, number in scatter()["test"]]
    blank[tested] = 0
    digits.images = blank
    without = [np.asarray(image) for image, _ in scatter()["test"]]
    digits.images = pixels
    full = [np.asarray(image) for image, _ in scatter()["test"]]
    assert all((a >= b).all() and (a > b).any() for a, b in zip(full, without))
    assert all(image.any() for image in without)


def test_it_opens_by_name_with_splits_of_its_own() -> None:
    data = open_dataset("scattered-digits")
    assert {"train": len(data.train), "val": len(data.val), "test": len(data.test)} == SIZES
