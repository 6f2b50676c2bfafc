"""A network as an ONNX file that ONNX Runtime runs without torch, and what is checked before it does.

queries.onnx   uint8 images (B, S, S, C) to some outputs of an encoder, (B, D) each; one file, no external data
queries.json   its sha256, the hash of the encoder that it was made from, its shapes, how far it is from torch

Shapes: B images of S × S pixels and C channels, D numbers of an output.
"""

import hashlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.documents import DamagedError, load, read_bytes
from rayssl.pipeline.base.errors import MissingError, UserError
from rayssl.pipeline.base.files import delete, replacing, write_json
from rayssl.pipeline.base.schemas import OnnxFile
from rayssl.pipeline.base.seals import check, forget, note

FILE, MANIFEST = "queries.onnx", "queries.json"
SCHEMA = 1
AGAIN = "`rayssl index RUN` writes it again"
INPUT = "images"
LARGEST = 1 << 30  # bytes; ONNX itself ends at 2 GiB, where protobuf does
# Letters without which a file cannot do what no encoder's does, and why they are refused. A tensor names another file,
# or a place in memory, under the key "location" (onnx.proto, TensorProto.external_data); the others are all the
# operators that repeat something. Weights do not spell them: a float with one of these bytes on top is above 1e7.
REFUSED = {
    b"location": "it names data outside of the file",
    **dict.fromkeys((b"Loop", b"Scan", b"SequenceMap"), "it has a loop"),
}

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """A network that ONNX Runtime has loaded."""

    session: Any
    channels: int
    image_size: int
    outputs: Mapping[str, int]  # name → D
    encoder: str  # hash of the encoder that it was made from

    def __call__(self, images: Bytes, names: Sequence[str]) -> dict[str, Floats]:
        """Images (B, S, S, C) to the outputs of these names, (B, D) each.

        Raises UserError where the file's network gives something else.
        """
        found = dict(zip(names, self._run(images, names), strict=True))
        for name, values in found.items():
            if values.dtype != np.float32 or values.shape != (len(images), self.outputs[name]):
                right = (len(images), self.outputs[name])
                raise UserError(f"{FILE} gives {values.shape} for {name}, not {right}: {AGAIN}")
        return found

    def _run(self, images: Bytes, names: Sequence[str]) -> list[NDArray[Any]]:
        try:
            found: list[NDArray[Any]] = self.session.run(list(names), {INPUT: images})
        except Exception as error:  # ONNX Runtime's have no base of their own
            raise UserError(f"{FILE} cannot be run ({_line(error)}): {AGAIN}") from None
        return found


def can_run() -> bool:
    """Whether ONNX Runtime is installed; it is not imported for that."""
    return importlib.util.find_spec("onnxruntime") is not None


def has_onnx(folder: Path) -> bool:
    """Whether a folder says that it has a network for queries."""
    return os.path.lexists(folder / MANIFEST)


def network_of(content: bytes, described: Mapping[str, Any]) -> OnnxNetwork:
    """The network in an ONNX file's bytes, `described` as in queries.json; raises DamagedError where it is another."""
    if len(content) > LARGEST:
        raise DamagedError(f"more than {LARGEST:,} bytes")
    for letters, reason in REFUSED.items():
        if letters in content:
            raise DamagedError(reason)
    session = open_session(content)
    channels, size = int(described["channels"]), int(described["image_size"])
    given = [(one.name, one.type, list(one.shape)[1:]) for one in session.get_inputs()]
    if given != [(INPUT, "tensor(uint8)", [size, size, channels])]:
        raise DamagedError(f"it does not take images of {size} × {size} × {channels}")
    outputs = {str(name): int(dim) for name, dim in described["outputs"].items()}
    if [(one.name, one.type) for one in session.get_outputs()] != [(name, "tensor(float)") for name in outputs]:
        raise DamagedError(f"its outputs are not {', '.join(outputs)}")
    return OnnxNetwork(session, channels, size, outputs, str(described["encoder"]))


def write_onnx(folder: Path, content: bytes, described: Mapping[str, Any]) -> None:
    """Write both files, whole or not at all, queries.json last."""
    forget(folder / FILE, folder / MANIFEST)  # until both are there, neither is finished
    with replacing(folder / FILE) as temporary:
        temporary.write_bytes(content)
    write_json(folder / MANIFEST, {"schema": SCHEMA, **described, "sha256": hashlib.sha256(content).hexdigest()})


def remove_onnx(folder: Path) -> None:
    """Remove both files, where they are there."""
    files = (folder / MANIFEST, folder / FILE)
    if any(os.path.lexists(path) for path in files):
        forget(*files)
        for path in files:
            delete(path)
        note(*files)  # that they are not there


def read_described(folder: Path, remedy: str) -> dict[str, Any]:
    """queries.json; raises UserError where it is missing, damaged or of another schema. `remedy` says what helps."""
    path = folder / MANIFEST
    values = load(path, OnnxFile, remedy, f"{path} does not exist: {remedy}")
    check(path, remedy)
    return values


def load_onnx(folder: Path, remedy: str) -> OnnxNetwork:
    """What `write_onnx` wrote, compared with its sha256 before ONNX Runtime sees a byte of it.

    Raises UserError where it is missing or damaged, and `remedy` says what helps.
    """
    path, described = folder / FILE, read_described(folder, remedy)
    try:
        content = read_bytes(path, LARGEST)
        if hashlib.sha256(content).hexdigest() != described["sha256"]:
            raise DamagedError(f"its sha256 is not the one in {MANIFEST}")
        return network_of(content, described)
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist: {remedy}") from None
    except DamagedError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None


def open_session(content: bytes) -> Any:
    """An ONNX file in ONNX Runtime, on the CPU; raises DamagedError where that is none that it can run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised
    options.intra_op_num_threads = os.cpu_count() or 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads wait asleep, as everywhere here
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's have no base of their own
        raise DamagedError(f"ONNX Runtime cannot read it: {_line(error)}") from None


def _line(error: Exception) -> str:
    """The first words of an error: a network's names may be long, and in several lines."""
    return " ".join(str(error).split())[:200]
