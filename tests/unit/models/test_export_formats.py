"""An encoder in every format: loaded by the lines that come with it, it gives the encoder's features."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models import export_formats
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.export import in_eval, noise_for
from rayssl.pipeline.models.export_formats import FORMATS, export_as

# Name, channels, pixels; what can load it beside ONNX Runtime and the project's own module or library.
ENCODERS = [
    ("cnn-small", 2, 16, {"safetensors", "onnx"}),
    ("resnet-tiny", 3, 32, {"safetensors", "onnx"}),  # which neither library has
    ("resnet18", 3, 72, {"safetensors", "onnx", "torchvision", "timm"}),  # one network in both
    ("timm/resnet18", 3, 64, {"safetensors", "onnx", "torchvision", "timm"}),
    ("mobilenet_v3_small", 3, 64, {"safetensors", "onnx", "torchvision"}),  # timm's of that name has other tensors
]


def an_encoder(name: str, channels: int, size: int) -> Encoder:
    torch.manual_seed(0)
    mean, std = [0.1 * (i + 1) for i in range(channels)], [0.2 + 0.1 * i for i in range(channels)]
    encoder = build_encoder(name, channels=channels, image_size=size, mean=mean, std=std, epsilon=2e-3)
    with torch.no_grad():
        encoder(noise_for(encoder, 8))  # moves the statistics
    return encoder.eval()


@pytest.mark.parametrize(("name", "channels", "size", "possible"), ENCODERS)
def test_the_lines_that_come_with_it_load_it(
    name: str, channels: int, size: int, possible: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = an_encoder(name, channels, size)
    x = noise_for(encoder, 3)
    expected = in_eval(encoder, lambda: encoder(x)).numpy()
    for form in sorted(possible):
        folder = tmp_path / form
        folder.mkdir()
        exported = export_as(encoder, form)
        assert exported.difference <= 1e-4 * np.abs(expected).max()
        for file, content in exported.files.items():
            (folder / file).write_bytes(content)
        monkeypatch.chdir(folder)
        np.testing.assert_allclose(features_by(exported.code, folder, x, monkeypatch), expected, rtol=1e-4, atol=1e-5)
    for form in FORMATS.keys() - possible:
        with pytest.raises(UserError, match=rf"--format {form}: ") as refused:
            export_as(encoder, form)
        told = str(refused.value).partition(" can be exported as ")[2]
        assert set(told.split(", ")) == possible
        assert "\n" not in str(refused.value)


def features_by(code: str, folder: Path, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """What the lines of the model card make of images, run as they stand there, in the folder of the files."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "encoder_module", raising=False)
    names: dict[str, Any] = {}
    exec(code, names)
    given: Any = x.numpy() if "onnxruntime" in code else x
    with torch.no_grad():
        return np.asarray(names["features"](given))


def test_features_that_are_others_are_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same tensors, another network: such as one that pads otherwise."""
    encoder = an_encoder("resnet18", 3, 72)
    right = export_formats.features_by
    monkeypatch.setattr(export_formats, "features_by", lambda *given: right(*given) * 1.01)
    with pytest.raises(
        UserError, match=r"--format timm: its features would be .* off; resnet18 can be exported as onnx"
    ):
        export_as(encoder, "timm")


def test_what_needs_onnx_runtime_says_so_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_formats, "can_run", lambda: False)
    with pytest.raises(UserError, match=r"--format onnx: onnxruntime, .* is not installed; .* as safetensors$"):
        export_as(an_encoder("cnn-small", 1, 16), "onnx")
