"""Encoders: shapes, stems, stages, starting weights and the messages about wrong input."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models.encoder import ENCODERS, Encoder, build_encoder, describe
from rayssl.pipeline.models.weights import fit_channels

DIMS = {"resnet-tiny": 128, "resnet18": 512, "resnet34": 512, "resnet50": 2048, "cnn-small": 128, "mlp": 256}
DIMS |= {"linear": 32, "deep": 32}  # conv and pixelcnn: by size and channels


def build(name: str = "resnet-tiny", channels: int = 3, image_size: int = 32, **options: object) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(name, channels=channels, image_size=image_size, **options).eval()  # type: ignore[arg-type]


def images(encoder: Encoder, count: int = 2) -> torch.Tensor:
    shape = (count, encoder.channels, encoder.image_size, encoder.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("channels", "image_size"), [(1, 8), (3, 32), (5, 72)])
@torch.no_grad()
def test_shapes_and_stages(name: str, channels: int, image_size: int) -> None:
    encoder = build(name, channels, image_size)
    x = images(encoder)
    found = encoder.stages(x)
    by_size = {
        "cnn-small": 256 if image_size > 64 else 128,
        "conv": {8: 16, 32: 64, 72: 256}[image_size],
        "pixelcnn": {1: 32, 3: 33, 5: 35}[channels],
    }
    assert encoder.dim == by_size.get(name, DIMS.get(name))
    assert encoder(x).shape == (2, encoder.dim)
    assert tuple(found) == encoder.stage_names
    assert encoder.stage_names[-1] == "features"
    assert torch.equal(found["features"], encoder(x))
    last = encoder.feature_map(x)
    assert last.shape[:2] == (2, encoder.dim)
    torch.testing.assert_close(last.mean((2, 3)), encoder(x))


@torch.no_grad()
def test_width_multiplies_the_channels_of_a_resnet() -> None:
    plain, wide = build(), build(width=3)
    maps = zip(plain.stages(images(plain)).values(), wide.stages(images(wide)).values(), strict=True)
    assert all(theirs.shape[1] == 3 * ours.shape[1] for ours, theirs in maps)
    assert wide.dim == 384
    with pytest.raises(UserError, match=r"cnn-small does not take --encoder\.width 2"):
        build("cnn-small", width=2)


@pytest.mark.parametrize(
    ("name", "image_size", "stem", "last"),
    [
        ("resnet-tiny", 8, "tiny", 2),
        ("resnet-tiny", 16, "tiny", 4),
        ("resnet-tiny", 17, "small", 3),
        ("resnet-tiny", 32, "small", 4),
        ("resnet-tiny", 96, "large", 6),
        ("resnet18", 64, "small", 8),
        ("resnet18", 65, "large", 3),
        ("cnn-small", 28, "auto", 4),
    ],
)
@torch.no_grad()
def test_stem_follows_the_image_size(name: str, image_size: int, stem: str, last: int) -> None:
    encoder = build(name, 1, image_size)
    assert encoder.stem == stem
    assert encoder.feature_map(images(encoder)).shape[2:] == (last, last)


@torch.no_grad()
def test_input_is_normalised_inside() -> None:
    plain = build(channels=2, mean=(0.0, 0.0), std=(1.0, 1.0))
    encoder = build(channels=2, mean=(0.1, 0.2), std=(0.3, 0.4))
    x = images(encoder)
    by_hand = torch.stack([(x[:, 0] - 0.1) / 0.3, (x[:, 1] - 0.2) / 0.4], 1)
    torch.testing.assert_close(encoder(x), plain(by_hand))


def test_default_normalisation() -> None:
    assert build(channels=3).mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert build(channels=4).mean.tolist() == [0.5] * 4
    assert build(channels=1).std.tolist() == [0.25]


@pytest.mark.parametrize("name", ["resnet-tiny", "cnn-small", "mlp"])
def test_float64_and_gradients(name: str) -> None:
    """In double precision the whole path is double: the gradient agrees with central differences."""
    encoder = build(name, 1, 8).double()
    generator = torch.Generator().manual_seed(2)
    x = images(encoder, 1).double().requires_grad_()
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, encoder.dim, generator=generator, dtype=torch.float64)
    assert encoder(x).dtype == torch.float64
    (gradient,) = torch.autograd.grad((encoder(x) * weight).sum(), x)
    h = 1e-6
    with torch.no_grad():
        ahead, behind = encoder(x + h * direction), encoder(x - h * direction)
    slope = ((ahead - behind) * weight).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), slope, atol=1e-7, rtol=1e-5)


@torch.no_grad()
def test_autocast_and_channels_last() -> None:
    encoder = build()
    x = images(encoder)
    right = encoder(x)
    encoder = encoder.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(encoder(x), right, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = encoder(x)
        assert encoder.feature_map(x).is_contiguous(memory_format=torch.channels_last)
    assert coarse.dtype == torch.bfloat16
    assert (coarse - right).norm() < 0.03 * right.norm()


def test_building_moves_no_statistics_and_keeps_training_mode() -> None:
    encoder = build_encoder("resnet-tiny", channels=3, image_size=32)
    encoder.net.get_submodule("layer1").eval()
    describe(encoder)
    assert encoder.training
    assert encoder.net.get_submodule("layer2").training
    assert not encoder.net.get_submodule("layer1").training
    state = encoder.net.state_dict()
    assert all(not value.any() for key, value in state.items() if key.endswith(("running_mean", "num_batches_tracked")))


def test_describe_counts_by_hand() -> None:
    """The perceptron's matrices: parameters with biases, two FLOPs a multiply-add."""
    sizes = [(64, 512), (512, 512), (512, 256)]
    found = describe(build("mlp", 1, 8))
    assert found == {
        "parameters": sum(i * o + o for i, o in sizes),
        "flops": sum(2 * i * o for i, o in sizes),
        "depthwise": 0,
        "dim": 256,
    }
    # mobilenet_v3_small: 11 blocks of 3 × 3 and 5 × 5 kernels, and what one of them gives of an image of 8 × 8
    small = describe(build_encoder("mobilenet_v3_small", channels=3, image_size=64))
    assert 0 < small["depthwise"] < small["flops"] / 10
    # the paper's 1.8e9 multiply-adds (He et al., CVPR 2016, table 1)
    assert describe(build("resnet18", 3, 224))["flops"] == pytest.approx(2 * 1.8e9, rel=0.02)


