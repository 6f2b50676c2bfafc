"""A network's ONNX file: read as it was written, and refused where it is anything else."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rayssl.pipeline.base.documents import DamagedError
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.seals import files_of, started
from rayssl.pipeline.models import onnx_file
from rayssl.pipeline.models.onnx_file import has_onnx, load_onnx, network_of, remove_onnx, write_onnx

REMEDY = "`rayssl index RUN` writes it again"
SIDE, CHANNELS = 4, 2
DESCRIBED = {"encoder": "e" * 64, "channels": CHANNELS, "image_size": SIDE, "outputs": {"last": CHANNELS}}


def mean_network(name: str = "last", shape: tuple[Any, ...] = ("B", SIDE, SIDE, CHANNELS)) -> onnx.ModelProto:
    """Bytes to the sum of a channel's pixels, as a file of anybody's."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats", "axes"], [name], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("B", None))],
        [numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    started(tmp_path)
    write_onnx(tmp_path, mean_network().SerializeToString(), DESCRIBED)
    return tmp_path


def rewrite(folder: Path, content: bytes, **changes: object) -> None:
    """As an enemy would who writes the hashes, too, in a folder whose files nobody has noted."""
    (folder / "files.json").unlink(missing_ok=True)
    (folder / "queries.onnx").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / "queries.json").write_text(json.dumps({"schema": 1, **DESCRIBED, "sha256": sha256, **changes}))


def test_what_was_written_is_read_and_noted(folder: Path) -> None:
    network = load_onnx(folder, REMEDY)
    images = np.arange(3 * SIDE * SIDE * CHANNELS, dtype=np.uint8).reshape(3, SIDE, SIDE, CHANNELS)
    np.testing.assert_array_equal(network(images, ["last"])["last"], images.sum(axis=(1, 2), dtype=np.float32))
    assert (network.image_size, network.channels, network.encoder) == (SIDE, CHANNELS, "e" * 64)
    assert {"queries.onnx", "queries.json"} <= files_of(folder / "files.json").keys()
    remove_onnx(folder)
    assert not has_onnx(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["files.json"]
    assert files_of(folder / "files.json") == {}


def damage(folder: Path) -> None:
    path = folder / "queries.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def directory(folder: Path) -> None:
    (folder / "queries.onnx").unlink()
    (folder / "queries.onnx").mkdir()


def elsewhere(folder: Path) -> None:
    model = mean_network()
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    rewrite(folder, model.SerializeToString())


def endless(folder: Path) -> None:
    """A loop of 2^62 rounds, which ONNX Runtime would begin."""
    model = mean_network()
    graph = model.graph
    keeps_on = helper.make_node("Identity", ["condition"], ["again"])
    body = helper.make_graph(
        [keeps_on],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, ()),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, ()),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, ())],
    )
    graph.initializer.append(numpy_helper.from_array(np.array(2**62), "rounds"))
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    graph.node.append(helper.make_node("Loop", ["rounds", "yes"], [], body=body))
    rewrite(folder, model.SerializeToString())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another byte": (damage, r"damaged \(its sha256 is not the one in queries\.json\)"),
    "gone": (lambda folder: (folder / "queries.onnx").unlink(), r"does not exist"),
    "a folder": (directory, r"damaged \(a folder, not a file\)"),
    "an edited description": (
        lambda folder: (folder / "queries.json").write_text((folder / "queries.json").read_text() + "\n"),
        r"queries\.json is damaged",
    ),
    "no description": (lambda folder: (folder / "queries.json").unlink(), r"queries\.json (is damaged|does not exist)"),
    "no ONNX": (lambda folder: rewrite(folder, b"no ONNX"), r"damaged \(ONNX Runtime cannot read it"),
    "empty": (lambda folder: rewrite(folder, b""), r"damaged \(ONNX Runtime cannot read it"),
    "data elsewhere": (elsewhere, r"damaged \(it names data outside of the file\)"),
    "a loop": (endless, r"damaged \(it has a loop\)"),
    "another input": (
        lambda folder: rewrite(folder, mean_network(shape=("B", 5, 5, CHANNELS)).SerializeToString()),
        r"damaged \(it does not take images of 4 × 4 × 2\)",
    ),
    "another output": (
        lambda folder: rewrite(folder, mean_network("other").SerializeToString()),
        r"damaged \(its outputs are not last\)",
    ),
    "no outputs": (
        lambda folder: rewrite(folder, mean_network().SerializeToString(), outputs={}),
        r"queries\.json is damaged \(outputs is",
    ),
    "another version": (
        lambda folder: rewrite(folder, mean_network().SerializeToString(), schema=2),
        r"queries\.json has schema 2",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_anything_else_is_refused_in_a_line_that_says_what_helps(how: str, folder: Path) -> None:
    break_it, said = BROKEN[how]
    break_it(folder)
    with pytest.raises(UserError, match=said) as refused:
        load_onnx(folder, REMEDY)
    assert REMEDY in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_is_no_larger_than_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST", 100)
    with pytest.raises(UserError, match="more than 100 bytes"):
        load_onnx(folder, REMEDY)
    with pytest.raises(DamagedError, match="more than 100 bytes"):
        network_of(mean_network().SerializeToString(), DESCRIBED)


def test_no_session_is_made_of_a_file_whose_hash_is_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "open_session", lambda content: pytest.fail("ONNX Runtime was given it"))
    damage(folder)
    with pytest.raises(UserError, match="sha256"):
        load_onnx(folder, REMEDY)


def test_vectors_of_another_width_are_refused() -> None:
    network = network_of(mean_network().SerializeToString(), {**DESCRIBED, "outputs": {"last": 7}})
    with pytest.raises(UserError, match=r"gives \(3, 2\) for last, not \(3, 7\)"):
        network(np.zeros((3, SIDE, SIDE, CHANNELS), dtype=np.uint8), ["last"])


def test_images_that_it_cannot_take_are_one_line() -> None:
    network = network_of(mean_network().SerializeToString(), DESCRIBED)
    with pytest.raises(UserError, match=r"queries\.onnx cannot be run") as refused:
        network(np.zeros((3, 1, SIDE, CHANNELS), dtype=np.uint8), ["last"])
    assert "\n" not in str(refused.value)
