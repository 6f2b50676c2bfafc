"""Encoders against torchvision's networks: the same features from the same weights."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.export import export_encoder, load_encoder


def peer(name: str) -> nn.Module:
    """Torchvision's network without classifier, with statistics and scales that are nobody's defaults."""
    torch.manual_seed(0)
    net: nn.Module = models.get_model(name, weights=None)
    net.set_submodule("fc", nn.Identity())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return net.eval()


def images(encoder: Encoder) -> Tensor:
    shape = (2, encoder.channels, encoder.image_size, encoder.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_same_features_and_gradients(name: str) -> None:
    """State dicts go both ways with strict=True; in training mode the gradients agree too."""
    right = peer(name)
    encoder = build_encoder(name, channels=3, image_size=96, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    encoder.net.load_state_dict(right.state_dict(), strict=True)
    right.load_state_dict(encoder.net.state_dict(), strict=True)
    x = images(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), right(x), atol=1e-5, rtol=1e-5)
    if name == "resnet50":
        return  # the same code as above; its backward pass is only slower
    encoder.double().train()(x.double()).square().mean().backward()
    right.double().train()(x.double()).square().mean().backward()
    for a, b in zip(encoder.net.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-9, rtol=1e-6)


def test_same_initialisation_scale() -> None:
    """Every convolution starts with torchvision's spread, every BatchNorm as the identity."""
    torch.manual_seed(0)
    right = models.get_model("resnet18", weights=None).state_dict()
    torch.manual_seed(1)
    found = build_encoder("resnet18", channels=3, image_size=96).net.state_dict()
    for key, value in found.items():
        if value.ndim == 4:
            assert float(value.std()) == pytest.approx(float(right[key].std()), rel=0.05), key
        else:
            assert torch.equal(value, right[key]), key


@pytest.mark.parametrize(
    ("name", "channels", "dim", "maps"),
    [
        ("mobilenet_v3_small", 3, 1024, (32, 16, 8, 4, 2)),
        ("mobilenet_v3_small", 4, 1024, (32, 16, 8, 4, 2)),
        ("shufflenet_v2_x0_5", 1, 1024, (32, 16, 8, 4, 2)),
        ("squeezenet1_1", 3, 512, (31, 15, 7, 3)),
        ("regnet_x_400mf", 3, 400, (16, 8, 4, 2)),
        ("swin_t", 3, 768, (16, 8, 4, 2)),
        ("vit_b_32", 3, 768, (2, 2, 2, 2)),
    ],
)
@torch.no_grad()
def test_any_classifier(name: str, channels: int, dim: int, maps: tuple[int, ...], tmp_path: Path) -> None:
    encoder = build_encoder(name, channels=channels, image_size=64).eval()
    x = images(encoder)
    found = encoder.stages(x)
    assert encoder.dim == dim
    assert tuple(value.shape[3] for value in found.values() if value.ndim == 4) == maps
    assert tuple(found) == encoder.stage_names
    assert torch.equal(found["features"], encoder(x))
    export_encoder(encoder, tmp_path)
    assert torch.equal(load_encoder(tmp_path)(x), encoder(x))
    features = standalone(tmp_path, x)
    torch.testing.assert_close(features, encoder(x), atol=1e-6, rtol=1e-6)


def test_nothing_is_drawn_while_a_classifier_is_trained() -> None:
    encoder = build_encoder("efficientnet_b0", channels=3, image_size=32).train()
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    assert torch.equal(encoder(x), encoder(x))
    assert torch.equal(torch.get_rng_state(), before)


def standalone(folder: Path, x: Tensor) -> Tensor:
    """What the instructions in encoder.json compute."""
    lines = json.loads((folder / "encoder.json").read_text())["load"]
    code = "\n".join(lines).replace('"encoder.safetensors"', repr(str(folder / "encoder.safetensors")))
    names: dict[str, object] = {}
    if (folder / "encoder_module.py").exists():
        exec((folder / "encoder_module.py").read_text(), names)
        code = code.split("\n", 1)[1]
    exec(code, names)
    found: Tensor = names["features"](x)  # type: ignore[operator]
    return found


@torch.no_grad()
def test_exported_resnet_loads_into_torchvision(tmp_path: Path) -> None:
    right = peer("resnet18")
    encoder = build_encoder("resnet18", channels=3, image_size=96).eval()
    encoder.net.load_state_dict(right.state_dict())
    (tmp_path / "encoder_module.py").write_text("left by an earlier export")
    export_encoder(encoder, tmp_path)
    assert not (tmp_path / "encoder_module.py").exists()
    x = images(encoder)
    torch.testing.assert_close(standalone(tmp_path, x), encoder(x), atol=1e-5, rtol=1e-5)


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Tensor]:
    """What torchvision has left in its cache as weights of resnet18."""
    state: dict[str, Tensor] = {**peer("resnet18").state_dict(), "fc.weight": torch.ones(1000, 512)}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(state, cache / "resnet18-f37072fd.pth")
    return state


@torch.no_grad()
def test_named_weights(download: dict[str, Tensor]) -> None:
    encoder = build_encoder("resnet18", channels=3, image_size=96, weights="DEFAULT").eval()
    x = images(encoder)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    right = peer("resnet18")((x - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(encoder(x), right, atol=1e-5, rtol=1e-5)
    grey = build_encoder("resnet18", channels=1, image_size=96, weights="IMAGENET1K_V1")
    assert grey.mean.tolist() == pytest.approx([0.449])
    assert torch.equal(grey.net.state_dict()["conv1.weight"], download["conv1.weight"].sum(1, keepdim=True))


def test_named_weights_need_the_large_stem(download: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"conv1\.weight is \(64, 3, 7, 7\) .* use --encoder\.stem large"):
        build_encoder("resnet18", channels=3, image_size=32, weights="DEFAULT")
    encoder = build_encoder("resnet18", channels=3, image_size=32, weights="DEFAULT", stem="large")
    assert encoder.stem == "large"


def test_named_weights_of_another_width_are_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: pytest.fail("downloaded"))
    with pytest.raises(UserError, match=r"--encoder\.width 2 does not go with DEFAULT"):
        build_encoder("resnet18", channels=3, image_size=96, weights="DEFAULT", width=2)


def test_messages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: pytest.fail("downloaded"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cases: list[tuple[dict[str, object], str]] = [
        ({"name": "resnet19"}, r"no encoder is called 'resnet19' \(did you mean 'resnet18'\?\)"),
        ({"name": "mnasnet0_5"}, "mnasnet0_5 cannot be kept as a safetensors file"),
        ({"name": "vit_b_16", "image_size": 30}, "vit_b_16 cannot take images of 30 pixels"),
        ({"name": "alexnet", "image_size": 16}, "alexnet cannot take images of 16 pixels"),
        ({"name": "resnet18", "weights": "IMAGENET"}, r"a name for resnet18 \(names: IMAGENET1K_V1, DEFAULT\)"),
        ({"name": "mlp", "weights": "DEFAULT"}, r"a name for mlp \(names: none\)"),
        ({"name": "resnet18", "weights": "DEFAULT"}, "`rayssl weights resnet18` fetches them"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            build_encoder(**{"channels": 3, "image_size": 96, **options})  # type: ignore[arg-type]
