"""rayssl for Python: what a run left behind, and the parts to build on.

    import rayssl

    data = rayssl.open_dataset("photos", image_size=96)         # folder, parquet, tar shards, URL or a name
    encoder = rayssl.load_encoder("runs/photos")                # images (B, C, H, W) in [0, 1] to features (B, D)
    train = rayssl.load_embeddings("runs/photos/embeddings/photos/train.parquet")
    found = rayssl.query("runs/photos", ["holiday.jpg"], k=10)  # [{"query": …, "neighbors": [{"rank": 1, …}]}]
    opened = rayssl.open_index("runs/photos")                   # loaded once, asked many times: opened.search(…)
    server = rayssl.connect("http://127.0.0.1:8000")            # what `rayssl serve` serves: server.search(…)

    config = rayssl.override(rayssl.build_recipe("simclr-folder"), {"data.path": "photos", "train.epochs": 50})
    best = rayssl.tune(config, "runs/tuned", space=rayssl.build_space(["crop", "color", "blur"]))
    rayssl.run(config, "runs/photos")                           # in a script: below `if __name__ == "__main__":`

Folders and files may be given as text or as pathlib.Path. Wrong input raises
rayssl.UserError, whose text is one line. Nothing is imported before it is asked for: `import rayssl` costs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from rayssl.pipeline import __version__

if TYPE_CHECKING:
    from rayssl.pipeline.augment import Spec, load_views
    from rayssl.pipeline.base.errors import UserError
    from rayssl.pipeline.config import Config, override
    from rayssl.pipeline.data import Dataset, open_dataset
    from rayssl.pipeline.evaluation.measure import evaluate_embeddings
    from rayssl.pipeline.evaluation.records import read_evaluation
    from rayssl.pipeline.launch.runs import run
    from rayssl.pipeline.launch.tune import tune
    from rayssl.pipeline.models.encoder import Encoder, build_encoder
    from rayssl.pipeline.models.export import export_encoder, load_encoder
    from rayssl.pipeline.recipes import build_recipe
    from rayssl.pipeline.report import write_comparison, write_report
    from rayssl.pipeline.search.embeddings import Embeddings, load_embeddings, save_embeddings
    from rayssl.pipeline.search.index import build_index, load_index, search
    from rayssl.pipeline.search.query import OpenIndex, open_index, query
    from rayssl.pipeline.service.client import connect
    from rayssl.pipeline.tune.search import TuneSettings
    from rayssl.pipeline.tune.space import Parameter, Space, build_space

# Public name → the module that it comes from.
_NAMES = {
    "Config": "rayssl.pipeline.config",
    "Dataset": "rayssl.pipeline.data",
    "Embeddings": "rayssl.pipeline.search.embeddings",
    "Encoder": "rayssl.pipeline.models.encoder",
    "OpenIndex": "rayssl.pipeline.search.query",
    "Parameter": "rayssl.pipeline.tune.space",
    "Space": "rayssl.pipeline.tune.space",
    "Spec": "rayssl.pipeline.augment",
    "TuneSettings": "rayssl.pipeline.tune.search",
    "UserError": "rayssl.pipeline.base.errors",
    "build_encoder": "rayssl.pipeline.models.encoder",
    "build_index": "rayssl.pipeline.search.index",
    "build_recipe": "rayssl.pipeline.recipes",
    "build_space": "rayssl.pipeline.tune.space",
    "connect": "rayssl.pipeline.service.client",
    "evaluate_embeddings": "rayssl.pipeline.evaluation.measure",
    "export_encoder": "rayssl.pipeline.models.export",
    "load_embeddings": "rayssl.pipeline.search.embeddings",
    "load_encoder": "rayssl.pipeline.models.export",
    "load_index": "rayssl.pipeline.search.index",
    "load_views": "rayssl.pipeline.augment",
    "open_dataset": "rayssl.pipeline.data",
    "open_index": "rayssl.pipeline.search.query",
    "override": "rayssl.pipeline.config",
    "query": "rayssl.pipeline.search.query",
    "read_evaluation": "rayssl.pipeline.evaluation.records",
    "run": "rayssl.pipeline.launch.runs",
    "save_embeddings": "rayssl.pipeline.search.embeddings",
    "search": "rayssl.pipeline.search.index",
    "tune": "rayssl.pipeline.launch.tune",
    "write_comparison": "rayssl.pipeline.report",
    "write_report": "rayssl.pipeline.report",
}

__all__ = [
    "Config",
    "Dataset",
    "Embeddings",
    "Encoder",
    "OpenIndex",
    "Parameter",
    "Space",
    "Spec",
    "TuneSettings",
    "UserError",
    "__version__",
    "build_encoder",
    "build_index",
    "build_recipe",
    "build_space",
    "connect",
    "evaluate_embeddings",
    "export_encoder",
    "load_embeddings",
    "load_encoder",
    "load_index",
    "load_views",
    "open_dataset",
    "open_index",
    "override",
    "query",
    "read_evaluation",
    "run",
    "save_embeddings",
    "search",
    "tune",
    "write_comparison",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'rayssl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value  # the next time it is found without this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
