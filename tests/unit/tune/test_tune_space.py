"""The search space: candidates are functions of seed and number, and become the specs that they say."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayssl.pipeline.augment import load_views
from rayssl.pipeline.augment.spec import ColorJitter, RandomResizedCrop, Spec
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.tune.space import FAMILIES, Parameter, build_space, parameter_from, read_space

SPACE = build_space(["crop", "color", "blur"])


@given(st.integers(0, 2**31), st.integers(0, 1000))
def test_every_draw_is_within_the_ranges_and_makes_a_spec(seed: int, number: int) -> None:
    space = build_space(list(FAMILIES), order=True)
    candidate = space.draw(seed, number)
    assert candidate == space.draw(seed, number)
    for name, parameter in space.parameters.items():
        assert parameter.clip(candidate[name]) == pytest.approx(candidate[name])
    spec = space.spec(candidate)
    on = {name for name in FAMILIES if float(candidate[f"{name}.p"]) >= 0.05}
    assert len(spec.operations) == len(on)
    assert Spec.from_dict(spec.to_dict()) == spec  # what best.json is read back as


def test_draws_differ_by_number_and_seed() -> None:
    draws = [json.dumps(SPACE.draw(seed, number)) for seed in range(3) for number in range(20)]
    assert len(set(draws)) == len(draws)


def test_a_spec_has_the_strengths_of_its_candidate() -> None:
    candidate = {
        "crop.p": 1.0,
        "crop.scale": 0.3,
        "color.p": 0.6,
        "color.strength": 0.5,
        "blur.p": 0.0,
        "blur.sigma": 1.0,
    }
    crop, color = SPACE.spec(candidate).operations
    assert crop == RandomResizedCrop(scale=(0.3, 1.0), p=1.0)
    assert color == ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.6)  # SimCLR, appendix A


def test_one_branch_leaves_the_other_views_plain() -> None:
    space = build_space(["crop", "color"], one_branch=True)
    views = space.views({**space.draw(0, 0), "crop.p": 1.0}, 2)
    assert len(views[0].operations) > 0
    assert views[1] == Spec()


def test_the_order_is_searched_where_it_is_asked_for() -> None:
    space = build_space(["crop", "color", "blur"], order=True)
    candidate = {**space.draw(0, 0), "crop.p": 1.0, "color.p": 1.0, "blur.p": 1.0}
    first = space.spec({**candidate, "color.place": 0.9, "blur.place": 0.1})
    second = space.spec({**candidate, "color.place": 0.1, "blur.place": 0.9})
    assert [operation.name for operation in first.operations] == [
        "random_resized_crop",
        "gaussian_blur",
        "color_jitter",
    ]
    assert [operation.name for operation in second.operations] == [
        "random_resized_crop",
        "color_jitter",
        "gaussian_blur",
    ]
    assert not [name for name in SPACE.parameters if name.endswith(".place")]


def test_a_grid_has_every_combination_once() -> None:
    space = build_space(["crop", "flip"], ranges={"crop.p": Parameter(values=(0.0, 1.0))})
    grid = list(space.grid(3))
    # without a crop its smallest area says nothing: 2 flips × (3 crops + none)
    assert len(grid) == len({json.dumps(candidate) for candidate in grid}) == 8
    assert space.grid_size(3) == 12
    assert {candidate["crop.scale"] for candidate in grid if candidate["crop.p"] == 1.0} == {0.08, 0.49, 0.9}


def test_a_grid_keeps_an_operation_off_wherever_that_is_listed() -> None:
    flips = {"flip.p": Parameter(values=(0.5, 0.0)), "crop.p": Parameter(values=(1.0,))}
    grid = list(build_space(["crop", "flip"], ranges=flips).grid(3))
    assert [candidate["flip.p"] for candidate in grid] == [0.5, 0.0] * 3


def test_a_step_stays_within_the_range() -> None:
    parameter = Parameter(0.0, 1.0, step=0.6)
    assert {parameter.at(u / 100) for u in range(100)} == {0.0, 0.6}
    assert parameter.levels(3) == [0.0, 0.6]
    assert [parameter.clip(value) for value in (-1, 0.2, 0.95, 2)] == [0.0, 0.0, 0.6, 0.6]
    assert Parameter(0.0, 1.0, step=0.1).levels(11)[-1] == 1.0


def test_pairs_are_each_operation_alone_and_each_two() -> None:
    shown = [tuple(o.name for o in SPACE.spec(candidate).operations) for candidate in SPACE.pairs()]
    crop, color, blur = "random_resized_crop", "color_jitter", "gaussian_blur"
    assert shown == [(crop,), (color,), (blur,), (crop, color), (crop, blur), (color, blur)]


def test_grey_images_have_no_colours_to_choose() -> None:
    space = build_space(["crop", "color", "grey"]).for_channels(1)
    assert space.operations == ("crop", "color")
    assert not [name for name in space.parameters if name.startswith("grey")]


def test_a_file_gives_ranges_order_and_values_of_the_config(tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    config = {
        "method.temperature": {"low": 0.1, "high": 0.5, "log": True},
        "train.optimizer": {"values": ["sgd", "lars"]},
    }
    path.write_text(
        json.dumps({"operations": {"crop": {"scale": [0.1, 0.2], "p": 1}}, "order": True, "config": config})
    )
    names, settings = read_space(str(path))
    space = build_space(names, **settings)
    assert space.parameters["crop.scale"] == Parameter(0.1, 0.2)
    assert space.parameters["crop.p"].fixed
    assert space.changes(space.draw(0, 0)).keys() == {"method.temperature", "train.optimizer"}
    yaml = tmp_path / "space.yaml"
    yaml.write_text("operations: [crop, color]\n")
    assert read_space(str(yaml)) == (["crop", "color"], {"ranges": {}, "others": {}})


def test_uniform_draws_make_uniform_choices() -> None:
    shares = [i / 1000 for i in range(1000)]
    steps = [Parameter(0.0, 0.5, step=0.1).at(u) for u in shares]
    assert all(abs(steps.count(value) - 1000 / 6) < 2 for value in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5))
    logs = [float(Parameter(0.01, 1.0, log=True).at(u)) for u in shares]
    assert abs(sum(value < 0.1 for value in logs) - 500) <= 1  # half of the draws below the geometric mean


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["crop", "colour"], "unknown operation 'colour' (did you mean 'color'?)"),
        (["crop", "crop"], "name every operation once"),
        ([], "name every operation once"),
    ],
)
def test_wrong_operations_are_one_line(names: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        build_space(names)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_ranges_are_one_line(tmp_path: Path) -> None:
    for value in ({"low": 0, "high": 1, "log": True}, {"low": 0, "high": 1, "step": -1}):
        with pytest.raises(UserError, match=r"the range of crop\.scale is .* it must be"):
            parameter_from("crop.scale", value)
    for value in ([0.9, 0.1], [1], {"low": 0, "high": 1, "step": 0}, {"values": []}, None, {"low": 1}):
        with pytest.raises(UserError, match=r"the range of crop\.scale is .* it must be"):
            parameter_from("crop.scale", value)
    with pytest.raises(UserError, match=r"the range of crop\.scale is 0\.5 to 0\.1"):
        build_space(["crop"], ranges={"crop.scale": Parameter(0.5, 0.1)})
    with pytest.raises(UserError, match=r"unknown range 'crop\.size'"):
        build_space(["crop"], ranges={"crop.size": Parameter(0.1, 0.2)})
    with pytest.raises(
        UserError, match=r"the range of crop goes too far: random_resized_crop\.scale is \[0\.1, 1\.0\]|too far"
    ):
        build_space(["crop"], ranges={"crop.scale": Parameter(0.1, 1.5)})
    with pytest.raises(UserError, match="no such file"):
        read_space(str(tmp_path / "none.json"))
    path = tmp_path / "space.json"
    for text in ("{", "[]", '{"operation": {}}', '{"operations": {"crop": 3}}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"--tune\.space .*space\.json"):
            read_space(str(path))


def test_a_space_of_one_candidate_is_refused() -> None:
    fixed = {"crop.p": Parameter(values=(1.0,)), "crop.scale": Parameter(0.2, 0.2)}
    with pytest.raises(UserError, match="one candidate only"):
        build_space(["crop"], ranges=fixed)
    build_space(["crop"], ranges=fixed, others={"method.temperature": Parameter(0.1, 0.5)})


def test_the_best_of_a_search_is_read_as_an_augmentation(tmp_path: Path) -> None:
    from rayssl.pipeline.augment import view_to_dict

    spec = SPACE.spec(SPACE.draw(3, 5))
    (tmp_path / "best.json").write_text(json.dumps({"views": [view_to_dict(spec)]}))
    assert load_views(str(tmp_path / "best.json"), 2) == (spec, spec)
