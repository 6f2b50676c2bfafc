"""Encoders as files that work without this project.

encoder.safetensors   the backbone's state dict, float32
encoder.json          what it is, how its input is normalised, its sha256, how to load it
encoder_module.py     only where neither torchvision nor timm has that network: needs torch and safetensors alone
MODEL_CARD.md         what it is, what it learned from, under which licence that is
"""

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import delete, replacing, sha256, write_json, write_text
from rayssl.pipeline.base.seals import forget, note
from rayssl.pipeline.models import backbones
from rayssl.pipeline.models.encoder import ENCODERS, Encoder, build_encoder, in_eval
from rayssl.pipeline.models.timm_networks import TIMM, arguments_of, import_timm, is_timm, parts_of
from rayssl.pipeline.models.weights import SCHEMA, read_export

_FOOTER = '''

class Encoder(nn.Module):
    """Images (B, {channels}, H, W) in [0, 1] to features (B, {dim})."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build_backbone({name!r}, {channels}, {image_size}, {stem!r}, {architecture})
        self.register_buffer("mean", torch.tensor({mean}))
        self.register_buffer("std", torch.tensor({std}))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(normalise(x, self.mean, self.std))


def load(path: str = "encoder.safetensors") -> Encoder:
    """The trained encoder in eval mode; `path` is the file beside this one."""
    from safetensors.torch import load_file

    encoder = Encoder()
    encoder.net.load_state_dict(load_file(path), strict=True)
    {own}return encoder.eval()
'''

_TORCHVISION = """\
import torch, torchvision
from safetensors.torch import load_file
net = torchvision.models.get_model({name!r}, weights=None{arguments})
net.set_submodule({head!r}, torch.nn.Identity())
net.load_state_dict(load_file("encoder.safetensors"), strict=True)
{own}net.eval()
# images (B, 3, H, W) in [0, 1] to features (B, {dim})
mean, std = torch.tensor({mean})[:, None, None], torch.tensor({std})[:, None, None]
features = lambda images: net((images - mean) / std)
"""

_TIMM = """\
import timm, torch
from safetensors.torch import load_file
net = timm.create_model({network!r}{arguments})
net.load_state_dict(load_file("encoder.safetensors"), strict=True)
{own}net.eval()
# images (B, {channels}, {image_size}, {image_size}) in [0, 1] to features (B, {dim})
mean, std = torch.tensor({mean})[:, None, None], torch.tensor({std})[:, None, None]
features = lambda images: net((images - mean) / std)
"""

_CARD = """\
# {title}

- network: {name}, {channels} channels of {image_size} × {image_size} pixels in [0, 1], {dim} features
- made by: {method}
- images it was made for: {data}
- licence: {licence}
- sha256 of encoder.safetensors: {sha256}
- figures: evaluation.json and report.html beside this file, once the run is evaluated

`encoder.json` says how to load it without this project.
"""

NOBODY_ELSE = "yours: these weights have learned from nobody else's"

_STANDALONE = """\
from encoder_module import load
features = load("encoder.safetensors")  # images (B, {channels}, H, W) in [0, 1] to features (B, {dim})
"""


def export_encoder(
    encoder: Encoder, folder: Path | str, extra: dict[str, Any] | None = None, *, data: str = "not stated"
) -> str | None:
    """Write an encoder's files into `folder`; `extra` is kept in encoder.json under the same name.
    `data`: what it has been trained on, for the card.

    encoder.json is written last: until then its sha256 tells that the weights are not the ones it describes.
    Of weights that come from others: a line that says how the file does in timm or torchvision.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, module = folder / "encoder.safetensors", folder / "encoder_module.py"
    forget(weights, module, folder / "MODEL_CARD.md", folder / "encoder.json")  # until all are there, none is finished
    with replacing(weights) as temporary:
        temporary.write_bytes(save(state_of(encoder.net)))
    described = described_as(encoder)
    library = library_of(encoder)
    if library is not None:
        forget(module)
        delete(module)
        note(module)
    else:
        write_text(
            module,
            standalone_module(encoder, described),
        )
    manifest = {"schema": SCHEMA, **described, "stages": list(encoder.stage_names), "sha256": sha256(weights)}
    whose = {"licence": licence_of(encoder), "origin": list(encoder.origins)}
    _write_card(folder, {**manifest, **whose}, extra or {}, data)
    how = loading_code(library, encoder, described).splitlines()
    write_json(folder / "encoder.json", {**manifest, **whose, "load": how, "extra": extra or {}})
    if library is None or not encoder.origins:
        return None
    return f"export: {library}'s {encoder.name.removeprefix(TIMM)}, largest difference {parity(encoder, folder):.2g}"


def licence_of(encoder: Encoder) -> str:
    """Whose weights an encoder has learned from, and under which licence these are."""
    told = [f"{one['role']} {one['name']} ({one['weights']}): {one['licence']}" for one in encoder.origins]
    return "; ".join(dict.fromkeys(told)) or NOBODY_ELSE


@torch.no_grad()
def parity(encoder: Encoder, folder: Path) -> float:
    """Largest difference of features, of an image of noise, to those of timm's or torchvision's own network.

    It is built without this project's help and takes the exported file with strict=True.
    """
    from safetensors.torch import load_file

    library = "timm" if is_timm(encoder.name) else "torchvision"
    noise = noise_for(encoder, 1)
    theirs = features_by(encoder, peer(encoder, library), load_file(folder / "encoder.safetensors"), noise)
    return float((theirs - in_eval(encoder, lambda: encoder(noise))).abs().max())


@torch.no_grad()
def features_by(encoder: Encoder, net: nn.Module, state: dict[str, Tensor], images: Tensor) -> Tensor:
    """(B, D) of images by a library's own network with a state dict; RuntimeError where it does not take that."""
    net.load_state_dict(state, strict=True)
    for layer in net.modules():
        if encoder.epsilon is not None and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eps = encoder.epsilon
    features: Tensor = net.eval().to(encoder.mean)(backbones.normalise(images, encoder.mean, encoder.std))
    return features


