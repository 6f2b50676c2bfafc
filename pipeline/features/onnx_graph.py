"""What an encoder gives of images at some of its stages, as an ONNX graph: `features.pooled` without torch.

Shapes: B images of S × S pixels and C channels, D numbers of an output.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayssl.pipeline.base.device import to_float
from rayssl.pipeline.features import LAST
from rayssl.pipeline.features.pooled import GRIDS, pick
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.onnx_file import INPUT

OPSET = 18  # of 2022: what reads ONNX today reads it


class NoGraphError(Exception):
    """A network has no ONNX graph; the text says why, in one line."""


class PooledOutputs(nn.Module):
    """Bytes (B, S, S, C) to the outputs of these names (see features.pooled), (B, D) each, in order."""

    def __init__(self, encoder: Encoder, names: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.names = list(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = to_float(images, images.device, "fp32")
        if self.names == [LAST]:
            return (self.encoder(x),)
        stages = self.encoder.stages(x)
        return tuple(_pick(stages, name) for name in self.names)


class Features(nn.Module):
    """Images (B, C, S, S) in [0, 1] to features (B, D): the encoder with the normalisation of its input."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(images)
        return features


def pooled_graph(encoder: Encoder, names: Sequence[str]) -> tuple[bytes, dict[str, int]]:
    """An ONNX file of `PooledOutputs`, and its outputs, name → D; raises NoGraphError where there is none."""
    images = torch.zeros((2, encoder.image_size, encoder.image_size, encoder.channels), dtype=torch.uint8)
    module = PooledOutputs(encoder, names).eval()
    with torch.inference_mode():
        outputs = {name: int(values.shape[1]) for name, values in zip(names, module(images), strict=True)}
    return _graph(module, images, names), outputs


def features_graph(encoder: Encoder) -> bytes:
    """An ONNX file from "images", (B, C, S, S) in [0, 1], to "features" (B, D); raises NoGraphError."""
    images = torch.zeros((2, encoder.channels, encoder.image_size, encoder.image_size))
    return _graph(Features(encoder), images, ["features"])


def _graph(module: nn.Module, images: Tensor, names: Sequence[str]) -> bytes:
    """Any number of images. By torch's tracing exporter: the newer one takes seconds where this takes a fifth of one,
    which every run would wait for, and another package."""
    file: Any = io.BytesIO()  # which this exporter takes, whatever its signature says
    try:
        with _by_plain_operators(), torch.no_grad():
            torch.onnx.export(
                module.eval(),
                (images,),
                file,
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(names),
                dynamic_axes={name: {0: "B"} for name in (INPUT, *names)},
            )
    except Exception as error:  # whatever an exporter meets in a network that it does not know
        raise NoGraphError(" ".join(str(error).split())[:200] or type(error).__name__) from None
    content: bytes = file.getvalue()
    return content


@contextlib.contextmanager
def _by_plain_operators() -> Iterator[None]:
    """No fused attention, which ONNX lacks, and nothing printed: warnings of what may depend on the number of images,
    which comparing outputs finds, and whole graphs on stdout where an operator is missing."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    getattr(torch._C, "_jit_set_onnx_log_enabled", bool)(False)  # there is no public way
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _pick(stages: dict[str, Tensor], name: str) -> Tensor:
    """`pick` by operators that ONNX has: averages of cells as products with a matrix."""
    stage, _, pool = name.partition(":")
    if pool not in GRIDS or stages[stage].ndim == 2:
        return pick(stages, name)
    value = stages[stage]
    rows, columns = (_averages(side, GRIDS[pool]) for side in value.shape[2:])
    return torch.matmul(torch.matmul(rows, value), columns.T).flatten(1)


def _averages(side: int, cells: int) -> Tensor:
    """(cells, side): what adaptive average pooling multiplies a column of `side` numbers by; cells may overlap.

    By numpy, so that tracing sees a constant.
    """
    found = np.zeros((cells, side), dtype=np.float32)
    for cell in range(cells):
        first, end = cell * side // cells, -(-(cell + 1) * side // cells)
        found[cell, first:end] = 1 / (end - first)
    return torch.from_numpy(found)
