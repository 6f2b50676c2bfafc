"""The whole configuration of a run: frozen dataclasses, one override path, JSON with a schema version.

Every value has one dotted path (`train.epochs`), the same on the command line, in Python and in a saved run.
Leaf code never sees these objects: it takes plain arguments.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.methods import load_method

if TYPE_CHECKING:
    from rayssl.pipeline.models.backbones import Architecture

SCHEMA = 1
LISTS = ("data.classes",)  # where there may be none, and text stands for several

Positive = Annotated[int, Gt(0)]
NonNegative = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Le(2**62)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Gt(0), Le(1)]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are read."""

    __pydantic_config__ = _STRICT
    path: str = "digits"  # folder, parquet, tar shards, URL, or the name of a data set
    image_size: Positive | None = None  # side in pixels; None: the images' own size, 224 where sizes differ
    channels: Positive | None = None  # None: 1 where every image is grey, else 3
    limit: Positive | None = None  # use only so many training images, drawn by the seed
    val_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1  # fraction of train that becomes the validation split
    classes: tuple[str, ...] | None = None  # train on images of these alone; test images stay as they are
    splits: str = "auto"  # auto, none, folder (names of folders), or a CSV with the columns path and split
    labels: str = "auto"  # auto, folder, none, or a CSV with the columns path, label and, optionally, group
    key: Literal["first", "last"] = "first"  # in tar shards: which dot of a name ends a sample's key
    image_column: str | None = None  # of parquet files; None: told by names and types
    label_column: str | None = None
    range: str = "auto"  # LOW,HIGH: values that become black and white, of more than 8 bits; type: by each image's type
    background: str = "auto"  # of transparent images: auto, white, black, grey or #rrggbb
    loader: Literal["auto", "resident", "stream"] = "auto"  # decode once into a cache, or on demand
    processes: NonNegative | None = None  # loader processes a worker; None: chosen by the work


@dataclass(frozen=True)
class AugmentConfig:
    """What the views are made of; the method's own views unless a file says otherwise."""

    __pydantic_config__ = _STRICT
    spec: str | None = None  # a JSON spec of this project, or a pipeline saved with albumentations' A.save
    backend: Literal["auto", "fastest", "albumentations", "batched"] = "auto"  # auto: by device; fastest: measured once
    mirror: bool | None = None  # whether a mirror image means the same; None: told by the data set's name
    crop: Share | None = None  # smallest share of the area that a view shows; None: the method's own views
    color: Annotated[float, Ge(0), Le(2)] | None = None  # strength of jitter, grey and blur, 1 as SimCLR's
    views: tuple[dict[str, Any], ...] | None = None  # resolved specs, one a view; written by the run itself


@dataclass(frozen=True)
class EncoderConfig:
    """The network that is kept."""

    __pydantic_config__ = _STRICT
    name: str = "resnet-tiny"
    weights: str | None = None  # a torchvision weights name or a file to start from
    stem: Literal["auto", "large", "small", "tiny"] = "auto"  # auto: by image size
    latent_dim: Positive | None = None  # size of the code, channels of pixelcnn; None: as it comes
    depth: Positive | None = None  # layers, of deep and pixelcnn
    kernel: Positive | None = None  # side of the convolutions of conv, of the first one of pixelcnn
    width: Positive | None = None  # times the channels of a ResNet; None: as it comes

    @property
    def architecture(self) -> "Architecture":
        """What is said of the network's size."""
        from rayssl.pipeline.models.backbones import Architecture

        return Architecture(**{one.name: getattr(self, one.name) for one in dataclasses.fields(Architecture)})


@dataclass(frozen=True)
class TrainConfig:
    """Pre-training."""

    __pydantic_config__ = _STRICT
    epochs: Positive = 100
    minutes: PositiveFloat | None = None  # of training steps alone: start and evaluation come on top
    batch_size: Positive = 256  # of all workers together
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"  # the network; on one GPU the step is recorded as a CUDA graph, too
    seed: Seed = 0
    optimizer: Literal["sgd", "adamw", "lars", "muon"] = "sgd"
    learning_rate: PositiveFloat = 0.06  # at a batch of 256; scaled linearly with the batch (not for adamw, muon)
    weight_decay: NonNegativeFloat = 5e-4  # never on biases and normalisation
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    nesterov: bool = False
    warmup_epochs: NonNegativeFloat = 0.0  # linear; then a cosine to zero
    clip_grad: PositiveFloat | None = None  # largest norm of the gradient
    small_views: Annotated[float, Ge(0), Lt(1)] = 0.0  # share of the steps, the first, with views of half the side
    steps: Positive | None = None  # optimiser steps; None: from the epochs. Written by a run with `minutes`
    checkpoint_minutes: PositiveFloat = 5.0
    checkpoint_epochs: Positive = 10
    keep_checkpoints: Positive = 2
    threads: Positive | None = None  # torch threads a worker; None: what Ray gives it
    guard: Literal["auto", "yes", "no"] = "auto"  # keep the best state and stop below the start; auto: of given weights
    layer_decay: Share = 1.0  # the learning rate of a stage is so many times that of the next one
    freeze: NonNegative = 0  # stages, from the input on, that are not trained
    lora: Positive | None = None  # rank of the adapters that are trained instead of the weights (peft)


