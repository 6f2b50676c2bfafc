"""Who takes part in a race: candidates by name, each a config for a run folder of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.config import Config
from rayssl.pipeline.models.descriptors import DESCRIPTORS
from rayssl.pipeline.recipes import HELD_OUT, build_recipe

MOST_NETWORKS = 2  # with weights on this machine, beside those that were named
ADAPTED_SIZE = 128  # pixels a side, on a CPU
UNTRAINED, FROZEN, DISTILL, ADAPT = "untrained", "frozen", "distill", "adapt"
SCRATCH = ("simclr", "essl", "rotnet", "autoencoder")  # the folder recipes of these names
KINDS = (UNTRAINED, FROZEN, DISTILL, ADAPT, *SCRATCH)
EVERYWHERE = ("data.", "search.", "index.", "evaluate.", "cluster.")  # options that all candidates take
EVERYWHERE_TOO = ("train.seed", "wandb")
TEACHER = ("method.teacher", "method.teacher_weights")


@dataclass(frozen=True)
class Network:
    """A network with weights that are on this machine."""

    name: str  # as for --encoder.name
    weights: str  # as for --encoder.weights
    size: int = 0  # side in pixels at which it sees these images; 0: not settled
    asked: bool = False  # named on the command line, not found
    teacher: bool = False  # by --method.teacher

    @property
    def short(self) -> str:
        """A name for folders and people: timm/efficientnet_lite0 is efficientnet_lite0."""
        return self.name.removeprefix("timm/").replace("/", "-")


@dataclass(frozen=True)
class Entry:
    """A candidate."""

    name: str  # of its run folder
    kind: str  # one of KINDS
    config: Config
    network: Network | None = None

    @property
    def trains(self) -> bool:
        """Whether it has steps to do."""
        return self.kind not in (UNTRAINED, FROZEN)

    @property
    def source(self) -> str:
        """What its own vectors are called among those that its run folder could be searched by."""
        return configuration.method_name(self.config) or self.config.encoder.name.replace("/", "-")

    @property
    def text(self) -> str:
        """What it is, for people."""
        student = self.config.encoder.name
        if self.network is None:
            return f"{self.kind} {student}" if self.kind == UNTRAINED else f"{self.kind} from scratch ({student})"
        of = self.network.short
        return {FROZEN: f"frozen {of}", DISTILL: f"{of} distilled into {student}", ADAPT: f"{of} adapted"}[self.kind]


def split_options(changes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Options for all candidates, for the encoder, and of the teacher; raises UserError for others."""
    changes = {path.replace("-", "_"): value for path, value in changes.items()}
    everywhere, encoder, teacher = {}, {}, {}
    for path, value in changes.items():
        if path.startswith(EVERYWHERE) or path in EVERYWHERE_TOO:
            everywhere[path] = value
        elif path.startswith("encoder."):
            encoder[path] = value
        elif path in TEACHER:
            teacher[path] = value
        else:
            raise UserError(
                f"--{path.replace('_', '-')} is for one way of training, and a race has several: name a recipe, e.g. "
                f"rayssl run simclr-folder --{path.replace('_', '-')} {value}"
            )
    if everywhere.get("search.vectors", "auto") != "auto":
        raise UserError(
            f"--search.vectors {everywhere['search.vectors']} in a race, which chooses them itself: name a recipe"
        )
    if "method.teacher_weights" in teacher and "method.teacher" not in teacher:
        raise UserError("--method.teacher-weights without --method.teacher: name the network too")
    return everywhere, encoder, teacher


def plain_config(changes: Mapping[str, Any]) -> Config:
    """The student's network and the images as it sees them; nothing is trained."""
    everywhere, encoder, _ = split_options(changes)
    config = configuration.override(build_recipe("simclr-folder"), {**everywhere, **student_of(encoder)})
    return replace(config, recipe=UNTRAINED, method=None, plan=tuple(path for path in config.plan if path in HELD_OUT))


