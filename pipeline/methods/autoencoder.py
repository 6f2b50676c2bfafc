"""Autoencoders: corruption → encoder → bottleneck → decoder → reconstruction, chosen one by one.

Architectures are the encoders: linear, deep, conv, and any other with an up-sampling decoder. The parts are in
pipeline/autoencoder. Shapes: B images, C channels, H × W pixels, D latent dimensions, K classes.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from rayssl.pipeline.augment.defaults import autoencoder_views
from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.base import randomness_torch
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.methods.autoencoders.bottlenecks import BOTTLENECKS, Contractive, Seen, Sizes, Variational, one_hot
from rayssl.pipeline.methods.autoencoders.corruptions import build_corruption
from rayssl.pipeline.methods.autoencoders.decoders import build_decoder
from rayssl.pipeline.methods.autoencoders.reconstruction import (
    LIKELIHOODS,
    OUTPUTS,
    binarise,
    build_reconstruction,
    told_of_binarisation,
)
from rayssl.pipeline.methods.base import Batch, Key, Method, MethodConfig, MethodOutput, Traits
from rayssl.pipeline.methods.losses import at_least_float32
from rayssl.pipeline.models.encoder import Encoder


@dataclass(frozen=True)
class AutoencoderConfig(MethodConfig):
    """Three choices that combine freely, and what the reconstruction is measured by."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str = "autoencoder"
    corruption: Literal["none", "gaussian", "salt-and-pepper", "masking"] = "masking"
    noise: Annotated[float, Gt(0)] = 0.4  # gaussian: standard deviation, of pixels in [0, 1]
    share: Annotated[float, Gt(0), Le(1)] = (
        0.25  # salt-and-pepper, masking: of the pixels (Vincent et al., 2010: about the best)
    )
    patch: Annotated[int, Ge(1)] = 1  # masking: side in pixels of the squares that are masked
    bottleneck: Literal["plain", "sparse", "contractive", "variational", "conditional"] = "plain"
    sparsity: Literal["log", "kl", "l1"] = "kl"  # sparse: which penalty
    rate: Annotated[float, Gt(0), Lt(1)] = 0.05  # sparse, kl: the target of a unit's mean activity
    penalty: Annotated[float, Ge(0)] = 1e-3  # sparse, contractive: weight of the penalty
    beta: Annotated[float, Ge(0)] = 1.0  # variational, conditional: weight of the KL
    kl_warmup_epochs: Annotated[int, Ge(0)] = 0  # the KL's weight grows linearly over so many
    reconstruction: Literal["mse", "rmse", "bce", "gaussian"] = "mse"
    sigma: Annotated[float, Gt(0)] = 0.1  # gaussian likelihood: standard deviation, of pixels in [0, 1]
    output: Literal["sigmoid", "none"] = "sigmoid"  # of the decoder
    binarize: Literal["none", "static", "dynamic"] = "none"  # of the images


