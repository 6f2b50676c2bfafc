"""Pretrained networks: timm's as encoders, and weights that are found, loaded, refused, fetched and told of."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models import fetch as fetching
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.export import export_encoder, load_encoder, parity
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.local_weights import network_of, package_file
from rayssl.pipeline.models.pretrained import (
    HUB,
    PACKAGE,
    TORCHVISION,
    Available,
    available,
    licence_of,
    own_size,
    pretrained_encoder,
    taught_by,
)
from rayssl.pipeline.models.weights import in_order

timm = pytest.importorskip("timm", reason="timm is an extra")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

SMALL = ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"]
State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no network."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return tmp_path


def build(name: str, channels: int = 3, image_size: int = 64, **options: Any) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(name, channels=channels, image_size=image_size, **options).eval()


def images(encoder: Encoder, count: int = 2) -> torch.Tensor:
    shape = (count, encoder.channels, encoder.image_size, encoder.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def state_of(network: str, **options: Any) -> State:
    """A whole classifier's state dict, as timm has it, with no statistic at its default."""
    torch.manual_seed(3)
    net = timm.create_model(network, **options)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    found: State = net.state_dict()
    return found


def in_hub(tmp_path: Path, repository: str, state: State) -> Path:
    """A file in the hub's cache as huggingface_hub lays it out."""
    folder = tmp_path / "hf" / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(state, folder / "snapshots" / "abc" / "model.safetensors")
    return folder / "snapshots" / "abc" / "model.safetensors"


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, object]) -> None:
    """A package `some-weights` that must not be imported."""
    site = tmp_path / "site"
    (site / "some_weights" / "models").mkdir(parents=True)
    (site / "some_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    for name, content in files.items():
        torch.save(content, site / "some_weights" / "models" / name)
    info = site / "some_weights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\nLicense: UNKNOWN\n")
    (info / "LICENSE").write_text("\nSome Licence 2.0\n\nText.\n")
    listed = ["some_weights/__init__.py", *(f"some_weights/models/{name}" for name in files)]
    (info / "RECORD").write_text("".join(f"{place},,\n" for place in listed))
    monkeypatch.syspath_prepend(str(site))


def renamed(state: State) -> State:
    """The same tensors under names of another trainer, the last part kept."""
    return {f"_layer{number}.{key.rsplit('.', 1)[-1]}": value for number, (key, value) in enumerate(state.items())}


# timm's networks