def saved(encoder: Encoder, path: Path, form: str) -> str:
    state = {key: value.contiguous() for key, value in encoder.net.state_dict().items()}
    if form == "safetensors":
        save_file(state, path.with_suffix(".safetensors"))
        return str(path.with_suffix(".safetensors"))
    prefixed = {f"module.encoder.net.{key}": value for key, value in state.items()}
    prefixed |= {"module.encoder.mean": encoder.mean, "module.projector.0.weight": torch.ones(2, 2)}
    plain = {**state, "fc.weight": torch.ones(10, 128), "fc.bias": torch.ones(10)}
    contents = {"prefixed": prefixed, "wrapped": {"epoch": 3, "state_dict": prefixed}, "classifier": plain}
    torch.save(contents[form], path.with_suffix(".pt"))
    return str(path.with_suffix(".pt"))


@pytest.mark.parametrize("form", ["safetensors", "prefixed", "wrapped", "classifier"])
@torch.no_grad()
def test_weights_from_a_file(form: str, tmp_path: Path) -> None:
    source = build()
    torch.manual_seed(7)
    encoder = build_encoder(
        "resnet-tiny", channels=3, image_size=32, weights=saved(source, tmp_path / "weights", form)
    ).eval()
    assert torch.equal(encoder(images(source)), source(images(source)))


