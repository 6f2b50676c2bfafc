"""An encoder in the forms that other programs take, each compared with ours before anything is written.

Shapes: B images of S × S pixels and C channels in [0, 1], D features.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rayssl.pipeline.base.documents import DamagedError
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models.encoder import Encoder, in_eval
from rayssl.pipeline.models.export import (
    described_as,
    features_by,
    library_of,
    loading_code,
    noise_for,
    peer,
    standalone_module,
    state_of,
)
from rayssl.pipeline.models.onnx_file import INPUT, can_run, open_session
from rayssl.pipeline.models.onnx_graph import NoGraphError, features_graph

WEIGHTS, MODULE, ONNX = "encoder.safetensors", "encoder_module.py", "encoder.onnx"
LARGEST_DIFFERENCE = 1e-4  # of features, relative to the largest one
NOISE = 4  # images that are compared

_ONNX = """\
import onnxruntime
session = onnxruntime.InferenceSession("encoder.onnx")
# images (B, {channels}, {image_size}, {image_size}), float32 in [0, 1], to features (B, {dim})
features = lambda images: session.run(["features"], {{"images": images}})[0]
"""


@dataclass(frozen=True)
class Exported:
    """Files by name, the Python lines that load them, and how far what they give is from the encoder's features."""

    files: dict[str, bytes]
    code: str
    difference: float


def export_as(encoder: Encoder, name: str) -> Exported:
    """The encoder in a format of FORMATS; UserError where it cannot be had in it, which names those in which it can."""
    try:
        return FORMATS[name](encoder)
    except _CannotError as error:
        others = ", ".join(other for other in FORMATS if other != name and _is_possible(encoder, other))
        raise UserError(f"--format {name}: {error}; {encoder.name} can be exported as {others}") from None


def _is_possible(encoder: Encoder, name: str) -> bool:
    try:
        FORMATS[name](encoder)
    except _CannotError:
        return False
    return True


class _CannotError(Exception):
    """An encoder cannot be had in a format; the text says why."""


def _as_safetensors(encoder: Encoder) -> Exported:
    """For torchvision or timm, where one of these has the network, else with a module that builds it."""
    library = library_of(encoder)
    if library is not None:
        return _for_library(encoder, library)
    described = described_as(encoder)
    files = {WEIGHTS: _weights(encoder), MODULE: standalone_module(encoder, described).encode()}
    code = loading_code(None, encoder, described)
    return Exported(files, code, _checked(encoder, _by_module(encoder, files)))


def _for_library(encoder: Encoder, library: str) -> Exported:
    try:
        found = features_by(encoder, peer(encoder, library), state_of(encoder.net), noise_for(encoder, NOISE))
    except UserError:
        raise _CannotError(f"{library} has no network {encoder.name}") from None
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise _CannotError(f"no network of {library} takes its weights ({_line(error)})") from None
    code = loading_code(library, encoder, described_as(encoder))
    return Exported({WEIGHTS: _weights(encoder)}, code, _checked(encoder, found))


def _as_onnx(encoder: Encoder) -> Exported:
    if not can_run():
        raise _CannotError("onnxruntime, which compares it, is not installed")
    try:
        content = features_graph(encoder)
        session = open_session(content)
    except (NoGraphError, DamagedError) as error:
        raise _CannotError(_line(error)) from None
    (found,) = session.run(None, {INPUT: noise_for(encoder, NOISE).numpy()})
    code = _ONNX.format(**described_as(encoder))
    return Exported({ONNX: content}, code, _checked(encoder, torch.from_numpy(found)))


def _weights(encoder: Encoder) -> bytes:
    from safetensors.torch import save

    return save(state_of(encoder.net))


def _by_module(encoder: Encoder, files: dict[str, bytes]) -> Tensor:
    """Features of noise by the module file alone."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        spec = importlib.util.spec_from_file_location("encoder_module", Path(folder, MODULE))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            features: Tensor = module.load(str(Path(folder, WEIGHTS)))(noise_for(encoder, NOISE))
    return features


def _checked(encoder: Encoder, found: Tensor) -> float:
    """Largest difference of features of noise to the encoder's; raises _CannotError for one that is no rounding."""
    expected = in_eval(encoder, lambda: encoder(noise_for(encoder, NOISE)))
    difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    if not difference <= LARGEST_DIFFERENCE * float(expected.abs().max()):
        raise _CannotError(f"its features would be {difference:.1e} off")
    return difference


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# Name of a format → what makes it; it raises _CannotError.
FORMATS: dict[str, Callable[[Encoder], Exported]] = {
    "safetensors": _as_safetensors,
    "torchvision": lambda encoder: _for_library(encoder, "torchvision"),
    "timm": lambda encoder: _for_library(encoder, "timm"),
    "onnx": _as_onnx,
}
