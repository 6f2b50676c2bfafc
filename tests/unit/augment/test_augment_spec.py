"""The spec: what it draws, how it is written and read, and what it refuses."""

import itertools
import json
import math

import numpy as np
import pytest

from rayssl.pipeline.augment.defaults import autoencoder_views, finetune_view, plain_view, rotnet_views, simclr_views
from rayssl.pipeline.augment.spec import (
    OPERATIONS,
    ColorJitter,
    Cutout,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    HorizontalFlip,
    QuarterTurn,
    RandomResizedCrop,
    Rotation,
    Solarize,
    Spec,
    VerticalFlip,
    standard_normal,
)
from rayssl.pipeline.base.errors import UserError

N = 4000
IDS = np.arange(1, N + 1, dtype=np.int64) * 7919
EVERY = Spec(tuple(operation(p=0.5) for operation in OPERATIONS.values()))


def applied(spec: Spec, *, seed: int = 0, epoch: int = 0, view: int = 0, ids: np.ndarray = IDS) -> np.ndarray:
    """(operations, B) decisions as −1 and 1."""
    table = spec.draw(seed=seed, epoch=epoch, ids=ids, view=view)
    return np.stack([draws.applied for draws in table.draws]).astype(np.float64) * 2 - 1


def assert_independent(a: np.ndarray, b: np.ndarray) -> None:
    """The correlation of n independent fair signs stays within 4.5 standard deviations of 0."""
    assert abs((a * b).mean()) < 4.5 / math.sqrt(a.size)


def test_every_pair_of_operations_decides_independently() -> None:
    decisions = applied(EVERY)
    for a, b in itertools.combinations(decisions, 2):
        assert_independent(a, b)


def test_decisions_are_independent_across_views_epochs_seeds_and_ids() -> None:
    decisions = applied(EVERY)
    for other in (applied(EVERY, view=1), applied(EVERY, epoch=1), applied(EVERY, seed=1)):
        assert_independent(decisions, other)
    assert_independent(decisions[:, 1:], decisions[:, :-1])


def test_an_operation_named_twice_draws_twice() -> None:
    first, second = applied(Spec((Rotation(p=0.5), Rotation(p=0.5))))
    assert_independent(first, second)


def test_decisions_and_parameters_are_independent() -> None:
    draws = Spec((Rotation(degrees=(-1, 1), p=0.5),)).draw(seed=0, epoch=0, ids=IDS, view=0).draws[0]
    assert abs(np.corrcoef(draws.applied, draws.values["degrees"])[0, 1]) < 4.5 / math.sqrt(N)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.8, 1.0])
def test_share_of_images_that_are_changed(p: float) -> None:
    share = (applied(Spec((Grayscale(p=p),))) > 0).mean()
    assert abs(share - p) <= 4.5 * math.sqrt(p * (1 - p) / N)


def test_a_row_depends_on_neither_batch_nor_other_operations() -> None:
    table = EVERY.draw(seed=3, epoch=2, ids=IDS, view=1)
    rows = np.array([5, 17, 3999])
    alone = EVERY.draw(seed=3, epoch=2, ids=IDS[rows], view=1)
    shorter = Spec(EVERY.operations[4:]).draw(seed=3, epoch=2, ids=IDS, view=1)
    for whole, part in zip(table[rows].draws, alone.draws, strict=True):
        assert whole.name == part.name
        np.testing.assert_array_equal(whole.applied, part.applied)
        for name in whole.values:
            np.testing.assert_array_equal(whole.values[name], part.values[name])
    for whole, part in zip(table.draws[4:], shorter.draws, strict=True):
        np.testing.assert_array_equal(whole.applied, part.applied)


