"""The stage that decides what a run is searched by: sees, compares, chooses on validation images, writes the vectors.

Everything at hand takes part: descriptors, pixels, the untrained network, every stage of the trained one, pretrained
networks on this machine, and pairs of the best. Shapes: N images, D numbers.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base import collectives, seals
from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.base.files import delete, listed
from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Images
from rayssl.pipeline.features import LAST
from rayssl.pipeline.features.extract import PRECISION
from rayssl.pipeline.features.frozen import descriptor_features, digest_of, frozen_stages
from rayssl.pipeline.features.pooled import names_of, pooled_stages
from rayssl.pipeline.models.descriptors import DESCRIPTORS
from rayssl.pipeline.models.encoder import Encoder, describe
from rayssl.pipeline.models.export import export_encoder, load_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.pretrained import ENLARGED, FROZEN_MOST, available, pretrained_encoder
from rayssl.pipeline.run.build import new_encoder
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.search.apply import described, flat_pixels, pixel_side
from rayssl.pipeline.search.choice import (
    AUTO_DIM,
    MOST,
    PAIRED,
    Candidate,
    Material,
    Measure,
    Raw,
    Tried,
    agreement,
    choose,
    joined,
    pairs,
    refit,
    singles,
)
from rayssl.pipeline.search.parts import JOIN, PIXELS, Seen, Vectors
from rayssl.pipeline.search.store import FOLDER, OWN, Origin, Search, write_search

UNTRAINED = "untrained"
LARGEST_TRAIN, LARGEST_VAL = 10_000, 5_000  # images that candidates are compared on
FROZEN_FLOPS, GPU_TIMES = 2e13, 200  # that one of them may take: of a core, some minutes; a GPU does as much as so many
ENLARGED_LESS = 4  # times the images' side, where ENLARGED takes too long
DESCRIPTOR_FLOPS = 1e6  # an image, about
QUERIES, NEIGHBOURS = 6, 6  # validation images and what is found for them, in the report
PAIRS = PAIRED * (PAIRED - 1) // 2
AGREEMENT = "share of the 20 nearest training images of a validation image that other candidates name too: no labels"

Floats = NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Something that sees images, and what it can give of them."""

    name: str
    origin: Origin
    names: tuple[str | None, ...]  # of a network "STAGE:POOL" and "last"; (None,) of what has no stages
    flops: float  # an image
    encoder: Encoder | None = None
    trained: bool = False  # the run's own network
    kept: bool = True  # in the cache: nothing has trained it, so another run may ask again
    pretrained: bool = False  # it comes from weights that were trained elsewhere, or was taught by some

    @property
    def seen(self) -> list[Seen]:
        """All that it can be seen by."""
        return [Seen(self.name, what) for what in self.names]


@dataclass
class Look:
    """What the sources see of a run's images; every split once."""

    work: Work
    sources: dict[str, Source]
    rows: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # split → the images that candidates see
    memory: dict[tuple[Seen, str, bool], Floats] = field(default_factory=dict)

    def __call__(self, wanted: Sequence[Seen], split: str, *, some: bool = False) -> list[Floats]:
        """(N, D) of each; `some`: of the images that candidates are compared on. Collective: all workers alike."""
        for source in self.sources.values():
            asked = [seen for seen in wanted if seen.source == source.name]
            if left := [seen for seen in asked if (seen, split, some) not in self.memory]:
                self.memory |= {(seen, split, some): values for seen, values in self._see(source, left, split, some)}
        return [self.memory[seen, split, some] for seen in wanted]

    def _see(self, source: Source, wanted: list[Seen], split: str, some: bool) -> list[tuple[Seen, Floats]]:
        images, fingerprint = self._images(source.origin.read, split, some)
        if source.encoder is None:
            return [(wanted[0], self._plain(source, images, fingerprint))]
        names = [seen.what or LAST for seen in wanted]
        work, device = self.work, self.work.device
        settings: dict[str, Any] = {
            "device": device,
            "precision": PRECISION,
            "progress": lambda done, total: work.reporter.progress(
                {"run": work.run.name, "stage": f"search/{source.name}/{split}", "done": done, "total": total}
            ),
        }
        if not source.kept:
            found = pooled_stages(source.encoder, names, images, **settings)
        else:
            found = frozen_stages(source.encoder, names, images, fingerprint, **settings)
        return [(seen, found[name]) for seen, name in zip(wanted, names, strict=True)]

    def _plain(self, source: Source, images: Images, fingerprint: str) -> Floats:
        side = source.origin.size
        if source.name == PIXELS:
            return described(images, side, flat_pixels, side**2 * images.channels)
        return descriptor_features(source.name, images, fingerprint)

    def _images(self, size: int, split: str, some: bool) -> tuple[Images, str]:
        found = self.work.at_size(size)
        images = getattr(found, split)
        images = images if images is not None else found.train.select(np.arange(0))
        return (images.select(self.rows[split]) if some else images), found.cached_as()


