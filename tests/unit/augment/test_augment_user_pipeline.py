"""A user's own albumentations pipeline."""

import json
import math
import pickle
from typing import Any

import albumentations as A
import numpy as np
import pytest

from rayssl.pipeline.augment import Spec, UserPipeline, apply_batch, view_from_dict, view_to_dict
from rayssl.pipeline.augment.trial import try_pipelines
from rayssl.pipeline.base.errors import UserError

N = 1500
# Left black, right white, with a red corner: a flip and a grey image can be told from the pixels.
IMAGE = np.zeros((4, 4, 3), dtype=np.uint8)
IMAGE[:, 2:] = 255
IMAGE[0] = (255, 0, 0)
IDS = np.arange(1, N + 1, dtype=np.int64)


def run(pipeline: Any, *, seed: int = 0, epoch: int = 0, view: int = 0, ids: Any = IDS, size: int = 4) -> Any:
    return apply_batch(pipeline, [IMAGE] * len(ids), size=size, seed=seed, epoch=epoch, ids=ids, view=view)


def flip_and_grey() -> A.Compose:
    return A.Compose([A.HorizontalFlip(p=0.5), A.Sequential([A.OneOf([A.ToGray(p=1.0)], p=0.5)], p=1.0)])


def decisions(views: Any) -> tuple[Any, Any]:
    flipped = views[:, 3, 0, 0] == 255
    grey = views[:, 0, 0, 0] == views[:, 0, 0, 1]
    return flipped, grey


def test_decisions_of_nested_transforms_are_independent() -> None:
    flipped, grey = decisions(run(UserPipeline(flip_and_grey())))
    bound = 4.5 * math.sqrt(0.25 / N)
    assert abs(flipped.mean() - 0.5) < bound
    assert abs(grey.mean() - 0.5) < bound
    assert abs((flipped & grey).mean() - 0.25) < bound
    assert abs(flipped[grey].mean() - 0.5) < 1.5 * bound


def test_decisions_are_independent_across_epochs_views_seeds_and_ids() -> None:
    pipeline = UserPipeline(flip_and_grey())
    flipped, _ = decisions(run(pipeline))
    for other in ({"epoch": 1}, {"view": 1}, {"seed": 1}, {"ids": IDS + 1}):
        again, _ = decisions(run(pipeline, **other))
        assert abs((flipped == again).mean() - 0.5) < 4.5 * math.sqrt(0.25 / N), other


def test_a_view_depends_on_its_key_alone() -> None:
    noise = A.Compose([A.GaussNoise(p=1.0), A.CoarseDropout(fill="random", p=1.0), A.RandomBrightnessContrast(p=1.0)])
    pipeline = UserPipeline(noise)
    whole = run(pipeline, ids=IDS[:20])
    np.testing.assert_array_equal(run(pipeline, ids=IDS[:20]), whole)
    order = np.array([7, 2, 19])
    np.testing.assert_array_equal(run(pipeline, ids=IDS[order]), whole[order])
    copied = pickle.loads(pickle.dumps(pipeline))  # as a loader process receives it
    np.testing.assert_array_equal(run(copied, ids=IDS[:20]), whole)
    assert (run(pipeline, ids=IDS[20:40]) != whole).any()


def test_a_seed_of_the_users_own_does_not_matter() -> None:
    a = run(UserPipeline(A.Compose([A.GaussNoise(p=0.5)], seed=1)), ids=IDS[:20])
    b = run(UserPipeline(A.Compose([A.GaussNoise(p=0.5)], seed=2)), ids=IDS[:20])
    np.testing.assert_array_equal(a, b)


def test_round_trip_through_json() -> None:
    pipeline = UserPipeline(
        A.Compose([A.RandomResizedCrop(size=(8, 8), scale=(0.2, 1)), A.OneOf([A.ToGray(), A.Blur()]), A.ColorJitter()])
    )
    values = json.loads(json.dumps(view_to_dict(pipeline)))
    again = view_from_dict(values)
    assert values["kind"] == "albumentations"
    assert view_to_dict(again) == values
    np.testing.assert_array_equal(run(again, ids=IDS[:50], size=8), run(pipeline, ids=IDS[:50], size=8))


def test_a_single_transform_is_enough() -> None:
    views = run(UserPipeline(A.HorizontalFlip(p=1.0)), ids=IDS[:2])
    np.testing.assert_array_equal(views[0], IMAGE[:, ::-1])


