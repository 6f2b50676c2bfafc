"""rayssl for Python: what a run left behind, and the parts to build on.

    import rayssl

    data = rayssl.open_dataset("photos", image_size=96)         # folder, parquet, tar shards, URL or a name
    encoder = rayssl.load_encoder("runs/photos")                # images (B, C, H, W) in [0, 1] to features (B, D)
    train = rayssl.load_embeddings("runs/photos/embeddings/photos/train.parquet")
    found = rayssl.query("runs/photos", ["holiday.jpg"], k=10)  # [{"query": …, "neighbors": [{"rank": 1, …}]}]

    config = rayssl.override(rayssl.build_recipe("simclr-folder"), {"data.path": "photos", "train.epochs": 50})
    best = rayssl.tune(config, "runs/tuned", space=rayssl.build_space(["crop", "color", "blur"]))
    rayssl.run(config, "runs/photos")                           # in a script: below `if __name__ == "__main__":`

Folders and files may be given as text or as pathlib.Path. Wrong input raises
rayssl.UserError, whose text is one line. Nothing is imported before it is asked for: `import rayssl` costs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipeline import __version__

if TYPE_CHECKING:
    from pipeline.augment import Spec, load_views
    from pipeline.base.errors import UserError
    from pipeline.config import Config, override
    from pipeline.data import Dataset, open_dataset
    from pipeline.evaluation.measure import evaluate_embeddings
    from pipeline.evaluation.records import read_evaluation
    from pipeline.launch.runs import run
    from pipeline.launch.tune import tune
    from pipeline.models.encoder import Encoder, build_encoder
    from pipeline.models.export import export_encoder, load_encoder
    from pipeline.recipes import build_recipe
    from pipeline.report import write_comparison, write_report
    from pipeline.search.embeddings import Embeddings, load_embeddings, save_embeddings
    from pipeline.search.index import build_index, load_index, search
    from pipeline.search.query import query
    from pipeline.tune.search import TuneSettings
    from pipeline.tune.space import Parameter, Space, build_space

# Public name → the module that it comes from.
_NAMES = {
    "Config": "pipeline.config",
    "Dataset": "pipeline.data",
    "Embeddings": "pipeline.search.embeddings",
    "Encoder": "pipeline.models.encoder",
    "Parameter": "pipeline.tune.space",
    "Space": "pipeline.tune.space",
    "Spec": "pipeline.augment",
    "TuneSettings": "pipeline.tune.search",
    "UserError": "pipeline.base.errors",
    "build_encoder": "pipeline.models.encoder",
    "build_index": "pipeline.search.index",
    "build_recipe": "pipeline.recipes",
    "build_space": "pipeline.tune.space",
    "evaluate_embeddings": "pipeline.evaluation.measure",
    "export_encoder": "pipeline.models.export",
    "load_embeddings": "pipeline.search.embeddings",
    "load_encoder": "pipeline.models.export",
    "load_index": "pipeline.search.index",
    "load_views": "pipeline.augment",
    "open_dataset": "pipeline.data",
    "override": "pipeline.config",
    "query": "pipeline.search.query",
    "read_evaluation": "pipeline.evaluation.records",
    "run": "pipeline.launch.runs",
    "save_embeddings": "pipeline.search.embeddings",
    "search": "pipeline.search.index",
    "tune": "pipeline.launch.tune",
    "write_comparison": "pipeline.report",
    "write_report": "pipeline.report",
}

__all__ = [
    "Config",
    "Dataset",
    "Embeddings",
    "Encoder",
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
    "evaluate_embeddings",
    "export_encoder",
    "load_embeddings",
    "load_encoder",
    "load_index",
    "load_views",
    "open_dataset",
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
