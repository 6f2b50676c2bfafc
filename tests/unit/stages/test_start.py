"""A run is resolved, checked and written down before anything starts."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config, override
from rayssl.pipeline.models import encoder
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.build import count_steps
from rayssl.pipeline.run.estimate import existing_parent, expected_bytes, training_seconds
from rayssl.pipeline.run.identity import check_trained, continue_run, flatten, run_name
from rayssl.pipeline.run.images import open_data
from rayssl.pipeline.run.plan import Machine
from rayssl.pipeline.run.resolve import check_small_views, fit_batch, resolve
from rayssl.pipeline.stages.start import Prepared, announce, prepare

Make = Callable[..., Config]

CPU = Machine("cpu", 2)


def prepare_quietly(config: Config, run: Path, warnings: list[str] | None = None) -> Prepared:
    warn = (warnings if warnings is not None else []).append
    return prepare(config, run, command="rayssl run", warn=warn, progress=lambda done, total: None)


def test_every_choice_is_written_down(tiny_config: Make, images: Path, tmp_path: Path) -> None:
    config = tiny_config(changes={"data.image_size": None, "data.channels": None})
    prepared = prepare_quietly(config, tmp_path / "run")
    saved = configuration.load(tmp_path / "run" / "config.json")
    assert saved == prepared.config
    assert (saved.data.image_size, saved.data.channels, saved.data.path) == (16, 3, str(images))
    assert saved.augment.views is not None
    assert len(saved.augment.views) == 2
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    data = manifest["data"]
    assert (data["train"], data["val"], data["test"], data["classes"]) == (43, 5, 12, ["blue", "green", "red"])
    assert data["fingerprint"] == prepared.dataset.fingerprint
    assert manifest["command"] == "rayssl run"
    assert manifest["seed"] == config.train.seed
    assert manifest["unreadable"] == []


@pytest.mark.parametrize(
    ("path", "asked", "mirror"),
    [("svhn", None, False), ("gtsrb", None, False), ("fashionmnist", None, True), ("/photos/svhn", None, True),
     ("svhn", True, True), ("/photos/svhn", False, False)],
)  # fmt: skip
def test_the_name_of_a_set_tells_whether_it_may_be_mirrored(
    path: str, asked: bool | None, mirror: bool, tiny_config: Make
) -> None:
    config = tiny_config(changes={"augment.mirror": asked})
    resolved = resolve(config, replace(open_data(config), path=path), pytest.fail, CPU)
    assert resolved.augment.mirror is mirror
    assert resolved.augment.views is not None
    for view in resolved.augment.views:
        assert ("horizontal_flip" in [operation["name"] for operation in view["operations"]]) is mirror


def test_what_is_written_down_prepares_to_itself(tiny_config: Make, tmp_path: Path) -> None:
    first = prepare_quietly(tiny_config(), tmp_path / "run")
    again = prepare_quietly(first.config, tmp_path / "run")
    assert again.config == first.config


def test_unreadable_images_are_listed(tiny_config: Make, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "red" / "broken.png").write_bytes(b"not a png")
    warnings: list[str] = []
    prepare_quietly(tiny_config(changes={"data.path": str(folder)}), tmp_path / "run", warnings)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [path for path, _ in manifest["unreadable"]] == ["red/broken.png"]
    assert len(warnings) == 1
    assert warnings[0].startswith("1 unreadable image")


def dataset_of(config: Config) -> Any:
    return open_data(config)


@pytest.mark.parametrize(
    ("batch", "workers", "fitted"),
    [(8, 1, 8), (43, 1, 43), (44, 1, 43), (512, 1, 43), (512, 2, 42), (512, 4, 40), (40, 4, 40)],
)
def test_the_batch_fits_the_images_and_the_workers(batch: int, workers: int, fitted: int, tiny_config: Make) -> None:
    config = tiny_config(changes={"train.batch_size": batch, "cluster.workers": workers})
    warnings: list[str] = []
    assert fit_batch(config, dataset_of(config), warnings.append) == fitted
    assert len(warnings) == (fitted != batch)
    assert all(f"--train.batch-size {batch}" in text and str(fitted) in text for text in warnings)


def test_a_batch_that_cannot_be_shared(tiny_config: Make) -> None:
    config = tiny_config(changes={"train.batch_size": 10, "cluster.workers": 4})
    with pytest.raises(UserError, match=r"--train\.batch-size 10 cannot be shared evenly by 4 workers: use 8 or 12"):
        fit_batch(config, dataset_of(config), pytest.fail)
    few = tiny_config(changes={"train.batch_size": 2, "cluster.workers": 4})
    with pytest.raises(UserError, match="cannot be shared evenly by 4 workers: use 4"):
        fit_batch(few, dataset_of(few), pytest.fail)


def test_more_workers_than_images(tiny_config: Make) -> None:
    config = tiny_config(changes={"train.batch_size": 512, "cluster.workers": 64})
    with pytest.raises(UserError, match="43 training images: at least"):
        fit_batch(config, dataset_of(config), pytest.fail)


def test_a_folder_of_another_run(tiny_config: Make, tmp_path: Path) -> None:
    prepare_quietly(tiny_config(), tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    cases = [
        (tiny_config("rotnet"), "method.name is 'simclr' there and 'rotnet' here"),
        (tiny_config(changes={"train.seed": 1}), "train.seed is 0 there and 1 here"),
        (tiny_config(changes={"train.batch_size": 4}), "train.batch_size is 8 there and 4 here"),
        (tiny_config(changes={"method.temperature": 0.9}), "method.temperature"),
        (tiny_config(changes={"encoder.name": "resnet-tiny"}), "encoder.name"),
        (tiny_config(changes={"augment.mirror": False}), "augment.mirror is True there and False here"),
    ]
    for config, says in cases:
        with pytest.raises(UserError, match="holds another run") as error:
            prepare_quietly(config, tmp_path / "run")
        assert says in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400
    assert (tmp_path / "run" / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("path", "value"),
    [("train.epochs", 9), ("cluster.workers", 2), ("probe.epochs", 3), ("data.loader", "stream"), ("wandb", "offline"),
     ("train.checkpoint_epochs", 1), ("index.factory", "Flat"), ("evaluate.k", 3), ("train.threads", 2)],
)  # fmt: skip
def test_what_may_change_when_a_run_goes_on(path: str, value: object, tiny_config: Make, tmp_path: Path) -> None:
    prepare_quietly(tiny_config(), tmp_path / "run")
    prepare_quietly(tiny_config(changes={path: value}), tmp_path / "run")
    saved = flatten(configuration.to_dict(configuration.load(tmp_path / "run" / "config.json")))
    assert saved[path] == value


def test_the_steps_of_a_budget_are_kept_with_the_same_budget_only(tiny_config: Make, tmp_path: Path) -> None:
    now = tiny_config(changes={"train.minutes": 2.0})
    before = replace(now, train=replace(now.train, steps=77))
    assert continue_run(before, now, tmp_path).train.steps == 77
    longer = override(now, {"train.minutes": 3.0})
    assert continue_run(before, longer, tmp_path).train.steps is None


def test_a_run_that_was_trained_wants_its_images_and_no_fewer_steps(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config()
    run, folder = tmp_path / "run", tmp_path / "images"
    shutil.copytree(config.data.path, folder)
    config = override(config, {"data.path": str(folder), "train.steps": 6})
    prepare_quietly(config, run)
    added = next(folder.rglob("*.png"))
    shutil.copy(added, added.with_name("added.png"))
    prepare_quietly(config, run)  # nothing was learned yet
    (run / "checkpoints" / "step-000000004").mkdir(parents=True)
    before = (run / "config.json").read_bytes(), (run / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="already been trained for 4 steps: 3 is less"):
        prepare_quietly(override(config, {"train.steps": 3}), run)
    added.with_name("added.png").unlink()
    with pytest.raises(UserError, match=r"has changed since .* was started: use another --out"):
        prepare_quietly(config, run)
    assert before == ((run / "config.json").read_bytes(), (run / "manifest.json").read_bytes())
    check_trained(replace(config, method=None), open_data(config), run)  # `rayssl embed` without training


@pytest.mark.parametrize(
    ("method", "operation", "told"),
    [
        ("rotnet", "rotation", 1),
        ("rotnet", "quarter_turn", 1),
        ("rotnet", "horizontal_flip", 0),
        ("simclr", "rotation", 0),
    ],
)
def test_rotnet_is_warned_of_rotated_views(
    method: str, operation: str, told: int, tiny_config: Make, tmp_path: Path
) -> None:
    (tmp_path / "views.json").write_text(json.dumps({"operations": [{"name": operation}]}))
    config = tiny_config(method, {"augment.spec": str(tmp_path / "views.json")})
    warnings: list[str] = []
    prepare_quietly(config, tmp_path / "run", warnings)
    assert len([line for line in warnings if f"the views have {operation}" in line]) == told


def test_a_folder_with_something_else(tiny_config: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(UserError, match="is not empty and is not a run folder"):
        prepare_quietly(tiny_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.path": ""}, "--data.path"),
        ({"data.path": "/no/such/folder"}, "/no/such/folder"),
        ({"encoder.name": "resnet-tinny"}, "resnet-tiny"),
        ({"encoder.weights": "/no/weights.safetensors"}, "/no/weights.safetensors"),
        ({"augment.spec": "/no/spec.json"}, "/no/spec.json"),
        ({"train.batch_size": 9, "cluster.workers": 2}, "--train.batch-size 9"),
        ({"train.batch_size": 1}, "simclr compares images: use at least 2"),
        ({"index.factory": "FLAAT"}, "--index.factory is 'FLAAT'"),
    ],
)
def test_nothing_is_written_for_wrong_input(
    changes: dict[str, Any], says: str, tiny_config: Make, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        prepare_quietly(tiny_config(changes=changes), tmp_path / "run")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_steps(tiny_config: Make) -> None:
    assert count_steps(tiny_config(changes={"train.epochs": 3}), 43) == (5, 15)
    assert count_steps(tiny_config(changes={"train.epochs": 3, "train.steps": 7}), 43) == (5, 7)


def test_what_a_run_says_before_it_starts(tiny_config: Make, tmp_path: Path) -> None:
    prepared = prepare_quietly(tiny_config(changes={"train.epochs": 3}), tmp_path / "run")
    lines: list[str] = []
    announce(prepared, lines.append)
    text = "\n".join(lines)
    for part in (
        "43 train",
        "5 validation",
        "12 test",
        "3 classes",
        "cnn-small",
        "simclr",
        "15 steps of 8",
        "1 worker",
    ):
        assert part in text
    assert "1 workers" not in text
    assert "more to start: " in text


def test_the_time_of_everything_is_told(tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_quietly(tiny_config(), tmp_path / "run")
    monkeypatch.setattr("rayssl.pipeline.run.estimate.training_seconds", lambda *facts: 100.0)
    monkeypatch.setattr("rayssl.pipeline.run.estimate.stages_seconds", lambda *facts: 1000.0)
    monkeypatch.setattr("rayssl.pipeline.run.estimate.START_SECONDS", 500.0)
    lines: list[str] = []
    assert announce(prepared, lines.append) == 1100
    told = "about 1.5 min of training steps, about 25 min more to start and for what follows: about 27 min in all"
    assert told in lines[-1]


def test_the_network_is_built_once_before_a_start(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says of itself is known when the run is announced."""
    built: list[str] = []
    plain = encoder.describe

    def describe(network: encoder.Encoder) -> dict[str, Any]:
        built.append(network.name)
        return plain(network)

    monkeypatch.setattr(encoder, "describe", describe)
    announce(prepare_quietly(tiny_config(), tmp_path / "run"), lambda line: None)
    assert built == ["cnn-small"]


