"""The networks themselves, from normalised images (B, C, H, W) to features (B, D), in torch alone.

This file imports nothing of the project: an exported encoder takes it along as its standalone module file.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al., "Deep Residual Learning", CVPR 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut (same paper, figure 5 right).

    The stride is in the 3×3 convolution as in torchvision, where the paper has it in the first 1×1.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """A 1×1 convolution where a block changes the shape, else none."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A residual network with torchvision's parameter names and without its classifier.

    One group of blocks for each of `depths` and `widths`; every group but the first halves the resolution.
    The stem is one convolution of `kernel` and `stride`, with a max-pool behind it if `pool`.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        channels: int,
        kernel: int,
        stride: int,
        pool: bool,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()
        self.layer_names = tuple(f"layer{i + 1}" for i in range(len(depths)))
        inputs = widths[0]
        for i, (name, depth, width) in enumerate(zip(self.layer_names, depths, widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(block(inputs, width, 2 if i > 0 and j == 0 else 1))
                inputs = width * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        kaiming(self)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The output of every group of blocks, (B, C_s, H_s, W_s), in order."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        found = {}
        for name in self.layer_names:
            x = found[name] = self.get_submodule(name)(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return pooled(self.maps(x)[self.layer_names[-1]])


class SmallCnn(nn.Module):
    """3×3 convolutions of stride 2, each with BatchNorm and ReLU, one for each of `widths`; any image size."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layer_names = tuple(f"layer{i + 1}" for i in range(len(widths)))
        for name, inputs, width in zip(self.layer_names, (channels, *widths), widths, strict=False):
            convolution = nn.Conv2d(inputs, width, 3, 2, 1, bias=False)
            layer = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            self.add_module(name, layer)
        kaiming(self)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The output of every convolution, (B, C_s, H_s, W_s), in order."""
        found = {}
        for name in self.layer_names:
            x = found[name] = self.get_submodule(name)(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return pooled(self.maps(x)[self.layer_names[-1]])


class Mlp(nn.Module):
    """Pixels → 512 → 512 → 256, with ReLU between; one image size only."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(inputs, 512)
        self.hidden2 = nn.Linear(512, 512)
        self.output = nn.Linear(512, 256)

    def layers(self, x: Tensor) -> dict[str, Tensor]:
        """The hidden activations (B, 512), twice, and the features (B, 256)."""
        hidden1 = torch.relu(self.hidden1(x.flatten(1)))
        hidden2 = torch.relu(self.hidden2(hidden1))
        return {"hidden1": hidden1, "hidden2": hidden2, "features": self.output(hidden2)}

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)["features"]


def kaiming(net: nn.Module) -> None:
    """Normal initialisation of convolutions with variance 2 / fan-out (He et al., "Delving Deep", ICCV 2015)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def pooled(x: Tensor) -> Tensor:
    """Global average: (B, C, H, W) to (B, C)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def normalise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x − mean) / std channel by channel; x (B, C, H, W), mean and std (C,)."""
    return (x - mean[:, None, None]) / std[:, None, None]


# name: block, depths, widths, stride of the stem for small images
RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...], tuple[int, ...], int]] = {
    "resnet-tiny": (BasicBlock, (1, 1, 1), (32, 64, 128), 2),
    "resnet18": (BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), 1),
    "resnet34": (BasicBlock, (3, 4, 6, 3), (64, 128, 256, 512), 1),
    "resnet50": (Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), 1),
}


def choose_stem(name: str, image_size: int) -> str:
    """The stem for an image size: "large" above 64 pixels, "small" below; "tiny" up to 16 for resnet-tiny.

    Only the ResNets here have a choice; "auto" stands for the one stem of every other network.
    """
    if name not in RESNETS:
        return "auto"
    if image_size > 64:
        return "large"
    return "tiny" if name == "resnet-tiny" and image_size <= 16 else "small"


def stem_layers(name: str, stem: str) -> tuple[int, int, bool]:
    """Kernel and stride of a ResNet's first convolution, and whether a max-pool follows.

    "large" is the paper's; 3×3 without pooling is SimCLR's for small images (Chen et al., ICML 2020, B.9).
    """
    if stem == "large":
        return 7, 2, True
    return 3, RESNETS[name][3] if stem == "small" else 1, False


def smallest_image(name: str, stem: str) -> int:
    """The side in pixels at which a ResNet's last map has one pixel: its total stride."""
    _, stride, pool = stem_layers(name, stem)
    halvings = len(RESNETS[name][1]) - 1 + int(pool)
    return stride << halvings


def build_backbone(name: str, channels: int, image_size: int, stem: str) -> nn.Module:
    """A randomly initialised network by name; ValueError for a network unknown or unable to take the images."""
    if name in RESNETS:
        block, depths, widths, _ = RESNETS[name]
        return ResNet(block, depths, widths, channels, *stem_layers(name, stem))
    if name == "cnn-small":
        return SmallCnn(channels, (32, 64, 128, 256) if image_size > 64 else (32, 64, 128))
    if name == "mlp":
        return Mlp(channels * image_size**2)
    return torchvision_backbone(name, channels, image_size)


def torchvision_backbone(name: str, channels: int, image_size: int) -> nn.Module:
    """A torchvision classifier with its last layer replaced by the identity, its first fitted to `channels`.

    The head's dropout goes too: features that are trained on should not be noisy.
    """
    from torchvision import models

    net: nn.Module = models.get_model(name, weights=None, **torchvision_arguments(name, image_size))
    last = head_path(net, nn.Linear, nn.Conv2d)
    net.set_submodule(last, nn.Identity())
    head = last.split(".")[0]
    for path, layer in list(net.get_submodule(head).named_modules(prefix=head)):
        if isinstance(layer, nn.Dropout):
            net.set_submodule(path, nn.Identity())
    if channels != 3:
        fit_first_convolution(net, channels)
    return net


def torchvision_arguments(name: str, image_size: int) -> dict[str, Any]:
    """What a torchvision builder must be told beyond its name."""
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True, "dropout": 0.0}
    return {}


def head_path(net: nn.Module, *kinds: type[nn.Module]) -> str:
    """Path of the last layer of one of `kinds` in a torchvision classifier's head."""
    head = next(part for part in ("fc", "classifier", "heads", "head") if hasattr(net, part))
    layers = net.get_submodule(head).named_modules(prefix=head)
    found: list[str] = [path for path, layer in layers if isinstance(layer, kinds)]
    return found[-1]


def fit_first_convolution(net: nn.Module, channels: int) -> None:
    """Replace a network's first convolution by one for `channels` channels, initialised at the same scale."""
    path, old = next((path, layer) for path, layer in net.named_modules() if isinstance(layer, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.normal_(0, float(old.weight.std()))
        if new.bias is not None:
            new.bias.zero_()
    net.set_submodule(path, new)
