"""A run while stages work on it, and what pre-training is built of: encoder, method, optimiser, schedule, batches.

Everything here is a function of the config and the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.device import choose_device, resolve_precision
from rayssl.pipeline.base.memory import keep_freed_memory
from rayssl.pipeline.base.reporter import Reporter
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset, Images
from rayssl.pipeline.features.extract import PRECISION
from rayssl.pipeline.features.frozen import frozen_features
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.run.images import open_data
from rayssl.pipeline.run.own_images import open_own

RESIDENT_SHARE = 0.3  # of a GPU's free memory that decoded images may take


@dataclass(frozen=True)
class Work:
    """A run while stages work on it: opened once, shared by the stages of one process.

    It is never changed: what is decided later makes another one (`dataclasses.replace`) that shares what was computed.
    """

    folder: Path | None  # None: nothing is written, as of a trial or a profile
    reporter: Reporter
    config: Config
    dataset: Dataset
    device: torch.device
    precision: str
    features: dict[str, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    _at_sizes: dict[int, Dataset] = field(default_factory=dict)
    _resident: list[torch.Tensor] = field(default_factory=list)  # one, once it was asked for

    @classmethod
    def open(cls, run: Path, reporter: Reporter) -> "Work":
        """Open the run's config and data; raises UserError where the images are not those it was trained on."""
        config = configuration.load(run / "config.json")
        return cls.begin(run, reporter, config, open_own(run, config))

    @classmethod
    def begin(cls, folder: Path | None, reporter: Reporter, config: Config, dataset: Dataset) -> "Work":
        """Choose device, precision and threads for a config and data that belong together."""
        device = choose_device()
        if device.type == "cpu":
            keep_freed_memory()
        else:
            torch.set_float32_matmul_precision("high")  # views are off by less than 0.4 of 255, and bf16 rounds more
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        return cls(folder, reporter, config, dataset, device, resolve_precision(config.train.precision, device))

    @property
    def run(self) -> Path:
        """The run folder."""
        assert self.folder is not None, "this run has no folder"
        return self.folder

    @property
    def is_main(self) -> bool:
        """Whether this is the worker that writes."""
        return collectives.rank() == 0

    def at_size(self, size: int) -> Dataset:
        """The same images in the same parts, read for a network of `size` pixels a side."""
        if size not in self._at_sizes:
            self._at_sizes[size] = read_at(size, self.config, self.dataset)
        return self._at_sizes[size]

    def frozen(self, source: Encoder | str, split: str, names: Sequence[str] = ()) -> NDArray[np.float32]:
        """(N, D) features of train, val or test by an encoder that is not trained, or by a descriptor of that name.

        `names` of its stages (see features.pooled) are seen in the same pass and kept for whoever asks next.
        """

        def images_at(size: int) -> tuple[Images, str]:
            found = self.at_size(size)
            images = getattr(found, split)
            return (images if images is not None else found.train.select(np.arange(0))), found.cached_as()

        name = source if isinstance(source, str) else source.name
        run = self.folder.name if self.folder is not None else ""
        return frozen_features(
            source if isinstance(source, str) else source.to(self.device),
            images_at,
            names=names,
            device=self.device,
            precision=PRECISION,
            progress=lambda done, total: self.reporter.progress(
                {"run": run, "stage": f"{name}/{split}", "done": done, "total": total}
            ),
        )

    def resident(self) -> torch.Tensor | None:
        """(N, H, W, C) training images in the GPU's memory, where they fit and have one size; sent there once."""
        if self.config.augment.backend == "albumentations":  # which needs them on the CPU
            return None
        if not self._resident and fits_on_device(self.dataset.train, self.device):
            pixels, _ = self.dataset.train.padded(np.arange(len(self.dataset.train)))
            self._resident.append(torch.from_numpy(pixels).to(self.device))
        return self._resident[0] if self._resident else None


def read_at(size: int, config: Config, dataset: Dataset) -> Dataset:
    """The images of a data set in the same parts, read for a network of `size` pixels a side."""
    if size == dataset.image_size:
        return dataset
    return open_data(replace(config, data=replace(config.data, image_size=size, channels=dataset.channels)))


class Stopped(Exception):  # noqa: N818
    """A stage was asked to stop; its checkpoint is written."""

    def __init__(self, done: int, steps: int) -> None:
        super().__init__(f"stopped after step {done} of {steps}")


def fits_on_device(images: Images, device: torch.device) -> bool:
    """Whether all images, decoded, take at most a share of the GPU's free memory."""
    size = images.uniform_bytes()
    return device.type == "cuda" and size is not None and size <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
