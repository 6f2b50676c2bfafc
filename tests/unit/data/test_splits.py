"""Validation parts: sizes, strata, groups, and that they depend on nothing but ids and key."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rayssl.pipeline.data.splits import draw, hold_out, hold_out_labelled

IDS = np.random.default_rng(0).integers(1, 1 << 62, 1000)
LABELS = np.repeat(np.arange(4), [100, 200, 300, 400])


def test_every_class_gives_its_share() -> None:
    held = hold_out(IDS, LABELS, None, 0.2, "test")
    assert np.bincount(LABELS[held]).tolist() == [20, 40, 60, 80]


def test_the_key_decides_and_the_order_of_images_does_not() -> None:
    held = hold_out(IDS, LABELS, None, 0.1, 0, "validation")
    order = np.random.default_rng(1).permutation(1000)
    assert np.array_equal(hold_out(IDS[order], LABELS[order], None, 0.1, 0, "validation"), held[order])
    other = hold_out(IDS, LABELS, None, 0.1, 1, "validation")
    assert 0 < (held & other).sum() < 30  # two draws of 100 out of 1,000 share ten


def test_added_images_leave_most_of_the_draw() -> None:
    before = hold_out(IDS[:990], None, None, 0.2, "test")
    after = hold_out(IDS, None, None, 0.2, "test")
    assert (before & after[:990]).sum() >= 195


def test_groups_stay_whole() -> None:
    groups = np.random.default_rng(2).integers(0, 60, 1000)
    held = hold_out(IDS, LABELS, groups, 0.2, "test")
    assert not set(groups[held]) & set(groups[~held])
    assert 150 < held.sum() < 250


def test_one_group_is_never_torn_nor_held_out() -> None:
    assert not hold_out(IDS, LABELS, np.zeros(1000, int), 0.4, "test").any()


@settings(max_examples=100)
@given(st.integers(0, 40), st.integers(1, 5), st.floats(0.01, 0.99), st.booleans())
def test_any_small_set(n: int, classes: int, fraction: float, grouped: bool) -> None:
    ids, labels = IDS[:n], np.arange(n) % classes
    groups = np.arange(n) // 3 if grouped else None
    held = hold_out(ids, labels, groups, fraction, 3)
    assert n == 0 or not held.all()
    if not grouped:
        assert held.sum() == max(0, min(round(fraction * n), n - 1))


def test_images_without_a_label_change_nothing_and_are_held_out_with_their_group_alone() -> None:
    labels = np.where(np.arange(1000) % 3 == 0, -1, LABELS)
    known = labels >= 0
    held = hold_out_labelled(IDS, labels, None, 0.2, "test")
    assert np.array_equal(held[known], hold_out(IDS[known], labels[known], None, 0.2, "test"))
    assert not held[~known].any()
    groups = np.random.default_rng(2).integers(0, 60, 1000)
    held = hold_out_labelled(IDS, labels, groups, 0.2, "test")
    assert not set(groups[held]) & set(groups[~held])
    assert 0.15 < held[known].mean() < 0.25
    assert held[~known].any()
    assert not hold_out_labelled(IDS, np.full(1000, -1), groups, 0.2, "test").any()


def test_draw_is_exact_and_stratified() -> None:
    chosen = draw(IDS, LABELS, 10, 0, "limit")
    assert np.bincount(LABELS[chosen]).tolist() == [1, 2, 3, 4]
    assert draw(IDS, None, 7, 0).sum() == 7
    assert draw(IDS, None, 5000, 0).all()
