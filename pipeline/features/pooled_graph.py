"""What an encoder gives of images at some of its stages, as an ONNX graph: `features.pooled` without torch.

Shapes: B images of S × S pixels and C channels, D numbers of an output.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rayssl.pipeline.base.device import to_float
from rayssl.pipeline.features import LAST
from rayssl.pipeline.features.pooled import GRIDS, pick
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.onnx_graph import graph_of


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


def pooled_graph(encoder: Encoder, names: Sequence[str]) -> tuple[bytes, dict[str, int]]:
    """An ONNX file of `PooledOutputs`, and its outputs, name → D; raises NoGraphError where there is none."""
    images = torch.zeros((2, encoder.image_size, encoder.image_size, encoder.channels), dtype=torch.uint8)
    module = PooledOutputs(encoder, names).eval()
    with torch.inference_mode():
        outputs = {name: int(values.shape[1]) for name, values in zip(names, module(images), strict=True)}
    return graph_of(module, images, names), outputs


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
