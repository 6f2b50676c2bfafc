"""The contract of a method.

Shapes: V views, B images on this worker, C channels, H × W pixels, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.models.encoder import Encoder


@dataclass(frozen=True)
class Traits:
    """What a method may know of the data before it chooses its default views."""

    image_size: int  # side in pixels
    channels: int
    mirror: bool  # a mirror image means the same
    classes: int = 0  # of the labels; 0: there are none
    crop: float | None = None  # smallest share of the area that a view shows; None: as the method has it
    color: float | None = None  # strength of jitter, grey and blur, 1 as SimCLR's; None: as the method has it


@dataclass(frozen=True)
class Batch:
    """One worker's slice of the global batch.

    A method that wants clean images asks for one view with an empty spec: there is no second copy of them here.
    """

    views: list[Tensor]  # V tensors (B, C, H, W), floats in [0, 1]
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

    A subclass has a frozen dataclass `Config` with its hyper-parameters and their defaults.
    """

    Config: ClassVar[Any]
    passes: ClassVar[int] = 1  # of the encoder, forward, for one view: what a step costs
    any_size: ClassVar[bool] = True  # whether views of another size than the encoder was built for will do
    least_batch: ClassVar[int] = 1  # images, over all workers, that a loss can be made of
    shrinks: ClassVar[int] = 1  # the encoder also sees images of this part of a view's side
    draws_only_views: ClassVar[bool] = False  # whether `forward` is a function of the weights and views alone
    keeps_decoder: ClassVar[bool] = False  # whether what is not the encoder is of use after training
    encoder: Encoder

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

    def chance(self, images: int) -> dict[str, float]:
        """What logged losses are where the network guesses, at a global batch of so many images, by their names."""
        return {}

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after every optimiser step, e.g. for moving averages."""
