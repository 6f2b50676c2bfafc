"""Networks as ONNX files, and an encoder with the normalisation of its input as one.

Shapes: B images of S × S pixels and C channels, D features.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.onnx_file import INPUT

OPSET = 18  # of 2022: what reads ONNX today reads it


class NoGraphError(Exception):
    """A network has no ONNX graph; the text says why, in one line."""


class Features(nn.Module):
    """Images (B, C, S, S) in [0, 1] to features (B, D): the encoder with the normalisation of its input."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(images)
        return features


def features_graph(encoder: Encoder) -> bytes:
    """An ONNX file from "images", (B, C, S, S) in [0, 1], to "features" (B, D); raises NoGraphError."""
    images = torch.zeros((2, encoder.channels, encoder.image_size, encoder.image_size))
    return graph_of(Features(encoder), images, ["features"])


def graph_of(module: nn.Module, images: Tensor, names: Sequence[str]) -> bytes:
    """An ONNX file of a network that takes any number of `images`, with outputs of these names; raises NoGraphError.

    By torch's tracing exporter: the newer one takes seconds where this takes a fifth of one, which every run would
    wait for, and needs another package.
    """
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
