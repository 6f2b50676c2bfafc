"""The contract of a method.

Shapes: V views, B images on this worker, C channels, H × W pixels, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.trainable import keep_statistics, parameter_groups, rate_scales

Key = list[int | str | Tensor]  # of random draws: see `rayssl.pipeline.base.randomness_torch`


@dataclass(frozen=True)
class MethodConfig:
    """What every method's `Config` begins with."""

    name: str = ""  # of the method, in METHODS or as an entry point


@dataclass(frozen=True)
class Traits:
    """What a method may know of the data before it chooses its default views."""

    image_size: int  # side in pixels
    channels: int
    mirror: bool  # a mirror image means the same
    classes: int = 0  # of the labels; 0: there are none
    crop: float | None = None  # smallest share of the area that a view shows; None: as the method has it
    color: float | None = None  # strength of jitter, grey and blur, 1 as SimCLR's; None: as the method has it

    def for_views(self) -> dict[str, Any]:
        """What the functions of `augment.defaults` that crop and colour take."""
        return {name: getattr(self, name) for name in ("image_size", "channels", "mirror", "crop", "color")}


@dataclass(frozen=True)
class Batch:
    """One worker's slice of the global batch.

    A method that wants clean images asks for one view with an empty spec: there is no second copy of them here.
    """

    views: list[Tensor]  # V tensors (B, C, H, W), floats in [0, 1]; of several sizes where the method says so
    ids: Tensor  # (B,) int64, positive
    labels: Tensor | None  # (B,) int64, or none
    seed: int
    epoch: int
    step: int
    planned: int = 0  # steps of the whole plan, by which schedules go


@dataclass(frozen=True)
class MethodOutput:
    """`loss` is a scalar whose mean over workers is the loss of the global batch; `logs` are detached scalars.

    `features` (B', D) are the encoder's, detached: what the collapse indicator looks at.
    """

    loss: Tensor
    features: Tensor
    logs: dict[str, Tensor]


@dataclass(frozen=True)
class Before:
    """What a method may look at before its first step: N training images, seen by something that is not trained."""

    ids: NDArray[np.int64]  # (N,)
    # A frozen encoder, or the name of a descriptor (models.descriptors), to (N, D) features in the order of
    # `ids`: of the centre square at the encoder's own image size. Kept by content, so the second call is quick.
    features: Callable[[Encoder | str], NDArray[np.float32]]


C = TypeVar("C")


