"""The methods by name. A new method is one file here and one line below."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayssl.pipeline.methods.base import Method

# Names only, so that a list of recipes or a misspelt name does not cost an import of torch.
METHODS = {
    "simclr": "rayssl.pipeline.methods.simclr:SimCLR",
    "rotnet": "rayssl.pipeline.methods.rotnet:RotNet",
    "essl": "rayssl.pipeline.methods.essl:ESSL",
    "distill": "rayssl.pipeline.methods.distill:Distill",
    "autoencoder": "rayssl.pipeline.methods.autoencoder:Autoencoder",
    "pixelcnn": "rayssl.pipeline.methods.pixelcnn:PixelCNN",
}


def load_method(name: str) -> "type[Method[Any]]":
    """The class of a method, by its name in METHODS."""
    module, cls = METHODS[name].split(":")
    found: type[Method[Any]] = getattr(importlib.import_module(module), cls)
    return found
