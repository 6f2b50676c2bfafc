"""The methods by name. A new method is one file here and one line below, or an entry point of another package."""

import importlib
from typing import TYPE_CHECKING, Any

from rayssl.pipeline.base.errors import UserError, nearest

if TYPE_CHECKING:
    from rayssl.pipeline.methods.base import Method

# Names only, so that a list of recipes or a misspelt name does not cost an import of torch.
METHODS = {
    "simclr": "rayssl.pipeline.methods.simclr:SimCLR",
    "rotnet": "rayssl.pipeline.methods.rotnet:RotNet",
    "byol": "rayssl.pipeline.methods.byol:BYOL",
    "essl": "rayssl.pipeline.methods.essl:ESSL",
    "distill": "rayssl.pipeline.methods.distill:Distill",
    "autoencoder": "rayssl.pipeline.methods.autoencoder:Autoencoder",
    "pixelcnn": "rayssl.pipeline.methods.pixelcnn:PixelCNN",
}
ENTRY_POINTS = "rayssl.methods"  # the group in which other packages name theirs


def load_method(name: str) -> "type[Method[Any]]":
    """The class of a method, by its name in METHODS or as an entry point; raises UserError for an unknown name."""
    if name not in METHODS:
        return _load_from_elsewhere(name)
    module, cls = METHODS[name].split(":")
    found: type[Method[Any]] = getattr(importlib.import_module(module), cls)
    return found


def _load_from_elsewhere(name: str) -> "type[Method[Any]]":
    from importlib.metadata import entry_points

    others = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in others:
        known = [*METHODS, *sorted(others.keys() - METHODS.keys())]
        raise UserError(f"unknown method '{name}'{nearest(name, known)}: known are {', '.join(known)}")
    found: type[Method[Any]] = others[name].load()
    return found