def student_of(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the student's and the from-scratch network among those of the encoder."""
    return {path: value for path, value in encoder.items() if path != "encoder.weights"}


def asked_networks(changes: Mapping[str, Any]) -> list[Network]:
    """The networks with weights that a command names; raises UserError for weights without one, or two for one."""
    _, encoder, teacher = split_options(changes)
    asked = []
    if (weights := encoder.get("encoder.weights")) is not None:
        if "encoder.name" not in encoder:
            raise UserError(f"--encoder.weights {weights} without --encoder.name: name the network too")
        asked.append(Network(encoder["encoder.name"], weights, asked=True))
    if "method.teacher" in teacher:
        weights = teacher.get("method.teacher_weights", "DEFAULT")
        if teacher["method.teacher"] in DESCRIPTORS:
            raise UserError(
                f"--method.teacher {teacher['method.teacher']} is not a network, and a race compares it anyway: "
                f"rayssl run distill-folder --method.teacher {teacher['method.teacher']} learns from it"
            )
        asked.append(Network(teacher["method.teacher"], weights, asked=True, teacher=True))
    if len({one.name for one in asked}) < len({(one.name, one.weights) for one in asked}):
        raise UserError(
            f"{asked[0].name} is named with two weights, {asked[0].weights} and {asked[1].weights}: a race takes a "
            "network once: name one of them"
        )
    return asked


def entries_of(changes: Mapping[str, Any], networks: Sequence[Network], device: str) -> list[Entry]:
    """All candidates in the order of their chances, for the options of a command and networks with their sizes.

    `device`: "cpu" or "cuda", on which they train.
    """
    everywhere, encoder, _ = split_options(changes)
    student = {**everywhere, **student_of(encoder)}
    entries = [Entry(UNTRAINED, UNTRAINED, plain_config(changes))]
    entries += [frozen_entry(network, everywhere) for network in networks]
    for network in networks:
        entries.append(distilled_entry(network, student))
        entries.append(adapted_entry(network, everywhere, device))
    for kind in SCRATCH:
        entries.append(Entry(kind, kind, for_race(configuration.override(build_recipe(f"{kind}-folder"), student))))
    return [replace(entry, config=configuration.for_device(entry.config, device)) for entry in entries]


def frozen_entry(network: Network, everywhere: Mapping[str, Any]) -> Entry:
    """A network as it comes, at its own image size."""
    config = configuration.override(Config(recipe=FROZEN), own_images(network, everywhere))
    return Entry(f"{FROZEN}-{network.short}", FROZEN, config, network)


def distilled_entry(network: Network, changes: Mapping[str, Any]) -> Entry:
    """A small network that learns from a frozen one."""
    teacher = {"method.teacher": network.name, "method.teacher_weights": network.weights}
    config = configuration.override(build_recipe("distill-folder"), {**changes, **teacher})
    return Entry(f"{DISTILL}-{network.short}", DISTILL, for_race(config), network)


def adapted_entry(network: Network, everywhere: Mapping[str, Any], device: str) -> Entry:
    """Continued pre-training of a network, guarded; on a CPU at a smaller size, where a step takes seconds else."""
    changes = own_images(network, everywhere)
    if "data.image_size" not in everywhere and device == "cpu":
        changes["data.image_size"] = min(changes["data.image_size"], ADAPTED_SIZE)
    return Entry(
        f"{ADAPT}-{network.short}",
        ADAPT,
        for_race(configuration.override(build_recipe("simclr-folder"), changes)),
        network,
    )


def own_images(network: Network, everywhere: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a network with weights: its images are of the size that suits it unless another one is given."""
    size = int(everywhere.get("data.image_size", network.size))
    return {**everywhere, "encoder.name": network.name, "encoder.weights": network.weights, "data.image_size": size}


def for_race(config: Config) -> Config:
    """A trial has one worker, and is too short for a compiler to pay."""
    cluster = replace(config.cluster, workers=1)
    return replace(config, cluster=cluster, train=replace(config.train, compile="no", keep_checkpoints=1))


def narrowed(entries: Sequence[Entry], names: str | None) -> list[Entry]:
    """The entries of `--candidates`, by name or kind; the untrained network, whose run has the descriptors, stays.

    Raises UserError for an unknown name.
    """
    if names is None:
        return list(entries)
    words = [word.strip() for word in names.split(",") if word.strip()]
    if not words:
        raise UserError("--candidates is empty: name some, e.g. --candidates frozen,distill,simclr")
    known = [*dict.fromkeys([entry.kind for entry in entries] + [entry.name for entry in entries])]
    for word in words:
        if word in (FROZEN, DISTILL, ADAPT) and word not in known:
            raise UserError(
                f"--candidates has '{word}', which needs a network with weights, and none is on this machine: "
                "`rayssl weights` lists what can be had"
            )
        if word not in known:
            raise UserError(f"--candidates has an unknown '{word}'{nearest(word, known)}: known are {', '.join(known)}")
    return [entry for entry in entries if entry.kind == UNTRAINED or {entry.kind, entry.name} & set(words)]
