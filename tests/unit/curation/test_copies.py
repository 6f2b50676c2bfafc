"""Copies: which pictures are said to show the same, and how they are grouped."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rayssl.pipeline.curation.duplicates import Group, auto_threshold, find_groups, leaks_of
from rayssl.pipeline.curation.matching import FINE, correlation, thumbnail

Photographs = dict[str, list[Image.Image]]


def small(picture: Image.Image) -> np.ndarray:
    return thumbnail(np.asarray(picture.convert("RGB")), FINE)


def changed(picture: Image.Image) -> list[Image.Image]:
    """JPEG q 30, 60 % of the size, 90 % of each side at some place, mirrored, darker."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    return [
        Image.open(file),
        picture.resize((58, 58)),
        picture.crop((2, 7, 88, 93)),
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        picture.point(lambda value: value // 2 + 20),
    ]


def test_a_changed_picture_correlates_with_its_original_alone(photographs: Photographs) -> None:
    pictures = photographs["china"][::3]
    originals = [small(picture) for picture in pictures]
    for number, picture in enumerate(pictures):
        for other in changed(picture):
            found = [correlation(small(other), original) for original in originals]
            assert np.argmax(found) == number
            assert found[number] >= 0.85
            assert max(found[:number] + found[number + 1 :]) < found[number] - 0.1


def test_a_correlation_is_the_same_from_both_sides_and_none_of_flat_pictures(photographs: Photographs) -> None:
    one, other = (small(picture) for picture in photographs["flower"][8:10])
    assert correlation(one, other) == pytest.approx(correlation(other, one), abs=1e-5)
    assert correlation(one, one) == pytest.approx(1, abs=1e-6)
    assert correlation(one, np.full_like(one, 7)) == 0


def line(step: float):
    """Pictures on a line, each so much less similar to the next."""
    return lambda pairs: 1 - step * np.abs(pairs[:, 0] - pairs[:, 1]).astype(float)


@given(n=st.integers(2, 40), reach=st.integers(1, 5), seed=st.integers(0, 5))
def test_a_chain_makes_groups_round_a_centre(n: int, reach: int, seed: int) -> None:
    """Each image is like the next: one component, and yet nobody is farther from the centre than the threshold."""
    similar, threshold = line(0.01), 1 - 0.01 * reach - 1e-9
    order = np.random.default_rng(seed).permutation(n)
    pairs = np.sort(np.stack([order, (order + 1) % n], axis=1)[order + 1 < n], axis=1)
    groups = find_groups(pairs, similar(pairs), np.zeros(n, np.int64), threshold, similar)
    members = np.concatenate([group.rows for group in groups])
    assert len(set(members.tolist())) == len(members)
    for group in groups:
        assert len(group.rows) >= 2
        assert (np.abs(group.rows - group.rows[0]) <= reach).all()
        assert group.similarities[0] == 1
        assert not group.exact.any()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_equal_pixels_are_one_group_whatever_the_vectors_say(hashes: list[int]) -> None:
    pixels = np.array(hashes, dtype=np.int64)
    nothing = np.zeros((0, 2), np.int64)
    groups = find_groups(nothing, np.zeros(0), pixels, 0.9, lambda pairs: np.zeros(len(pairs)))
    expected = {tuple(np.flatnonzero(pixels == one)) for one in set(hashes) - {0} if hashes.count(one) > 1}
    assert {tuple(sorted(group.rows.tolist())) for group in groups} == expected
    assert all(group.exact.all() for group in groups)


def test_a_near_copy_of_exact_copies_is_in_their_group() -> None:
    hashes = np.array([7, 7, 8, 9, 0, 0])
    pairs = np.array([[1, 2], [3, 4]])

    def similar(asked: np.ndarray) -> np.ndarray:
        return np.array([0.95 if 2 in pair and 3 not in pair else 0.1 for pair in asked.tolist()])

    (group,) = find_groups(pairs, np.array([0.95, 0.5]), hashes, 0.9, similar)
    assert sorted(group.rows.tolist()) == [0, 1, 2]
    assert dict(zip(group.rows.tolist(), group.exact.tolist())) == {0: True, 1: True, 2: False}


def test_the_threshold_lies_between_copies_and_chance() -> None:
    rng = np.random.default_rng(0)
    chance, copies = rng.uniform(0, 0.88, 5000), 1 - rng.exponential(0.008, 200)
    assert 0.9 < auto_threshold(np.concatenate([chance, copies])) < 0.98
    alone = rng.exponential(0.12, 200_000)  # nothing but chance, ever rarer
    assert auto_threshold(alone[alone < 1]) >= 0.93


def test_leaks_are_the_pairs_of_two_splits() -> None:
    splits = np.array(["train", "train", "test", "val", "test", "train"])
    groups = [Group(np.array(rows), np.ones(len(rows)), np.zeros(len(rows), bool)) for rows in ([0, 1, 2], [3, 4])]
    assert leaks_of(groups, splits) == {"train/test": 2, "val/test": 1}
    assert leaks_of([Group(np.array([0, 1]), np.ones(2), np.zeros(2, bool))], splits) == {}