def test_parameters_fill_their_ranges() -> None:
    spec = Spec(
        (
            RandomResizedCrop(scale=(0.3, 0.9), ratio=(0.5, 2.0)),
            ColorJitter(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1),
            GaussianBlur(sigma=(0.1, 2.0)),
            Solarize(threshold=(0.5, 0.5)),
            Cutout(size=(0.1, 0.3)),
            GaussianNoise(sigma=(0.0, 0.1)),
        )
    )
    values = {d.name: d.values for d in spec.draw(seed=0, epoch=0, ids=IDS, view=0).draws}
    limits = {
        ("random_resized_crop", "area"): (0.3, 0.9),
        ("random_resized_crop", "ratio"): (0.5, 2.0),
        ("color_jitter", "brightness"): (0.6, 1.4),
        ("color_jitter", "contrast"): (0.0, 2.5),
        ("color_jitter", "saturation"): (0.8, 1.2),
        ("color_jitter", "hue"): (-0.1, 0.1),
        ("gaussian_blur", "sigma"): (0.1, 2.0),
        ("solarize", "threshold"): (0.5, 0.5),
        ("cutout", "size"): (0.1, 0.3),
        ("gaussian_noise", "sigma"): (0.0, 0.1),
    }
    for (name, parameter), (low, high) in limits.items():
        drawn = values[name][parameter]
        assert low <= drawn.min() <= low + 0.01 * (high - low), (name, parameter)
        assert high - 0.01 * (high - low) <= drawn.max() <= high, (name, parameter)


def test_color_jitter_takes_every_order_equally_often() -> None:
    order = Spec((ColorJitter(),)).draw(seed=0, epoch=0, ids=IDS, view=0).draws[0].values["order"]
    _, counts = np.unique(order, axis=0, return_counts=True)
    expected = N / 24
    assert len(counts) == 24
    assert ((counts - expected) ** 2 / expected).sum() < 56.0  # chi-square, 23 degrees of freedom: p = 1e-4


def test_quarter_turns_are_uniform() -> None:
    turns = Spec((QuarterTurn(),)).draw(seed=0, epoch=0, ids=IDS, view=0).draws[0].values["turns"]
    counts = np.bincount(turns, minlength=4)
    assert counts[0] == 0
    assert abs(counts[1:] - N / 3).max() < 4.5 * math.sqrt(N * 2 / 9)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 60), (60, 20), (1, 5)])
@pytest.mark.parametrize("crop", [RandomResizedCrop(), RandomResizedCrop(scale=(0.9, 1.0), ratio=(0.8, 0.9))])
def test_boxes_are_those_of_the_plain_algorithm(crop: RandomResizedCrop, height: int, width: int) -> None:
    draws = Spec((crop,)).draw(seed=0, epoch=0, ids=IDS[:300], view=0).draws[0]
    boxes = crop.boxes(draws, np.full(300, height), np.full(300, width))
    for i, box in enumerate(boxes.tolist()):
        assert box == plain_box(crop, {name: v[i] for name, v in draws.values.items()}, height, width)