@dataclass(frozen=True)
class ProbeConfig:
    """Linear classifiers on frozen features, one for every stage of the encoder."""

    __pydantic_config__ = _STRICT
    epochs: Positive = 50
    batch_size: Positive = 512
    learning_rates: tuple[PositiveFloat, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    weight_decays: tuple[NonNegativeFloat, ...] = (0.0, 1e-3)
    pool: Positive = 2  # feature maps are averaged to at most pool × pool cells


@dataclass(frozen=True)
class FinetuneConfig:
    """The whole network trained with few labels."""

    __pydantic_config__ = _STRICT
    label_fraction: Share = 0.1
    labels_per_class: Positive | None = None  # instead of the fraction
    epochs: Positive = 20
    batch_size: Positive = 128
    learning_rate: PositiveFloat = 0.05
    weight_decay: NonNegativeFloat = 5e-4
    draws: Positive = 3  # independent draws of the labelled images
    scratch: bool = False  # also the same network without pre-training, on the same draws


@dataclass(frozen=True)
class EvaluateConfig:
    """Metrics on the embeddings."""

    __pydantic_config__ = _STRICT
    k: Positive = 20
    temperature: PositiveFloat = 0.07
    clusters: Positive | None = None  # None: as many as classes


@dataclass(frozen=True)
class SearchConfig:
    """The vectors that are indexed and served (pipeline/search)."""

    __pydantic_config__ = _STRICT
    vectors: str = "auto"  # auto: chosen on validation images; last: the last stage; else NAME[:STAGE[:POOL]]
    whiten: Literal["auto"] | bool = "auto"  # auto: chosen too
    dim: Literal["auto"] | Positive = "auto"  # most numbers in a vector; auto: 256, and the last stage as wide as it is
    copy_weights: bool = True  # of pretrained networks that are searched by, into the run folder


@dataclass(frozen=True)
class IndexConfig:
    """The FAISS index."""

    __pydantic_config__ = _STRICT
    factory: str = "auto"  # a FAISS factory string, or auto: by the number of vectors and the memory
    memory: str | None = None  # of auto, e.g. 2GB: what the index may take; None: as much as a recall near 1 needs
    recall: Share = 0.99  # that the effort of an approximate index is chosen for, at 10 neighbours
    whiten: bool = False  # as search.whiten says it now: here for runs that were written before


@dataclass(frozen=True)
class ClusterConfig:
    """Where it runs."""

    __pydantic_config__ = _STRICT
    workers: Positive = 1
    gpu_per_worker: NonNegativeFloat | None = None  # None: one where there are GPUs
    cpu_per_worker: PositiveFloat | None = None  # None: the machine's cores shared evenly
    address: str | None = None  # an existing cluster; None: this machine
    max_failures: NonNegative = 3  # dead workers before the run gives up


@dataclass(frozen=True)
class Config:
    """One run."""

    __pydantic_config__ = _STRICT
    recipe: str = ""
    method: Any = None  # a method's MethodConfig, which has its name; None: an encoder that is used as it comes
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    # Paths that a recipe leaves open: they are planned from the data when a run starts, unless they are given.
    plan: tuple[str, ...] = ()
    # Values by path that a recipe has for a GPU; those in the fields are for a CPU. Where training runs is known when a
    # run starts (`for_device`), and nothing of it is left in a saved run. What `override` gives counts on both.
    on_gpu: dict[str, Any] = field(default_factory=dict)


def method_config(name: str, **values: Any) -> Any:
    """The Config of the method `name`; raises UserError for an unknown method or value."""
    return _validate(load_method(name).Config, {"name": name, **values}, "method.")


def method_name(config: Config) -> str | None:
    """The name of the run's method, or None."""
    return None if config.method is None else str(config.method.name)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain JSON values; the method is told by `method.name`."""
    values = dataclasses.asdict(config)
    values["method"] = values["method"] or {"name": None}
    if not config.on_gpu:  # as of every run: where it trains is decided
        del values["on_gpu"]
    return {"schema": SCHEMA, **json.loads(json.dumps(values))}


def from_dict(values: Mapping[str, Any]) -> Config:
    """Back from `to_dict`; raises UserError on another schema version, an unknown key or a wrong value."""
    values = dict(values)
    schema = values.pop("schema", None)
    if schema != SCHEMA:
        raise UserError(f"config schema is {schema!r}: this version reads schema {SCHEMA}")
    if isinstance(values.get("data"), dict) and values["data"].get("labels", "") is None:  # what is "auto" now
        values["data"] = {**values["data"], "labels": "auto"}
    if isinstance(values.get("data"), dict) and "range" not in values["data"]:  # written when nothing else was known
        values["data"] = {**values["data"], "range": "type", "background": "white"}
    method = dict(values.pop("method", {}))
    name = method.pop("name", None)
    if name == "autoencoder" and method.get("latent_dim", 0) is None:  # what is encoder.latent_dim now
        del method["latent_dim"]
    config: Config = _validate(Config, values, "")
    return dataclasses.replace(config, method=None if name is None else method_config(name, **method))


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """A new config with dotted paths replaced, e.g. {"train.epochs": 5}; text is read as the field's type.

    Raises UserError for an unknown path (with the nearest one) or a value outside its range.
    """
    values = to_dict(config)
    if changes.get("encoder.name", config.encoder.name) != config.encoder.name:
        values["encoder"]["width"] = None  # it was said of the other network
        values.get("on_gpu", {}).pop("encoder.width", None)
    known = sorted(_paths(values))
    for path, value in changes.items():
        path = path.replace("-", "_")
        if path not in known or path == "method.name":
            raise UserError(f"unknown option --{path}{nearest(path, known)}: see --help, or config.json of a run")
        group, last = _place_of(path, values)
        group[last] = _from_text(path, value, group[last]) if isinstance(value, str) else value
        values["plan"] = [open_path for open_path in values["plan"] if not _settles(path, open_path)]
        values.get("on_gpu", {}).pop(path, None)
    return from_dict(values)


def assign(config: Config, values: Mapping[str, Any]) -> Config:
    """A new config with values at dotted paths, which are known; unlike `override` it says nothing of other paths."""
    changed = to_dict(config)
    for path, value in values.items():
        group, last = _place_of(path, changed)
        group[last] = value
    return from_dict(changed)


def for_device(config: Config, device: str) -> Config:
    """The config for training on "cpu" or "cuda": a recipe's values for a GPU are taken, unless others were given."""
    return dataclasses.replace(assign(config, config.on_gpu if device == "cuda" else {}), on_gpu={})


def _place_of(path: str, values: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The group that a dotted path lies in, and its name there."""
    *parents, last = path.split(".")
    for parent in parents:
        values = values[parent]
    return values, last


def _settles(path: str, planned: str) -> bool:
    """Whether a path that is given leaves nothing to be planned of another."""
    length = ("train.steps", "train.epochs", "train.minutes")
    rates = ("train.learning_rate", "train.weight_decay")  # an optimiser's own
    return (
        path == planned
        or (path in length and planned in length)
        or (path == "train.optimizer" and planned in rates)
        or (path == "augment.spec" and planned in ("augment.crop", "augment.color"))
    )


def save(config: Config, path: Path) -> None:
    """Write as JSON, whole or not at all."""
    from rayssl.pipeline.base.files import write_json

    write_json(path, to_dict(config))


def load(path: Path) -> Config:
    """Read a saved config; raises UserError where it is missing, damaged or of another schema version."""
    from rayssl.pipeline.base.documents import load as load_document
    from rayssl.pipeline.base.schemas import Document
    from rayssl.pipeline.base.seals import check

    remedy = "restore it, or start the run again in a new --out"
    values = load_document(path, Document, remedy, f"{path} does not exist: {path.parent} is not a run folder")
    check(path, remedy)
    try:
        return from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError):  # JSON, but not of this shape
        raise UserError(f"{path} is damaged (no config): restore it, or start the run again in a new --out") from None


def _paths(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    paths = []
    for key, value in values.items():
        if prefix == "" and key in ("schema", "recipe", "plan", "on_gpu"):
            continue
        if isinstance(value, dict):
            paths += _paths(value, f"{prefix}{key}.")
        else:
            paths.append(f"{prefix}{key}")
    return paths


def _from_text(path: str, text: str, current: Any) -> Any:
    if text == "null" or (text.lower() == "none" and not isinstance(current, str)):
        return None
    if (isinstance(current, list) or path in LISTS) and not text.startswith("["):
        return [part.strip() for part in text.split(",")]
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nested too deeply
            return text
    return text


@functools.cache  # a run reads its config some twenty times, and each of these takes 10 to 20 ms to make
def _adapter(cls: Any) -> "TypeAdapter[Any]":
    return TypeAdapter(cls)


def _validate(cls: Any, values: Mapping[str, Any], prefix: str) -> Any:
    try:
        return _adapter(cls).validate_python(values)
    except ValidationError as error:
        raise UserError(_one_line(cls, error, values, prefix)) from None


def _one_line(cls: Any, error: ValidationError, values: Mapping[str, Any], prefix: str) -> str:
    first = error.errors()[0]
    path = prefix + _place(first["loc"], values)
    if first["type"] == "unexpected_keyword_argument":
        fields = [f.name for f in dataclasses.fields(cls)]
        return f"unknown option --{path}{nearest(path.removeprefix(prefix), fields)}"
    same = [one["msg"] for one in error.errors() if prefix + _place(one["loc"], values) == path]
    wrong = " or ".join(f"{text[0].lower()}{text[1:]}" for text in dict.fromkeys(same))
    return f"--{path} is {first['input']!r}: {wrong}"


def _place(location: Sequence[str | int], values: Mapping[str, Any]) -> str:
    """The path of a value that is wrong; where it may be of several types, `location` goes on with one of them."""
    parts: list[str] = []
    inside: Any = values
    for part in location:
        if not isinstance(inside, Mapping):
            break
        parts.append(str(part))
        inside = inside.get(str(part), "")
    return ".".join(parts)
