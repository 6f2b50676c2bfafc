"""The methods by name. A new method is one file here and one line below."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.methods.base import Method

# Names only, so that a list of recipes or a misspelt name does not cost an import of torch.
METHODS = {
    "simclr": "pipeline.methods.simclr:SimCLR",
    "rotnet": "pipeline.methods.rotnet:RotNet",
    "essl": "pipeline.methods.essl:ESSL",
    "distill": "pipeline.methods.distill:Distill",
    "autoencoder": "pipeline.methods.autoencoder:Autoencoder",
    "pixelcnn": "pipeline.methods.pixelcnn:PixelCNN",
}


def load_method(name: str) -> "type[Method[Any]]":
    """The class of a method, by its name in METHODS."""
    module, cls = METHODS[name].split(":")
    found: type[Method[Any]] = getattr(importlib.import_module(module), cls)
    return found