class Method(nn.Module, ABC, Generic[C]):
    """A pre-training method: an encoder that is kept and whatever is thrown away afterwards.

    A subclass has a frozen dataclass `Config`, a MethodConfig, with its hyper-parameters and their defaults. What it
    can do besides, it says by the protocols below; one that needs several optimisers is an OwnStep.
    """

    Config: ClassVar[Any]
    encoder_passes: ClassVar[float] = 1  # forward passes of the encoder a view, trained ones; what a step costs
    any_view_size: ClassVar[bool] = True  # whether views of another size than the encoder was built for will do
    mixed_view_sizes: ClassVar[bool] = False  # whether the views of one batch may differ in size
    smallest_view: ClassVar[float] = 1  # the encoder also sees images of this part of a view's side
    smallest_batch: ClassVar[int] = 1  # images, over all workers, that a loss can be made of
    deterministic: ClassVar[bool] = False  # whether the loss is a function of weights, views and ids: nothing is drawn
    exports_decoder: ClassVar[bool] = False  # whether what is not the encoder is of use after training, and is saved
    encoder: Encoder  # the one that is trained

    def __init__(self, config: C, encoder: Encoder, traits: Traits) -> None:
        super().__init__()

    @staticmethod
    @abstractmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        """The method's own augmentation, one spec a view."""

    @classmethod
    def views_for(cls, config: Any, traits: Traits) -> tuple[Spec, ...]:
        """Those of a `Config`, where it has a say in how many they are."""
        return cls.default_views(traits)

    @classmethod
    def settle(cls, config: Any, before: Any | None = None) -> Any:
        """A `Config` without what only this machine can tell; `before`: that of the run that is continued."""
        return config

    @abstractmethod
    def forward(self, batch: Batch) -> MethodOutput:
        """The loss of a batch. Every random draw is keyed by the batch's seed, epoch and ids."""

    def prepare(self, before: Before) -> None:
        """Called once before the first step, also where a run is continued; what is kept here is in no checkpoint."""

    def train(self, mode: bool = True) -> Self:
        """Into training mode, or out of it; a part of the encoder that is not trained keeps its statistics."""
        super().train(mode)
        if mode:
            keep_statistics(self.encoder)
        return self

    def kept(self) -> Encoder:
        """The encoder that is exported and measured; of a method with a teacher or a moving average perhaps that."""
        return self.encoder

    def kept_prefix(self) -> str:
        """What the names of the kept encoder's tensors in `state_dict` begin with."""
        kept = self.kept()
        return next(f"{name}." for name, module in self.named_modules() if module is kept)

    def encoders(self) -> list[Encoder]:
        """All encoders that a step may run: the trained one and its likes."""
        return [module for module in self.modules() if isinstance(module, Encoder)]

    def parameter_groups(self, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
        """What is trained, in groups of "params", "weight_decay", and "scale", what the learning rate is multiplied by.

        Weights decay, biases and normalisation do not. `layer_decay` is by how much the rate of each of the encoder's
        stages is smaller than that of the next.
        """
        scales = rate_scales(self.encoder, layer_decay) if layer_decay < 1 else {}
        return parameter_groups(self, weight_decay, scales)

    def chance(self, images: int) -> dict[str, float]:
        """What logged losses are where the network guesses, at a global batch of so many images, by their names."""
        return {}

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after every optimiser step, e.g. for moving averages."""


class OwnStep(Method[C], ABC):
    """A method with several optimisers, which take turns, for instance a generative adversarial network."""

    @abstractmethod
    def optimizers(self, build: Callable[[nn.Module], Optimizer]) -> Mapping[str, Optimizer]:
        """Its optimisers by name. `build` makes the configured one over what a module trains; any other will do too.

        Before every step each gets the scheduled learning rate, times the "scale" of a group that has one.
        """

    @abstractmethod
    def train_step(self, batch: Batch, update: Callable[[str, Tensor], None]) -> MethodOutput:
        """A whole step. `update(name, loss)` lets one optimiser take a step on a loss; others' parameters stay.

        The mean over workers of `loss` must be that of the global batch: gradients are averaged over workers.
        """

    def forward(self, batch: Batch) -> MethodOutput:
        """There is no single loss."""
        raise NotImplementedError(f"{type(self).__name__} makes its own step")


@runtime_checkable
class InitializesFromData(Protocol):
    """A method some of whose first weights depend on images, for instance a flow's ActNorm."""

    def initialize_from(self, batch: Batch) -> None:
        """Called once in a run, without gradients, with this worker's part of the first batch, before the first step.

        Not where a run is continued: what it sets must be in `state_dict`. All workers must come to the same weights:
        what depends on the batch is gathered or averaged over them.
        """


@runtime_checkable
class Reconstructs(Protocol):
    """A method that gives an image back."""

    corrupts: bool  # whether training hides a part of the image

    def target(self, x: Tensor, key: Key) -> Tensor:
        """What is to be given back (B, C, H, W) of images (B, C, H, W) in [0, 1]; draws by `key`."""

    def corrupt(self, x: Tensor, ids: Tensor, seed: int, epoch: int) -> Tensor:
        """Images (B, C, H, W) in [0, 1] as training shows them."""

    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1] given back; `labels` (B,) where the decoder is told them."""


@runtime_checkable
class HasCodes(Reconstructs, Protocol):
    """A method with a code between an encoder and a decoder. Shapes: D numbers of a code."""

    encoder: Encoder
    has_prior: bool  # whether codes are meant to be standard normal
    conditions: int  # classes that the decoder is told; 0: none

    def codes(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The codes (B, D) or (B, D, h, w) of images (B, C, H, W), without noise."""

    def code_distribution(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance of the codes that training decodes, each like `codes`."""

    def images(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Codes to images (B, C, H, W)."""


@runtime_checkable
class HasLikelihood(Protocol):
    """A method that says exactly how likely an image is."""

    likelihood_protocol: str  # of which values, for records: "no binarisation, exact for 256 levels"

    def nats(self, x: Tensor, key: Key) -> Tensor:
        """−log p(x) (B,) of images (B, C, H, W) in [0, 1]; draws by `key`."""


@runtime_checkable
class BoundsLikelihood(Protocol):
    """A method that can say at least how likely an image is."""

    has_likelihood: bool  # whether its settings are those of a likelihood
    likelihood_protocol: str  # as of HasLikelihood, without what is said of the draws

    def target(self, x: Tensor, key: Key) -> Tensor:
        """As of Reconstructs."""

    def log_likelihood(self, x: Tensor, labels: Tensor | None, k: int, key: Key) -> tuple[Tensor, Tensor]:
        """The ELBO and the importance-weighted bound (B,) of log p(x) in nats, from k draws; `x` as of `target`."""


@runtime_checkable
class Samples(Protocol):
    """A method that draws images by itself."""

    def sample(self, count: int, seed: int, progress: Callable[[int, int], None]) -> Tensor:
        """`count` images (count, C, H, W) in [0, 1], a function of the seed; `progress` counts what is done of all."""
