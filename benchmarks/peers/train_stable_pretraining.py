"""SimCLR as stable-pretraining's tutorial for CIFAR-10 has it (examples/simclr_cifar10_tutorial.ipynb).

The tutorial's views, projector, loss and Adam, which it uses for short runs (its LARS is for 1000 epochs). Its online
probes are left out, which only makes it faster, and its cosine goes by steps, as the budget is less than some epochs.
"""

import sys

import lightning as pl
import stable_pretraining as spt
from common import Cifar10, Task, Waiting, Watch, feature_dim, new_backbone, run
from lightning_watch import watching
from stable_pretraining.data import transforms
from stable_pretraining.forward import simclr
from torch import nn
from torch.utils.data import DataLoader

STATISTICS = spt.data.static.CIFAR10


def fit(task: Task, watch: Watch, waiting: Waiting, steps: int) -> nn.Module:
    """Module, trainer and manager as in the tutorial."""
    backbone = new_backbone(task)
    images = spt.data.FromTorchDataset(Cifar10(task.images), names=["image", "label"], transform=two_views())
    processes = task.settings["processes"]
    loader = DataLoader(images, batch_size=task.batch_size, shuffle=True, num_workers=processes, drop_last=True)
    module = spt.Module(
        forward=simclr,
        backbone=backbone,
        projector=new_projector(feature_dim(backbone)),
        simclr_loss=spt.losses.NTXEntLoss(temperature=0.5),
        optim={
            "optimizer": {"type": "Adam", "lr": 1e-3},
            "scheduler": {"type": "CosineAnnealingLR", "T_max": steps},
            "interval": "step",
        },
    )
    trainer = pl.Trainer(
        max_epochs=-1,
        max_steps=steps,
        accelerator="auto",
        devices=1,
        precision=task.settings["precision"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[watching(pl.Callback, watch, waiting)],
    )
    spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader))()
    return backbone


def two_views() -> transforms.MultiViewTransform:
    """A milder and a harder view."""

    def view(smallest: float, *more: object) -> transforms.Compose:
        return transforms.Compose(
            transforms.RGB(),
            transforms.RandomResizedCrop((32, 32), scale=(smallest, 1.0)),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
            transforms.RandomGrayscale(p=0.2),
            *more,
            transforms.ToImage(**STATISTICS),
        )

    return transforms.MultiViewTransform([view(0.2), view(0.08, transforms.RandomSolarize(threshold=0.5, p=0.2))])


def new_projector(dim: int) -> nn.Sequential:
    """Three layers."""
    return nn.Sequential(
        nn.Linear(dim, 2048), nn.BatchNorm1d(2048), nn.ReLU(inplace=True),
        nn.Linear(2048, 2048), nn.BatchNorm1d(2048), nn.ReLU(inplace=True),
        nn.Linear(2048, 256),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(fit, "stable-pretraining", STATISTICS["mean"], STATISTICS["std"], ["lightning"]))
