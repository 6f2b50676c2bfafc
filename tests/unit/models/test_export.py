"""Exported encoders: used without the project, read back, and refused when damaged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.export import export_encoder, load_encoder
from rayssl.pipeline.models.identity import encoder_hash


def trained(name: str, channels: int, image_size: int, seed: int = 0, **sizes: int) -> Encoder:
    """An encoder whose statistics and parameters are nobody's defaults."""
    torch.manual_seed(seed)
    mean, std = [0.1 * (i + 1) for i in range(channels)], [0.2 + 0.1 * i for i in range(channels)]
    encoder = build_encoder(name, channels=channels, image_size=image_size, mean=mean, std=std, **sizes)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    encoder(torch.rand(16, channels, image_size, image_size))  # moves the statistics
    return encoder.eval()


def images(encoder: Encoder) -> torch.Tensor:
    return torch.rand(3, encoder.channels, encoder.image_size, encoder.image_size)


@pytest.mark.parametrize(
    ("name", "channels", "image_size"),
    [("resnet-tiny", 3, 32), ("resnet-tiny", 1, 8), ("resnet18", 5, 16), ("cnn-small", 1, 28), ("mlp", 1, 8)],
)
@torch.no_grad()
def test_round_trip(name: str, channels: int, image_size: int, tmp_path: Path) -> None:
    encoder = trained(name, channels, image_size)
    export_encoder(encoder, tmp_path, {"method": "simclr"})
    before = torch.random.get_rng_state()
    again = load_encoder(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not again.training
    x = images(encoder)
    assert torch.equal(again(x), encoder(x))
    assert again.stage_names == encoder.stage_names
    manifest = json.loads((tmp_path / "encoder.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["dim"] == encoder.dim
    assert manifest["stages"] == list(encoder.stage_names)
    assert manifest["extra"] == {"method": "simclr"}


CODED = [
    ("linear", {"latent_dim": 5}), ("deep", {"latent_dim": 5, "depth": 2}), ("conv", {"kernel": 5}),
    ("pixelcnn", {"depth": 2, "kernel": 3, "latent_dim": 6}), ("resnet18", {"latent_dim": 5}),
    ("cnn-small", {"latent_dim": 5}), ("resnet18", {"width": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sizes"), CODED)
@torch.no_grad()
def test_round_trip_of_encoders_with_sizes(name: str, sizes: dict[str, int], tmp_path: Path) -> None:
    encoder = trained(name, 3, 72 if name == "resnet18" else 16, **sizes)  # resnet18 there has torchvision's stem
    export_encoder(encoder, tmp_path)
    x = images(encoder)
    again = load_encoder(tmp_path)
    assert torch.equal(again(x), encoder(x))
    assert again.architecture == encoder.architecture
    assert (tmp_path / "encoder_module.py").exists()


@torch.no_grad()
def test_a_code_is_put_behind_weights_that_have_none(tmp_path: Path) -> None:
    plain = trained("resnet-tiny", 3, 32)
    export_encoder(plain, tmp_path)
    coded = build_encoder("resnet-tiny", channels=3, image_size=32, latent_dim=5, weights=str(tmp_path)).eval()
    x = images(plain)
    assert torch.equal(coded.stages(x)["layer3"], plain.stages(x)["layer3"])
    assert coded(x).shape == (3, 5)


USE = """
import os, sys
import torch
from safetensors.torch import load_file, save_file
sys.path.insert(0, "")
for folder in sys.argv[1:]:  # each has a module of its own, and importing torch takes long
    os.chdir(folder)
    sys.modules.pop("encoder_module", None)
    from encoder_module import load
    with torch.no_grad():
        save_file({"features": load("encoder.safetensors")(load_file("images")["images"])}, "features")
assert not {"pipeline", "rayssl", "torchvision"} & set(sys.modules)
"""


@torch.no_grad()
def test_used_without_the_project(tmp_path: Path) -> None:
    """A process that sees only the exported files computes the same features from [0, 1] images."""
    encoders = [
        trained("resnet-tiny", 3, 32),
        trained("cnn-small", 4, 72),
        trained("deep", 1, 12, latent_dim=4, depth=2),
        trained("resnet-tiny", 3, 32, width=2),
    ]
    folders = [tmp_path / str(number) for number in range(len(encoders))]
    inputs = [images(encoder) for encoder in encoders]
    for encoder, folder, x in zip(encoders, folders, inputs, strict=True):
        export_encoder(encoder, folder)
        save_file({"images": x}, folder / "images")
    # -I: neither the environment nor this folder is on the path
    command = [sys.executable, "-I", "-c", USE, *map(str, folders)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for encoder, folder, x in zip(encoders, folders, inputs, strict=True):
        found = load_file(folder / "features")["features"]
        torch.testing.assert_close(found, encoder(x), atol=1e-6, rtol=1e-6)


def test_export_is_float32_and_contiguous(tmp_path: Path) -> None:
    encoder = trained("resnet-tiny", 3, 32)
    export_encoder(encoder, tmp_path / "a")
    export_encoder(encoder.double().to(memory_format=torch.channels_last), tmp_path / "b")
    a, b = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in "ab")
    assert a == b


@torch.no_grad()
def test_run_folder_as_starting_weights(tmp_path: Path) -> None:
    """Stem and normalisation come with the weights, also when the file in the folder is named."""
    encoder = trained("resnet-tiny", 3, 32)
    export_encoder(encoder, tmp_path)
    x = images(encoder)
    for weights in (tmp_path, tmp_path / "encoder.safetensors"):
        again = build_encoder("resnet-tiny", channels=3, image_size=32, weights=str(weights)).eval()
        assert torch.equal(again(x), encoder(x))
    larger = build_encoder("resnet-tiny", channels=3, image_size=96, weights=str(tmp_path)).eval()
    assert larger.stem == "small"
    assert torch.equal(larger(x), encoder(x))
    grey = build_encoder("resnet-tiny", channels=1, image_size=32, weights=str(tmp_path))
    assert grey.mean.tolist() == pytest.approx([0.2])


def test_hash_follows_weights_and_normalisation(tmp_path: Path) -> None:
    encoder = trained("resnet-tiny", 3, 32)
    export_encoder(encoder, tmp_path / "a")
    export_encoder(encoder, tmp_path / "b", {"note": "does not count"})
    encoder.mean += 0.1
    export_encoder(encoder, tmp_path / "c")
    export_encoder(trained("resnet-tiny", 3, 32, seed=1), tmp_path / "d")
    a, b, c, d = (encoder_hash(tmp_path / name) for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def change(folder: Path, **values: object) -> None:
    path = folder / "encoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_damage_is_found(tmp_path: Path) -> None:
    export_encoder(trained("resnet-tiny", 3, 32), tmp_path)
    weights, manifest = tmp_path / "encoder.safetensors", tmp_path / "encoder.json"
    whole, described = weights.read_bytes(), manifest.read_text()

    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"encoder\.safetensors is damaged"):
        load_encoder(tmp_path)
    weights.write_bytes(whole)

    change(tmp_path, stem="large")
    with pytest.raises(UserError, match="disagree"):
        load_encoder(tmp_path)
    change(tmp_path, schema=99)
    with pytest.raises(UserError, match="has schema 99: this version reads schema 1"):
        load_encoder(tmp_path)
    manifest.write_text('{"schema": 1}')
    with pytest.raises(UserError, match="it lacks name, stem, channels, image_size"):
        encoder_hash(tmp_path)
    manifest.write_text(described[:20])
    with pytest.raises(UserError, match="not JSON"):
        load_encoder(tmp_path)

    manifest.write_text(described)
    weights.unlink()
    with pytest.raises(UserError, match=r"encoder\.safetensors is missing"):
        load_encoder(tmp_path)
    manifest.unlink()
    with pytest.raises(UserError, match=r"has no encoder\.json"):
        encoder_hash(tmp_path)
