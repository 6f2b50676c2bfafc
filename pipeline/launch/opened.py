"""Runs that are opened in this process for a look at them: a profile, anomalies."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.config import Config
from rayssl.pipeline.launch.plan import show_reading, warn_on

if TYPE_CHECKING:
    import torch

    from rayssl.pipeline.data import Images
    from rayssl.pipeline.generate.decoder import Trained
    from rayssl.pipeline.models.encoder import Encoder
    from rayssl.pipeline.run.context import Work


def open_for_profile(config: Config, display: Display) -> "Work":
    """A run that is opened as for pre-training in this process, without a run folder."""
    from rayssl.pipeline.base.reporter import LocalReporter
    from rayssl.pipeline.run.auto import choose_backend, compiling_pays
    from rayssl.pipeline.run.context import Work
    from rayssl.pipeline.run.resolve import open_and_resolve

    config, dataset = open_and_resolve(config, warn_on(display), show_reading(display))
    work = Work.begin(Path(), LocalReporter(display), config, dataset)
    backend = config.augment.backend
    if backend in ("auto", "fastest"):
        backend, reason = choose_backend(work)
        display({"message": f"augmentation: {backend} backend ({reason})"})
    # At full size, which the time of a run mostly goes to.
    train = replace(config.train, precision=work.precision, small_views=0.0)  # type: ignore[arg-type]
    augment = replace(config.augment, backend=backend)
    work.config = replace(config, train=train, augment=augment)
    if train.compile == "auto":
        chosen: Any = "yes" if compiling_pays(work) else "no"
        work.config = replace(work.config, train=replace(train, compile=chosen))
        if work.device.type == "cuda":
            display({"message": f"--train.compile {chosen}, which auto chooses by the length of the recipe's run"})
    return work


@dataclass(frozen=True)
class Watched:
    """A run's encoder, its model where it kept one, and the images that are to be ranked."""

    encoder: "Encoder"
    trained: "Trained | None"
    train: "Images"
    images: "Images"
    class_names: tuple[str, ...] | None
    trained_on: tuple[str, ...]  # classes; empty: all
    device: "torch.device"
    precision: str


def open_for_anomalies(
    run: Path, other: str | None, display: Display, said: Mapping[str, Any] | None = None
) -> Watched:
    """A trained run and its evaluation images, or all images at `other`."""
    from rayssl.pipeline.base.device import choose_device, plain_precision, resolve_precision
    from rayssl.pipeline.generate.decoder import open_trained
    from rayssl.pipeline.methods import load_method
    from rayssl.pipeline.models.export import load_encoder
    from rayssl.pipeline.run.images import open_other
    from rayssl.pipeline.run.own_images import open_own

    config = configuration.load(run / "config.json")
    encoder, device = load_encoder(run), choose_device()
    name = configuration.method_name(config)
    trained = None
    if name is not None and load_method(name).exports_decoder:
        trained = open_trained(run, None, show_reading(display))
    own = trained.dataset if trained is not None else open_own(run, config, show_reading(display))
    images, names = own.test if own.test is not None and len(own.test) else own.val, own.class_names
    if other is not None:
        size, channels = own.image_size, own.channels
        found = open_other(
            config.data, other, image_size=size, channels=channels, said=said, progress=show_reading(display)
        )
        images, names = found.train.join(found.val, found.test), found.class_names
    precision = plain_precision(resolve_precision(config.train.precision, device))
    classes = config.data.classes or ()
    return Watched(encoder.to(device), trained, own.train, images, names, classes, device, precision)
