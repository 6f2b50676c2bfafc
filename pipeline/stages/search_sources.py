"""What sees the images of a run, and what it sees of them: the sources of all candidates."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayssl.pipeline import config as configuration
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Images
from rayssl.pipeline.features import LAST
from rayssl.pipeline.features.extract import PRECISION
from rayssl.pipeline.features.frozen import descriptor_features, digest_of, frozen_stages
from rayssl.pipeline.features.pooled import names_of, pooled_stages
from rayssl.pipeline.models.descriptors import DESCRIPTORS
from rayssl.pipeline.models.encoder import Encoder, describe
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.run.build import new_encoder
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.search.apply import described, flat_pixels, pixel_side
from rayssl.pipeline.search.parts import PIXELS, Seen
from rayssl.pipeline.search.store import OWN, Origin
from rayssl.pipeline.stages.search_networks import frozen_names, frozen_networks

UNTRAINED = "untrained"
LARGEST_TRAIN, LARGEST_VAL = 10_000, 5_000  # images that candidates are compared on
DESCRIPTOR_FLOPS = 1e6  # an image, about

Floats = NDArray[np.float32]


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


def compared(images: Images, split: str, work: Work) -> NDArray[np.int64]:
    """Positions of the images that candidates are compared on: those with a label, where there are any; bounded."""
    most = LARGEST_TRAIN if split == "train" else LARGEST_VAL
    rows = images.labelled()[0]
    if not len(rows):
        rows = np.arange(len(images))
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(work.config.train.seed).permutation(rows)[:most])


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