class Autoencoder(Method[AutoencoderConfig]):
    """Reconstruct the clean image from a corrupted one."""

    Config = AutoencoderConfig
    encoder_passes = 2  # the decoder costs about as much as the encoder
    any_view_size = False  # a code has so many numbers for one size
    exports_decoder = True

    def __init__(self, config: AutoencoderConfig, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        check(config, encoder, traits)
        self.config = config
        self.encoder = encoder
        self.traits = traits
        self.corruption = build_corruption(
            config.corruption,
            noise=config.noise,
            share=config.share,
            patch=config.patch,
            image_size=traits.image_size,
        )
        before_dim = encoder.output_shape(lambda x: encoder.before_code(x)[1])[0] if encoder.has_code else 0
        sizes = Sizes(encoder.dim, before_dim, traits.classes, config.sparsity, config.rate)
        self.bottleneck = BOTTLENECKS[config.bottleneck](sizes)
        self.conditions = traits.classes if self.bottleneck.takes_labels else 0  # K that the decoder is given
        self.corrupts = config.corruption != "none"
        self.likelihood_protocol = told_of_binarisation(config.binarize)
        self.has_prior = self.bottleneck.gaussian_prior
        self.has_likelihood = self.has_prior and config.reconstruction in LIKELIHOODS
        self.decoder = build_decoder(encoder, encoder.dim + self.conditions)
        self.loss_of = build_reconstruction(config.reconstruction, config.output, config.sigma)
        self.to_image = OUTPUTS[config.output]
        # A KL in nats beside a mean over pixels is spread over the pixels too: the ratio is then that of a likelihood.
        pixels = traits.channels * traits.image_size**2
        self.kl_scale = 1.0 if config.reconstruction in LIKELIHOODS else 1.0 / pixels

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        """One view: the clean image."""
        return autoencoder_views(image_size=traits.image_size, channels=traits.channels, mirror=traits.mirror)

    def forward(self, batch: Batch) -> MethodOutput:
        """Reconstruction loss of the corrupted images against the clean ones, and the bottleneck's penalty."""
        key: Key = [batch.seed, batch.epoch, batch.ids, 0]
        if batch.step == 0 and self.config.reconstruction == "bce":
            check_range(batch.views[0])
        clean = self.target(batch.views[0], key)
        x = self.corruption(clean, [*key, "corruption"])
        if isinstance(self.bottleneck, Contractive):
            x = x.detach().requires_grad_()
        seen = self.see(x, batch.labels, key)
        squeezed = self.bottleneck(seen)
        logits = at_least_float32(self.logits(squeezed.z, batch.labels))
        with torch.autocast(x.device.type, enabled=False):
            restored = self.loss_of(logits, clean).mean()
            loss = restored + self.weight(batch.epoch) * at_least_float32(squeezed.penalty)
        code = seen.code.detach()
        features = code.mean(dim=(2, 3)) if code.ndim == 4 else code
        return MethodOutput(loss, features, {"train/reconstruction": restored.detach(), **squeezed.logs})

    def weight(self, epoch: int) -> float:
        """Of the bottleneck's penalty in an epoch."""
        if not self.bottleneck.gaussian_prior:
            return self.config.penalty
        grown = min(1.0, (epoch + 1) / (self.config.kl_warmup_epochs + 1))
        return self.config.beta * grown * self.kl_scale

    def target(self, x: Tensor, key: Key) -> Tensor:
        """The images (B, C, H, W) that are to be reconstructed: as they are, or binarised by (seed, epoch, id)."""
        return binarise(x, self.config.binarize, key)

    def corrupt(self, x: Tensor, ids: Tensor, seed: int, epoch: int) -> Tensor:
        """A corrupted copy of the images (B, C, H, W) in [0, 1], a function of (seed, epoch, id) alone."""
        return self.corruption(x, [seed, epoch, ids, 0, "corruption"])

    def see(self, x: Tensor, labels: Tensor | None, key: Key | None) -> Seen:
        """The encoder's code of images, and what the bottleneck needs besides."""
        if self.bottleneck.takes_labels and labels is None:
            raise UserError("a conditional autoencoder needs the labels of the images: there are none")
        if not self.encoder.has_code:
            found = self.encoder.feature_map(x)
            return Seen(x, found, found, labels, key)
        code, before = self.encoder.before_code(x)
        return Seen(x, code, before, labels, key)

    def codes(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the decoder gets for images (B, C, H, W), without noise: (B, D) or a map (B, D, h, w)."""
        return self.code_distribution(x, labels)[0]

    def code_distribution(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance of what the decoder is given in training, each like `codes`: variance 0 without noise."""
        seen = self.see(x.detach(), labels, None)
        if isinstance(self.bottleneck, Variational):
            mean, log_variance = self.bottleneck.posterior(seen)
            return mean, log_variance.exp()
        z: Tensor = self.bottleneck(seen).z
        return z, torch.zeros_like(z)

    def images(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode codes (B, D) or (B, D, h, w): (B, C, H, W)."""
        return self.to_image(at_least_float32(self.logits(z, labels)))

    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Encode and decode images (B, C, H, W) as they are: (B, C, H, W)."""
        return self.images(self.codes(x, labels), labels)

    def logits(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """What the decoder's last layer gives."""
        if self.conditions:
            assert labels is not None
            # As long as a code drawn from the prior is: of length 1 the label would be lost beside it.
            known = z.shape[1] ** 0.5 * one_hot(labels, self.conditions).to(z)
            z = torch.cat([z, known], dim=1)
        found: Tensor = self.decoder(z)
        return found

    def log_likelihood(self, x: Tensor, labels: Tensor | None, k: int, key: Key) -> tuple[Tensor, Tensor]:
        """The ELBO and the importance-weighted bound of log p(x) in nats, (B,) each, from the same k draws of z.

        L_k = log 1/k Σ p(x, z_i)/q(z_i | x), z_i ~ q (Burda et al., "Importance weighted autoencoders", 2016,
        eq. 8); the ELBO is the mean of the logarithms. `x` are the images to be explained, binarised already.
        """
        if not self.has_likelihood:
            raise UserError(
                "a bound of the likelihood needs --method.bottleneck variational or conditional and "
                f"--method.reconstruction {' or '.join(LIKELIHOODS)}"
            )
        assert isinstance(self.bottleneck, Variational)
        mean, log_variance = self.bottleneck.posterior(self.see(x, labels, None))
        weights = []
        for draw in range(k):
            noise = randomness_torch.normal([*key, "bound", draw], mean.shape[1], dtype=mean.dtype)
            z = mean + (0.5 * log_variance).exp() * noise
            explained = -self.loss_of(at_least_float32(self.logits(z, labels)), x)
            # log N(z; 0, I) − log N(z; μ, σ²): the constants cancel.
            prior = 0.5 * (noise.square() + log_variance - z.square()).sum(dim=1)
            weights.append(explained + prior)
        stacked = torch.stack(weights).double()
        return stacked.mean(dim=0), stacked.logsumexp(dim=0) - math.log(k)


def check(config: AutoencoderConfig, encoder: Encoder, traits: Traits) -> None:
    """Raises UserError for choices that do not go together."""
    if config.reconstruction == "bce" and config.output != "sigmoid":
        raise UserError(
            f"--method.output {config.output}: bce compares probabilities; use sigmoid, or --method.reconstruction mse"
        )
    if config.bottleneck in ("variational", "conditional") and not encoder.has_code:
        raise UserError(
            f"--method.bottleneck {config.bottleneck} needs a code that is a vector and {encoder.name} gives a map: "
            "add --encoder.latent-dim 32, or use --encoder.name deep or conv"
        )
    if config.bottleneck == "contractive" and any(isinstance(part, _BatchNorm) for part in encoder.modules()):
        raise UserError(
            f"--method.bottleneck contractive does not work with {encoder.name} (BatchNorm makes each output depend on "
            "the whole batch): use --encoder.name linear, deep, conv or mlp"
        )
    if config.bottleneck == "conditional" and not traits.classes:
        raise UserError("--method.bottleneck conditional needs labels and the images have none: use variational")


def check_range(x: Tensor) -> None:
    """Raises UserError for images that are no probabilities."""
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise UserError(
            f"--method.reconstruction bce takes pixels in [0, 1] and these are in [{low:g}, {high:g}]: use mse"
        )