@pytest.mark.parametrize("network", SMALL)
@pytest.mark.parametrize(("channels", "image_size"), [(3, 64), (1, 96), (5, 64)])
@torch.no_grad()
def test_features_are_timms_own(network: str, channels: int, image_size: int) -> None:
    encoder = build(f"timm/{network}", channels, image_size)
    size = {"img_size": image_size} if "vit" in network else {}
    theirs = timm.create_model(network, num_classes=0, in_chans=channels, **size).eval()
    theirs.load_state_dict(encoder.net.state_dict(), strict=True)
    x = images(encoder)
    config = theirs.pretrained_cfg
    mean, std = (torch.tensor(config[key]) for key in ("mean", "std"))
    if channels != 3:
        mean, std = mean.mean().expand(channels), std.mean().expand(channels)
    expected = theirs((x - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(encoder(x), expected)
    found = encoder.stages(x)
    assert tuple(found) == encoder.stage_names
    torch.testing.assert_close(found.pop("features"), expected)
    assert len(found) >= 4
    assert all(value.ndim == 4 and value.shape[2] == value.shape[3] for value in found.values())


@torch.no_grad()
def test_a_vision_transformers_maps_are_its_blocks_tokens() -> None:
    encoder = build("timm/test_vit")
    x = images(encoder)
    seen: list[torch.Tensor] = []
    encoder.net.get_submodule("blocks.5").register_forward_hook(lambda layer, given, made: seen.append(made))
    found = encoder.stages(x)
    assert [name for name in found if name != "features"] == ["block2", "block3", "block5", "block6"]
    tokens = encoder.net.get_submodule("norm")(seen[0])[:, 1:]  # without the class token
    torch.testing.assert_close(found["block6"].flatten(2).transpose(1, 2), tokens)


@torch.no_grad()
def test_torchvisions_vision_transformers_have_stages() -> None:
    encoder = build("vit_b_32")
    x = images(encoder)
    found = encoder.stages(x)
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == {
        **{f"block{number}": (768, 2, 2) for number in (3, 6, 9, 12)},
        "features": (768,),
    }
    net: Any = encoder.net
    tokens = net._process_input((x - encoder.mean[:, None, None]) / encoder.std[:, None, None])
    tokens = torch.cat([net.class_token.expand(len(x), -1, -1), tokens], 1) + net.encoder.pos_embedding
    for layer in list(net.encoder.layers)[:3]:
        tokens = layer(tokens)
    torch.testing.assert_close(found["block3"], tokens[:, 1:].transpose(1, 2).reshape(2, 768, 2, 2))


def test_training_draws_nothing() -> None:
    """Features in training mode are a function of weights and images."""
    encoder = build("timm/test_vit").train()
    torch.testing.assert_close(encoder(images(encoder)), encoder(images(encoder)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "timm/test_vitt"}, r"no network 'test_vitt' \(did you mean 'timm/test_vit'\?\)"),
        ({"name": "timm/test_vit.r16"}, r"r16 names no weights of timm/test_vit .*: there are r160_in1k"),
        ({"name": "timm/hf-hub:somebody/net"}, "asks another place for a network: give timm/NETWORK"),
        ({"name": "timm/local-dir:/x"}, "asks another place"),
        ({"name": "timm/test_vit", "image_size": 70}, "multiple of 16, the side of a patch.*own size is 160"),
        ({"name": "timm/test_vit", "width": 2}, "does not take --encoder.width 2"),
        ({"name": "timm/test_vit", "weights": "imagenet"}, r"or a name for timm/test_vit \(names: r160_in1k\)"),
        ({"name": "timm/test_vit_relpos", "weights": "DEFAULT"}, "DEFAULT of timm/test_vit_relpos are not on this"),
    ],
)
def test_messages(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(**options)
    assert "\n" not in str(caught.value)


def test_without_timm_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"uv pip install timm, or pip install 'rayssl\[timm\]'"):
        build("timm/test_vit")


# Weights


@torch.no_grad()
def test_position_embeddings_are_resized_as_timm_does(tmp_path: Path) -> None:
    save_file(state_of("test_vit"), tmp_path / "weights.safetensors")
    encoder = build("timm/test_vit", weights=str(tmp_path / "weights.safetensors"))
    overlay = {"file": str(tmp_path / "weights.safetensors")}
    theirs = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=64)
    x = images(encoder)
    torch.testing.assert_close(encoder(x), theirs.eval()((x - 0.5) / 0.5))


@torch.no_grad()
def test_weights_on_another_number_of_channels(tmp_path: Path) -> None:
    save_file(state_of("test_convnext"), tmp_path / "weights.safetensors")
    three, one = (build("timm/test_convnext", c, weights=str(tmp_path / "weights.safetensors")) for c in (3, 1))
    grey = images(one)
    torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)


def test_tensors_in_order() -> None:
    wanted = {"a.weight": torch.zeros(4, 3, 3, 3), "b.weight": torch.zeros(4), "b.bias": torch.zeros(4)}
    given = {"x.weight": torch.ones(4, 3, 3, 3), "y.weight": torch.full((4,), 2.0), "y.bias": torch.full((4,), 3.0)}
    head = {"z.weight": torch.ones(10, 4), "z.bias": torch.ones(10)}
    found = in_order({**given, **head}, wanted)
    assert [value.flatten()[0].item() for value in found.values()] == [1, 2, 3]
    assert list(found) == list(wanted)
    assert in_order({**given, "x.weight": torch.ones(4, 1, 3, 3)}, wanted)  # channels are fitted later
    swapped = dict(sorted(given.items(), key=lambda item: item[0] != "y.bias"))
    doubtful = [
        swapped,  # a bias where a weight is wanted
        {**given, "y.bias": torch.ones(5)},
        {**given, "x.weight": torch.ones(4, 3, 1, 1)},
        dict(list(given.items())[:2]),
        {**given, "z.weight": torch.ones(10, 4)},  # no classifier: no bias
        {**given, **head, "w.weight": torch.ones(2)},
        {**given, "z.weight": torch.ones(10, 4), "z.bias": torch.ones(9)},
    ]
    assert [in_order(state, wanted) for state in doubtful] == [{}] * len(doubtful)


