"""Encoders as files that work without this project.

encoder.safetensors   the backbone's state dict, float32
encoder.json          what it is, how its input is normalised, its sha256, how to load it
encoder_module.py     only where torchvision has no identical network: needs torch and safetensors alone
"""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import backbones
from pipeline.encoders import ENCODERS, TAKES, Encoder, build_encoder
from pipeline.errors import UserError
from pipeline.files import replacing, sha256, write_json, write_text
from pipeline.weights import SCHEMA, read_export, read_manifest

_FOOTER = '''

class Encoder(nn.Module):
    """Images (B, {channels}, H, W) in [0, 1] to features (B, {dim})."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {latent_dim}, {depth}, {kernel}, {width}
        self.net = build_backbone({name!r}, {channels}, {image_size}, {stem!r}, *sizes)
        self.register_buffer("mean", torch.tensor({mean}))
        self.register_buffer("std", torch.tensor({std}))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(normalise(x, self.mean, self.std))


def load(path: str = "encoder.safetensors") -> Encoder:
    """The trained encoder in eval mode; `path` is the file beside this one."""
    from safetensors.torch import load_file

    encoder = Encoder()
    encoder.net.load_state_dict(load_file(path), strict=True)
    return encoder.eval()
'''

_TORCHVISION = """\
import torch, torchvision
from safetensors.torch import load_file
net = torchvision.models.get_model({name!r}, weights=None{arguments})
net.set_submodule({head!r}, torch.nn.Identity())
net.load_state_dict(load_file("encoder.safetensors"), strict=True)
net.eval()
# images (B, 3, H, W) in [0, 1] to features (B, {dim})
mean, std = torch.tensor({mean})[:, None, None], torch.tensor({std})[:, None, None]
features = lambda images: net((images - mean) / std)
"""

_STANDALONE = """\
from encoder_module import load
features = load("encoder.safetensors")  # images (B, {channels}, H, W) in [0, 1] to features (B, {dim})
"""


def export_encoder(encoder: Encoder, folder: Path | str, extra: dict[str, Any] | None = None) -> None:
    """Write an encoder's files into `folder`; `extra` is kept in encoder.json under the same name.

    encoder.json is written last: until then its sha256 tells that the weights are not the ones it describes.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, module = folder / "encoder.safetensors", folder / "encoder_module.py"
    with replacing(weights) as temporary:
        save_file(_plain(encoder.net), temporary)
    described = _described(encoder)
    identical = _is_torchvisions(encoder)
    if identical:
        module.unlink(missing_ok=True)
    else:
        write_text(module, inspect.getsource(backbones) + _FOOTER.format(**described))
    how = _torchvision_code(encoder, described) if identical else _STANDALONE.format(**described)
    manifest = {"schema": SCHEMA, **described, "stages": list(encoder.stage_names), "sha256": sha256(weights)}
    write_json(folder / "encoder.json", {**manifest, "load": how.splitlines(), "extra": extra or {}})


def load_encoder(folder: Path | str) -> Encoder:
    """The encoder exported to `folder`, in eval mode, on the CPU.

    UserError if it is missing, damaged (another sha256 than encoder.json has) or of another schema.
    torch's global generator is left as it was.
    """
    manifest, state = read_export(Path(folder))
    settings = {key: manifest[key] for key in ("channels", "image_size", "mean", "std", "stem")}
    settings |= {key: manifest.get(key) for key in TAKES}  # which older exports do not have
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(manifest["name"], **settings)
    try:
        encoder.net.load_state_dict(state, strict=True)
    except RuntimeError:
        raise UserError(f"{folder}: encoder.safetensors and encoder.json disagree; export the encoder again") from None
    return encoder.eval()


def encoder_hash(folder: Path) -> str:
    """Hex digest of what decides an exported encoder's features: its weights, network and normalisation."""
    manifest = read_manifest(folder)
    parts = {key: manifest[key] for key in ("sha256", "name", "stem", "channels", "image_size", "mean", "std")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _plain(net: nn.Module) -> dict[str, Tensor]:
    """A state dict on the CPU, in float32 and the usual memory layout."""
    state = {key: value.detach().cpu() for key, value in net.state_dict().items()}
    return {key: (v.float() if v.is_floating_point() else v).contiguous() for key, v in state.items()}


def _described(encoder: Encoder) -> dict[str, Any]:
    return {
        "name": encoder.name,
        "stem": encoder.stem,
        "channels": encoder.channels,
        "image_size": encoder.image_size,
        "dim": encoder.dim,
        **encoder.sizes,
        "mean": encoder.mean.double().tolist(),
        "std": encoder.std.double().tolist(),
    }


def _is_torchvisions(encoder: Encoder) -> bool:
    """Whether torchvision's network of that name takes the weights as they are, without its classifier."""
    same_stem = encoder.name not in ENCODERS or encoder.stem == "large"
    own = encoder.name == "resnet-tiny" or any(size is not None for size in encoder.sizes.values())
    return encoder.channels == 3 and same_stem and not own


def _torchvision_code(encoder: Encoder, described: dict[str, Any]) -> str:
    """Python code that rebuilds an encoder with torchvision alone."""
    arguments = backbones.torchvision_arguments(encoder.name, encoder.image_size)
    head = "fc" if encoder.name in ENCODERS else backbones.head_path(encoder.net, nn.Identity)
    listed = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return _TORCHVISION.format(**described, arguments=listed, head=head)