def plain_box(crop: RandomResizedCrop, values: dict[str, np.ndarray], height: int, width: int) -> list[int]:
    """torchvision's RandomResizedCrop.get_params, given the draws."""
    for area, ratio in zip(values["area"], values["ratio"], strict=True):
        w = round(math.sqrt(area * height * width * ratio))
        h = round(math.sqrt(area * height * width / ratio))
        if 0 < w <= width and 0 < h <= height:
            u, v = values["position"]
            return [int(u * (height - h + 1)), int(v * (width - w + 1)), h, w]
    h, w = height, width
    if width / height < crop.ratio[0]:
        h = max(1, round(width / crop.ratio[0]))
    elif width / height > crop.ratio[1]:
        w = max(1, round(height * crop.ratio[1]))
    return [(height - h) // 2, (width - w) // 2, h, w]


def test_boxes_reach_every_corner() -> None:
    crop = RandomResizedCrop(scale=(0.25, 0.25), ratio=(1.0, 1.0))
    draws = Spec((crop,)).draw(seed=0, epoch=0, ids=IDS, view=0).draws[0]
    boxes = crop.boxes(draws, np.full(N, 8), np.full(N, 8))
    assert set(map(tuple, boxes.tolist())) == {(t, left, 4, 4) for t in range(5) for left in range(5)}


def test_standard_normal_is_normal_and_keyed() -> None:
    noise = standard_normal(5, 20001)
    assert noise.shape == (20001,)
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert abs((noise**4).mean() - 3) < 0.3
    np.testing.assert_array_equal(noise, standard_normal(5, 20001))
    assert abs(np.corrcoef(noise, standard_normal(6, 20001))[0, 1]) < 0.04


def test_round_trip_through_json() -> None:
    spec = Spec((RandomResizedCrop(scale=(0.3, 0.8)), *EVERY.operations[1:], HorizontalFlip(p=0.25)))
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert Spec.from_dict({"operations": []}) == Spec()
    assert Spec.from_dict({"operations": [{"name": "color_jitter"}]}) == Spec((ColorJitter(),))


def test_a_spec_can_be_hashed() -> None:
    assert len({Spec((HorizontalFlip(),)), Spec((HorizontalFlip(),)), Spec()}) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"operations": [{"name": "colour_jitter"}]}, "unknown augmentation 'colour_jitter' (did you mean 'color_jit"),
        (
            {"operations": [{"name": "color_jitter", "hues": 0.1}]},
            "no parameter 'hues' (did you mean 'hue'?): known are",
        ),
        (
            {"operations": [{"name": "color_jitter", "hue": 0.7}]},
            "color_jitter.hue is 0.7: must be a number from 0 to 0.5",
        ),
        ({"operations": [{"name": "horizontal_flip", "p": True}]}, "horizontal_flip.p is True: must be a number"),
        ({"operations": [{"name": "horizontal_flip", "p": float("nan")}]}, "horizontal_flip.p is nan"),
        (
            {"operations": [{"name": "cutout", "size": [0.5, 0.2]}]},
            "cutout.size is [0.5, 0.2]: must be [low, high] from 0",
        ),
        ({"operations": [{"name": "cutout", "size": 0.2}]}, "cutout.size is 0.2: must be [low, high]"),
        ({"operations": [{"name": "rotation", "degrees": [0, 270]}]}, "rotation.degrees is [0, 270]: must be"),
        ({"operations": ["rotation"]}, "augmentation operation is 'rotation': it must be {"),
        ({"operation": []}, "augmentation spec has the keys operation: it must be {"),
        ({}, "augmentation spec has the keys nothing"),
        (
            {"operations": [{"name": "horizontal_flip"}, {"name": "random_resized_crop"}]},
            "random_resized_crop is operation 2: ",
        ),
    ],
)
def test_wrong_values_are_told_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Spec.from_dict(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_python_values_are_checked_too() -> None:
    with pytest.raises(UserError, match=r"gaussian_blur\.sigma is \[-1, 2\]"):
        GaussianBlur(sigma=(-1, 2))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_restricted_drops_what_needs_three_channels(channels: int) -> None:
    spec = Spec(
        (RandomResizedCrop(), ColorJitter(p=0.6), Grayscale(), ColorJitter(brightness=0, contrast=0), Solarize())
    )
    expected = (RandomResizedCrop(), ColorJitter(saturation=0, hue=0, p=0.6), Solarize())
    assert spec.restricted(channels).operations == expected
    assert spec.restricted(3) == spec
    whole, part = (s.draw(seed=0, epoch=0, ids=IDS, view=0).draws[1] for s in (spec, spec.restricted(channels)))
    np.testing.assert_array_equal(whole.applied, part.applied)
    np.testing.assert_array_equal(whole.values["brightness"], part.values["brightness"])


@pytest.mark.parametrize("size", [8, 28, 32, 64, 96, 224])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mirror", [True, False])
def test_default_views(size: int, channels: int, mirror: bool) -> None:
    views = {
        name: function(image_size=size, channels=channels, mirror=mirror)
        for name, function in {"simclr": simclr_views, "rotnet": rotnet_views, "ae": autoencoder_views}.items()
    }
    assert [len(v) for v in views.values()] == [2, 1, 1]
    assert views["ae"] == (plain_view(),) == (Spec(),)
    assert views["simclr"][0] == views["simclr"][1] == views["simclr"][0].restricted(channels)
    fine = finetune_view(image_size=size, channels=channels, mirror=mirror)
    for spec in (*views["simclr"], *views["rotnet"], fine):
        kinds = [type(operation) for operation in spec.operations]
        assert kinds[0] is RandomResizedCrop
        assert (HorizontalFlip in kinds) is mirror
        assert VerticalFlip not in kinds
    turning = (Rotation, QuarterTurn, VerticalFlip)
    assert not [o for o in views["rotnet"][0].operations if isinstance(o, turning)]
    assert any(isinstance(o, GaussianBlur) for o in views["simclr"][0].operations) is (size >= 96)


def test_views_of_cifar_are_the_published_ones() -> None:
    assert simclr_views(image_size=32, channels=3, mirror=True)[0] == Spec(
        (
            RandomResizedCrop(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), p=1.0),
            HorizontalFlip(p=0.5),
            ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
            Grayscale(p=0.1),
        )
    )