def choose_vectors(work: Work) -> Search | None:
    """Choose what the run is searched by and write it down; None: the last stage, as it is. All workers alike.

    Raises UserError for `search.vectors` that there are not.
    """
    settings = work.config.search
    if settings.vectors == LAST and settings.whiten is not True:
        if work.is_main:
            forget(work.run)
        return None
    look = Look(work, {source.name: source for source in find_sources(work)})
    look.rows = {split: compared(getattr(work.dataset, split), split, work) for split in ("train", "val")}
    wanted = wanted_of(settings.vectors, look.sources, own_name(work.config))
    single = wanted if wanted is not None else [seen for source in look.sources.values() for seen in source.seen]
    train, val = (look(single, split, some=True) for split in ("train", "val"))
    decided: Any = None
    if work.is_main:
        decided = decide(work, look, single, train, val)
    vectors, candidates, facts, dim = collectives.broadcast_object(decided)
    return finish(work, look, vectors, candidates, facts, dim)


def decide(
    work: Work, look: Look, seen: list[Seen], train: list[Floats], val: list[Floats]
) -> tuple[Vectors, list[Candidate], dict[str, Any], int]:
    """The chosen vectors, all candidates, what is told of the choice, and the most numbers in a vector."""
    settings, dim = work.config.search, most_numbers(work.config)
    labels = labels_of(work, look)
    tried = compare(work, look, seen, train, val, labels)
    guessed = labels is None and settings.vectors == "auto"
    if labels is None:
        tried = by_agreement(tried)
    if guessed:
        tried = guess_first(mixture(tried, look, dim), tried)
        ties = [tried[0].candidate]
    else:
        ties = choose([one.candidate for one in tried])[1]
    chosen = tried[0] if guessed else next(one for one in tried if one.candidate is choose(ties)[0])
    facts = {
        "criterion": labels.words if labels is not None else AGREEMENT,
        "score": chosen.candidate.score,
        "n": len(val[0]),
        "guess": labels is None,
        "ties": [one.name for one in ties],
        "told": told_of(chosen.candidate, tried, look, guessed, measured=labels is not None),
        "asked": settings.vectors,
        "shown": [neighbours_of(one, look) for one in three_to_show(chosen, tried)],
    }
    return chosen.vectors, [one.candidate for one in tried], facts, dim


def three_to_show(chosen: Tried, tried: list[Tried]) -> list[Tried]:
    """The chosen candidate and the best two from other sources."""
    found = {chosen.candidate.source: chosen}
    for one in sorted(tried, key=lambda one: -one.candidate.score):
        found.setdefault(one.candidate.source, one)
    return list(found.values())[:3]


def neighbours_of(one: Tried, look: Look) -> dict[str, Any]:
    """For a report: validation images, always the same, and the training images that a candidate finds for them."""
    work = look.work
    train, val = (getattr(work.dataset, split).select(look.rows[split]) for split in ("train", "val"))
    queries = permutation(len(val), work.config.train.seed, "report-search")[:QUERIES]
    nearest_ = np.argsort(-(one.val[queries] @ one.train.T), axis=1, kind="stable")[:, :NEIGHBOURS]
    return {
        "name": one.candidate.name,
        "queries": val.ids[queries].tolist(),
        "found": [train.ids[rows].tolist() for rows in nearest_],
    }


def compare(
    work: Work, look: Look, seen: list[Seen], train: list[Floats], val: list[Floats], labels: "Labels | None"
) -> list[Tried]:
    """What is seen, plain and whitened, and pairs of the best; at most 60 candidates, measured by labels if any."""
    settings, dim = work.config.search, most_numbers(work.config)
    whiten = (False, True) if settings.whiten == "auto" else (settings.whiten,)
    measure = labels.measure if labels is not None else lambda of_train, of_val: (0.0, np.zeros(0, dtype=bool))
    tried: list[Tried] = []
    for one, of_train, of_val in zip(seen, train, val, strict=True):
        source = look.sources[one.source]
        own_width = one.what == LAST and settings.dim == "auto" and source.trained and not source.kept
        seconds = seconds_an_image(source, work.device)
        tried += singles(Raw(one, of_train, of_val, source.flops, seconds, own_width), dim, measure, whiten)
        row = {"run": work.run.name, "stage": "search/compare", "done": len(tried), "total": len(whiten) * len(seen)}
        work.reporter.progress(row)
    if JOIN in settings.vectors:
        return [joined([best_of(one, tried) for one in seen], dim, measure)]
    tried = tried[: MOST - PAIRS]
    return tried if settings.vectors != "auto" or labels is None else tried + pairs(tried, dim, measure)


