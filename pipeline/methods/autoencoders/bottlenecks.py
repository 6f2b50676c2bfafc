"""What happens to the code between encoder and decoder, and what it costs.

Shapes: B images on this worker, D latent dimensions, E inputs of the latent layer, K classes. A new bottleneck
is one class here and one line in BOTTLENECKS.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.pipeline.base import randomness_torch
from rayssl.pipeline.base.collectives import gather_with_grad
from rayssl.pipeline.methods.losses import at_least_float32

EXACT_CODES = 4  # up to so many, the Jacobian is made whole: a backward pass a code
LOG_VARIANCE = (-12.0, 8.0)  # bounds of log σ²: outside, exp leaves what bf16 and fp32 sums can use


@dataclass(frozen=True)
class Seen:
    """What a bottleneck may look at."""

    x: Tensor  # (B, C, H, W), the encoder's input
    code: Tensor  # (B, D) or a map (B, D, h, w)
    before: Tensor  # (B, E), what the code's layer saw
    labels: Tensor | None  # (B,) int64, −1 where unknown
    key: list[int | str | Tensor] | None  # of (seed, epoch, ids); None: nothing is drawn, the code is the mean


class Squeezed(NamedTuple):
    """What the decoder gets, and the extra loss: a scalar that is a mean over workers, and what to log of it."""

    z: Tensor
    penalty: Tensor
    logs: dict[str, Tensor]


class Bottleneck(nn.Module, ABC):
    """`takes_labels`: the decoder must be given the labels as well. `gaussian_prior`: codes can be drawn."""

    gaussian_prior: bool = False
    takes_labels: bool = False

    @abstractmethod
    def forward(self, seen: Seen) -> Squeezed:
        """What the decoder gets, and what it costs."""


class Plain(Bottleneck):
    """The code as it is."""

    def forward(self, seen: Seen) -> Squeezed:
        return Squeezed(seen.code, no_penalty(seen.code), {})


class Sparse(Bottleneck):
    """Sigmoid on the code, and a penalty on how active its units are.

    BatchNorm comes before the sigmoid: the first gradients push all codes one way, and without it every unit is shut
    or open for good within a few steps.

    log: Σ_j log(1 + p̂_j²); kl: Σ_j KL(rate ‖ p̂_j); p̂_j is the mean activity of unit j over the global batch.
    l1: Σ_j |a_j|, mean over the batch.
    """

    def __init__(self, latent_dim: int, form: str, rate: float) -> None:
        super().__init__()
        self.form, self.rate = form, rate
        self.norm = nn.BatchNorm1d(latent_dim)

    def forward(self, seen: Seen) -> Squeezed:
        active = torch.sigmoid(self._normalised(at_least_float32(seen.code)))
        if not self.training:  # nothing is gathered: the other workers may be elsewhere
            return Squeezed(active, no_penalty(active), {})
        mean = gather_with_grad(active.flatten(1).mean(dim=0, keepdim=True)).mean(dim=0)
        logs = {"train/active": mean.detach().mean()}
        return Squeezed(active, sparsity(self.form, active.flatten(1), mean, self.rate), logs)

    def _normalised(self, code: Tensor) -> Tensor:
        """Each of the D units over the batch, of a map over its places too."""
        if code.ndim == 2:
            return self.norm(code)  # type: ignore[no-any-return]
        rows = code.movedim(1, -1)
        normalised: Tensor = self.norm(rows.flatten(0, -2)).view(rows.shape).movedim(-1, 1)
        return normalised


class Contractive(Bottleneck):
    """The squared Frobenius norm of the encoder's Jacobian (Rifai et al., "Contractive auto-encoders", ICML 2011)."""

    def forward(self, seen: Seen) -> Squeezed:
        if not seen.x.requires_grad:  # nothing is trained
            return Squeezed(seen.code, no_penalty(seen.code), {})
        norm = jacobian_norm(seen.x, seen.code.flatten(1), seen.key)
        return Squeezed(seen.code, norm, {"train/jacobian": norm.detach()})


