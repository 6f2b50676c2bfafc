"""A search: its settings, what is checked before it starts, and the folder that it leaves."""

import itertools
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from pydantic import ConfigDict, TypeAdapter, ValidationError

from rayssl.pipeline import config as configuration
from rayssl.pipeline.augment import view_to_dict
from rayssl.pipeline.base.documents import load
from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.base.files import listed, write_json
from rayssl.pipeline.base.schemas import TuneFile
from rayssl.pipeline.base.seals import check, started
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.data.concluded import facts
from rayssl.pipeline.methods import load_method
from rayssl.pipeline.run.build import count_steps, traits_of
from rayssl.pipeline.run.estimate import check_disk
from rayssl.pipeline.run.identity import as_planned, flatten
from rayssl.pipeline.run.resolve import fit_batch, open_and_resolve
from rayssl.pipeline.run.software import describe_software
from rayssl.pipeline.tune.objectives import check_objective, measurable
from rayssl.pipeline.tune.space import DEFAULT, Candidate, Parameter, Space, build_space, parameter_from, read_space
from rayssl.pipeline.tune.trials import Trial

SCHEMA = 1
REPORTS = 4  # how often a trial is measured where a scheduler decides by it
GRID_LIMIT = 10_000
CHECKED = 16  # draws that are looked at before a search starts
SHARED = ("epochs", "steps", "minutes", "seed", "threads", "small_views")
ALIKE = ("method.name", "method.views", *(f"train.{name}" for name in SHARED))  # in all trials


Positive = Annotated[int, Gt(0)]


@dataclass(frozen=True)
class TuneSettings:
    """What `--tune.…` sets."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    space: str = ",".join(DEFAULT)  # names of operations, or a file
    parameters: str | None = None  # values of the config that are searched too, e.g. temperature,learning-rate
    order: bool = False  # whether the order of the operations is searched
    one_branch: bool | None = None  # augment one view, leave the others plain; None: for `pairs` only
    objective: Literal["auto", "knn", "probe", "rotation", "rankme", "alignment-uniformity"] = "auto"
    search: Literal["optuna", "random", "grid", "pairs"] = "optuna"
    scheduler: Literal["none", "asha", "median", "pbt"] = "none"
    trials: Positive | None = None  # None: 20; grid and pairs: all
    concurrent: Positive | None = None  # trials at a time; None: what the machine or cluster has room for
    share: Annotated[float, Gt(0), Le(1)] = 0.25  # of the recipe's steps that a trial takes
    levels: Positive = 3  # values of every parameter in a grid
    images: Positive = 10_000  # at most so many of train, and of the validation split, are looked at by an objective
    seed: Annotated[int, Gt(-1)] = 0  # of the search; the trials' own is train.seed


@dataclass(frozen=True)
class Search:
    """A search that can start."""

    out: Path
    config: Config  # resolved; what every candidate changes
    settings: TuneSettings
    space: Space
    objective: str
    trials: int
    labels: bool
    changes: dict[str, str] = field(default_factory=dict)  # what was set of the recipe on the command line, by path

    @property
    def reports(self) -> int:
        """How often a trial is measured."""
        return 1 if self.settings.scheduler == "none" else REPORTS

    def candidates(self) -> list[Candidate] | None:
        """The candidates by number where they are known beforehand; None: a searcher makes them."""
        if self.settings.search == "random":
            return [self.space.draw(self.settings.seed, number) for number in range(self.trials)]
        if self.settings.search == "grid":
            return list(itertools.islice(self.space.grid(self.settings.levels), self.trials))
        return self.space.pairs()[: self.trials] if self.settings.search == "pairs" else None

    def config_of(self, candidate: Candidate) -> Config:
        """The config of a trial; raises UserError where a value is out of range."""
        return candidate_config(self.config, self.space, candidate)

    def views_of(self, candidate: Candidate) -> list[dict[str, Any]]:
        """The specs of a candidate's views, as JSON."""
        return [view_to_dict(view) for view in self.space.views(candidate, len(self.config.augment.views or ()))]


def candidate_config(config: Config, space: Space, candidate: Candidate) -> Config:
    """A resolved config with a candidate's views and values."""
    config = configuration.override(config, space.changes(candidate))
    views = space.views(candidate, len(config.augment.views or ()))
    return replace(config, augment=replace(config.augment, views=tuple(map(view_to_dict, views))))