@torch.no_grad()
def test_a_packages_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the list of its files, never imported; foreign names are told by the order of the tensors."""
    state = state_of("test_resnet")
    install(tmp_path, monkeypatch, {"test-resnet-0123abcd.pth": renamed(state)})
    mine = [one for one in available() if one.weights == "some_weights"]
    assert [(one.name, one.source) for one in mine] == [("timm/test_resnet", PACKAGE)]
    assert mine[0].path == tmp_path / "site/some_weights/models/test-resnet-0123abcd.pth"
    assert mine[0].bytes == mine[0].path.stat().st_size
    assert "Some Licence 2.0" in mine[0].licence
    encoder = build("timm/test_resnet", weights="some-weights")  # spelt as one installs it
    theirs = timm.create_model("test_resnet", num_classes=0).eval()
    theirs.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    x = images(encoder)
    torch.testing.assert_close(encoder(x), theirs((x - 0.5) / 0.5))
    assert "tensors have other names there" in encoder.told()[1]
    assert [(one["role"], one["name"], one["weights"]) for one in encoder.origins] == [
        ("start", "timm/test_resnet", "some_weights")
    ]
    with pytest.raises(UserError, match="some_weights do not fit timm/test_vit"):
        build("timm/test_vit", weights="some_weights")
    with pytest.raises(UserError, match="some_weights do not fit resnet18"):
        build("resnet18", weights="some_weights")


class Payload:
    """Something that only an unsafe reader would bring to life."""


def test_packages_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padding = torch.zeros(100_000)
    install(tmp_path, monkeypatch, {"a.pth": {"w": padding}, "b.pt": {"w": padding}})
    assert package_file("some_weights") is None  # two files: which is meant?
    (tmp_path / "site/some_weights/models/b.pt").unlink()
    assert package_file("some_weights") is not None
    torch.save({"w": padding, "x": Payload()}, tmp_path / "site/some_weights/models/a.pth")
    with pytest.raises(UserError, match="holds more than tensors"):
        build("timm/test_resnet", weights="some_weights")
    assert [package_file(name) for name in ("", "../x", "DEFAULT", "torch")] == [None] * 4


@torch.no_grad()
def test_the_hubs_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not on this machine: `rayssl weights timm/test_vit` fetches them"):
        build("timm/test_vit", weights="DEFAULT")
    path = in_hub(tmp_path, "timm/test_vit.r160_in1k", state_of("test_vit"))
    in_hub(tmp_path, "somebody/else", {"w": torch.zeros(100_000)})
    expected = Available(
        "timm/test_vit",
        "r160_in1k",
        HUB,
        path,
        path.stat().st_size,
        "see https://huggingface.co/timm/test_vit.r160_in1k",
    )
    assert [one for one in available() if one.source == HUB] == [expected]
    same = [build("timm/test_vit", weights=weights) for weights in ("DEFAULT", "r160_in1k")]
    tagged = build("timm/test_vit.r160_in1k", weights="DEFAULT")
    x = images(tagged)
    assert all(torch.equal(encoder(x), tagged(x)) for encoder in same)
    assert tagged.origins[0]["licence"] == "apache-2.0"
    assert not torch.equal(build("timm/test_vit")(x), tagged(x))


@torch.no_grad()
def test_torchvisions_cache(tmp_path: Path) -> None:
    from torchvision import models

    with pytest.raises(
        UserError, match=r"IMAGENET1K_V1 of squeezenet1_1 .*`rayssl weights squeezenet1_1 IMAGENET1K_V1`"
    ):
        build("squeezenet1_1", weights="IMAGENET1K_V1")
    torch.manual_seed(1)
    net = models.squeezenet1_1().eval()
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(net.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    found = [one for one in available() if one.source == TORCHVISION]
    assert [(one.name, one.weights, one.path.name) for one in found] == [
        ("squeezenet1_1", "IMAGENET1K_V1", "squeezenet1_1-b8a52dc0.pth")
    ]
    encoder = build("squeezenet1_1", weights="DEFAULT")
    found_state = encoder.net.state_dict()
    assert all(torch.equal(found_state[key], value) for key, value in net.state_dict().items() if key in found_state)
    assert encoder.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_own_sizes() -> None:
    assert own_size("timm/vit_small_patch14_dinov2", None) == 518
    assert own_size("timm/test_vit", "r160_in1k") == 160
    assert own_size("timm/test_vit", "some_package") == 160
    assert own_size("vit_b_16", "IMAGENET1K_SWAG_E2E_V1") == 384
    assert own_size("resnet50", "DEFAULT") == 224
    assert own_size("resnet50", None) is None
    assert own_size("resnet-tiny", None) is None
    assert network_of(Path("efficientnet-lite0-57934424.pth")) == "efficientnet_lite0"


@pytest.mark.parametrize(("side", "size"), [(8, 64), (9, 64), (12, 80), (16, 112), (20, 144), (32, 160), (500, 160)])
def test_frozen_at_a_size_that_suits_images_and_network(side: int, size: int, tmp_path: Path) -> None:
    in_hub(tmp_path, "timm/test_vit.r160_in1k", state_of("test_vit"))
    found = next(one for one in available() if one.source == HUB)
    encoder = pretrained_encoder(found, channels=1, image_side=side)
    assert encoder.image_size == size
    assert not encoder.training
    assert encoder.channels == 1


def test_licences(tmp_path: Path) -> None:
    assert licence_of("timm/vit_small_patch16_dinov3", "DEFAULT") == "dinov3-license"
    assert licence_of("timm/test_vit", "r160_in1k") == "apache-2.0"
    assert "SWAG" in licence_of("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert licence_of("resnet50", "DEFAULT").startswith("BSD-3-Clause")
    assert licence_of("resnet-tiny", None) == licence_of("resnet-tiny", str(tmp_path)) == "your own"
    with pytest.raises(UserError, match="NONE names no weights of resnet50"):
        licence_of("resnet50", "NONE")


# Fetching


def test_fetching_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(url: str, place: str, digest: str | None, progress: bool) -> None:
        asked.append((url, digest))
        Path(place).write_bytes(b"weights")

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    remote = fetching.find_remote("resnet18")
    assert remote.bytes == pytest.approx(46.8e6, rel=0.01)
    path = fetching.fetch(remote)
    assert path == tmp_path / "torch/hub/checkpoints/resnet18-f37072fd.pth"
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]
    again = fetching.find_remote("resnet18", "IMAGENET1K_V1")
    assert again.path == fetching.fetch(again) == path
    assert len(asked) == 1


class GatedRepoError(Exception):
    """Named as the hub's."""


