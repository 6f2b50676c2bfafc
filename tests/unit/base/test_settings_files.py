"""Damaged and hostile files of settings, as augmentations and as search spaces: one line each, at once."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_files import SPECIAL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayssl.pipeline.augment import load_views, view_to_dict
from rayssl.pipeline.base import settings_files as files
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.tune.space import build_space, read_space

OPERATIONS = {
    "operations": [{"name": "random_resized_crop", "scale": [0.2, 1.0]}, {"name": "horizontal_flip", "p": 0.5}]
}
VIEWS = {"views": [OPERATIONS, {"operations": [{"name": "gaussian_blur", "sigma": [0.1, 2.0]}]}]}
SPACE = {
    "operations": {
        "crop": {"scale": [0.1, 0.9]},
        "color": {},
        "rotation": {"degrees": {"low": 5, "high": 45, "step": 5}},
    },
    "order": True,
    "config": {"method.temperature": {"low": 0.05, "high": 0.5, "log": True}, "train.optimizer": {"values": ["sgd"]}},
}
SAVED = {
    "__version__": "2.0.8",
    "transform": {
        "__class_fullname__": "Compose",
        "p": 1.0,
        "transforms": [{"__class_fullname__": "HorizontalFlip", "p": 0.5}, {"__class_fullname__": "Blur", "p": 0.5}],
    },
}
GOOD = (OPERATIONS, VIEWS, SPACE, SAVED)


def as_views(path: Path) -> Any:
    return [view_to_dict(view) for view in load_views(path, 2)]


def as_space(path: Path) -> Any:
    names, asked = read_space(str(path))
    space = build_space(names, **asked)
    return space.spec(space.draw(0, 0)), space.to_dict()


READERS = [as_views, as_space]


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    told = str(error.value)
    assert str(path) in told
    assert "\n" not in told
    assert len(told) < 600 + len(str(path))
    return told


def laughs(levels: int, form: str) -> str:
    lines = ["a0: &a0 {k: lol}" if form == "merge" else "a0: &a0 [lol]"]
    for level in range(1, levels):
        nine = ",".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{nine}]}}" if form == "merge" else f"[{nine}]"))
    return "\n".join(lines)


HOSTILE = {
    "nested lists.json": ("[" * 100_000 + "]" * 100_000, "nested more than 100 deep"),
    "nested objects.json": ('{"a":' * 3000 + "1" + "}" * 3000, "nested more than 100 deep"),
    "a little nested.json": ('{"a":' * 101 + "1" + "}" * 101, "nested more than 100 deep"),
    "not closed.json": ("[" * 900_000, "nested more than 100 deep"),
    "nested.yaml": ("[" * 5000 + "]" * 5000, "nested more than 100 deep"),
    "nested blocks.yaml": ("\n".join(f"{' ' * i}a:" for i in range(400)), "nested more than 100 deep"),
    "laughs.yaml": (laughs(12, "list"), "more than 100,000 values"),
    "merges.yaml": (laughs(12, "merge"), "more than 100,000 values"),
    "itself.yaml": ("&a [*a]", "nested more than 100 deep"),
    "itself as a value.yaml": ("operations: &a {crop: *a}", "nested more than 100 deep"),
    "key.yaml": ("operations: {crop: {}}\n5: 1", "the key 5 is no text"),
    "keys of keys.yaml": ("operations: {crop: {1: 2}}", "the key 1 is no text"),
    "key of the config.yaml": ("operations: {crop: {}}\nconfig: {5: [0, 1]}", "the key 5 is no text"),
    "on.yaml": ("operations: {crop: {}}\non: 1", "the key True is no text"),
    "key that is a list.yaml": ("? [a, b]\n: 1", "not YAML"),
    "date.yaml": ("operations: 2026-11-28", "is a date: write it in quotes"),
    "no date.yaml": ("operations: 2026-13-45", "not YAML"),
    "bytes.yaml": ("operations: !!binary aGVsbG8=", "is a bytes"),
    "set.yaml": ("operations: !!set {a, b}", "is a set"),
    "object.yaml": ("!!python/object/apply:os.system ['touch /tmp/owned']", "not YAML"),
    "two.yaml": ("a: 1\n---\nb: 2", "not YAML"),
    "many digits.json": ('{"operations": ' + "9" * 5000 + "}", "not JSON: a number is too long"),
    "digits.json": ('{"operations": ' + "9" * 400 + "}", "a whole number of about 400 digits"),
    "digits.yaml": ("operations: 0x" + "f" * 5000, "a whole number of about 6020 digits"),
    "sixties.yaml": ("operations: 1" + ":59" * 5000, "digits"),
    "large.json": ("[" + "1," * 200_000 + "1]", "more than 100,000 values"),
    "larger.json": (" " * (files.LARGEST + 1), "larger than 4 MB"),
    "larger.yaml": ("# " * (files.LARGEST_YAML // 2) + "\na: 1", "larger than 256 KB"),
    "long sixties.yaml": ("operations: 1" + ":1" * 100_000, "a number of 200,001 digits and colons"),
    "long broken sixties.yaml": (
        "operations: [1.5, 1" + ":1" * 100_000 + ".5]",
        "a number of 200,003 digits and colons",
    ),
    "empty.json": ("", "not JSON"),
    "null bytes.json": ("\0" * 1000, "not JSON"),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_line(name: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    text, told = HOSTILE[name]
    path = tmp_path / name
    path.write_text(text)
    assert told in refusal(read, path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", [*SPECIAL, "socket", "not utf-8", "huge", "long"])
def test_what_is_no_file_of_text_is_one_line(
    kind: str, read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "given.json"
    if kind in SPECIAL:
        SPECIAL[kind](path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # a socket's path may have 107 characters
        socket.socket(socket.AF_UNIX).bind("given.json")
    elif kind == "not utf-8":
        path.write_bytes(b'{"operations": ["\xff\xfe"]}')
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path = tmp_path / ("x" * 5000 + ".json")
    assert "file" in refusal(read, path)[len(str(path)) :]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"operations": {"crop": {"scale": [0, 10**18]}}}, "goes too far"),
        ({"operations": {"crop": {}}, "config": {"method.temperature": [-1e308, 1e308]}}, "it must be [low, high]"),
        (
            {"operations": {"crop": {"p": {"low": 0, "high": 1, "step": 5e-324}}}},
            "it must be [low, high]",
        ),
        ({"operations": {"crop": {}}, "config": {"x.y": {"values": [[1], {}]}}}, "it must be [low, high]"),
        ({"operations": {"crop": {"p": {"values": [None, 0.5]}}}}, "goes too far"),
        ({"operations": ["crop"] * 50_000}, "name every operation once"),
        ({"operations": [{"name": "crop"}, 5]}, "an unknown operation"),
        ({"operations": ["x" * 100_000]}, "an unknown operation"),
        ({"operations": {"crop": {"y" * 100_000: 1}}}, "unknown range"),
        ({"x" * 100_000: 1}, "it must be"),
        ({"operations": {"crop": {"scale": float("nan")}}}, "it must be [low, high]"),
        ({"operations": {"crop": {"scale": [0, float("inf")]}}}, "it must be [low, high]"),
    ],
)
def test_a_space_of_odd_values_is_one_line(space: Any, told: str, tmp_path: Path) -> None:
    (tmp_path / "space.json").write_text(json.dumps(space))
    assert told in refusal_of_space(tmp_path / "space.json")


def refusal_of_space(path: Path) -> str:
    with pytest.raises(UserError) as error:
        as_space(path)
    assert len(str(error.value)) < 700
    return str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**18, "x" * 100_000, [[]], {}, None, True])
def test_an_augmentation_of_odd_values_is_one_line(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "views.json"
    for spec in (
        {"operations": [{"name": "horizontal_flip", "p": value}]},
        {"operations": [{"name": "cutout", "size": [0, value]}]},
        {"operations": [{"name": value}]},
        {"operations": [value]},
        {"kind": value},
        {"views": value} if value is not None else {},
    ):
        path.write_text(json.dumps(spec))
        refusal(as_views, path)


def test_good_files_are_read_in_both_forms(tmp_path: Path) -> None:
    for values, read in ((OPERATIONS, as_views), (VIEWS, as_views), (SAVED, as_views), (SPACE, as_space)):
        (tmp_path / "good.json").write_text(json.dumps(values))
        (tmp_path / "good.yaml").write_text(yaml.safe_dump(values))
        assert read(tmp_path / "good.json") == read(tmp_path / "good.yaml")


def test_aliases_are_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "views.yaml"
    path.write_text("views:\n- &a {operations: [{name: horizontal_flip}]}\n- *a\n")
    assert as_views(path)[0] == as_views(path)[1]


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from([10**400, -(10**30)]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=5,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container within a value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(GOOD), odd, st.integers(0, 100), st.sampled_from(READERS))
def test_any_other_value_anywhere_is_taken_or_refused(
    tmp_path: Path, good: Any, other: Any, where: int, read: Callable[[Path], Any]
) -> None:
    values = json.loads(json.dumps(good))
    holder, key = places(values)[where % len(places(values))]
    holder[key] = other
    taken_or_refused(read, tmp_path / "odd.json", json.dumps(values).encode())
    taken_or_refused(read, tmp_path / "odd.yaml", json.dumps(values).encode())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(GOOD), st.integers(0, 1000), st.binary(max_size=4), st.integers(0, 9), st.sampled_from(READERS))
def test_any_change_of_bytes_is_taken_or_refused(
    tmp_path: Path, good: Any, start: int, new: bytes, length: int, read: Callable[[Path], Any]
) -> None:
    for name, text in (("odd.json", json.dumps(good)), ("odd.yaml", yaml.safe_dump(good))):
        content = text.encode()
        start = start % len(content)
        taken_or_refused(read, tmp_path / name, content[:start] + new + content[start + length :])


def taken_or_refused(read: Callable[[Path], Any], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    told = ""
    try:
        read(path)
    except UserError as error:
        told = str(error)
    assert len(told) < 1000
