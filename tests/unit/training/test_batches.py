"""What a step sees is a function of seed and step, whoever loads it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rayssl.pipeline.augment.defaults import simclr_views
from rayssl.pipeline.data import Images, open_dataset
from rayssl.pipeline.training.batches import Order, RawBatch, Views, load_batches
from rayssl.pipeline.training.step import to_batch

BATCH = 8
SIZE = 12


@pytest.fixture(scope="module")
def train_images(images: Path) -> Images:
    return open_dataset(str(images), image_size=SIZE, loader="stream").train


def make_views(images: Images, rank: int = 0, world: int = 1, seed: int = 3) -> Views:
    order = Order(len(images), BATCH, seed)
    views = simclr_views(image_size=SIZE, channels=3, mirror=True)
    return Views(images, order, views, SIZE, seed, rank, world)


def assert_same(first: RawBatch, second: RawBatch) -> None:
    assert (first.epoch, first.step) == (second.epoch, second.step)
    assert torch.equal(first.ids, second.ids)
    assert first.labels is not None
    assert second.labels is not None
    assert torch.equal(first.labels, second.labels)
    assert len(first.views) == len(second.views)
    for one, other in zip(first.views, second.views):
        assert torch.equal(one, other)


def test_an_epoch_shows_every_image_at_most_once() -> None:
    order = Order(43, 8, seed=1)
    assert order.steps_per_epoch == 5
    for epoch in range(3):
        seen = np.concatenate([order.indices(epoch * 5 + step, 0, 1) for step in range(5)])
        assert len(seen) == 40
        assert len(set(seen.tolist())) == 40
        assert set(seen.tolist()) < set(range(43))
        assert [order.epoch_of(epoch * 5 + step) for step in range(5)] == [epoch] * 5


def test_what_is_left_out_differs_from_epoch_to_epoch() -> None:
    order = Order(43, 8, seed=1)
    left = [
        frozenset(range(43)) - set(np.concatenate([order.indices(e * 5 + s, 0, 1) for s in range(5)]).tolist())
        for e in range(10)
    ]
    assert len(set(left)) > 5


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def first(seed: int, step: int) -> list[int]:
        return list(Order(1000, 1000, seed).indices(step, 0, 1).tolist())

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)
    assert sorted(first(0, 0)) == list(range(1000))


def test_the_order_is_random_enough() -> None:
    # Positions of one image over 300 epochs: uniform, so mean 499.5 and standard deviation 288.7.
    places = [int(np.flatnonzero(Order(1000, 1000, 5).indices(epoch, 0, 1) == 0)[0]) for epoch in range(300)]
    assert abs(np.mean(places) - 499.5) < 4 * 288.7 / np.sqrt(300)
    assert abs(np.std(places) - 288.7) < 50


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_slices_of_the_workers_are_the_global_batch(world: int) -> None:
    order = Order(43, 8, seed=2)
    for step in (0, 4, 5, 13):
        slices = [order.indices(step, rank, world) for rank in range(world)]
        assert {len(part) for part in slices} == {8 // world}
        assert np.concatenate(slices).tolist() == order.indices(step, 0, 1).tolist()


@pytest.mark.parametrize("world", [2, 4])
def test_pixels_do_not_depend_on_the_number_of_workers(world: int, train_images: Images) -> None:
    whole = make_views(train_images)[7]
    parts = [make_views(train_images, rank, world)[7] for rank in range(world)]
    assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
    for number, view in enumerate(whole.views):
        assert torch.equal(torch.cat([part.views[number] for part in parts]), view)


def test_a_batch(train_images: Images) -> None:
    batch = make_views(train_images)[6]
    assert batch.epoch == 1
    assert [view.shape for view in batch.views] == [(BATCH, SIZE, SIZE, 3)] * 2
    assert {view.dtype for view in batch.views} == {torch.uint8}
    assert not torch.equal(*batch.views)
    assert train_images.labels is not None
    known = dict(zip(train_images.ids.tolist(), train_images.labels.tolist()))
    assert batch.labels is not None
    assert [known[i] for i in batch.ids.tolist()] == batch.labels.tolist()


def test_an_image_looks_different_in_every_epoch_and_with_every_seed(train_images: Images) -> None:
    def views_of_an_image(epoch: int, seed: int) -> torch.Tensor:
        dataset = make_views(train_images, seed=seed)
        wanted = int(train_images.ids[0])
        for step in range(epoch * 5, epoch * 5 + 5):
            batch = dataset[step]
            if wanted in batch.ids.tolist():
                return batch.views[0][batch.ids.tolist().index(wanted)]
        raise AssertionError("left out of this epoch: choose another image")

    looks = [views_of_an_image(epoch, seed) for epoch, seed in ((0, 3), (1, 3), (0, 4))]
    assert not torch.equal(looks[0], looks[1])
    assert not torch.equal(looks[0], looks[2])
    assert torch.equal(looks[0], views_of_an_image(0, 3))


def test_batches_in_the_thread_are_the_items(train_images: Images) -> None:
    dataset = make_views(train_images)
    loaded = list(load_batches(dataset, 3, 12, processes=0))
    assert [batch.step for batch in loaded] == list(range(3, 12))
    for batch in loaded:
        assert_same(batch, dataset[batch.step])


def test_batches_of_processes_are_the_items(train_images: Images) -> None:
    dataset = make_views(train_images)
    for batch in load_batches(dataset, 4, 9, processes=2):
        assert_same(batch, dataset[batch.step])


def test_no_steps_no_batches(train_images: Images) -> None:
    assert list(load_batches(make_views(train_images), 5, 5, processes=0)) == []


class Broken(Views):
    """Fails at its third item."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __getitem__(self, step: int) -> Any:
        self.asked.append(step)
        if step == 2:
            raise OSError("the disk is gone")
        return step