def parse_settings(changes: Mapping[str, str]) -> TuneSettings:
    """TuneSettings from text by name; raises UserError for an unknown name or a wrong value."""
    known = [field.replace("_", "-") for field in TuneSettings.__dataclass_fields__]
    values = {}
    for name, text in changes.items():
        if name.replace("_", "-") not in known:
            raise UserError(f"unknown option --tune.{name}{nearest(name, known)}: known are {', '.join(known)}")
        values[name.replace("-", "_")] = text
    return _validated(values)


def _validated(values: Mapping[str, Any]) -> TuneSettings:
    try:
        return TypeAdapter(TuneSettings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        message = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"--tune.{name} is {first['input']!r}: {message}") from None


def plan_search(
    config: Config,
    settings: TuneSettings,
    out: Path,
    *,
    space: Space | None = None,
    changes: Mapping[str, str] | None = None,
    warn: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> tuple[Search, Dataset]:
    """Resolve everything, and check it against a search that is there already; nothing is written.

    `space` takes the place of what the settings say of it; `changes` are shown in the command that uses the result.
    Raises UserError for what cannot work.
    """
    settings = _validated(asdict(settings))
    refuse_settings(config, out)
    if config.augment.backend == "fastest":
        warn("--augment.backend fastest: each trial would choose for itself, so it is auto for all of them")
        config = replace(config, augment=replace(config.augment, backend="auto"))
    opened, before = config.plan, config_before(out)
    if before is not None:
        config = as_planned(config, before)
    config, dataset = open_and_resolve(config, warn, progress)
    if before is None or "train.steps" not in opened:  # else they are the trials' own
        config = with_share(config, dataset, settings.share)
    check_disk(config, dataset, out)
    labels = "knn" in measurable(len(dataset.class_names or ()), dataset.val)
    objective = settings.objective if settings.objective != "auto" else "knn" if labels else "rotation"
    check_objective(objective, len(dataset.class_names or ()), dataset.val, dataset.path)
    space = fitting_space(space or space_of(settings, config), config, objective, warn)
    trials = count_trials(settings, space, config.cluster.workers)
    search = Search(out, config, settings, space, objective, trials, labels, dict(changes or {}))
    check_candidates(search)
    check_batches(search, dataset)
    if settings.scheduler == "pbt":
        check_population(search, dataset)
    check_same_search(search, dataset)
    return search, dataset


def config_before(out: Path) -> Config | None:
    """The config of the search that a folder holds already."""
    return configuration.from_dict(load_search(out)["config"]) if (out / "search.json").exists() else None


def refuse_settings(config: Config, out: Path) -> None:
    """Raises UserError for what a search makes itself, or cannot use."""
    if "://" in str(out):
        raise UserError(f"--out {out} is a URL: give a folder, on storage that all workers share")
    if config.augment.spec is not None:
        raise UserError(f"--augment.spec {config.augment.spec}: the search makes the augmentation itself: leave it out")
    if config.train.minutes is not None:
        raise UserError("--train.minutes cannot be used with tune, whose trials run equally long: use --train.epochs")


def with_share(config: Config, dataset: Dataset, share: float) -> Config:
    """A resolved config whose training takes a share of its steps; raises UserError where it trains nothing."""
    if config.method is None or not config.augment.views:
        raise UserError("this recipe trains nothing: name one that does, see rayssl recipes")
    _, steps = count_steps(config, len(dataset.train))
    return replace(config, train=replace(config.train, steps=max(1, round(share * steps))))


def fitting_space(space: Space, config: Config, objective: str, warn: Callable[[str], None]) -> Space:
    """The space without what means nothing for the images; warns of it, and of an objective that tells little."""
    check_paths(space, config)
    channels = config.data.channels or 3
    kept = space.for_channels(channels)
    if idle := set(space.operations) - set(kept.operations):
        warn(f"{', '.join(sorted(idle))} would change nothing about images with {channels} channel")
    if objective == "rotation" and (
        configuration.method_name(config) in ("rotnet", "essl") or "turns" in kept.operations
    ):
        warn("--tune.objective rotation tells little of an encoder that is trained to tell turns, or to ignore them")
    return kept


def space_of(settings: TuneSettings, config: Config) -> Space:
    """The space of --tune.space and --tune.parameters."""
    names, further = read_space(settings.space)
    others = {**further.get("others", {}), **named_parameters(settings.parameters, config)}
    one_branch = settings.one_branch
    if one_branch is None:
        one_branch = further.get("one_branch", settings.search == "pairs")
    if one_branch and len(config.augment.views or ()) < 2:
        one_branch = False
    order = settings.order or further.get("order", False)
    return build_space(names, ranges=further.get("ranges"), others=others, order=order, one_branch=one_branch)


def check_paths(space: Space, config: Config) -> None:
    """Raises UserError for a parameter that is no value of the method or of training."""
    known = [path for path in flatten(configuration.to_dict(config)) if path.startswith(("method.", "train."))]
    known = [path for path in known if path not in ALIKE]
    for path in space.config_paths:
        if path not in known:
            raise UserError(
                f"--tune.parameters has '{path}'{nearest(path, known)}: it must be a value of method.* or train.* that "
                "may differ from trial to trial"
            )


def named_parameters(text: str | None, config: Config) -> dict[str, Parameter]:
    """Parameters of `temperature,learning-rate,method.noise=0.1..0.6`: known names have ranges of their own."""
    usual = {
        "temperature": ("method.temperature", Parameter(0.05, 1.0, log=True)),
        "corruption": ("method.corruption", Parameter(values=("none", "gaussian", "salt-and-pepper", "masking"))),
        "learning-rate": ("train.learning_rate", _around(config.train.learning_rate)),
        "weight-decay": ("train.weight_decay", Parameter(1e-6, 1e-2, log=True)),
    }
    found = {}
    for word in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, limits = word.partition("=")
        if not equals and name not in usual:
            raise UserError(
                f"--tune.parameters has an unknown '{name}'{nearest(name, usual)}: known are {', '.join(usual)}, "
                "others with a range: method.noise=0.1..0.6"
            )
        path, parameter = usual.get(name, (name.replace("-", "_"), Parameter()))
        found[path] = parameter_from(name, _ends(name, limits)) if equals else parameter
    return found


def _around(value: float) -> Parameter:
    return Parameter(value / 4, value * 4, log=True)


def _ends(name: str, limits: str) -> list[float]:
    try:
        low, high = map(float, limits.split(".."))
    except ValueError:
        raise UserError(f"--tune.parameters {name}={limits}: the range must be LOW..HIGH, e.g. 0.1..0.6") from None
    return [low, high]


def count_trials(settings: TuneSettings, space: Space, workers: int) -> int:
    """How many trials there will be, of so many workers each; raises UserError for a number that cannot work."""
    if settings.scheduler == "pbt" and workers > 1:
        raise UserError(f"--cluster.workers is {workers}: a population's trials have one worker each")
    if settings.scheduler == "pbt" and settings.search != "random":
        raise UserError(f"--tune.search {settings.search} with --tune.scheduler pbt: a population starts from random")
    if settings.search in ("grid", "pairs"):
        there = len(space.pairs()) if settings.search == "pairs" else count_grid(settings, space)
        if there < 2:
            raise UserError(
                f"--tune.search {settings.search} has one candidate only: name more operations"
                f"{', or raise --tune.levels' if settings.search == 'grid' else ''}"
            )
        return min(settings.trials or there, there)
    trials = settings.trials or 20
    if settings.scheduler == "pbt" and trials < 4:
        raise UserError(f"--tune.trials is {trials}: a population needs at least 4")
    return trials


def count_grid(settings: TuneSettings, space: Space) -> int:
    """The candidates of a grid."""
    size = space.grid_size(settings.levels)
    if size > GRID_LIMIT:
        raise UserError(
            f"--tune.search grid has {size:,} candidates, more than {GRID_LIMIT:,}: name fewer operations, "
            "or lower --tune.levels"
        )
    return sum(1 for _ in space.grid(settings.levels))


def check_candidates(search: Search) -> list[Config]:
    """The configs of both ends of every range and of some draws; raises UserError where one takes a value not."""
    ends = [{name: parameter.levels(2)[end] for name, parameter in search.space.parameters.items()} for end in (0, -1)]
    draws = [search.space.draw(search.settings.seed, number) for number in range(CHECKED)]
    return [search.config_of(candidate) for candidate in (*ends, *draws)]


def check_batches(search: Search, dataset: Dataset) -> None:
    """Raises UserError for a batch of a candidate that the images or the workers do not make."""
    if (parameter := search.space.parameters.get("train.batch_size")) is None:
        return
    for size in parameter.levels(CHECKED):
        config = configuration.override(search.config, {"train.batch_size": size})
        if config.train.batch_size > len(dataset.train):
            raise UserError(f"a train.batch-size of {size} is searched: there are {len(dataset.train)} training images")
        fit_batch(config, dataset, warn=lambda text: None)


def check_population(search: Search, dataset: Dataset) -> None:
    """Raises UserError where a member of a population could not go on with the network of another."""
    if "train.optimizer" in search.space.parameters:
        raise UserError("--tune.scheduler pbt: a member goes on with another's optimiser: leave train.optimizer out")
    from rayssl.pipeline.run.build import new_encoder, required_method

    encoder, traits = new_encoder(search.config, weights=False), traits_of(search.config, dataset)
    shapes = []
    for config in check_candidates(search):
        method = load_method(required_method(config))(config.method, encoder, traits)
        shapes.append({name: value.shape for name, value in method.state_dict().items()})
    if any(found != shapes[0] for found in shapes):
        paths = ", ".join(path for path in search.space.config_paths if path.startswith("method."))
        raise UserError(
            f"--tune.scheduler pbt: members copy each other's networks, which {paths} make differ: search them by "
            "another scheduler"
        )


def check_same_search(search: Search, dataset: Dataset) -> None:
    """Raises UserError where the folder holds another search, or something else; more trials may be asked for."""
    if (search.out / "search.json").exists():
        before = load_search(search.out)
        now = json.loads(json.dumps(describe(search, dataset)["identity"]))
        if dataset.known_as(before["identity"]["data"]) is not None:  # the same images, wherever they are now
            now["data"] = before["identity"]["data"]
            now["config"]["data"]["path"] = before["identity"]["config"]["data"]["path"]
        old, new = flatten(before["identity"]), flatten(now)
        for key in sorted(old.keys() | new.keys(), key=lambda key: (not key.startswith("tune."), key)):
            if old.get(key) != new.get(key):
                raise UserError(
                    f"{search.out} holds another search: {key} is {old.get(key)!r} there and {new.get(key)!r} here: "
                    "use another --out, or the same value"
                )
    elif search.out.exists() and (not search.out.is_dir() or listed(search.out)):
        raise UserError(f"--out {search.out} is not empty and is not a search: give a new or empty folder")


def write_search(search: Search, dataset: Dataset, command: str) -> None:
    """search.json: all that the report and a later start need to know."""
    started(search.out)
    write_json(search.out / "search.json", {**describe(search, dataset), "command": command, **describe_software()})


def describe(search: Search, dataset: Dataset) -> dict[str, Any]:
    """search.json but for what differs from start to start."""
    settings, config = asdict(search.settings), configuration.to_dict(search.config)
    for free in ("trials", "concurrent"):
        settings.pop(free)
    free_groups = ("cluster", "probe", "finetune", "evaluate", "index", "wandb", "recipe")
    return {
        "schema": SCHEMA,
        "recipe": search.config.recipe,
        "objective": search.objective,
        "searcher": search.settings.search,
        "scheduler": search.settings.scheduler,
        "trials": search.trials,
        "seed": search.settings.seed,
        "steps": search.config.train.steps,
        "space": search.space.to_dict(),
        "data": {
            "name": dataset.name,
            "path": dataset.path,
            "fingerprint": dataset.fingerprint,
            "train": len(dataset.train),
            "val": len(dataset.val),
            "image_size": dataset.image_size,
            "channels": dataset.channels,
            "labelled": search.labels,
            "concluded": facts(dataset),
        },
        "config": config,
        "changes": search.changes,
        # What has to be the same where a search is continued.
        "identity": {
            "tune": settings,
            "space": search.space.to_dict(),
            "data": dataset.fingerprint,
            "config": {key: value for key, value in config.items() if key not in free_groups},
        },
    }


def load_search(out: Path) -> dict[str, Any]:
    """search.json; raises UserError where it is missing, damaged or of another schema version."""
    path, remedy = out / "search.json", "start the search again in a new --out"
    values = load(path, TuneFile, remedy, f"{out} is not a search (no search.json): `rayssl tune` writes one")
    check(path, remedy)
    return values


def command_to_use(out: Path, recipe: str, changes: Mapping[str, str], best: Trial) -> str:
    """The command that trains with what was found, and with what was set of the recipe for the search."""
    told = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in best.changes.items()}
    flags = {**{name.replace("-", "_"): str(value) for name, value in changes.items()}, **told}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    return shlex.join(["rayssl", "run", recipe, "--augment.spec", str(out / "best.json"), *words])
