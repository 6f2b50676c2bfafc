"""Weights to start an encoder from: torchvision's by name, a file, or the export in a run folder."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones import RESNETS
from pipeline.errors import UserError

SCHEMA = 1  # of encoder.json
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "encoder.", "net.")  # what trainers put before a backbone's keys
_HEADS = ("fc", "classifier", "head", "heads", "aux1", "aux2", "AuxLogits")  # of classifiers: left out
_WRAPPERS = ("state_dict", "model_state_dict", "model", "encoder")  # where a checkpoint may keep its weights


@dataclass(frozen=True)
class Weights:
    """A state dict as it was found, with the normalisation and the stem that belong to it where known."""

    source: str  # for messages
    state: Mapping[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stem: str | None = None


def read_weights(name: str, weights: str, image_size: int, width: int = 1) -> Weights:
    """Weights for the encoder `name`, `width` times as wide, from a file, a run folder or torchvision.

    UserError if there are none.
    """
    path = Path(weights).expanduser()
    if path.name == "encoder.safetensors" and path.with_name("encoder.json").is_file():
        path = path.parent
    if path.is_dir():
        manifest, state = read_export(path)
        mean, std = tuple(manifest["mean"]), tuple(manifest["std"])
        return Weights(str(path), state, mean, std, manifest["stem"] if manifest["name"] == name else None)
    if path.is_file():
        return Weights(str(path), read_state(path))
    return named_weights(name, weights, image_size, width)


def read_export(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and the tensors of an exported encoder, after checking schema and sha256."""
    manifest = read_manifest(folder)
    path = folder / "encoder.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing; export the encoder again")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != manifest["sha256"]:
        raise UserError(f"{path} is damaged: its sha256 is not the one in encoder.json; export the encoder again")
    return manifest, read_state(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """encoder.json of a run folder; UserError if it is missing, damaged or of another schema."""
    path = folder / "encoder.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no encoder.json; give the folder of a run that was pre-trained") from None
    except (OSError, ValueError):
        raise UserError(f"{path} is not readable JSON; export the encoder again") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema!r}; this version reads schema {SCHEMA}")
    needed = {"name", "stem", "channels", "image_size", "mean", "std", "sha256"}
    if missing := sorted(needed - manifest.keys()):
        raise UserError(f"{path} is incomplete: {', '.join(missing)} missing; export the encoder again")
    return manifest  # type: ignore[no-any-return]


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors, .pt or .pth file; nothing in the file is executed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file: {error}") from None
    if path.suffix not in (".pt", ".pth"):
        raise UserError(f"cannot read weights from {path}; give a .safetensors, .pt or .pth file or a run folder")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile):
        raise UserError(f"{path} is damaged or holds more than tensors; save a plain state_dict") from None
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    state = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not state:
        raise UserError(f"{path} holds no state_dict; save one with torch.save(model.state_dict(), …)")
    return state


def named_weights(name: str, weights: str, image_size: int, width: int = 1) -> Weights:
    """Torchvision's weights by name, downloaded to torch's cache on first use."""
    from torchvision import models

    members = models.get_model_weights(name).__members__ if name in models.list_models(module=models) else {}
    if weights not in members:
        names = ", ".join(members) or "none"
        raise UserError(
            f"--encoder.weights {weights} is no file, no run folder and no name for {name} (names: {names})"
        )
    if width != 1:  # said before hundreds of megabytes are downloaded
        raise UserError(f"--encoder.width {width} does not go with {weights}, which has width 1: leave one out")
    member = members[weights]
    try:
        state = member.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot download {weights} for {name} ({reason}); give a file: --encoder.weights FILE"
        ) from None
    if name.startswith("vit_"):
        state = _interpolated(name, image_size, state)
    mean, std = member.transforms().mean, member.transforms().std
    if name in ("googlenet", "inception_v3"):  # trained on 0.5 / 0.5; torchvision converts inside the network
        mean = std = (0.5, 0.5, 0.5)
    return Weights(weights, state, tuple(mean), tuple(std))


def _interpolated(name: str, image_size: int, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A vision transformer's weights with position embeddings for another image size."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    patch = int(name.rsplit("_", 1)[1])
    found: Mapping[str, Tensor] = interpolate_embeddings(image_size, patch, dict(state))
    return found


def load_weights(net: nn.Module, name: str, weights: Weights) -> None:
    """Load weights into a backbone; UserError that says what is missing or of another shape.

    Known prefixes and classifier heads are dropped, and the first convolution is fitted to the number of channels.
    """
    wanted = net.state_dict()
    state = _without_prefixes(weights.state, wanted)
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    start = f"weights {weights.source} do not fit {name}: "
    if missing:
        raise UserError(f"{start}{len(missing)} of {len(wanted)} tensors are missing, e.g. {missing[0]}")
    parts = {k.split(".")[0] for k in wanted}.difference(_HEADS)
    if extra := [k for k in state if k not in wanted and k.split(".")[0] in parts]:
        raise UserError(f"{start}{len(extra)} tensors have no place, e.g. {extra[0]}")
    first = next((k for k, v in wanted.items() if v.ndim == 4), None)
    if first is not None:
        state[first] = fit_channels(state[first], wanted[first].shape[1])
    for key, value in wanted.items():
        if key in state and state[key].shape != value.shape:
            found, right = tuple(state[key].shape), tuple(value.shape)
            raise UserError(f"{start}{key} is {found} where {right} is needed{_hint(name, key, found, right)}")
    # Strict but for the counters, which weights from other trainers may lack.
    net.load_state_dict({k: state.get(k, v) for k, v in wanted.items()})


def _without_prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with known prefixes taken off until a key is one of the wanted."""
    found = {key: value for key, value in state.items() if key in wanted}
    for key, value in state.items():
        short = key
        while short not in wanted and (prefix := next((p for p in _PREFIXES if short.startswith(p)), "")):
            short = short.removeprefix(prefix)
        found.setdefault(short, value)
    return found


def fit_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution's weight (O, I, k, k) for another number of input channels.

    One channel gets the sum: on a grey image it answers as before. More get the old ones in turn, scaled by
    I / channels so that the activations keep their scale.
    """
    old = weight.shape[1] if weight.ndim == 4 else channels
    if old == channels:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % old] * (old / channels)


def _hint(name: str, key: str, found: tuple[int, ...], right: tuple[int, ...]) -> str:
    """What to do about a first convolution of another width or kernel size."""
    if key != "conv1.weight" or len(found) != 4:
        return ""
    if found[2:] == right[2:]:
        return "; use another --encoder.width" if name in RESNETS else ""
    return f"; use --encoder.stem {'large' if found[2] == 7 else 'small'}"
