"""What the tests compute in every process of a group, and alone: every case cuts its own slice from the global batch.

Results are numpy arrays: what goes through the pool's pipes needs no shared memory.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from toy_methods import Adversarial, Flow

from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.base import collectives
from rayssl.pipeline.config import method_config
from rayssl.pipeline.data import Images, open_dataset
from rayssl.pipeline.features.extract import PRECISION, embed_images
from rayssl.pipeline.methods import load_method
from rayssl.pipeline.methods.base import Batch, Before, Method, MethodOutput, OwnStep, Traits
from rayssl.pipeline.methods.losses import nt_xent_of_views
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.trainable import parameter_groups
from rayssl.pipeline.training import guard as guards
from rayssl.pipeline.training.batch_norm import use_global_batch_norm
from rayssl.pipeline.training.batches import RawBatch
from rayssl.pipeline.training.guard import Guard, draw_sample
from rayssl.pipeline.training.loop import POLL_STEPS, Hooks, Loop
from rayssl.pipeline.training.optimizers import JointOptimizer, build_optimizer
from rayssl.pipeline.training.step import Step, wrap_for_workers

Arrays = dict[str, NDArray[Any]]
IMAGES, SIZE = 8, 8
TOYS: dict[str, type[Method[Any]]] = {"toy-gan": Adversarial, "toy-flow": Flow}
AVERAGED = "averaged"  # a method of these tests: see Averaged
IDS = np.random.default_rng(0).permutation(np.arange(1, 5001))  # of all images that `batch_at` can draw from


def own(x: Tensor) -> Tensor:
    """This worker's slice of the global batch."""
    return x.chunk(collectives.world_size())[collectives.rank()]


def averaged_gradient(parameter: Tensor) -> NDArray[Any]:
    """What DistributedDataParallel makes of a gradient."""
    assert parameter.grad is not None
    return collectives.mean_over_ranks(parameter.grad).numpy()


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def helpers() -> dict[str, Any]:
    rank = collectives.rank()
    rows = torch.arange(6).view(3, 2)[: 1 + 2 * rank] + 10 * rank  # one row on rank 0, three on rank 1
    collectives.barrier()
    return {
        "rank": rank,
        "world": collectives.world_size(),
        "broadcast": collectives.broadcast_object({"from": rank}),
        "any": [collectives.any_rank(flag) for flag in (False, rank == 1, True)],
        "mean": collectives.mean_over_ranks(torch.tensor([1.0 + rank, 5.0])).tolist(),
        "rows": collectives.gather_rows(rows).tolist(),
        "empty": collectives.gather_rows(rows[: len(rows) * (1 - rank)]).tolist(),
    }


def nt_xent_case(dtype: torch.dtype, views: int) -> Arrays:
    """Loss of the global batch, and gradients of a shared weight before and of the embeddings themselves."""
    weight = random(5, 4, dtype=dtype).requires_grad_()
    images = [own(random(IMAGES, 5, dtype=dtype, seed=seed)).requires_grad_() for seed in range(1, 1 + views)]
    loss = nt_xent_of_views([x @ weight for x in images], 0.3)
    loss.backward()
    of_images = [collectives.gather_rows(x.grad) / collectives.world_size() for x in images]  # type: ignore[arg-type]
    return {
        "loss": collectives.mean_over_ranks(loss).numpy(),
        "weight": averaged_gradient(weight),
        "images": torch.cat(of_images).numpy(),
    }


def batch_norm_case(shape: tuple[int, ...], dtype: torch.dtype, affine: bool, offset: float) -> Arrays:
    """Output, gradients and running statistics of a layer after two batches; the loss weighs every element apart."""
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    layer = kind(shape[1], affine=affine, momentum=0.3).to(dtype)
    if affine:
        layer.load_state_dict({"weight": 1 + 0.1 * random(shape[1]), "bias": random(shape[1], seed=3)}, strict=False)
    layer = use_global_batch_norm(layer)  # type: ignore[assignment]
    results: Arrays = {}
    for seed in (4, 5):
        x = own(random(*shape, dtype=dtype, seed=seed) + offset).requires_grad_()
        y = layer(x)
        (y * own(random(*shape, dtype=dtype, seed=6))).mean().backward()
        results[f"y{seed}"] = collectives.gather_rows(y).float().numpy()
        results[f"x{seed}"] = (collectives.gather_rows(x.grad) / collectives.world_size()).float().numpy()  # type: ignore[arg-type]
    results |= {f"{name}.grad": averaged_gradient(p) for name, p in layer.named_parameters()}
    return results | {name: value.numpy() for name, value in layer.state_dict().items()}


