"""What recipes leave open is a function of images and machine; what is given stays, and so does what was planned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayssl.pipeline import config as configuration
from rayssl.pipeline import recipes
from rayssl.pipeline.augment.defaults import rotnet_views, simclr_views
from rayssl.pipeline.augment.spec import ColorJitter, Grayscale, HorizontalFlip, RandomResizedCrop
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config, override
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.recipes import CONTRASTIVE, build_recipe
from rayssl.pipeline.run import plan as plan_module
from rayssl.pipeline.run.build import count_steps
from rayssl.pipeline.run.identity import flatten
from rayssl.pipeline.run.plan import (
    CHOSEN_SECONDS,
    FEWEST,
    FROZEN_SECONDS,
    LONGEST,
    MINUTES,
    STAGES,
    TABLE,
    WARMUP,
    Machine,
    Plan,
    Sizes,
    plan_for,
    stages_seconds,
    step_seconds,
)
from rayssl.pipeline.run.resolve import open_and_resolve
from rayssl.pipeline.stages import start
from rayssl.pipeline.tune.search import Search, TuneSettings, plan_search, write_search

Make = Callable[..., Config]

KINDS = sorted({kind for kind, _ in TABLE} | {"somebody's own"})
CPU, PHOTOS = Machine("cpu", 2), Sizes(96, 1e8)

counts = st.integers(2, 2_000_000)
sizes = st.builds(Sizes, st.integers(8, 512), st.floats(1e4, 1e11), st.integers(1, 8), st.integers(1, 4))
machines = st.builds(Machine, st.sampled_from(["cpu", "cuda"]), st.integers(1, 128))


@given(counts, sizes, st.sampled_from(KINDS), machines)
def test_plans_are_within_bounds(count: int, size: Sizes, kind: str, machine: Machine) -> None:
    plan = plan_for(count, size, kind, machine)
    assert 2 <= plan.batch_size <= count
    per_epoch = count // plan.batch_size
    assert FEWEST <= plan.steps <= max(FEWEST, LONGEST * per_epoch)
    assert plan.warmup_epochs * per_epoch == pytest.approx(WARMUP * plan.steps, abs=0.01 * per_epoch)
    assert 0 < plan.crop <= 1
    assert 0 <= plan.small_views < 1


@given(counts, counts, sizes, st.sampled_from(KINDS), machines)
def test_more_images_never_get_fewer_steps_or_a_smaller_batch(
    few: int, many: int, size: Sizes, kind: str, machine: Machine
) -> None:
    small, large = (plan_for(count, size, kind, machine) for count in sorted((few, many)))
    assert small.batch_size <= large.batch_size
    # In images seen: a larger batch takes fewer steps for the same time. Both are rounded to two digits.
    assert small.steps * small.batch_size <= 1.1 * large.steps * large.batch_size


@given(sizes, st.sampled_from(KINDS), st.integers(1, 64))
def test_a_faster_machine_gets_more_steps(size: Sizes, kind: str, cores: int) -> None:
    slow, fast = (plan_for(10_000, size, kind, Machine("cpu", count)) for count in (cores, 2 * cores))
    assert slow.steps <= fast.steps


@given(sizes, st.sampled_from(KINDS), machines)
def test_the_steps_fill_the_time(size: Sizes, kind: str, machine: Machine) -> None:
    plan = plan_for(1_000_000, size, kind, machine)
    seconds = plan.steps * step_seconds(size, machine, plan.batch_size, plan.small_views)
    if FEWEST < plan.steps < LONGEST * (1_000_000 // plan.batch_size):
        assert seconds == pytest.approx(60 * MINUTES, rel=0.06)


@given(counts, sizes, st.sampled_from(KINDS), machines, st.integers(2, 4096), st.sampled_from([0.0, 0.5]))
def test_what_is_given_is_planned_around(
    count: int, size: Sizes, kind: str, machine: Machine, batch: int, small: float
) -> None:
    plan = plan_for(count, size, kind, machine, batch_size=batch, small_views=small)
    assert plan.batch_size == min(batch, count)
    assert plan.small_views == small
    twice = plan_for(10**7, size, kind, machine, batch_size=2 * batch, small_views=small)
    assert twice.steps <= plan_for(10**7, size, kind, machine, batch_size=batch, small_views=small).steps


@pytest.mark.parametrize(("count", "workers", "batch"), [(2, 1, 2), (3, 1, 2), (43, 1, 32), (43, 3, 24), (8, 4, 8)])
def test_small_sets_and_workers_that_share_a_batch(count: int, workers: int, batch: int) -> None:
    assert plan_for(count, PHOTOS, "simclr", Machine("cpu", 2, workers)).batch_size == batch


def test_too_few_images_to_share() -> None:
    with pytest.raises(UserError, match="there are 3 training images: at least 2 a worker are needed"):
        plan_for(3, PHOTOS, "simclr", Machine("cpu", 2, 2))


def test_given_weights_are_trained_gently() -> None:
    gentle, scratch = (plan_for(1000, PHOTOS, "simclr", CPU, weights=given) for given in (True, False))
    assert gentle.learning_rate < 0.1 * scratch.learning_rate
    assert (gentle.optimizer, gentle.small_views) == ("adamw", 0.0)


def test_colors_that_tell_images_apart_are_left_alone() -> None:
    strengths = [plan_for(1000, PHOTOS, "simclr", CPU, colors_tell=told).color for told in (True, None, False)]
    assert strengths[0] == 0
    assert strengths == sorted(strengths)


def test_a_handful_of_pixels_is_cropped_less() -> None:
    assert plan_for(100, Sizes(8, 1e5), "simclr", CPU).crop > plan_for(100, PHOTOS, "simclr", CPU).crop


# The config


@pytest.fixture
def open_config(images: Path) -> Make:
    """A folder recipe with its open paths, on tiny images and a tiny network; changes are dotted paths."""

    def make(method: str = "simclr", changes: dict[str, Any] | None = None) -> Config:
        tiny = {"data.path": str(images), "data.image_size": 16, "encoder.name": "cnn-small", "train.threads": 1}
        return override(build_recipe(f"{method}-folder"), {**tiny, **(changes or {})})

    return make


def prepared(config: Config, run: Path) -> start.Prepared:
    return start.prepare(config, run, command="rayssl run", warn=pytest.fail, progress=lambda done, total: None)


def values_of(config: Config) -> dict[str, Any]:
    return flatten(configuration.to_dict(config))


def test_every_open_path_is_a_value_of_a_plan_and_of_its_recipe() -> None:
    for name in recipes.RECIPES:
        config = build_recipe(name)
        assert set(config.plan) <= set(values_of(config))
        assert bool(config.plan) == name.endswith("-folder")
        for path in config.plan:
            assert path.rpartition(".")[2] in Plan.__dataclass_fields__ or path in recipes.HELD_OUT


def test_what_is_planned_is_written_down_once(open_config: Make, tmp_path: Path) -> None:
    made = prepared(open_config(), tmp_path / "run")
    saved = configuration.load(tmp_path / "run" / "config.json")
    assert saved == made.config
    assert saved.plan == ()
    assert made.planned == CONTRASTIVE
    assert saved.train.steps is not None
    assert saved.train.minutes is None
    assert saved.train.batch_size == 32  # of 38 images
    assert count_steps(saved, 38) == (1, saved.train.steps)
    told: list[str] = []
    start.announce(made, told.append)
    assert f"planned  {saved.train.steps:,} steps, about 10 min: --train.minutes or --train.epochs" in told[-2]
    assert f"colours  jitter of strength {saved.augment.color:g}, for there are too few labels" in told[-1]


@pytest.mark.parametrize(
    ("path", "value"),
    [("train.batch_size", 8), ("train.learning_rate", 0.5), ("train.small_views", 0.25), ("method.temperature", 0.9),
     ("augment.color", 1.0), ("augment.crop", 0.5), ("train.warmup_epochs", 0.0), ("train.steps", 7)],
)  # fmt: skip
def test_what_is_given_wins(path: str, value: float, open_config: Make) -> None:
    config, _ = open_and_resolve(open_config(changes={path: value}), pytest.fail)
    assert values_of(config)[path] == value


@pytest.mark.parametrize(
    ("method", "given", "share"), [("simclr", None, 0.2), ("rotnet", None, 0.2), ("simclr", 0.3, 0.3)]
)
def test_few_labels_hold_out_more_images(method: str, given: float | None, share: float, images: Path) -> None:
    changes = {"data.path": str(images), "wandb": "disabled"} | ({} if given is None else {"data.val_fraction": given})
    config, dataset = open_and_resolve(configuration.override(build_recipe(f"{method}-folder"), changes), pytest.fail)
    assert config.data.val_fraction == share
    assert len(dataset.val) == pytest.approx(share * 48, abs=2)


def test_a_length_that_is_given_leaves_no_steps_to_plan(open_config: Make) -> None:
    for path, value in (("train.epochs", 3), ("train.minutes", 0.5)):
        config, _ = open_and_resolve(open_config(changes={path: value}), pytest.fail)
        assert config.train.steps is None
        assert values_of(config)[path] == value


def test_an_optimizer_that_is_given_brings_its_own_rates(open_config: Make) -> None:
    config, _ = open_and_resolve(open_config(changes={"train.optimizer": "sgd"}), pytest.fail)
    plain = configuration.TrainConfig()
    assert (config.train.learning_rate, config.train.weight_decay) == (plain.learning_rate, plain.weight_decay)


def test_strengths_decide_the_views(open_config: Make) -> None:
    changes = {"augment.crop": 0.5, "augment.color": 0.0}
    config, _ = open_and_resolve(open_config(changes=changes), pytest.fail)
    assert config.augment.views is not None
    names = {operation["name"]: operation for operation in config.augment.views[0]["operations"]}
    assert names["random_resized_crop"]["scale"] == [0.5, 1.0]
    assert not {"color_jitter", "grayscale"} & names.keys()


def test_strengths_beside_a_file(open_config: Make, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"operations": []}')
    spec = {"augment.spec": str(tmp_path / "spec.json")}
    config, _ = open_and_resolve(open_config(changes=spec), pytest.fail)
    assert (config.augment.crop, config.augment.color) == (None, None)
    with pytest.raises(UserError, match=r"--augment\.color 0\.5 changes the method's own views: not with"):
        open_and_resolve(open_config(changes={**spec, "augment.color": 0.5}), pytest.fail)


def test_small_views_are_planned_only_where_they_can_be(open_config: Make) -> None:
    config, _ = open_and_resolve(open_config(changes={"encoder.name": "mlp"}), pytest.fail)
    assert config.train.small_views == 0


def test_a_run_that_goes_on_keeps_its_plan(open_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(open_config(), tmp_path / "run").config
    monkeypatch.setattr(plan_module, "MINUTES", 1e-3)  # as on another machine
    other = prepared(open_config(), tmp_path / "other").config
    again = prepared(open_config(), tmp_path / "run")
    assert first.train.steps != other.train.steps
    assert again.config == first
    assert again.planned == ()
    longer = prepared(open_config(changes={"train.epochs": 5000}), tmp_path / "run").config
    assert count_steps(longer, 43) == (1, 5000)
    assert longer == replace(first, train=replace(first.train, steps=None, epochs=5000))


def test_a_run_from_before_there_were_plans_goes_on(open_config: Make, tmp_path: Path) -> None:
    before = replace(open_config(), plan=())
    before = replace(before, train=replace(before.train, epochs=4, batch_size=8))
    first = prepared(before, tmp_path / "run").config
    assert prepared(open_config(), tmp_path / "run").config == first


def test_another_method_does_not_take_over_what_was_planned(open_config: Make, tmp_path: Path) -> None:
    prepared(open_config(), tmp_path / "run")
    with pytest.raises(UserError, match=r"method\.name is 'simclr' there and 'essl' here"):
        prepared(open_config("essl"), tmp_path / "run")


def test_a_search_takes_a_share_of_what_is_planned_and_keeps_it(
    open_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search_of(config: Config) -> tuple[Search, Dataset]:
        settings = TuneSettings(share=0.5)
        return plan_search(config, settings, tmp_path / "search", warn=str, progress=lambda done, total: None)

    steps = prepared(open_config(), tmp_path / "run").config.train.steps
    search, dataset = search_of(open_config())
    assert steps is not None
    assert search.config.train.steps == round(steps / 2)
    (tmp_path / "search").mkdir()
    write_search(search, dataset, "rayssl tune")
    monkeypatch.setattr(plan_module, "MINUTES", 1e-3)  # as on another machine
    again, _ = search_of(open_config())
    assert again.config == search.config


@pytest.mark.parametrize("size", [16, 32, 96])
def test_strength_one_is_simclrs(size: int) -> None:
    full, half, none = (
        simclr_views(image_size=size, channels=3, mirror=True, color=color)[0].operations for color in (1.0, 0.5, 0.0)
    )
    jitter = next(operation for operation in full if isinstance(operation, ColorJitter))
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.8, 0.8, 0.8, 0.2)
    assert next(operation.p for operation in full if isinstance(operation, Grayscale)) == 0.2
    assert half == simclr_views(image_size=32, channels=3, mirror=True)[0].operations or size == 96
    assert [type(operation) for operation in none] == [RandomResizedCrop, HorizontalFlip]
    assert rotnet_views(image_size=size, channels=3, mirror=False, crop=0.3)[0].operations == (
        RandomResizedCrop(scale=(0.3, 1.0)),
    )


EFFICIENTNET = Sizes(96, 141e6, 2, 1, depthwise=1_587_168)  # what describe says of timm/efficientnet_lite0 at 96 pixels


def test_depthwise_networks_are_planned_for_what_they_take() -> None:
    """1,100 steps of efficientnet_lite0 take about 40 minutes on two cores, not 10."""
    seconds = 1100 * step_seconds(EFFICIENTNET, CPU, 128, 0.0)
    assert 40 / 1.33 < seconds / 60 < 40 * 1.33
    steps = plan_for(10_000, EFFICIENTNET, "distill", CPU, weights=True).steps
    assert 1100 / 4.5 < steps < 1100 / 3


def test_plans_of_networks_without_depthwise_convolutions_are_as_they_were() -> None:
    resnet_tiny = Sizes(96, 75_939_840)
    assert step_seconds(resnet_tiny, CPU, 128, 0.5) == pytest.approx(
        0.625 * 256 * (3 * 75_939_840 / 2e11 + 6.495e-5), rel=1e-3
    )
    assert plan_for(2_000, resnet_tiny, "simclr", CPU).steps == 3100


def test_what_a_command_takes_beside_its_steps() -> None:
    assert stages_seconds(PHOTOS, CPU, 500, ("pretrain",)) == 0
    whole = stages_seconds(PHOTOS, CPU, 500, ("pretrain", *STAGES))
    more = stages_seconds(PHOTOS, CPU, 50_000, ("pretrain", *STAGES))
    assert whole > sum(own for own, _ in STAGES.values())
    assert more > 2 * whole

    def taken(stage: str, images: int, **more: int) -> float:
        return stages_seconds(PHOTOS, CPU, images, (stage,), **more)

    assert taken("embed", 500, frozen=2) - taken("embed", 500) == pytest.approx(2 * 500 * FROZEN_SECONDS / 2)
    seen = taken("embed", 1500) - taken("embed", 500)  # as often by the encoder as for the choice
    assert taken("search", 1500) - taken("search", 500) - seen == pytest.approx(1000 * CHOSEN_SECONDS)