def test_output_is_brought_to_size() -> None:
    plain = apply_batch(Spec(), [IMAGE], size=8, seed=0, epoch=0, ids=IDS[:1], view=0)
    np.testing.assert_array_equal(run(UserPipeline(A.NoOp()), ids=IDS[:1], size=8), plain)
    assert run(UserPipeline(A.Resize(16, 12)), ids=IDS[:1], size=8).shape == (1, 8, 8, 3)


def test_one_channel() -> None:
    image = IMAGE[..., :1]
    pipeline = UserPipeline(A.Compose([A.HorizontalFlip(p=1.0), A.RandomBrightnessContrast(p=0.5)]))
    views = apply_batch(pipeline, [image], size=4, seed=0, epoch=0, ids=IDS[:1], view=0)
    assert views.shape == (1, 4, 4, 1)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            A.Normalize(),
            "returns float32: it must return uint8 images, so leave out what converts them, such as Normalize",
        ),
        (A.ToTensorV2(), "returns Tensor: it must return uint8"),
        (A.RandomCrop(9, 9), "fails on an image of 4 × 4 × 3: "),
        (A.ToGray(num_output_channels=1, p=1), "turns 3 channels into 1: keep their number"),
    ],
)
def test_unusable_pipelines_are_told_in_one_line(transform: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(UserPipeline(transform), ids=IDS[:1])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"transform": {"__class_fullname__": "Bluur", "p": 1.0}}, r"albumentations 2.0.8 has no transform 'Bluur'"),
        ({"transform": {"__class_fullname__": "Blur", "p": 7}}, "albumentations cannot read the pipeline: "),
        ({"kind": "albumentations", "pipeline": {}}, "not an albumentations pipeline: give a file written by"),
        ({"kind": "kornia"}, "augmentation kind is 'kornia': must be 'spec' or 'albumentations'"),
        ([], r"augmentation is \[\]: it must be"),
    ],
)
def test_unreadable_values_are_told_in_one_line(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        view_from_dict(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"__class_fullname__": "Lambda", "__name__": "os.system"}, "has a Lambda, whose code is in no file"),
        ({"__class_fullname__": "albumentations.x.Lambda", "__name__": "f"}, "Lambda, whose code is in no file"),
        ({"__class_fullname__": "os.system", "command": "true"}, "has no transform 'os.system'"),
        ({"p": 1.0}, "a transform without a name"),
        ({"__class_fullname__": ["Blur"]}, "a transform without a name"),
        ("Blur", "a transform without a name: 'Blur'"),
        ({"__class_fullname__": "TextImage", "p": 1, "font_path": "a", "metadata_key": "image"}, "TextImage needs"),
        (
            {"__class_fullname__": "FDA", "p": 1, "reference_images": ["/dev/zero"]},
            "FDA needs more than the image",
        ),
        ({"__class_fullname__": "MaskDropout", "p": 1}, r"MaskDropout needs more than the image \(mask\)"),
        ({"__class_fullname__": "Resize", "height": 10**9, "width": 5}, "has height 1000000000: at most 10,000"),
        ({"__class_fullname__": "GaussianBlur", "sigma_limit": [1e300, 1e300]}, r"has sigma_limit 1e\+300: at most"),
        ({"__class_fullname__": "RandomGravel", "number_of_patches": math.nan}, "has number_of_patches nan: at most"),
    ],
)
def test_transforms_that_run_code_read_files_or_never_end_are_refused(transform: Any, message: str) -> None:
    inside = {"__class_fullname__": "OneOf", "p": 1.0, "transforms": [transform]}
    with pytest.raises(UserError, match=message) as caught:
        view_from_dict(
            {"transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": [inside], "seed": 2**40}}
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("transform", "message"),
    [(A.Defocus(radius=(9999, 9999), p=1.0), "Unable to allocate|within 30 seconds"), (A.Normalize(), "float32")],
)
def test_a_trial_tells_what_fails_before_anything_trains(transform: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        try_pipelines([Spec(), UserPipeline(transform)], size=8, channels=3, seed=0)
    assert "\n" not in str(caught.value)


class Unusable(A.Normalize):
    """A transform of somebody's own, which another process does not know."""


def test_a_trial_lets_usable_and_unknown_pipelines_pass() -> None:
    try_pipelines([UserPipeline(A.Compose([A.OneOf([Unusable()])]))], size=8, channels=3, seed=0)
    pipeline = UserPipeline(flip_and_grey())
    try_pipelines([pipeline, pipeline], size=8, channels=3, seed=0)


def test_what_cannot_be_written_is_told() -> None:
    def same(image: Any, **_: Any) -> Any:
        return image

    pipeline = UserPipeline(A.Compose([A.Lambda(image=same)]))
    with pytest.raises(UserError, match="albumentations cannot write the pipeline: "):
        pipeline.to_dict()