def noise_for(encoder: Encoder, n: int) -> Tensor:
    """(N, C, S, S) in [0, 1], always the same."""
    shape = (n, encoder.channels, encoder.image_size, encoder.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(encoder.mean)


def load_encoder(folder: Path | str) -> Encoder:
    """The encoder exported to `folder`, in eval mode, on the CPU.

    UserError if it is missing, damaged (another sha256 than encoder.json has) or of another schema.
    torch's global generator is left as it was.
    """
    manifest, state = read_export(Path(folder))
    settings = {key: manifest[key] for key in ("channels", "image_size", "mean", "std", "stem")}
    newer = (*asdict(backbones.AS_IT_COMES), "epsilon")  # which older exports do not have
    settings |= {key: manifest.get(key) for key in newer}
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(manifest["name"], **settings)
    encoder.origins = tuple(manifest.get("origin", ()))
    try:
        encoder.net.load_state_dict(state, strict=True)
    except RuntimeError:
        raise UserError(f"{folder}: encoder.safetensors and encoder.json disagree; export the encoder again") from None
    return encoder.eval()


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """A state dict on the CPU, in float32 and the usual memory layout."""
    state = {key: value.detach().cpu() for key, value in net.state_dict().items()}
    return {key: (v.float() if v.is_floating_point() else v).contiguous() for key, v in state.items()}


def standalone_module(encoder: Encoder, described: dict[str, Any]) -> str:
    """A Python file that builds and loads the encoder with torch and safetensors alone."""
    own = _own_epsilon(encoder, "encoder.net", " " * 4)
    return inspect.getsource(backbones) + _FOOTER.format(**described, architecture=encoder.architecture, own=own)


def described_as(encoder: Encoder) -> dict[str, Any]:
    """What encoder.json says of it, and the loading code is filled with."""
    return {
        "name": encoder.name,
        "stem": encoder.stem,
        "channels": encoder.channels,
        "image_size": encoder.image_size,
        "dim": encoder.dim,
        **asdict(encoder.architecture),
        "epsilon": encoder.epsilon,
        "mean": encoder.mean.double().tolist(),
        "std": encoder.std.double().tolist(),
    }


def library_of(encoder: Encoder) -> str | None:
    """Which of timm and torchvision has a network that takes the weights as they are, without its classifier."""
    if is_timm(encoder.name):
        return "timm"
    same_stem = encoder.name not in ENCODERS or encoder.stem == "large"
    own = encoder.name == "resnet-tiny" or bool(encoder.architecture.given())
    return "torchvision" if encoder.channels == 3 and same_stem and not own else None


def loading_code(library: str | None, encoder: Encoder, described: dict[str, Any]) -> str:
    """Python code that rebuilds an encoder with torch and that library alone, or with the module beside it."""
    if library is None:
        return _STANDALONE.format(**described)
    named = {**described, "name": _network(encoder), "network": _network(encoder), "own": _own_epsilon(encoder)}
    if library == "timm":
        return _TIMM.format(**named, arguments=_listed(_timm_arguments(encoder)))
    arguments = backbones.torchvision_arguments(_network(encoder), encoder.image_size)
    return _TORCHVISION.format(**named, arguments=_listed(arguments), head=_head(encoder))


def _own_epsilon(encoder: Encoder, net: str = "net", indent: str = "") -> str:
    """Lines that give every BatchNorm the epsilon of the weights, where it is not the network's own."""
    if encoder.epsilon is None:
        return ""
    lines = [
        f"for layer in {net}.modules():",
        "    if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):",
        f"        layer.eps = {encoder.epsilon}",
        "",
    ]
    return f"\n{indent}".join(lines)


def _listed(arguments: dict[str, Any]) -> str:
    return "".join(f", {key}={value!r}" for key, value in arguments.items())


def _network(encoder: Encoder) -> str:
    """Its name in torchvision and timm."""
    return parts_of(encoder.name)[0] if is_timm(encoder.name) else encoder.name


def _timm_arguments(encoder: Encoder) -> dict[str, Any]:
    return arguments_of(f"{TIMM}{_network(encoder)}", encoder.channels, encoder.image_size)


def _head(encoder: Encoder) -> str:
    """The path of the classifier in torchvision's network."""
    if encoder.name in ENCODERS:
        return "fc"
    return backbones.head_path(peer(encoder, "torchvision") if is_timm(encoder.name) else encoder.net, nn.Identity)


def peer(encoder: Encoder, library: str) -> nn.Module:
    """What the loading code builds: timm's or torchvision's network of that name, without its classifier.

    UserError where timm has none, ValueError where torchvision has none. torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        if library == "timm":
            built: nn.Module = import_timm().create_model(_network(encoder), **_timm_arguments(encoder))
            return built
        from torchvision import models

        arguments = backbones.torchvision_arguments(_network(encoder), encoder.image_size)
        net: nn.Module = models.get_model(_network(encoder), weights=None, **arguments)
    net.set_submodule(backbones.head_path(net, nn.Linear, nn.Conv2d), nn.Identity())
    return net


def _write_card(folder: Path, manifest: dict[str, Any], extra: dict[str, Any], data: str) -> None:
    method = extra.get("method") or "nobody: the weights are as they came"
    write_text(
        folder / "MODEL_CARD.md", _CARD.format(**manifest, title=folder.resolve().name, method=method, data=data)
    )