def best_of(seen: Seen, tried: list[Tried]) -> Tried:
    """Plain or whitened."""
    return max((one for one in tried if one.vectors.parts[0].seen == seen), key=lambda one: one.candidate.score)


def most_numbers(config: Config) -> int:
    """In a searched vector, but for the last stage's."""
    return AUTO_DIM if config.search.dim == "auto" else config.search.dim


@dataclass(frozen=True)
class Labels:
    """How candidates are measured, and in words."""

    measure: Measure
    words: str


def labels_of(work: Work, look: Look) -> Labels | None:
    """By the labels of training and validation images; None where there are none, or training lacks classes."""
    train, val = (getattr(work.dataset, split).select(look.rows[split]) for split in ("train", "val"))
    (train_rows, train_labels), (val_rows, val_labels) = train.labelled(), val.labelled()
    if work.dataset.some_classes or not len(train_labels) or not len(val_labels) or len(set(train_labels)) < 2:
        return None
    evaluate = work.config.evaluate
    material = Material(train_labels, val_labels, evaluate.k, evaluate.temperature)
    words = (
        f"kNN top-1 of {len(val_labels)} validation images, k = {min(evaluate.k, len(train_labels))}, "
        f"T = {evaluate.temperature:g}, votes of {len(train_labels)} training images"
    )

    def measure(of_train: Floats, of_val: Floats) -> tuple[float, NDArray[np.bool_]]:
        correct = material.correct(of_train[train_rows], of_val[val_rows])
        return float(correct.mean()), correct

    return Labels(measure, words)


def by_agreement(tried: list[Tried]) -> list[Tried]:
    """Scored by how far a candidate's neighbours are those of candidates from other sources, best first."""
    scores = agreement([one.candidate.source for one in tried], [(one.train, one.val) for one in tried])
    scored = [
        replace(one, candidate=replace(one.candidate, score=score)) for one, score in zip(tried, scores, strict=True)
    ]
    return sorted(scored, key=lambda one: -one.candidate.score)


def guess_first(guess: Tried, tried: list[Tried]) -> list[Tried]:
    """What is guessed before all that was tried; what was made of several of these gets a score like theirs."""
    if JOIN in guess.candidate.source:
        guess = next(one for one in by_agreement([*tried, guess]) if one.candidate.name == guess.candidate.name)
    return [guess, *tried]


def mixture(tried: list[Tried], look: Look, dim: int) -> Tried:
    """What is guessed without labels: a network that has learned from, or started from, pretrained weights; else a
    frozen one; else HOG, colour histogram and the last stage together. Whitened where that is to be had."""
    by_source: dict[str, Tried] = {}
    for one in sorted(
        tried, key=lambda one: (one.candidate.whitened, one.candidate.name.partition(" ")[0].endswith(LAST))
    ):
        by_source[one.candidate.source] = one
    own = next(source for source in look.sources.values() if source.trained)
    frozen = [name for name, source in look.sources.items() if source.pretrained and name != own.name]
    if own.pretrained:
        return by_source[own.name]
    if frozen:
        return by_source[frozen[0]]
    return joined([by_source[name] for name in (*DESCRIPTORS, own.name) if name in by_source], dim)


def told_of(chosen: Candidate, tried: list[Tried], look: Look, guessed: bool, *, measured: bool) -> str:
    """The choice in a sentence."""
    if guessed:
        return (
            f"{chosen.name}, a guess: without labels nothing says which vectors find best. Label 200 images "
            "(--data.labels FILE) and it is measured"
        )
    if not measured:
        return f"{chosen.name}, as asked"
    own = [
        one.candidate
        for one in tried
        if look.sources.get(one.candidate.source, _NONE).trained and one.candidate.name.endswith(f":{LAST}")
    ]
    told = f"{chosen.name} ({100 * chosen.score:.1f})"
    if own and own[0].name != chosen.name:
        told += f" instead of {own[0].source} ({100 * own[0].score:.1f})"
    return told


def compared(images: Images, split: str, work: Work) -> NDArray[np.int64]:
    """Positions of the images that candidates are compared on: those with a label, where there are any; bounded."""
    most = LARGEST_TRAIN if split == "train" else LARGEST_VAL
    rows = images.labelled()[0]
    if not len(rows):
        rows = np.arange(len(images))
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(work.config.train.seed).permutation(rows)[:most])