def test_a_full_disk_is_noticed_before(tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_quietly(tiny_config(), tmp_path / "run")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="only 0 MB are free"):
        announce(prepared, lambda line: None)


def test_guesses_grow_with_the_work(tiny_config: Make, tmp_path: Path) -> None:
    config = prepare_quietly(tiny_config(), tmp_path / "two").config
    more = prepare_quietly(tiny_config(changes={"method.views": 6}), tmp_path / "six").config
    assert training_seconds(more, CPU, 1e6, 100) == pytest.approx(3 * training_seconds(config, CPU, 1e6, 100))
    assert training_seconds(config, CPU, 1e6, 200) == pytest.approx(2 * training_seconds(config, CPU, 1e6, 100))
    assert training_seconds(config, CPU, 1e9, 100) > training_seconds(config, CPU, 1e6, 100)
    facts = {"parameters": 1e6, "dim": 100}
    assert expected_bytes(config, facts, 10**6) - expected_bytes(config, facts, 0) == 1.6e9


def test_the_nearest_folder_above(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert existing_parent(Path("surely-not-here")) == Path.cwd()


def test_names_tell_runs_apart() -> None:
    config = build_recipe("simclr-folder")
    assert run_name(config, {}) == "simclr-folder"
    assert run_name(config, {"train.epochs": "3", "cluster.workers": "2"}) == "simclr-folder"
    names = [
        run_name(config, changes)
        for changes in ({"train.seed": "1"}, {"train.seed": "2"}, {"data.path": "a"}, {"data.path": "b"})
    ]
    assert len({*names, "simclr-folder"}) == 5
    assert run_name(config, {"train.batch-size": "64"}) == run_name(config, {"train.batch_size": "64"})


def test_a_pipeline_of_ones_own_is_not_the_batched_backends(tiny_config: Make, tmp_path: Path) -> None:
    import albumentations as A

    A.save(A.Compose([A.HorizontalFlip(p=0.5)]), tmp_path / "own.json")
    changes = {"augment.spec": str(tmp_path / "own.json"), "augment.backend": "batched"}
    config = tiny_config(changes=changes)
    with pytest.raises(UserError, match=r"--augment\.backend batched: view 0 is a pipeline of your own"):
        resolve(config, open_data(config), lambda _: None, CPU)


@pytest.mark.parametrize(
    ("method", "changes", "told"),
    [("simclr", {"encoder.name": "mlp"}, "mlp built for 16 px cannot take 8 px"),
     ("autoencoder", {}, "autoencoder takes views of one size only")],
)  # fmt: skip
def test_small_views_where_they_cannot_be(tiny_config: Make, method: str, changes: dict[str, str], told: str) -> None:
    config = tiny_config(method, changes={"train.small_views": 0.5, **changes})
    with pytest.raises(UserError, match=told):
        resolve(config, open_data(config), lambda _: None, CPU)


def test_small_views_are_smaller_still_where_the_method_shrinks_them(tiny_config: Make) -> None:
    config = tiny_config(changes={"train.small_views": 0.5, "encoder.name": "alexnet", "data.image_size": 128})
    dataset = open_data(config)
    check_small_views("simclr", config, dataset)
    with pytest.raises(UserError, match="alexnet built for 128 px cannot take 32 px"):
        check_small_views("essl", config, dataset)
