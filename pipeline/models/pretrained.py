"""Pretrained networks: which weights are on this machine, at which size they see, under which licence.

Listing imports torchvision only where its cache has files, and timm never.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models.local_weights import (
    downloaded,
    hub_snapshots,
    is_installed,
    network_of,
    package_weights,
    timm_has,
)

if TYPE_CHECKING:
    from rayssl.pipeline.models.encoder import Encoder

FROZEN_MOST = 2  # that a run compares itself with, frozen
TIMM = "timm/"  # before a name, as in timm_networks, which imports torch
# A frozen network sees images at most at so many times their side: 32 pixels at 224. On 2,000 images of CIFAR-10
# (32 px) efficientnet_lite0 finds 67.4 % at four times their side and 73.6 % at seven times.
ENLARGED = 7
SMALLEST = 64  # pixels a side that a frozen network sees at least, where its own size is no smaller
PATCHES = (14, 16, 32)  # sides in pixels that a network may want a multiple of
TORCHVISION, HUB, PACKAGE, FILE = "torchvision cache", "timm/hub cache", "package", "file"


class Named(Protocol):
    """A network with weights, as --encoder.name and --encoder.weights name them."""

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> str: ...


@dataclass(frozen=True)
class Available:
    """Weights on this machine, and what to pass to use them."""

    name: str  # --encoder.name
    weights: str  # --encoder.weights
    source: str  # TORCHVISION, HUB, PACKAGE or FILE
    path: Path
    bytes: int
    licence: str  # as stated; of the hub's: where it is stated


def available() -> list[Available]:
    """What is on this machine, sorted: packages, torchvision's cache, the hub's cache."""
    return [*_packages(), *_torchvisions(), *_hubs()]


def own_size(name: str, weights: str | None = None) -> int | None:
    """The side in pixels that a network with these weights was made for; None where nothing is known.

    UserError for a timm name that timm lacks.
    """
    if name.startswith(TIMM):
        from rayssl.pipeline.models.timm_networks import config_of, tags_of

        tag = weights if weights is not None and weights in tags_of(name) else ""
        return int(config_of(name, tag)["input_size"][-1])
    member = torchvision_member(name, weights) if weights is not None else None
    return _crop_size(member) if member is not None else None


def pretrained_encoder(given: Named, *, channels: int, image_side: int, enlarged: int = ENLARGED) -> "Encoder":
    """A network with its weights in eval mode, for images that really are there at `image_side` pixels a side.

    It sees them at its own size, or at the size it can take that is nearest to `enlarged` times theirs where that is
    smaller. UserError where it cannot be built.
    """
    from rayssl.pipeline.models.encoder import build_encoder

    own = own_size(given.name, given.weights) or max(SMALLEST, image_side)
    wanted = min(own, max(SMALLEST, enlarged * image_side))
    sizes = _sizes_near(wanted, own)
    for size in sizes[:-1]:
        try:
            return build_encoder(given.name, channels=channels, image_size=size, weights=given.weights).eval()
        except UserError as error:
            if "cannot take images" not in str(error):
                raise
    return build_encoder(given.name, channels=channels, image_size=sizes[-1], weights=given.weights).eval()


def licence_of(name: str, weights: str | None) -> str:
    """Under what licence the weights of a network may be used, as far as it is stated.

    weights: as --encoder.weights; None: none, so nobody's. UserError where there are no such weights.
    """
    from rayssl.pipeline.models.local_weights import package_file
    from rayssl.pipeline.models.weights import OWN, packaged_licence, timm_licence, torchvision_licence

    if weights is None or os.path.isdir(weights):
        return OWN
    if os.path.isfile(weights):
        return "not stated"
    if (packaged := package_file(weights)) is not None:
        return packaged_licence(packaged)
    if name.startswith(TIMM):
        from rayssl.pipeline.models.timm_networks import config_of

        return timm_licence(config_of(name, "" if weights == "DEFAULT" else weights))
    member = torchvision_member(name, weights)
    if member is None:
        raise UserError(f"{weights} names no weights of {name}")
    return torchvision_licence(member.meta)


def taught_by(teacher: "Encoder") -> tuple[dict[str, str], ...]:
    """What a student's `origins` get from its teacher: whose weights it has learned from, as encoder.json says it."""
    return tuple({**origin, "role": "teacher"} for origin in teacher.origins)


def _packages() -> Iterator[Available]:
    for one in package_weights():
        network = network_of(one.path)
        if timm_has(network):
            licence = f"{one.licence} (the package's; where the weights come from is not stated)"
            yield Available(f"{TIMM}{network}", one.package, PACKAGE, one.path, one.path.stat().st_size, licence)


def _torchvisions() -> Iterator[Available]:
    paths = {path.name: path for path in downloaded()}
    if not paths:
        return
    from torchvision import models

    from rayssl.pipeline.models.weights import torchvision_licence

    for name in models.list_models(module=models):
        for member in models.get_model_weights(name):
            if path := paths.get(member.url.rsplit("/", 1)[-1]):
                licence = torchvision_licence(member.meta)
                yield Available(name, member.name, TORCHVISION, path, path.stat().st_size, licence)


def _hubs() -> Iterator[Available]:
    if not is_installed("timm"):
        return
    for one in hub_snapshots():
        network, _, tag = one.repository.partition("/")[2].partition(".")
        if tag and timm_has(network):
            licence = f"see https://huggingface.co/{one.repository}"
            yield Available(f"{TIMM}{network}", tag, HUB, one.path, one.path.stat().st_size, licence)


def _sizes_near(wanted: int, own: int) -> list[int]:
    """Sides to try, the wanted one first, then multiples of patches near it, then the own one."""
    rounded = [max(1, round(wanted / patch)) * patch for patch in PATCHES]
    return list(dict.fromkeys([wanted, *rounded, own]))


def torchvision_member(name: str, weights: str | None) -> Any:
    """torchvision's entry of weights; None where it has none of that name."""
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    return models.get_model_weights(name).__members__.get(weights or "")


def _crop_size(member: Any) -> int:
    crop = member.transforms().crop_size
    return int(crop[0] if isinstance(crop, list | tuple) else crop)
