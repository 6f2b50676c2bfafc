"""SimCLR as lightly's guide and its CIFAR-10 benchmark have it, and the same with every setting at its fastest.

Guide (docs.lightly.ai, examples/simclr): a plain PyTorch loop over PIL images. Benchmark (cifar10_benchmark.py): colour
jitter at half strength and no blur for 32 pixels, SGD with 0.06 · B / 128, momentum 0.9, weight decay 5e-4, a cosine.
Settings: `transform` (simclr, pil, pil-v2, tensor-v2), `processes`, `threads`, `precision`, `channels_last`,
`one_pass`, `compile`.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import (
    IMAGE_SIZE,
    TRAIN_IMAGES,
    Cifar10,
    Task,
    Waiting,
    Watch,
    choose_device,
    feature_dim,
    new_backbone,
    run,
)
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.transforms.multi_view_transform_v2 import MultiViewTransformV2
from lightly.transforms.utils import IMAGENET_NORMALIZE
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2


class SimCLR(nn.Module):
    """The guide's module."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        dim = feature_dim(backbone)
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(dim, dim, 128)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone(x).flatten(start_dim=1)
        projected: Tensor = self.projection_head(features)
        return projected


def fit(task: Task, watch: Watch, waiting: Waiting, steps: int) -> nn.Module:
    """The guide's loop, with the benchmark's optimiser and its cosine over the steps there are."""
    settings, device = task.settings, choose_device()
    torch.set_num_threads(settings["threads"])
    model = SimCLR(new_backbone(task)).to(device)
    if settings["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    project = torch.compile(model) if settings["compile"] else model
    loader, criterion = new_loader(task), NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06 * task.batch_size / 128, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    while True:
        total_loss = torch.zeros((), device=device)
        for batch in waiting.batches(loader):
            x0, x1 = (on_device(view, device, settings) for view in batch[0])
            with torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16"):
                z0, z1 = project_views(project, x0, x1, settings["one_pass"])
            loss = criterion(z0.float(), z1.float())
            total_loss += loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            if not watch.step():
                return model.backbone
        print(f"loss: {total_loss / len(loader):.5f}", flush=True)


def project_views(project: Callable[[Tensor], Tensor], x0: Tensor, x1: Tensor, one_pass: bool) -> tuple[Tensor, Tensor]:
    """Projections of both views: one after the other as in the guide, or both in one pass."""
    if one_pass:
        z0, z1 = project(torch.cat([x0, x1])).chunk(2)
        return z0, z1
    return project(x0), project(x1)


def on_device(view: Tensor, device: torch.device, settings: dict[str, Any]) -> Tensor:
    """A view as the network takes it; where the loader leaves it as bytes, it is scaled and normalised here at once."""
    view = view.to(device, non_blocking=True)
    if settings["channels_last"]:
        view = view.contiguous(memory_format=torch.channels_last)
    if view.dtype == torch.uint8:
        mean, std = (torch.tensor(IMAGENET_NORMALIZE[key], device=device)[:, None, None] for key in ("mean", "std"))
        view = (view.float() / 255 - mean) / std
    return view


def new_loader(task: Task) -> DataLoader[Any]:
    """The guide's loader; the fast one keeps its processes from epoch to epoch and its batches in pinned memory."""
    settings = task.settings
    dataset = new_dataset(task)
    fast = settings["transform"] != "simclr"
    return DataLoader(
        dataset,
        batch_size=task.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings["processes"],
        persistent_workers=fast and settings["processes"] > 0,
        pin_memory=fast and torch.cuda.is_available(),
    )


def new_dataset(task: Task) -> Dataset[Any]:
    """Images in memory with two views each."""
    kind = task.settings["transform"]
    if kind == "simclr":
        views = SimCLRTransform(input_size=IMAGE_SIZE, cj_strength=0.5, gaussian_blur=0.0)
        dataset: Dataset[Any] = LightlyDataset.from_torch_dataset(Cifar10(task.images), transform=views)
        return dataset
    view = lean_view(kind)
    views = MultiViewTransformV2([view, view])
    return Tensors(task, views) if kind == "tensor-v2" else Cifar10(task.images, views)


def lean_view(kind: str) -> Callable[[Any], Tensor]:
    """The operations of SimCLRTransform without those of probability 0, to bytes: the batch is normalised as one."""
    library: Any = transforms if kind == "pil" else v2
    operations = [
        library.RandomResizedCrop(IMAGE_SIZE, scale=(0.08, 1.0)),
        library.RandomHorizontalFlip(0.5),
        library.RandomApply([library.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        library.RandomGrayscale(p=0.2),
    ]
    if kind != "tensor-v2":
        operations.append(library.PILToTensor())
    composed: Callable[[Any], Tensor] = library.Compose(operations)
    return composed


class Tensors(Dataset[Any]):
    """Images as tensors (3, H, W) of bytes."""

    def __init__(self, task: Task, transform: Callable[[Tensor], list[Tensor]]) -> None:
        self.images = torch.from_numpy(np.load(task.images / TRAIN_IMAGES)).permute(0, 3, 1, 2).contiguous()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        return self.transform(self.images[i]), 0


if __name__ == "__main__":
    sys.exit(run(fit, "lightly", IMAGENET_NORMALIZE["mean"], IMAGENET_NORMALIZE["std"]))
