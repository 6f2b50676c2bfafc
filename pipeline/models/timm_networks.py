"""timm's networks: built without a classifier, with the stages they have, and weights as timm itself fits them.

timm is imported where one is asked for, and only there. Nothing is downloaded.
Shapes: B images, C channels, H × W pixels, D features; C_s, H_s, W_s of a stage s.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rayssl.pipeline.base.errors import UserError, nearest

TIMM = "timm/"  # before a name
COLUMN_STAGES = 4  # of a network whose maps all have one size: so many, evenly spread, the last one among them
# What timm's modules call the function that fits a state dict to a network, positions resampled.
_FILTERS = ("checkpoint_filter_fn", "checkpoint_filter_fn_encoder", "_filter_fn", "_filter_torchvision_pretrained")


def is_timm(name: str) -> bool:
    """Whether an encoder's name means one of timm's."""
    return name.startswith(TIMM)


def parts_of(name: str) -> tuple[str, str]:
    """Network and tag, "" where there is none, of "timm/NETWORK" or "timm/NETWORK.TAG"; UserError for other places."""
    rest = name.removeprefix(TIMM)
    if ":" in rest or "/" in rest:
        raise UserError(
            f"--encoder.name {name} asks another place for a network: give {TIMM}NETWORK, which timm itself defines, "
            "and a file as --encoder.weights"
        )
    network, _, tag = rest.partition(".")
    return network, tag


def import_timm() -> Any:
    """The package; UserError where it is not installed."""
    try:
        import timm
    except ImportError:
        raise UserError(
            f"an encoder {TIMM}… needs timm, which is not installed: uv pip install timm, or pip install 'rayssl[timm]'"
        ) from None
    return timm


def config_of(name: str, tag: str = "") -> dict[str, Any]:
    """What timm keeps of a network's weights: input_size, mean, std, license, where they are.

    tag: of the weights; by default the name's own, else timm's first. UserError for a name or tag that timm lacks.
    """
    timm = import_timm()
    network, own = parts_of(name)
    if not timm.is_model(network):
        close = nearest(name, [f"{TIMM}{one}" for one in timm.list_models()])
        raise UserError(f"timm {timm.__version__} has no network {network!r}{close}: timm.list_models() lists them")
    tag = tag or own
    try:
        found = timm.models.get_pretrained_cfg(f"{network}.{tag}" if tag else network, allow_unregistered=False)
    except RuntimeError:
        tags = tags_of(name)
        listed = f"there are {', '.join(tags)}" if tags else "there are none"
        raise UserError(f"{tag} names no weights of {TIMM}{network}{nearest(tag, tags)}: {listed}") from None
    config: dict[str, Any] = found.to_dict()
    return config


def tags_of(name: str) -> list[str]:
    """Names of the weights that timm knows for a network."""
    network, _ = parts_of(name)
    listed = import_timm().list_models(f"{network}.*", pretrained=True)
    return [one.partition(".")[2] for one in listed]


def arguments_of(name: str, channels: int, image_size: int) -> dict[str, Any]:
    """What timm's builder must be told beyond the name."""
    size = {"img_size": image_size} if config_of(name).get("fixed_input_size") else {}
    return {"num_classes": 0, "in_chans": channels, **size}


def build_timm(name: str, channels: int, image_size: int) -> nn.Module:
    """A randomly initialised network without classifier; ValueError where it cannot take the images.

    Dropout and stochastic depth are off: features that are trained on should not be noisy, and what torch's global
    generator draws would depend on interruptions and on the number of workers.
    """
    timm = import_timm()
    network, _ = parts_of(name)
    try:
        net: nn.Module = timm.create_model(network, pretrained=False, **arguments_of(name, channels, image_size))
    except TypeError as error:  # a network of one size, or of three channels
        raise ValueError(" ".join(str(error).split())) from None
    patch = patch_of(net)
    if patch is not None and image_size % patch:
        raise ValueError(f"the side must be a multiple of {patch}, the side of a patch")
    for layer in net.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
        elif type(layer).__name__ == "DropPath":
            layer.drop_prob = 0.0  # type: ignore[assignment]
    return net


def patch_of(net: nn.Module) -> int | None:
    """The side in pixels of the patches that a network cuts an image into, where it says so."""
    size = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    return int(size[0] if isinstance(size, Sequence) else size) if size is not None else None


def find_stages(net: nn.Module, x: Tensor) -> dict[str, int]:
    """Stages of a network, name to its position among those that timm gives: the last map of every resolution.

    Where all maps have one size, as a vision transformer's blocks, some of these. No stage where what timm makes of
    its maps is not what the network returns.
    """
    try:
        maps, features = _intermediates(net, x, None)
        same = torch.allclose(features, net(x), rtol=1e-3, atol=1e-5)
    except (AttributeError, NotImplementedError, AssertionError, TypeError, RuntimeError):
        return {}
    if not same or any(one.ndim != 4 for one in maps):
        return {}
    last = list({one.shape[2:]: number for number, one in enumerate(maps)}.values())  # later ones replace earlier ones
    if len(last) > 1 or len(maps) <= 1:
        return {f"stage{count}": number for count, number in enumerate(last, 1)}
    return {f"block{number + 1}": number for number in spread(len(maps))}


def spread(blocks: int) -> list[int]:
    """Positions of a few of so many blocks, evenly spread, the last one among them."""
    count = min(COLUMN_STAGES, blocks)
    return [-(-blocks * part // count) - 1 for part in range(1, count + 1)]


def timm_stages(net: nn.Module, x: Tensor, stages: Mapping[str, int]) -> dict[str, Tensor]:
    """Every stage's map (B, C_s, H_s, W_s) and, last, "features" (B, D), in one pass over the network."""
    if not stages:
        return {"features": net(x)}
    maps, features = _intermediates(net, x, sorted(stages.values()))
    return {**dict(zip(stages, maps, strict=True)), "features": features}


def _intermediates(net: Any, x: Tensor, positions: list[int] | None) -> tuple[list[Tensor], Tensor]:
    """Maps at those positions, by default all, each normalised as the network's last one is, and features (B, D)."""
    final, maps = net.forward_intermediates(x, indices=positions, norm=True, output_fmt="NCHW")
    return list(maps), net.forward_head(final)


def fit_state(net: nn.Module, name: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict as timm's own loader would fit it: keys of other trainers, positions for another image size.

    UserError where that fails.
    """
    module = sys.modules[import_timm().model_entrypoint(parts_of(name)[0]).__module__]
    fit = next((getattr(module, one) for one in _FILTERS if hasattr(module, one)), None)
    if fit is None:
        return state
    try:
        fitted: Mapping[str, Tensor] = fit(dict(state), net)
    except (KeyError, ValueError, RuntimeError, AttributeError, AssertionError, TypeError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"the weights do not fit {name} ({reason}): give those of this network") from None
    return fitted


def first_convolutions(net: nn.Module) -> tuple[str, ...]:
    """Keys of the weights that see the image."""
    named = getattr(net, "pretrained_cfg", {}).get("first_conv") or ()
    paths = (named,) if isinstance(named, str) else tuple(named)
    found = tuple(f"{path}.weight" for path in paths if path)
    keys = net.state_dict()
    return tuple(key for key in found if key in keys)
