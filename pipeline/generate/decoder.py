"""A run's whole method after training: the encoder with what it was trained together with, and the run's images.

decoder.safetensors holds everything of a method that is not its encoder, float32; decoder.json its sha256 and the hash
of the encoder that it belongs to.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.device import autocast, choose_device, plain_precision, resolve_precision, to_float
from rayssl.pipeline.base.documents import load
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import replacing, sha256, write_json
from rayssl.pipeline.base.schemas import DecoderFile
from rayssl.pipeline.base.seals import check, digest, forget
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset, Images
from rayssl.pipeline.methods import load_method
from rayssl.pipeline.methods.base import Method
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.identity import read_manifest as read_export_manifest
from rayssl.pipeline.models.weights import read_state
from rayssl.pipeline.run.build import traits_of
from rayssl.pipeline.run.own_images import open_own

FILE, FACTS = "decoder.safetensors", "decoder.json"
SCHEMA = 1
BATCH = 256

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trained:
    """A run that is looked at. `method` is in eval mode on `device`; `own_encoder`: it is the one trained with it."""

    run: Path
    config: Config
    dataset: Dataset
    method: Method[Any]
    device: torch.device
    precision: str
    own_encoder: bool

    @property
    def seed(self) -> int:
        """The run's."""
        return self.config.train.seed

    @property
    def held_out_split(self) -> str:
        """test, or val where there are no test images, or train where there are none either."""
        return next(name for name in ("test", "val", "train") if len(getattr(self.dataset, name) or ()))

    @property
    def held_out(self) -> Images:
        """The images of `held_out_split`."""
        images: Images = getattr(self.dataset, self.held_out_split)
        return images

    def batches(self, images: Images, rows: NDArray[np.int64] | None = None) -> Iterator["Clean"]:
        """Images of a split in order, or those at `rows`."""
        rows = np.arange(len(images)) if rows is None else rows
        for start in range(0, len(rows), BATCH):
            yield self.clean(images, rows[start : start + BATCH])

    def clean(self, images: Images, rows: NDArray[np.int64]) -> "Clean":
        """The images at `rows` on the device, with ids and labels."""
        pixels = torch.from_numpy(images.square(rows, self.dataset.image_size))
        labels = None if images.labels is None else torch.from_numpy(images.labels[rows]).to(self.device)
        ids = torch.from_numpy(images.ids[rows]).to(self.device)
        return Clean(to_float(pixels, self.device, self.precision), ids, labels)

    def computing(self) -> Any:
        """Autocast as in training."""
        return autocast(self.device, self.precision)


@dataclass(frozen=True)
class Clean:
    """A batch without corruption: images (B, C, H, W) in [0, 1], ids (B,), labels (B,) or none."""

    x: Tensor
    ids: Tensor
    labels: Tensor | None


def save_decoder(method: Method[Any], run: Path) -> None:
    """Write decoder.safetensors beside the exported encoder, whole or not at all."""
    from safetensors.torch import save

    kept = method.kept_prefix()
    state = {key: value for key, value in method.state_dict().items() if not key.startswith(kept)}
    plain = {key: value.detach().cpu() for key, value in state.items()}
    plain = {key: (v.float() if v.is_floating_point() else v).contiguous() for key, v in plain.items()}
    forget(run / FILE, run / FACTS)  # until both are there, neither is finished
    with replacing(run / FILE) as temporary:
        temporary.write_bytes(save(plain))
    write_json(run / FACTS, {"schema": SCHEMA, "encoder": encoder_hash(run), "sha256": sha256(run / FILE)})


def read_decoder(run: Path) -> dict[str, Tensor]:
    """The tensors of decoder.safetensors; UserError where it is missing, damaged or of another encoder."""
    missing = f"{run} has no {FILE}: it was not pre-trained to its end, or by an older version"
    facts = load(run / FACTS, DecoderFile, "start the run again in a new --out", missing)
    check(run / FACTS, "start the run again in a new --out")
    if not os.path.lexists(run / FILE):
        raise UserError(missing)
    if facts["sha256"] != digest(run / FILE):
        raise UserError(f"{run / FILE} is damaged (another sha256 than {FACTS} has): start the run again")
    if facts["encoder"] != encoder_hash(run):
        raise UserError(f"{run / FILE} is of another encoder than {run}/encoder.safetensors: start the run again")
    return read_state(run / FILE)


def load_trained(run: Path, config: Config, dataset: Dataset, encoder: Encoder | None = None) -> Method[Any]:
    """The run's method with its trained weights, in eval mode on the CPU; `encoder` takes the place of its own.

    UserError where the method kept nothing but its encoder.
    """
    name = configuration.method_name(config)
    if name is None or not load_method(name).exports_decoder:
        raise UserError(f"{run} was trained by {name or 'no method'}: only autoencoder and pixelcnn keep a decoder")
    state = read_decoder(run)
    with torch.random.fork_rng(devices=[]):
        encoder = encoder or load_encoder(run)
        method = load_method(name)(config.method, encoder, traits_of(config, dataset))
    if method.kept() is not encoder:
        method.kept().load_state_dict(encoder.state_dict())
    kept = method.kept_prefix()
    try:
        _, unexpected = method.load_state_dict(state, strict=False)
    except RuntimeError:  # shapes
        raise UserError(f"{run}/{FILE} is of another network; start the run again in a new --out") from None
    missing = [key for key in method.state_dict() if key not in state and not key.startswith(kept)]
    if missing or unexpected:
        raise UserError(f"{run}/{FILE} and config.json disagree; start the run again in a new --out")
    return method.eval()


def open_trained(run: Path, encoder_from: Path | None = None, progress: Progress | None = None) -> Trained:
    """Open a run that was trained; `encoder_from` is a folder with an exported encoder of the same network.

    Raises UserError where something is missing, damaged or does not fit.
    """
    config = configuration.load(run / "config.json")
    dataset = open_own(run, config, progress)
    other = None if encoder_from is None else fitting_encoder(run, encoder_from)
    device = choose_device()
    method = load_trained(run, config, dataset, other).to(device)
    precision = plain_precision(resolve_precision(config.train.precision, device))
    return Trained(run, config, dataset, method, device, precision, other is None)


def fitting_encoder(run: Path, folder: Path) -> Encoder:
    """The fine-tuned encoder of a run where it has one, else its encoder; UserError where it is another network."""
    if (folder / "manifest.json").exists():  # a run folder
        base, folder = folder, folder / "finetuned"
        if not (folder / "encoder.json").exists():
            raise UserError(f"--encoder {base} has not been fine-tuned: `rayssl finetune {base}` does it")
        if read_export_manifest(folder)["extra"].get("encoder") != encoder_hash(base):
            raise UserError(f"{base} was trained further after fine-tuning: run `rayssl finetune {base}` again")
    own, other = load_encoder(run), load_encoder(folder)
    for what in ("name", "stem", "channels", "image_size", "dim", "architecture"):
        if getattr(own, what) != getattr(other, what):
            raise UserError(
                f"--encoder {folder} has {what} {getattr(other, what)} and {run} {getattr(own, what)}: "
                "only a fine-tuned encoder of the same network fits under its decoder"
            )
    return other
