"""Every value has one path, one type and one range, and survives being saved."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config, from_dict, load, method_config, method_name, override, save, to_dict
from rayssl.pipeline.methods import METHODS
from rayssl.pipeline.recipes import RECIPES, build_recipe


@pytest.fixture
def simclr() -> Config:
    return Config(method=method_config("simclr"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_recipe_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    config = build_recipe(name)
    save(config, tmp_path / "config.json")
    assert load(tmp_path / "config.json") == config


def test_every_field_survives_when_it_is_not_the_default(tmp_path: Path, simclr: Config) -> None:
    changes: dict[str, Any] = {
        "data.limit": 7, "data.val_fraction": 0.25, "augment.mirror": False, "augment.views": [{"operations": []}],
        "train.minutes": 1.5, "train.steps": 3, "train.clip_grad": 1.0, "probe.learning_rates": [0.5, 1.0],
        "finetune.labels_per_class": 4, "cluster.address": "auto", "method.temperature": 0.7, "wandb": "offline",
    }  # fmt: skip
    changed = override(simclr, changes)
    save(changed, tmp_path / "config.json")
    again = load(tmp_path / "config.json")
    assert again == changed
    flat = to_dict(again)
    for path, value in changes.items():
        group, _, last = path.rpartition(".")
        assert (flat[group][last] if group else flat[last]) == value
    assert isinstance(again.probe.learning_rates, tuple)


def test_a_config_cannot_be_changed(simclr: Config) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        simclr.wandb = "online"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        simclr.train.epochs = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        simclr.method.temperature = 1.0


def test_override_leaves_the_original_alone(simclr: Config) -> None:
    assert override(simclr, {"train.epochs": 3}).train.epochs == 3
    assert simclr.train.epochs == 100


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("train.epochs", "7", 7),
        ("train.batch-size", "64", 64),
        ("train.learning-rate", "1e-3", 1e-3),
        ("train.clip_grad", "none", None),
        ("data.limit", "None", None),
        ("data.labels", "null", "auto"),
        ("data.labels", "none", "none"),
        ("augment.mirror", "false", False),
        ("augment.mirror", "no", False),
        ("augment.mirror", "none", None),
        ("train.nesterov", "true", True),
        ("probe.learning_rates", "0.1,0.2, 0.3", (0.1, 0.2, 0.3)),
        ("probe.learning_rates", "[0.1, 0.2]", (0.1, 0.2)),
        ("probe.weight_decays", "0", (0.0,)),
        ("method.temperature", "0.3", 0.3),
        ("wandb", "offline", "offline"),
        ("data.path", "[a]", "[a]"),
    ],
)
def test_text_is_read_as_the_type_of_the_field(simclr: Config, path: str, text: str, value: object) -> None:
    found: Any = override(simclr, {path: text})
    for part in path.replace("-", "_").split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("train.epochs", "0", ["--train.epochs", "'0'", "greater than 0"]),
        ("train.epochs", "many", ["--train.epochs", "'many'", "integer"]),
        ("train.epochs", "none", ["--train.epochs", "None", "integer"]),
        ("train.epochs", "2.5", ["--train.epochs", "'2.5'", "integer"]),
        ("train.seed", "-1", ["--train.seed", "'-1'", "greater than or equal to 0"]),
        ("train.seed", str(2**63 - 1), ["--train.seed", "less than or equal to"]),
        ("train.learning_rate", "nan", ["--train.learning_rate", "nan"]),
        ("train.learning_rate", "inf", ["--train.learning_rate", "inf"]),
        ("train.momentum", "1", ["--train.momentum", "'1'", "less than 1"]),
        ("train.optimizer", "sdg", ["--train.optimizer", "'sdg'", "'sgd'"]),
        ("train.precision", "fp16", ["--train.precision", "'fp16'", "'bf16'"]),
        ("data.val_fraction", "1", ["--data.val_fraction", "'1'", "less than 1"]),
        ("data.loader", "fast", ["--data.loader", "'fast'", "'resident'"]),
        ("augment.mirror", "maybe", ["--augment.mirror", "'maybe'", "boolean"]),
        ("probe.learning_rates", "0.1,x", ["--probe.learning_rates", "'x'", "number"]),
        ("method.temperature", "0", ["--method.temperature", "0", "greater than 0"]),
        ("method.temperature", "inf", ["--method.temperature", "inf"]),
        ("method.temperature", "warm", ["--method.temperature", "'warm'", "number"]),
        ("search.dim", "0", ["--search.dim is '0'", "'auto' or", "greater than 0"]),
        ("wandb", "on", ["--wandb", "'on'", "'online'"]),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(simclr: Config, path: str, text: str, says: list[str]) -> None:
    with pytest.raises(UserError) as error:
        override(simclr, {path: text})
    message = str(error.value)
    assert "\n" not in message
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("train.epoch", "'train.epochs'"),
        ("train.batchsize", "'train.batch_size'"),
        ("trian.epochs", "'train.epochs'"),
        ("method.temprature", "'method.temperature'"),
        ("encoder.nmae", "'encoder.name'"),
    ],
)
def test_an_unknown_path_names_the_nearest(simclr: Config, path: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"--{path} .*did you mean {hint}"):
        override(simclr, {path: "1"})


@pytest.mark.parametrize("path", ["method.name", "schema", "recipe", "train", "method", "nonsense.deep.path"])
def test_what_is_no_option_cannot_be_overridden(simclr: Config, path: str) -> None:
    with pytest.raises(UserError, match=f"unknown option --{path}"):
        override(simclr, {path: "rotnet"})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_told_by_its_name(name: str) -> None:
    config = Config(method=method_config(name))
    assert method_name(config) == name
    assert to_dict(config)["method"]["name"] == name
    assert from_dict(to_dict(config)) == config


def test_a_run_without_a_method() -> None:
    config = Config()
    assert method_name(config) is None
    assert from_dict(to_dict(config)) == config


def test_an_unknown_method_or_value_of_it() -> None:
    with pytest.raises(UserError, match=r"unknown method 'simclar' \(did you mean 'simclr'\?\)"):
        method_config("simclar")
    with pytest.raises(UserError, match=r"--method\.temprature.*did you mean 'temperature'"):
        method_config("simclr", temprature=0.1)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def without_group(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def test_refused_files_are_named(tmp_path: Path, simclr: Config) -> None:
    good = to_dict(simclr)
    path = tmp_path / "config.json"
    cases = [
        (json.dumps({**good, "schema": 99}), "has schema 99: this version reads schema 1"),
        (json.dumps(without_group(good, "schema")), "has schema None"),
        (json.dumps({**good, "unheard": 1}), "unheard"),
        (json.dumps({**good, "train": {**good["train"], "unheard": 1}}), "train.unheard"),
        (json.dumps({**good, "train": {**good["train"], "epochs": -1}}), "train.epochs is -1"),
        (json.dumps({**good, "method": {"name": "later-method"}}), "later-method"),
        (json.dumps(good)[:-20], "damaged"),
        ("\x00\x01", "damaged"),
        ("[1, 2]", "damaged"),
        (json.dumps({**good, "method": None}), "config.json"),
        (json.dumps({**good, "train": None}), "train"),
    ]
    for text, says in cases:
        with pytest.raises(UserError) as error:
            load(write(path, text))
        assert says in str(error.value), text[:60]
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_missing_or_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "config.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "bytes.json")


def test_saved_files_are_plain_json_with_a_schema(tmp_path: Path, simclr: Config) -> None:
    simclr = dataclasses.replace(simclr, on_gpu={})  # as wherever it trains
    save(simclr, tmp_path / "config.json")
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["schema"] == configuration.SCHEMA
    assert set(values) == {"schema", *(field.name for field in dataclasses.fields(Config))} - {"on_gpu"}


def test_classes_are_told_as_text() -> None:
    for text, expected in (("3", ("3",)), ("red, green", ("red", "green")), ('["a,b"]', ("a,b",)), ("none", None)):
        assert override(Config(), {"data.classes": text}).data.classes == expected


def test_older_autoencoder_runs_are_read() -> None:
    values = to_dict(Config(method=method_config("autoencoder")))
    values["method"]["latent_dim"] = None
    assert from_dict(values).method == method_config("autoencoder")


@pytest.mark.parametrize("recipe", ["simclr-cifar10", "essl-cifar10", "rotnet-cifar10", "cvae-mnist", "pixelcnn-mnist"])
def test_every_number_can_be_given_as_text(recipe):
    """As the command line gives it."""
    config = dataclasses.replace(build_recipe(recipe), on_gpu={})
    numbers = {
        f"{part}.{name}": str(value)
        for part in ("method", "train", "probe", "finetune")
        for name, value in vars(getattr(config, part)).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert len(numbers) > 10
    assert override(config, numbers) == config