@torch.no_grad()
def test_weights_on_another_number_of_channels(tmp_path: Path) -> None:
    """A grey image gives through one channel what its three equal copies give through three."""
    three = build("resnet-tiny", 3, mean=(0.4,) * 3, std=(0.2,) * 3)
    path = saved(three, tmp_path / "weights", "safetensors")
    one = build("resnet-tiny", 1, mean=(0.4,), std=(0.2,), weights=path)
    grey = images(one)
    torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)
    six = build("resnet-tiny", 6, mean=(0.4,) * 6, std=(0.2,) * 6, weights=path)
    colour = images(three)
    torch.testing.assert_close(six(colour.repeat(1, 2, 1, 1)), three(colour), atol=1e-5, rtol=1e-4)


def test_fit_channels_keeps_a_matrix() -> None:
    weight = torch.ones(4, 7)
    assert fit_channels(weight, 9) is weight


def wrong_weights(tmp_path: Path, case: str) -> tuple[str, str]:
    """A path and the message it should lead to."""
    if case == "missing":
        state = {k: v for k, v in build().net.state_dict().items() if not k.startswith("layer3")}
        message = r"weights .* do not fit resnet-tiny: \d+ of \d+ tensors are missing, e\.g\. layer3\.0\.conv1\.weight"
    elif case == "extra":
        state = {**build().net.state_dict(), "layer1.1.conv1.weight": torch.ones(32, 32, 3, 3)}
        message = r"1 tensors have no place, e\.g\. layer1\.1\.conv1\.weight"
    elif case == "stem":
        state = build("resnet-tiny", 3, 96).net.state_dict()
        message = r"conv1\.weight is \(32, 3, 7, 7\) where \(32, 3, 3, 3\) is needed; use --encoder\.stem large"
    elif case == "width":
        state = build(width=2).net.state_dict()
        message = r"conv1\.weight is \(64, 3, 3, 3\) where \(32, 3, 3, 3\) is needed; use another --encoder\.width"
    else:
        state = {**build().net.state_dict(), "bn1.weight": torch.ones(31)}
        message = r"bn1\.weight is \(31,\) where \(32,\) is needed"
    torch.save(state, tmp_path / "wrong.pth")
    return str(tmp_path / "wrong.pth"), message


@pytest.mark.parametrize("case", ["missing", "extra", "stem", "width", "shape"])
def test_weights_that_do_not_fit(case: str, tmp_path: Path) -> None:
    path, message = wrong_weights(tmp_path, case)
    with pytest.raises(UserError, match=message):
        build(weights=path)


class Payload:
    """Something that only an unsafe reader would bring to life."""


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    contents = {"a.safetensors": b"no", "b.pt": b"no", "c.pt": b"", "d.pt": b"PK\x03\x04 cut off", "e.bin": b"no"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=re.escape(name)) as caught:
            build(weights=str(tmp_path / name))
        assert "\n" not in str(caught.value)
    torch.save({"a": Payload()}, tmp_path / "f.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        build(weights=str(tmp_path / "f.pt"))
    torch.save([1, 2], tmp_path / "g.pt")
    with pytest.raises(UserError, match="holds no state_dict"):
        build(weights=str(tmp_path / "g.pt"))
    with pytest.raises(UserError, match=r"has no encoder\.json"):
        build(weights=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet18", "image_size": 8, "stem": "large"}, "at least 32 pixels, got 8"),
        ({"name": "resnet18", "image_size": 4}, "at least 8 pixels, got 4"),
        ({"stem": "huge"}, r"--encoder\.stem huge is not one of auto, large, small, tiny"),
        ({"name": "mlp", "stem": "large"}, r"mlp does not take --encoder\.stem large"),
        ({"channels": 0}, "0 channels of 32 pixels"),
        ({"mean": (0.5,)}, "3 channels need as many means and stds, got 1 and 3"),
        ({"std": (0.5, 0.0, 0.5)}, "std positive"),
    ],
)
def test_messages(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)  # type: ignore[arg-type]