class Hub:
    """As much of HfApi as is used."""

    class File:
        rfilename, size = "model.safetensors", 1234

    class Answer:
        siblings: tuple[Any, ...] = ()

    def model_info(self, repository: str, files_metadata: bool = False) -> Any:
        answer = Hub.Answer()
        answer.siblings = (Hub.File(),)
        return answer


def test_fetching_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)

    def download(repository: str, name: str) -> str:
        assert (repository, name) == ("timm/test_vit.r160_in1k", "model.safetensors")
        return str(in_hub(tmp_path, repository, state_of("test_vit")))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    remote = fetching.find_remote("timm/test_vit")
    assert (remote.bytes, remote.licence, remote.path) == (1234, "apache-2.0", None)
    assert fetching.fetch(remote).is_file()
    assert fetching.find_remote("timm/test_vit").path is not None

    def gate(repository: str, name: str) -> str:
        raise GatedRepoError(f"401 {repository}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", gate)
    with pytest.raises(UserError, match=r"is gated: accept its terms at https://huggingface\.co/timm/test_vit2"):
        fetching.fetch(fetching.find_remote("timm/test_vit2"))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet55", "DEFAULT", r"no weights are known for 'resnet55' \(did you mean"),
        ("resnet-tiny", "DEFAULT", "no weights are known for 'resnet-tiny'"),
        ("resnet18", "V9", "V9 names no weights of resnet18: there are IMAGENET1K_V1, DEFAULT"),
        ("timm/test_vit_relpos", "DEFAULT", "no place for weights of timm/test_vit_relpos"),
        ("timm/test_vit", "V9", "V9 names no weights of timm/test_vit"),
    ],
)
def test_nothing_to_fetch(name: str, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fetching.find_remote(name, weights)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"cannot fetch https://.*resnet18.*put the file at .*resnet18-f37072fd\.pth"):
        fetching.fetch(fetching.find_remote("resnet18"))


