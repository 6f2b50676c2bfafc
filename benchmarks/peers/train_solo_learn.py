"""SimCLR as solo-learn's script for CIFAR has it (bash_files/pretrain/cifar/simclr.sh of its 1.0 versions).

The package (1.0.2 is the only one there is) asks for torch 1.9.1 and Lightning 1.4, which this Python has no wheels of:
here it runs on our torch with Lightning 1.9. The command's own options, without validation between the epochs. Its
warm-up of 10 of 1000 epochs becomes that share of the steps, and warm-up and cosine go by steps, as the budget is
less than some epochs.
"""

import sys
from typing import Any

import pytorch_lightning as pl
import torchvision
from common import Cifar10, Task, Waiting, Watch, feature_dim, new_backbone, run
from lightning_watch import watching
from solo.methods.simclr import SimCLR
from solo.utils.pretrain_dataloader import (
    dataset_with_index,
    prepare_dataloader,
    prepare_n_crop_transform,
    prepare_transform,
)
from torch import nn

WARMUP_SHARE = 10 / 1000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)  # CifarTransform's
OPTIONS: dict[str, Any] = {
    "encoder": "resnet18",
    "num_classes": 10,
    "backbone_args": {"cifar": False},  # the given encoder is for small images already
    "optimizer": "sgd",
    "extra_optimizer_args": {"momentum": 0.9},
    "lars": True,
    "grad_clip_lars": True,
    "eta_lars": 0.02,
    "exclude_bias_n_norm": True,
    "scheduler": "warmup_cosine",
    "min_lr": 0.0,
    "warmup_start_lr": 0.003,
    "classifier_lr": 0.1,
    "weight_decay": 1e-5,
    "accumulate_grad_batches": 1,
    "num_large_crops": 2,
    "num_small_crops": 0,
    "temperature": 0.2,
    "proj_hidden_dim": 2048,
    "proj_output_dim": 256,
}
VIEW = {
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "gaussian_prob": 0.0,
    "solarization_prob": 0.0,
    "crop_size": 32,
}


class BySteps(SimCLR):
    """solo-learn's SimCLR with the schedule's unit a step."""

    def configure_optimizers(self) -> Any:
        optimizers, schedulers = super().configure_optimizers()
        return optimizers, [{"scheduler": scheduler, "interval": "step"} for scheduler in schedulers]


def fit(task: Task, watch: Watch, waiting: Waiting, steps: int) -> nn.Module:
    """Method, loader and trainer as in its main_pretrain.py."""
    backbone = new_backbone(task)
    replace_resnet18(backbone)
    model = BySteps(
        batch_size=task.batch_size,
        lr=0.4 * task.batch_size / 256,
        max_epochs=steps,
        warmup_epochs=max(1, round(WARMUP_SHARE * steps)),
        **OPTIONS,
    )
    transform = prepare_n_crop_transform([prepare_transform("cifar10", **VIEW)], num_crops_per_aug=[2])
    images = dataset_with_index(Cifar10)(task.images, transform)
    loader = prepare_dataloader(images, batch_size=task.batch_size, num_workers=task.settings["processes"])
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
    trainer.fit(model, loader)
    return backbone


def replace_resnet18(backbone: nn.Module) -> None:
    """solo-learn has a list of encoders: it gets the common one under the name of one of them."""
    backbone.inplanes = feature_dim(backbone)  # where it looks for the number of features
    torchvision.models.resnet18 = lambda: backbone


if __name__ == "__main__":
    sys.exit(run(fit, "solo-learn", MEAN, STD, ["pytorch-lightning"]))