def finish(
    work: Work, look: Look, vectors: Vectors, candidates: list[Candidate], facts: dict[str, Any], dim: int
) -> Search | None:
    """Fit the chosen maps to train and validation together, write them and the vectors of all images."""
    seen = [part.seen for part in vectors.parts]
    raw = {split: look(seen, split) for split in ("train", "val", "test")}
    if not work.is_main:
        return None
    both = [np.concatenate([a, b]) for a, b in zip(raw["train"], raw["val"], strict=True)]
    vectors = refit(vectors, both, dim)
    origins = [placed(work, look.sources[one.source]) for one in seen]
    found = vectors(both), vectors(raw["test"])
    facts = {**facts, "data": work.dataset.name, "data_fingerprint": work.dataset.fingerprint}
    search = write_search(work.run, vectors, origins, found[0].shape[1], candidates, facts)
    look.memory.clear()
    drop_unused(work.run, [origin.encoder for origin in origins])
    save_vectors(work, search, *found)
    work.reporter.message(f"search: {facts['told']}; --search.vectors last undoes it")
    return search


def placed(work: Work, source: Source) -> Origin:
    """The source's origin, with its encoder in the run folder where it has to be, or may be, there."""
    if source.encoder is None or source.origin.encoder is not None:
        return source.origin
    if source.name != UNTRAINED and not work.config.search.copy_weights:
        return source.origin
    place = f"{FOLDER}/{source.name}"
    export_encoder(source.encoder.cpu(), work.run / place, {"method": None})
    return replace(source.origin, encoder=place, name=None, weights=None, hash=encoder_hash(work.run / place))


def drop_unused(run: Path, places: Sequence[str | None]) -> None:
    """Encoders of an earlier choice."""
    for folder in listed(run / FOLDER):
        if f"{FOLDER}/{folder.name}" not in places:
            seals.forget_folder(folder)
            delete(folder)


def save_vectors(work: Work, search: Search, train: Floats, test: Floats) -> None:
    """embeddings/<data>/search/."""
    from rayssl.pipeline.search.described import describe_vectors, embeddings_folder, test_images
    from rayssl.pipeline.search.embeddings import save_embeddings

    folder = embeddings_folder(work.run, work.dataset.name, FOLDER)
    parts = {"train": ([work.dataset.train, work.dataset.val], train), "test": ([test_images(work)], test)}
    for split, (images, vectors) in parts.items():
        described_ = describe_vectors(work, images, vectors, split)
        save_embeddings(replace(described_, encoder_hash=search.hash), folder / f"{split}.parquet")


def forget(run: Path) -> None:
    """Remove what a run was searched by: its last stage is searched again."""
    from rayssl.pipeline.search.store import FILE, TENSORS

    files = (run / FILE, run / TENSORS)
    seals.forget(*files)
    for path in files:
        delete(path)
    seals.note(*files)  # that they are not there
    for folder in (run / FOLDER, *listed(run, f"embeddings/*/{FOLDER}")):
        seals.forget_folder(folder)
        delete(folder)


def own_name(config: Config) -> str:
    """What the run's own network is called among the candidates: its method, or the network where none trained it."""
    return configuration.method_name(config) or config.encoder.name.replace("/", "-")


def find_sources(work: Work) -> list[Source]:
    """All that sees images: descriptors, pixels, the untrained network, pretrained ones, and the run's own."""
    data = work.dataset
    side = pixel_side(data.image_size, data.channels)
    found = [
        Source(name, Origin("descriptor", one.size, one.size, version=one.version), (None,), DESCRIPTOR_FLOPS)
        for name, one in DESCRIPTORS.items()
    ]
    found.append(Source(PIXELS, Origin("pixels", side, data.image_size), (None,), 0.0))
    own = load_encoder(work.run)
    flops = float(describe(own)["flops"])
    if work.config.method is not None:
        untrained = new_encoder(work.config, weights=False).eval().to(work.device)
        found.append(Source(UNTRAINED, Origin("network", own.image_size, own.image_size), (LAST,), flops, untrained))
    for given, encoder in frozen_networks(work):
        size, name = encoder.image_size, given.label
        origin = Origin("network", size, size, name=given.name, weights=given.weights, hash=digest_of(encoder))
        encoder = encoder.to(work.device).eval()
        found.append(
            Source(name, origin, frozen_names(encoder), float(describe(encoder)["flops"]), encoder, pretrained=True)
        )
    origin = Origin("network", own.image_size, own.image_size, encoder=OWN, hash=encoder_hash(work.run))
    own = own.to(work.device)
    trains = work.config.method is not None
    taught = work.config.encoder.weights is not None or configuration.method_name(work.config) == "distill"
    names = tuple(names_of(own)) if trains else frozen_names(own)
    name = own_name(work.config)
    found.append(Source(name, origin, names, flops, own, trained=True, kept=not trains, pretrained=taught))
    return found