def test_an_error_in_the_thread_comes_out() -> None:
    batches: Iterator[Any] = load_batches(Broken(), 0, 5, processes=0)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_the_thread_ends_with_its_reader(train_images: Images) -> None:
    before = set(loader_threads())
    batches = load_batches(make_views(train_images), 0, 10**6, processes=0)
    next(batches)
    own = [thread for thread in loader_threads() if thread not in before]
    assert len(own) == 1
    batches.close()  # type: ignore[attr-defined]
    assert not own[0].is_alive()


# The batched backend: drawn here, made on the device


def batched(images: Images, **settings: Any) -> Views:
    order = Order(len(images), BATCH, 3)
    return Views(images, order, simclr_views(image_size=SIZE, channels=3, mirror=True), SIZE, 3, 0, 1,
                 backend="batched", **settings)  # fmt: skip


@pytest.mark.parametrize("loader", ["stream", "resident"])
def test_both_backends_make_the_same_views_but_for_rounding(images: Path, loader: str) -> None:
    train = open_dataset(str(images), image_size=SIZE, loader=loader).train
    finished = to_batch(make_views(train)[5], torch.device("cpu"), "fp32", 3)
    drawn = to_batch(batched(train)[5], torch.device("cpu"), "fp32", 3)
    assert torch.equal(finished.ids, drawn.ids)
    assert torch.equal(finished.labels, drawn.labels)  # type: ignore[arg-type]
    for one, other in zip(finished.views, drawn.views, strict=True):
        assert (one - other).abs().mean() < 3 / 255
        assert (one - other.flip(0)).abs().mean() > 0.05  # the images are not all alike


def test_images_that_the_device_holds_give_the_same_views(images: Path) -> None:
    train = open_dataset(str(images), image_size=SIZE, loader="resident").train
    held, sizes = train.padded(np.arange(len(train)))
    assert sizes is None
    sent = to_batch(batched(train)[2], torch.device("cpu"), "fp32", 3)
    there = to_batch(batched(train, on_device=True)[2], torch.device("cpu"), "fp32", 3, torch.from_numpy(held))
    assert batched(train, on_device=True)[2].views.images is None  # type: ignore[union-attr]
    for one, other in zip(sent.views, there.views, strict=True):
        assert torch.equal(one, other)


def test_two_workers_draw_the_halves_of_the_batch(images: Path) -> None:
    train = open_dataset(str(images), image_size=SIZE, loader="stream").train
    whole = to_batch(batched(train)[4], torch.device("cpu"), "fp64", 3)
    order, specs = Order(len(train), BATCH, 3), simclr_views(image_size=SIZE, channels=3, mirror=True)
    halves = [
        to_batch(Views(train, order, specs, SIZE, 3, rank, 2, backend="batched")[4], torch.device("cpu"), "fp64", 3)
        for rank in (0, 1)
    ]
    for number, view in enumerate(whole.views):
        torch.testing.assert_close(torch.cat([half.views[number] for half in halves]), view)


def test_loader_processes_hand_on_what_was_drawn(train_images: Images) -> None:
    alone, through = batched(train_images)[1], next(load_batches(batched(train_images), 1, 2, 1))
    for one, other in zip(*(to_batch(raw, torch.device("cpu"), "fp32", 3).views for raw in (alone, through))):
        assert torch.equal(one, other)


def test_padding_keeps_images_of_unlike_sizes_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(20, 30, 3), (30, 20, 3), (20, 20, 3)] * 3):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    train = open_dataset(str(tmp_path), image_size=30, loader="stream").train
    canvas, sizes = train.padded(np.arange(len(train)))
    assert sizes is not None
    assert canvas.shape[1:] == (*sizes.max(axis=0), 3)
    for row in range(len(train)):
        height, width = sizes[row]
        np.testing.assert_array_equal(canvas[row, :height, :width], train[row])
        assert not canvas[row, height:].any()
        assert not canvas[row, :, width:].any()


@pytest.mark.parametrize("backend", ["albumentations", "batched"])
def test_views_are_small_until_a_step_and_drawn_alike(images: Path, backend: str) -> None:
    train = open_dataset(str(images), image_size=SIZE, loader="resident").train
    order, specs = Order(len(train), BATCH, 3), simclr_views(image_size=SIZE, channels=3, mirror=True)
    usual, small = (Views(train, order, specs, SIZE, 3, 0, 1, backend=backend, small_until=until) for until in (0, 2))
    cpu = torch.device("cpu")
    for step in range(4):
        one, other = to_batch(usual[step], cpu, "fp32", 3), to_batch(small[step], cpu, "fp32", 3)
        assert torch.equal(one.ids, other.ids)
        side = SIZE // 2 if step < 2 else SIZE
        assert other.views[0].shape[2:] == (side, side)
        shrunk = torch.nn.functional.interpolate(one.views[0], size=(side, side), mode="area")
        assert (shrunk - other.views[0]).abs().mean() < 0.06  # the same crop in the same colours
        assert (shrunk - other.views[1]).abs().mean() > 0.06