def autocast_batch_norm_case() -> Arrays:
    """The layer under bf16 autocast: fp32 statistics of bf16 activations."""
    torch.manual_seed(0)
    net = use_global_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    x = own(random(IMAGES, 3, 6, 6, dtype=torch.float32) + 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x.contiguous(memory_format=torch.channels_last))
    y.float().square().mul(own(random(IMAGES, 4, 4, 4, dtype=torch.float32))).mean().backward()
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    results = {"y": collectives.gather_rows(y.float()).numpy(), "mean": net[1].running_mean.numpy()}  # type: ignore[index]
    return results | {name: averaged_gradient(p) for name, p in net.named_parameters()}


def features_case(name: str, values: dict[str, Any], images: int, size: int) -> Arrays:
    """Features, loss and gradients of one fp32 batch of larger images, channels last as in training."""
    method, model = build(name, values, torch.float32, size)
    batch = batch_at(0, torch.float32, images, size)
    batch = replace(batch, views=[view.contiguous(memory_format=torch.channels_last) for view in batch.views])
    output = model(batch)
    output.loss.backward()
    features = output.features.unflatten(0, (-1, images // collectives.world_size())).transpose(0, 1)
    gradients = [p.grad.flatten() for p in method.parameters() if p.grad is not None]
    return {"features": collectives.gather_rows(features).numpy(), "gradient": torch.cat(gradients).numpy()}


@dataclass(frozen=True)
class Drawn:
    """Images of noise by position."""

    n: int

    def __len__(self) -> int:
        return self.n

    def square(self, rows: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        found = [np.random.default_rng(int(row)).integers(0, 256, (size, size, 3), dtype=np.uint8) for row in rows]
        return np.stack(found)


def embedded_case(n: int) -> NDArray[np.float32]:
    """Features of n images, split over the workers."""
    torch.manual_seed(0)
    encoder = build_encoder("cnn-small", channels=3, image_size=16)
    return embed_images(encoder, cast(Images, Drawn(n)), device=torch.device("cpu"), precision=PRECISION)


def train_case(
    name: str, values: dict[str, Any], dtype: torch.dtype, steps: int, optimizer_name: str = "sgd"
) -> Arrays:
    """Losses of `steps` of an optimiser, the gradients of the first step, and the weights and statistics at the end."""
    method, model = build(name, values, dtype)
    rate = values.get("learning_rate", 0.1)
    optimizer = build_optimizer(optimizer_name, parameter_groups(method, 5e-4), learning_rate=rate)
    losses, first = [], {}
    for step in range(steps):
        output = model(batch_at(step, dtype))
        optimizer.zero_grad()
        output.loss.backward()
        first = first or {f"grad.{n}": p.grad.clone().numpy() for n, p in trained(method)}
        optimizer.step()
        method.after_step(step, steps)
        losses.append(collectives.mean_over_ranks(output.loss))
    state = {f"state.{n}": value.numpy() for n, value in method.state_dict().items()}
    return {"losses": torch.stack(losses).numpy(), **first, **state}


def own_step_case(name: str) -> Arrays:
    """Weights of a toy that makes its own step, or starts from its first batch, after three steps in fp64."""
    method, _ = build(name, {}, torch.float64)
    optimizer = JointOptimizer(method.optimizers(sgd)) if isinstance(method, OwnStep) else sgd(method)
    step = Step(method, optimizer, torch.device("cpu"), "fp64", seed=0, planned=3)
    Loop(step, "toy", 5, lambda step: 0.01, Hooks()).run(map(raw_batch_at, range(3)), 0, 3)
    return {name: value.numpy() for name, value in method.state_dict().items()}


def sgd(module: nn.Module) -> Optimizer:
    return build_optimizer("sgd", parameter_groups(module, 0.0), learning_rate=0.1)


def reconstruct_alone() -> float:
    """Rank 0 reconstructs with a sparse code while the other is in a collective of another kind."""
    method, _ = build("autoencoder", {"encoder": "deep", "bottleneck": "sparse"}, torch.float32)
    if collectives.rank() == 0:
        method.eval().reconstruct(torch.rand(2, 3, SIZE, SIZE))  # type: ignore[operator]
    return float(collectives.mean_over_ranks(torch.tensor([1.0 + collectives.rank()])))


def stop_case() -> dict[str, Any]:
    """Steps after which a loop ends that one worker alone is asked to stop, and its checkpoints, by who asks.

    The checkpoint that is due is known on rank 0 alone, as in the stages: only it keeps the time.
    """
    asked: dict[str, Any] = {}
    for asking in range(collectives.world_size()):
        method, _ = build("rotnet", {}, torch.float32)
        kept: list[int] = []
        hooks = Hooks(
            checkpoint=kept.append,
            checkpoint_due=lambda step: collectives.rank() == 0 and step == POLL_STEPS,
            should_stop=partial(stop_after_a_checkpoint, asking, kept),
        )
        optimizer = build_optimizer("sgd", parameter_groups(method, 0), learning_rate=0.01)
        step = Step(method, optimizer, torch.device("cpu"), "fp32", seed=0, planned=4 * POLL_STEPS)
        loop = Loop(step, "pretrain", 5, lambda step: 0.01, hooks)
        ended = loop.run((raw_batch_at(step) for step in range(step.planned)), 0, step.planned)
        asked[f"rank {asking}"] = {"ended": ended, "kept": kept}
    return asked


def stop_after_a_checkpoint(asking: int, kept: list[int]) -> bool:
    """Whether this is the worker that is asked to stop, and a checkpoint is there."""
    return collectives.rank() == asking and len(kept) > 0


def guard_case(folder: str) -> dict[str, Any]:
    """What a guard decides at a start and after two looks at ruined weights; only rank 0 counts the hits."""
    data = open_dataset(folder, image_size=SIZE, val_fraction=0.5, loader="stream")
    sample = draw_sample(data.train, data.val, 2, 0, 100)
    assert sample is not None
    assert sample.measure == "knn"
    method, _ = build("simclr", {}, torch.float32)
    guard = Guard(method, sample, steps=40, keeps=lambda name: True, device=torch.device("cpu"), precision="fp32")
    with pytest.MonkeyPatch.context() as patch:
        if collectives.rank() != 0:
            patch.setattr(guards, "knn_hits", None)
        guard.begin()
        with torch.no_grad():
            for parameter in method.encoder.parameters():
                parameter.fill_(0.1)
        ends = [guard.look(step) for step in (2, 4)]
    guard.bring_back()
    weights = torch.cat([value.flatten().double() for value in method.state_dict().values()])
    return {"ends": ends, "facts": guard.facts(), "weights": float(weights.square().sum())}


def trained(method: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that have a gradient: those of a teacher or a moving average have none."""
    return ((name, parameter) for name, parameter in method.named_parameters() if parameter.requires_grad)


def build(name: str, values: dict[str, Any], dtype: torch.dtype, size: int = SIZE) -> tuple[Method[Any], nn.Module]:
    """A method over a tiny encoder as the stages place it, and what the training loop calls.

    `values` are the method's, but for "encoder", "latent_dim" and "learning_rate".
    """
    torch.manual_seed(0)
    values = {key: value for key, value in values.items() if key != "learning_rate"}
    sizes = {key: values.pop(key) for key in ("latent_dim",) if key in values}
    network = values.pop("encoder", "resnet-tiny")
    encoder = build_encoder(network, channels=3, image_size=size, **sizes)
    traits = Traits(image_size=size, channels=3, mirror=True, classes=2)
    method = new_method(name, values, encoder, traits)
    method.prepare(Before(IDS, lambda source: random(len(IDS), 6, dtype=torch.float32, seed=2).numpy()))
    method.to(dtype).train()
    use_global_batch_norm(method).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method, wrap_for_workers(method)


def new_method(name: str, values: dict[str, Any], encoder: Encoder, traits: Traits) -> Method[Any]:
    """One of the package's, or the toy of these tests."""
    if name == AVERAGED:
        return Averaged(None, encoder, traits)
    if name in TOYS:
        return TOYS[name](TOYS[name].Config(), encoder, traits)
    return load_method(name)(method_config(name, **values), encoder, traits)


class Averaged(Method[None]):
    """Predicts a frozen copy of itself, which follows as a moving average after every step: a method in small.

    Where workers skipped `after_step`, or averaged a gradient that the copy does not have, curves would part.
    """

    def __init__(self, config: None, encoder: Encoder, traits: Traits) -> None:
        super().__init__(config, encoder, traits)
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, encoder.dim, bias=False)
        self.target = copy.deepcopy(encoder).requires_grad_(False)

    @staticmethod
    def default_views(traits: Traits) -> tuple[Spec, ...]:
        return ()

    def forward(self, batch: Batch) -> MethodOutput:
        features = self.encoder(batch.views[0])
        with torch.no_grad():
            wanted = self.target(batch.views[1])
        error = nn.functional.normalize(self.head(features)) - nn.functional.normalize(wanted)
        return MethodOutput(error.square().sum(dim=1).mean(), features.detach(), {})

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        rate = 0.1 * (1 - step / total_steps)
        for own, followed in zip(self.target.parameters(), self.encoder.parameters()):
            own.lerp_(followed, rate)


def raw_batch_at(step: int) -> RawBatch:
    """This worker's slice of the global batch at a step, as a loader gives it."""
    rng = np.random.default_rng(step)
    view = torch.from_numpy(rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8))
    ids = torch.arange(IMAGES) + IMAGES * step + 1
    return RawBatch([own(view)], own(ids), own(ids % 2), step // 5, step)


def batch_at(step: int, dtype: torch.dtype, images: int = IMAGES, size: int = SIZE) -> Batch:
    """This worker's slice of the global batch at a step: three unlike views, ids that change with the step."""
    rng = np.random.default_rng(step)
    views = [torch.from_numpy(rng.random((images, 3, size, size))).to(dtype) for _ in range(3)]
    ids = torch.arange(images) + 100 * step + 1
    return Batch([own(view) for view in views], own(ids), own(ids % 2), seed=7, epoch=step // 10, step=step)
