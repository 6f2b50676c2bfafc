"""Encoders: from images in [0, 1] to features (B, D) and the maps of every stage.

Shapes: B images, C channels, H × W pixels, D features; C_s, H_s, W_s of a stage s.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.models.backbones import (
    AS_IT_COMES,
    RESNETS,
    TAKES,
    Architecture,
    Backbone,
    Coded,
    build_backbone,
    choose_stem,
    normalise,
    pooled,
    smallest_image,
)
from rayssl.pipeline.models.timm_networks import TIMM, build_timm, config_of, find_stages, is_timm, spread, timm_stages
from rayssl.pipeline.models.weights import OWN, Weights, load_weights, read_weights

# The project's own; every torchvision classifier's name works too, and timm/NAME.
ENCODERS = (*RESNETS, "cnn-small", "mlp", "linear", "deep", "conv", "pixelcnn")
STEMS = ("auto", "large", "small", "tiny")

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of [0, 1] images

T = TypeVar("T")


class Encoder(nn.Module):
    """A backbone `net` with the normalisation of its input.

    `dim` is D; `stage_names` are the keys of `stages`, the last of them "features"; `image_size` is the side in
    pixels that it was built for; `mean` and `std` (C,) are buffers, in units of the [0, 1] input. `epsilon` is that of
    every BatchNorm where weights want another than the network comes with.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        stem: str,
        channels: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        architecture: Architecture = AS_IT_COMES,
        epsilon: float | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.epsilon = epsilon
        for layer in net.modules():
            if epsilon is not None and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eps = epsilon
        self.architecture = architecture
        self.name = name
        self.stem = stem
        self.channels = channels
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        # Of a blank image a map could be its own mean by chance.
        noise = torch.rand(1, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
        self._taps = in_eval(net, lambda: _taps_of(name, net, noise))
        found = in_eval(net, lambda: _outputs(name, net, noise, self._taps))
        if found["features"].ndim != 2:
            raise ValueError(f"it gives {tuple(found['features'].shape[1:])} for an image and no vector")
        self.stage_names = tuple(found)
        self.dim = int(found["features"].shape[1])
        self.origins: tuple[dict[str, str], ...] = ()  # of third parties: whose weights this has learned from
        self.renamed = 0  # tensors of the weights that were told by their order
        self.pools_last_map = not self.has_code and _are_pooled(found)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to features (B, D)."""
        features: Tensor = self.net(normalise(x, self.mean, self.std))
        return features

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) in [0, 1] to the output of every stage, (B, C_s, H_s, W_s) or (B, D_s), in order.

        The last entry, "features", is (B, D) and what `forward` returns.
        """
        return _outputs(self.name, self.net, normalise(x, self.mean, self.std), self._taps)

    def told(self) -> tuple[str, ...]:
        """Lines about weights from elsewhere: what they are, under which licence, and what was guessed of them."""
        lines = [f"{one['role']} {one['name']}: {one['weights']}, licence {one['licence']}" for one in self.origins]
        if self.renamed:
            lines.append(f"{self.renamed} tensors have other names there: taken in their order, all shapes are equal")
        return tuple(lines)

    @property
    def has_code(self) -> bool:
        """Whether the features are a layer's output and no average of the last map."""
        return isinstance(self.net, Backbone) and self.net.has_code

    def feature_map(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to the last map before pooling, (B, C_last, h, w).

        Networks whose features are more than the mean of that map, or no map's, give them as (B, D, 1, 1): every layer
        of the network has a part in what is returned.
        """
        found = self.stages(x)
        if not self.pools_last_map:
            return found["features"][:, :, None, None]
        return [value for value in found.values() if value.ndim == 4][-1]

    def output_shape(self, call: Callable[[Tensor], Tensor]) -> tuple[int, ...]:
        """The shape, without B, of what `call` makes of an image (1, C, H, W); nothing of the encoder is changed."""
        return tuple(in_eval(self, lambda: call(self.blank_image())).shape[1:])

    def blank_image(self) -> Tensor:
        """(1, C, H, W) zeros of the encoder's type and on its device."""
        shape = (1, self.channels, self.image_size, self.image_size)
        return torch.zeros(shape, dtype=self.mean.dtype, device=self.mean.device)

    def before_code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, D), and (B, E) what the layer that makes them sees; of a pooled map: the map itself."""
        found = list(self.stages(x).values())
        before = found[-2] if len(found) > 1 else normalise(x, self.mean, self.std)
        return found[-1], before.flatten(1)


def build_encoder(
    name: str,
    *,
    channels: int,
    image_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stem: str = "auto",
    weights: str | None = None,
    epsilon: float | None = None,
    **sizes: int | None,
) -> Encoder:
    """An encoder by name, in training mode, initialised from torch's global generator or from `weights`.

    name: one of ENCODERS, any torchvision classifier, or timm/NAME. image_size: side in pixels. stem: one of STEMS.
    weights: a .safetensors, .pt or .pth file, a run folder, an installed package with one such file, or a name
    (DEFAULT, torchvision's IMAGENET1K_V1, timm's tag), which must be in the local caches: nothing is downloaded.
    mean, std: of [0, 1] images, one a channel; by default those of the weights, else timm's for its networks, else
    ImageNet's for three channels and 0.5 and 0.25 for any other number. epsilon: of every BatchNorm; by default what
    the weights want, else what the network comes with. sizes: fields of `Architecture`.
    UserError for anything that does not fit together.
    """
    if channels < 1 or image_size < 1:
        raise UserError(f"an encoder cannot take {channels} channels of {image_size} pixels; both start at 1")
    _check_name(name)
    architecture = Architecture(**sizes)
    _check_architecture(name, channels * image_size**2, architecture)
    start = read_weights(name, weights, image_size, architecture.width or 1) if weights is not None else None
    stem = _resolve_stem(name, stem, image_size, start)
    net = _build_net(name, channels, image_size, stem, architecture)
    renamed = 0
    if start is not None:
        own_code = any(key.startswith("code.") for key in start.state)
        renamed = load_weights(net.net if isinstance(net, Coded) and not own_code else net, name, start)
    if epsilon is None and start is not None:
        epsilon = start.epsilon
    default_mean, default_std = _default_normalisation(name, channels, start)
    mean, std = default_mean if mean is None else mean, default_std if std is None else std
    _check_normalisation(channels, mean, std)
    try:
        encoder = Encoder(
            net,
            name=name,
            stem=stem,
            channels=channels,
            image_size=image_size,
            mean=mean,
            std=std,
            architecture=architecture,
            epsilon=epsilon,
        )
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:  # images too small for it
        raise _cannot_take(name, channels, image_size, error) from None
    if start is not None:
        encoder.origins, encoder.renamed = origins_of(name, start), renamed
    return encoder


def origins_of(name: str, start: Weights) -> tuple[dict[str, str], ...]:
    """Whose weights an encoder starts from, as encoder.json says it; of an own run: whose that one started from."""
    if start.origins or start.licence == OWN:
        return start.origins
    described = {"name": name, "weights": start.source, "sha256": start.sha256, "licence": start.licence}
    return ({"role": "start", **described},)


def describe(encoder: Encoder) -> dict[str, Any]:
    """Size and cost: parameters of the backbone, FLOPs an image (a multiply-add counts two), dimension D.

    `depthwise`: numbers that depthwise convolutions give of an image, each times the side of its kernel. They have few
    operations, but wait for memory.
    """
    from rayssl.pipeline.models.flops import count_operations

    depthwise = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal depthwise
        depthwise += output.numel() * int(module.kernel_size[0])  # type: ignore[index]

    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    hooks = [convolution.register_forward_hook(count) for convolution in convolutions]
    try:
        with count_operations() as counter:
            encoder.output_shape(encoder)
    finally:
        for hook in hooks:
            hook.remove()
    parameters = sum(p.numel() for p in encoder.net.parameters())
    flops = counter.get_total_flops()
    return {"parameters": parameters, "flops": flops, "depthwise": depthwise, "dim": encoder.dim}


def _check_name(name: str) -> None:
    if name in ENCODERS:
        return
    if is_timm(name):
        config_of(name)
        return
    from torchvision import models

    known = [*ENCODERS, *models.list_models(module=models)]
    if name not in known:
        own = ", ".join(ENCODERS)
        others = f"a torchvision classifier or {TIMM}NAME"
        raise UserError(f"no encoder is called {name!r}{nearest(name, known)}; {own}, {others}")
    if name.startswith("mnasnet"):  # they load only state dicts with a version, which safetensors does not keep
        raise UserError(f"{name} cannot be kept as a safetensors file; use mobilenet_v3_small or another network")


def _resolve_stem(name: str, stem: str, image_size: int, start: Weights | None) -> str:
    """The stem that is meant: by the weights, else by the image size, where it is left open."""
    if stem not in STEMS:
        raise UserError(f"--encoder.stem {stem} is not one of {', '.join(STEMS)}")
    if name not in RESNETS:
        if stem != "auto":
            raise UserError(f"{name} does not take --encoder.stem {stem} (only {', '.join(RESNETS)} do): leave it out")
        return "auto"
    if stem == "auto":
        known = start.stem if start is not None else None
        stem = known or choose_stem(name, image_size)
    if image_size < (smallest := smallest_image(name, stem)):
        raise UserError(
            f"{name} with the {stem} stem needs images of at least {smallest} pixels, got {image_size}; "
            "use a smaller stem (--encoder.stem tiny), larger images or --encoder.name resnet-tiny"
        )
    return stem


def _check_architecture(name: str, pixels: int, architecture: Architecture) -> None:
    for key, value in architecture.given().items():
        if name not in TAKES[key]:
            option = f"--encoder.{key.replace('_', '-')} {value}"
            raise UserError(f"{name} does not take {option} (only {', '.join(TAKES[key])} do): leave it out")
    code = architecture.latent_dim
    if code is not None and code > pixels and name != "pixelcnn":  # whose width it is
        raise UserError(f"--encoder.latent-dim {code} is more than the {pixels} values of an image: use fewer")


def _build_net(name: str, channels: int, image_size: int, stem: str, architecture: Architecture) -> nn.Module:
    try:
        if is_timm(name):
            return build_timm(name, channels, image_size)
        return build_backbone(name, channels, image_size, stem, architecture)
    except (RuntimeError, AssertionError, ValueError) as error:  # a transformer's patches must fit the image
        raise _cannot_take(name, channels, image_size, error) from None


def _cannot_take(name: str, channels: int, image_size: int, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    advice = "try --data.image-size 224 or --encoder.name resnet18"
    if reason.startswith("a kernel of"):
        advice = "choose another --encoder.kernel"
    elif is_timm(name):
        advice = f"its own size is {config_of(name)['input_size'][-1]} (--data.image-size)"
    return UserError(f"{name} cannot take images of {image_size} pixels and {channels} channels ({reason}); {advice}")


def _default_normalisation(name: str, channels: int, start: Weights | None) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std that belong to the weights or to timm's network, or the project's defaults."""
    found = (start.mean, start.std) if start is not None else (None, None)
    if is_timm(name) and found[0] is None:
        config = config_of(name)
        found = (tuple(config["mean"]), tuple(config["std"]))
    mean, std = found
    if mean is not None and std is not None:
        if len(mean) == channels:
            return mean, std
        # The weights were spread over another number of channels: every channel gets the average one's.
        return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    if channels == 3:
        return _IMAGENET_MEAN, _IMAGENET_STD
    return (0.5,) * channels, (0.25,) * channels


def _check_normalisation(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != channels or len(std) != channels:
        raise UserError(f"{channels} channels need as many means and stds, got {len(mean)} and {len(std)}")
    if not all(math.isfinite(m) for m in mean) or not all(math.isfinite(s) and s > 0 for s in std):
        raise UserError(f"mean {list(mean)} and std {list(std)} must be finite, and std positive")


def in_eval(module: nn.Module, call: Callable[[], T]) -> T:
    """The value of `call()` without gradients and with `module` in eval mode, so that no statistic moves."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            return call()
    finally:
        for part, training in modes.items():
            part.training = training


def _taps_of(name: str, net: nn.Module, x: Tensor) -> dict[str, str] | dict[str, int]:
    """Where the stages of a network are that does not name them itself: a layer's path, or a position for timm's."""
    if name in ENCODERS:
        return {}
    return find_stages(net, x) if is_timm(name) else _find_taps(net, x)


def _outputs(name: str, net: nn.Module, x: Tensor, taps: Mapping[str, str | int]) -> dict[str, Tensor]:
    """Every stage's output and, last, "features" (B, D), in one pass over the network.

    The project's networks name their stages; `taps` says for another one which layer a stage is.
    """
    if is_timm(name):
        return timm_stages(net, x, {stage: int(position) for stage, position in taps.items()})
    if isinstance(net, Backbone):
        return net.stages(x)
    found = _recorded(net, x, {stage: str(path) for stage, path in taps.items()})
    return {stage: found[stage] for stage in (*taps, "features")}


def _are_pooled(found: dict[str, Tensor]) -> bool:
    """Whether the features are the last map, averaged."""
    features, maps = found["features"], [value for value in found.values() if value.ndim == 4]
    if not maps or maps[-1].shape[1] != features.shape[1]:
        return False
    return torch.allclose(pooled(maps[-1]), features, rtol=1e-4, atol=1e-6)


def _recorded(net: nn.Module, x: Tensor, paths: dict[str, str]) -> dict[str, Tensor]:
    """What the layers at `paths` (name to path) return when `net` sees x, and its own output as "features".

    Layers that are not called are missing. Maps come as (B, C, H, W), also Swin's (B, H, W, C) and, without the class
    token, a vision transformer's (B, 1 + H·W, C).
    """
    kind = type(net).__name__
    found: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if kind == "SwinTransformer":
            output = output.permute(0, 3, 1, 2)
        elif kind == "VisionTransformer":
            side = math.isqrt(output.shape[1] - 1)
            output = output[:, 1:].transpose(1, 2).reshape(output.shape[0], -1, side, side)
        found[name] = output

    hooks = [net.get_submodule(path).register_forward_hook(partial(keep, name)) for name, path in paths.items()]
    try:
        features = net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return {**found, "features": features}


def _find_taps(net: nn.Module, x: Tensor) -> dict[str, str]:
    """Stages of a torchvision network, name to path: the last layer of its trunk at every resolution.

    Of a vision transformer, whose maps all have one size: some of the blocks, evenly spread, and the last one.
    """
    if type(net).__name__ == "VisionTransformer":
        blocks = [path for path, _ in net.get_submodule("encoder.layers").named_children()]
        return {f"block{i + 1}": f"encoder.layers.{blocks[i]}" for i in spread(len(blocks))}
    trunk = next((part for part in ("features", "trunk_output", "layers", "blocks") if hasattr(net, part)), "")
    paths: dict[str, str] = {}
    for child, layer in net.get_submodule(trunk).named_children():
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            break  # behind the pooling there are features, not maps
        paths[child] = f"{trunk}.{child}" if trunk else child
    found = _recorded(net, x, paths)
    maps = {child: found[child] for child in paths if child in found and found[child].ndim == 4}
    last = {value.shape[2:]: child for child, value in maps.items()}  # later children replace earlier ones
    names = [f"stage{i}" if child.isdigit() else child for i, child in enumerate(last.values(), 1)]
    return dict(zip(names, (paths[child] for child in last.values()), strict=True))
