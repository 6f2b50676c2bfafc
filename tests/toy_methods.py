"""Methods in small, as another package would write them: `installed` makes it so."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim import Optimizer

from rayssl.pipeline.augment.defaults import autoencoder_views
from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.base import collectives, randomness_torch
from rayssl.pipeline.methods.base import Batch, Key, Method, MethodConfig, MethodOutput, OwnStep, Traits
from rayssl.pipeline.methods.byol import BYOL, BYOLConfig, normalised_error
from rayssl.pipeline.models.encoder import Encoder

ENTRY_POINTS = """[rayssl.methods]
toy-gan = toy_methods:Adversarial
toy-flow = toy_methods:Flow
toy-crops = toy_methods:Crops
"""


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the toys were a distribution of their own."""
    information = folder / "toys" / "toy_methods-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-methods\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(information.parent))


@dataclass(frozen=True)
class AdversarialConfig(MethodConfig):
    name: str = "toy-gan"
    noise: int = 4  # numbers that an image is made from


class Adversarial(OwnStep[AdversarialConfig]):
    """Goodfellow et al., 2014: the discriminator is the encoder and a linear layer, the generator a linear layer."""

    Config = AdversarialConfig

    def __init__(self, config: AdversarialConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        self.noise, self.shape = config.noise, (traits.channels, traits.image_size, traits.image_size)
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, 1)
        self.generator = nn.Linear(config.noise, math.prod(self.shape))

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        return autoencoder_views(image_size=traits.image_size, channels=traits.channels, mirror=traits.mirror)

    def optimizers(self, build: Callable[[nn.Module], Optimizer]) -> Mapping[str, Optimizer]:
        generator = torch.optim.Adam(self.generator.parameters(), betas=(0.5, 0.999))
        return {"discriminator": build(nn.ModuleList([self.encoder, self.head])), "generator": generator}

    def train_step(self, batch: Batch, update: Callable[[str, Tensor], None]) -> MethodOutput:
        features = self.encoder(batch.views[0])
        made = self.generate([batch.seed, batch.epoch, batch.ids])
        real, false = self.head(features), self.head(self.encoder(made.detach()))
        loss = softplus(-real).mean() + softplus(false).mean()
        update("discriminator", loss)
        fooled = softplus(-self.head(self.encoder(made))).mean()
        update("generator", fooled)
        return MethodOutput(loss.detach(), features.detach(), {"train/generator_loss": fooled.detach()})

    def generate(self, key: Key) -> Tensor:
        noise = randomness_torch.normal([*key, "noise"], self.noise, dtype=self.head.weight.dtype)
        return self.generator(noise).sigmoid().unflatten(1, self.shape)


@dataclass(frozen=True)
class FlowConfig(MethodConfig):
    name: str = "toy-flow"


class Flow(Method[FlowConfig]):
    """The ActNorm of Kingma and Dhariwal, "Glow", 2018, of every value by itself; the encoder only learns to say 0."""

    Config = FlowConfig
    exports_decoder = True
    likelihood_protocol = "density of pixels in [0, 1], exact"

    def __init__(self, config: FlowConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        self.shape = (traits.channels, traits.image_size, traits.image_size)
        self.encoder = encoder
        self.shift = nn.Parameter(torch.zeros(math.prod(self.shape)))
        self.log_scale = nn.Parameter(torch.zeros(math.prod(self.shape)))

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        return autoencoder_views(image_size=traits.image_size, channels=traits.channels, mirror=False)

    def initialize_from(self, batch: Batch) -> None:
        values = collectives.gather_rows(batch.views[0].flatten(1))
        self.shift.copy_(-values.mean(dim=0))
        self.log_scale.copy_(-values.std(dim=0).clamp(min=1e-3).log())

    def forward(self, batch: Batch) -> MethodOutput:
        features = self.encoder(batch.views[0])
        nats = self.nats(batch.views[0], []).mean()
        return MethodOutput(nats + features.square().mean(), features.detach(), {"train/nats": nats.detach()})

    def normalise(self, x: Tensor) -> Tensor:
        return (x.flatten(1) + self.shift) * self.log_scale.exp()

    def nats(self, x: Tensor, key: Key) -> Tensor:
        of_each = 0.5 * (self.normalise(x).square() + math.log(2 * math.pi)) - self.log_scale
        return of_each.sum(dim=1)

    @torch.no_grad()
    def sample(self, count: int, seed: int, progress: Callable[[int, int], None]) -> Tensor:
        ids = torch.arange(1, count + 1, device=self.shift.device)
        z = randomness_torch.normal([seed, "sample", ids], len(self.shift), dtype=self.shift.dtype)
        progress(count, count)
        return (z * (-self.log_scale).exp() - self.shift).unflatten(1, self.shape).clamp(0, 1)


@dataclass(frozen=True)
class CropsConfig(BYOLConfig):
    name: str = "toy-crops"


class Crops(BYOL):
    """BYOL that predicts from a small view too, and whose moving average is what is kept."""

    Config: Any = CropsConfig
    mixed_view_sizes = True

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        first, second = BYOL.default_views(traits)
        return first, second, Spec(first.operations, scale=0.5)

    def kept(self) -> Encoder:
        return self.target_encoder

    def forward(self, batch: Batch) -> MethodOutput:
        output = super().forward(batch)
        small = self.predictor(self.projector(self.encoder(batch.views[2])))
        with torch.no_grad():
            target = self.target_projector(self.target_encoder(batch.views[0]))
        return MethodOutput(output.loss + normalised_error(small, target), output.features, output.logs)