class Variational(Bottleneck):
    """z = μ + σ·ε, and KL(N(μ, σ²) ‖ N(0, I)) (Kingma and Welling, "Auto-encoding variational Bayes", 2014).

    μ is the encoder's code; log σ² is a linear layer on what the code's layer sees. With classes it is given the label
    as well, q(z | x, y) (Sohn et al., NeurIPS 2015): a linear layer on [what the code's layer sees, one-hot y] is the
    code plus a vector for each class. An unknown label adds nothing.
    """

    gaussian_prior = True

    def __init__(self, latent_dim: int, before_dim: int, classes: int) -> None:
        super().__init__()
        self.log_variance = nn.Linear(before_dim, latent_dim)
        nn.init.zeros_(self.log_variance.weight)  # σ = 1 at the start: neither noise nor certainty that is only chance
        nn.init.zeros_(self.log_variance.bias)
        self.classes = classes
        self.takes_labels = classes > 0
        self.of_class = nn.Linear(classes, 2 * latent_dim, bias=False) if classes else None

    def posterior(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """μ and log σ² (B, D) of q(z | x), or of q(z | x, y)."""
        mean, log_variance = at_least_float32(seen.code), at_least_float32(self.log_variance(seen.before))
        if self.of_class is not None:
            assert seen.labels is not None
            known = one_hot(seen.labels, self.classes).to(self.of_class.weight)
            of_mean, of_log_variance = at_least_float32(self.of_class(known)).chunk(2, dim=1)
            mean, log_variance = mean + of_mean, log_variance + of_log_variance
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def forward(self, seen: Seen) -> Squeezed:
        mean, log_variance = self.posterior(seen)
        z = mean
        if seen.key is not None:
            noise = randomness_torch.normal([*seen.key, "latent"], mean.shape[1], dtype=mean.dtype)
            z = mean + (0.5 * log_variance).exp() * noise
        kl = gaussian_kl(mean, log_variance)
        return Squeezed(z, kl.mean(), {"train/kl": kl.detach().mean()})


@dataclass(frozen=True)
class Sizes:
    """What a bottleneck is built from."""

    latent_dim: int
    before_dim: int
    classes: int
    sparsity: str
    rate: float


BOTTLENECKS: dict[str, Callable[[Sizes], Bottleneck]] = {
    "plain": lambda sizes: Plain(),
    "sparse": lambda sizes: Sparse(sizes.latent_dim, sizes.sparsity, sizes.rate),
    "contractive": lambda sizes: Contractive(),
    "variational": lambda sizes: Variational(sizes.latent_dim, sizes.before_dim, 0),
    "conditional": lambda sizes: Variational(sizes.latent_dim, sizes.before_dim, sizes.classes),
}


def no_penalty(code: Tensor) -> Tensor:
    """A zero on the code's device."""
    return code.new_zeros((), dtype=torch.float32)


def sparsity(form: str, active: Tensor, mean: Tensor, rate: float) -> Tensor:
    """The penalty of activities (B, D) in (0, 1) whose means over the global batch are `mean` (D,)."""
    if form == "log":
        return torch.log1p(mean.square()).sum()
    if form == "l1":
        return active.abs().sum(dim=1).mean()
    safe = mean.clamp(1e-6, 1 - 1e-6)
    return (rate * (rate / safe).log() + (1 - rate) * ((1 - rate) / (1 - safe)).log()).sum()


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ (μ² + σ² − 1 − log σ²), (B, D) → (B,), in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def jacobian_norm(x: Tensor, code: Tensor, key: list[int | str | Tensor] | None) -> Tensor:
    """Mean over the batch of ‖∂code/∂x‖²_F; x (B, …) requires a gradient, code (B, D).

    Exact for up to EXACT_CODES codes. Beyond, E ‖vᵀJ‖² = ‖J‖²_F for v ~ N(0, I): one draw of v a step and image is an
    unbiased estimate (Hutchinson, 1990) at the price of one backward pass.
    """
    if code.shape[1] <= EXACT_CODES or key is None:
        return sum((_row(x, code[:, j]) for j in range(code.shape[1])), start=x.new_zeros(()))
    wide = at_least_float32(code)
    v = randomness_torch.normal([*key, "jacobian"], code.shape[1], dtype=wide.dtype)
    return _row(x, (wide * v).sum(dim=1))


def _row(x: Tensor, values: Tensor) -> Tensor:
    """Mean squared length of the gradient of each image's value (B,) by its own pixels."""
    (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    return at_least_float32(gradient).square().sum() / len(x)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B,) → (B, classes) int64; an unknown label (−1) is all zeros."""
    return F.one_hot(labels.clamp(min=0), classes) * (labels >= 0)[:, None]