# Exports


@pytest.mark.parametrize(
    ("name", "channels", "epsilon"),
    [(f"timm/{network}", 3, None) for network in SMALL] + [("timm/test_resnet", 1, 1e-2), ("squeezenet1_1", 3, None)],
)
@torch.no_grad()
def test_an_export_loads_where_the_network_comes_from(
    name: str, channels: int, epsilon: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines in encoder.json, run as they are, give the same features."""
    encoder = build(name, channels, epsilon=epsilon)
    export_encoder(encoder, tmp_path)
    assert not (tmp_path / "encoder_module.py").exists()
    manifest = json.loads((tmp_path / "encoder.json").read_text())
    assert "strict=True" in "".join(manifest["load"])
    assert not any("pipeline" in line for line in manifest["load"])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(manifest["load"]), names)
    x = images(encoder)
    theirs: Callable[[torch.Tensor], torch.Tensor] = names["features"]
    assert torch.equal(theirs(x), encoder(x))
    again = load_encoder(tmp_path)
    assert torch.equal(again(x), encoder(x))
    assert again.stage_names == encoder.stage_names
    assert parity(encoder, tmp_path) == 0


@torch.no_grad()
def test_a_vision_transformer_loads_in_torchvision(tmp_path: Path) -> None:
    encoder = build("vit_b_32")
    export_encoder(encoder, tmp_path)
    assert parity(encoder, tmp_path) == 0


def test_whose_weights_are_told_wherever_they_go(tmp_path: Path) -> None:
    save_file(state_of("test_resnet"), tmp_path / "weights.safetensors")
    encoder = build("timm/test_resnet", weights=str(tmp_path / "weights.safetensors"))
    line = export_encoder(encoder, tmp_path / "a", {"method": None})
    assert line == "export: timm's test_resnet, largest difference 0"
    manifest = json.loads((tmp_path / "a" / "encoder.json").read_text())
    assert manifest["origin"][0]["weights"] == str(tmp_path / "weights.safetensors")
    assert len(manifest["origin"][0]["sha256"]) == 64
    assert "timm/test_resnet" in (tmp_path / "a" / "MODEL_CARD.md").read_text()
    again = load_encoder(tmp_path / "a")
    assert again.origins == encoder.origins
    started = build("timm/test_resnet", weights=str(tmp_path / "a"))
    assert started.origins == encoder.origins  # of a run's weights: whose that run started from
    student = build("resnet-tiny", image_size=32)
    student.origins += taught_by(again)
    assert export_encoder(student, tmp_path / "b", {"method": "distill"}) is None
    told = json.loads((tmp_path / "b" / "encoder.json").read_text())
    assert told["licence"].startswith("teacher timm/test_resnet")
    export_encoder(build("resnet-tiny", image_size=32), tmp_path / "c")
    assert "nobody else's" in json.loads((tmp_path / "c" / "encoder.json").read_text())["licence"]


def test_epsilon_is_a_part_of_the_weights(tmp_path: Path) -> None:
    for place, epsilon in (("a", None), ("b", 1e-2)):
        export_encoder(build("resnet-tiny", image_size=32, epsilon=epsilon), tmp_path / place)
    assert encoder_hash(tmp_path / "a") != encoder_hash(tmp_path / "b")
    assert load_encoder(tmp_path / "b").epsilon == 1e-2