@dataclass(frozen=True)
class Given:
    """A pretrained network as --encoder.name and --encoder.weights name it."""

    name: str
    weights: str

    @property
    def label(self) -> str:
        """Among the candidates, and in the names of baselines."""
        return self.name.replace("/", "-")


def frozen_networks(work: Work) -> list[tuple[Given, Encoder]]:
    """At most two pretrained networks that are on this machine, frozen: those that the run names first.

    One that would take too long over these images is left out, and said.
    """
    found: dict[str, tuple[Given, Encoder]] = {}
    for given in named_networks(work.config) + [Given(one.name, one.weights) for one in available()]:
        if len(found) == FROZEN_MOST or given.label in found or is_own(given, work.config):
            continue
        encoder = frozen_one(given, work)
        if encoder is not None:
            found[given.label] = given, encoder
    return list(found.values())


def named_networks(config: Config) -> list[Given]:
    """What a run starts from, and what it is taught by."""
    method = config.method
    pairs_ = [
        (config.encoder.name, config.encoder.weights),
        (getattr(method, "teacher", None), getattr(method, "teacher_weights", None)),
    ]
    return [Given(name, weights) for name, weights in pairs_ if name is not None and weights is not None]


def is_own(given: Given, config: Config) -> bool:
    """Whether a network is the run's own, as it came."""
    return config.method is None and (given.name, given.weights) == (config.encoder.name, config.encoder.weights)


def frozen_one(given: Given, work: Work) -> Encoder | None:
    """The network in eval mode at a size that suits the images; None, and said, where that cannot be or lasts.

    Smaller where its own size would take too long.
    """
    data = work.dataset
    images = sum(len(part) for part in (data.train, data.val, data.test) if part is not None)
    most = FROZEN_FLOPS * (GPU_TIMES if work.device.type == "cuda" else (os.cpu_count() or 1))
    for enlarged in (ENLARGED, ENLARGED_LESS):
        try:
            encoder = pretrained_encoder(given, channels=data.channels, image_side=data.image_size, enlarged=enlarged)
        except UserError as error:
            work.reporter.message(f"{given.name} is not compared: {error}")
            return None
        if images * describe(encoder)["flops"] <= most:
            return encoder
    work.reporter.message(f"{given.name} is not compared: {images:,} images would take it too long on this machine")
    return None


def frozen_names(encoder: Encoder) -> tuple[str, ...]:
    """Of a pretrained network the features, and two ways to pool its last map."""
    last_map = [name for name in names_of(encoder) if name.endswith((":gem", ":2x2"))][-2:]
    return (*last_map, LAST)


def wanted_of(asked: str, sources: dict[str, Source], own: str) -> list[Seen] | None:
    """What `search.vectors` names, NAME[:STAGE[:POOL]] or two of them with a plus; None: everything.

    Raises UserError for what there is not.
    """
    if asked == "auto":
        return None
    return [_seen(f"{own}:{LAST}" if name == LAST else name, sources) for name in asked.split(JOIN)]


def _seen(name: str, sources: dict[str, Source]) -> Seen:
    source, _, what = name.partition(":")
    found = sources.get(source)
    if found is not None:
        options = [option for option in found.names if option is not None]
        what = what or (LAST if options else "")
        if not options and not what:
            return Seen(source)
        fitting = [option for option in options if option == what or option == f"{what}:avg"]
        if fitting:
            return Seen(source, fitting[0])
    known = [seen.name for one in sources.values() for seen in one.seen]
    raise UserError(f"--search.vectors {name}{nearest(name, known)}: there are auto, last, {', '.join(known)}")


def seconds_an_image(source: Source, device: torch.device, count: int = 16) -> float:
    """To see one, on this machine: told, never decided by."""
    if source.encoder is None:
        return 0.0
    encoder = source.encoder
    x = torch.zeros((count, encoder.channels, encoder.image_size, encoder.image_size), device=device)
    with torch.inference_mode():
        encoder(x[:1])
        began = time.perf_counter()
        encoder(x)
    return (time.perf_counter() - began) / count


_NONE = Source("", Origin("", 0, 0), (), 0.0)
