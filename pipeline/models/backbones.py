"""The networks themselves, from normalised images (B, C, H, W) to features (B, D), in torch alone.

This file imports nothing of the project: an exported encoder takes it along as its standalone module file.
"""

from dataclasses import asdict, dataclass
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


class Backbone(nn.Module):
    """A network that gives the outputs of its stages."""

    has_code = False  # whether the features are a layer's output and no average of the last map

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """Every stage's output in order and, last, "features" (B, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)["features"]


class Convolutional(Backbone):
    """Its features are the average of its last map."""

    layer_names: tuple[str, ...]

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The map of every stage, (B, C_s, H_s, W_s), in order."""
        raise NotImplementedError

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """The maps in order and, last, the features."""
        maps = self.maps(x)
        return {**maps, "features": pooled(maps[self.layer_names[-1]])}


class ResNet(Convolutional):
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


class SmallCnn(Convolutional):
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


class FullyConnected(Backbone):
    """Pixels → `widths`, with ReLU between and none at the end; one image size only."""

    has_code = True

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layer_names = (*(f"hidden{i + 1}" for i in range(len(widths) - 1)), "output")
        for name, width_in, width_out in zip(self.layer_names, (inputs, *widths), widths, strict=False):
            self.add_module(name, nn.Linear(width_in, width_out))

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """The hidden activations (B, width) in order and, last, the features."""
        x, found = x.flatten(1), {}
        for name in self.layer_names[:-1]:
            x = found[name] = torch.relu(self.get_submodule(name)(x))
        return {**found, "features": self.get_submodule("output")(x)}


class StridedCnn(Backbone):
    """Convolutions of stride 2 down to at most 8 pixels a side, then one over all that is left: the code.

    Widths are 16, 32, 64, …, with ReLU between. For 28×28 grey it is 1→16 (3, s2, p1), 16→32 (3, s2, p1), 32→64 (7).
    """

    has_code = True

    def __init__(self, channels: int, image_size: int, latent_dim: int | None, kernel: int) -> None:
        super().__init__()
        sides = strided_sides(image_size)
        room = min(sides[:-1], default=max(image_size, 3))
        if kernel % 2 == 0 or kernel > room:
            raise ValueError(f"a kernel of {kernel} must be odd and fit {room} pixels")
        widths = tuple(16 << i for i in range(len(sides)))
        self.layer_names = tuple(f"layer{i + 1}" for i in range(len(sides) - 1))
        for name, inputs, width in zip(self.layer_names, (channels, *widths), widths, strict=False):
            self.add_module(name, nn.Sequential(nn.Conv2d(inputs, width, kernel, 2, kernel // 2), nn.ReLU()))
        inputs = widths[-2] if len(sides) > 1 else channels
        self.code = nn.Conv2d(inputs, latent_dim or widths[-1], sides[-1])

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """The map of every strided convolution in order and, last, the features (B, D)."""
        found = {}
        for name in self.layer_names:
            x = found[name] = self.get_submodule(name)(x)
        return {**found, "features": self.code(x).flatten(1)}


def strided_sides(image_size: int) -> tuple[int, ...]:
    """Sides in pixels of an image and of its maps after strides of 2, rounded up, until one is at most 8."""
    sides = [image_size]
    while sides[-1] > 8:
        sides.append(-(-sides[-1] // 2))
    return tuple(sides)


class Coded(Backbone):
    """A convolutional network whose features are a code of `latent_dim`: one linear layer on its whole last map."""

    has_code = True

    def __init__(self, net: "ResNet | SmallCnn", map_shape: tuple[int, int, int], latent_dim: int) -> None:
        super().__init__()
        self.net = net
        self.map_shape = map_shape
        self.code = nn.Linear(map_shape[0] * map_shape[1] * map_shape[2], latent_dim)

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """The network's maps in order and, last, the features (B, latent_dim)."""
        found = self.net.maps(x)
        return {**found, "features": self.code(found[self.net.layer_names[-1]].flatten(1))}


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees, at its last tap, only earlier channels ("A") or those up to the same one ("B").

    The channels of input and output stand for `groups_of` colours in order (van den Oord et al., "Pixel recurrent
    neural networks", ICML 2016, §3.4). With a kernel (1, k) and padding on the left alone it is causal in a row.
    """

    mask: Tensor

    def __init__(self, kind: str, inputs: int, outputs: int, kernel: int, colours: int) -> None:
        super().__init__(inputs, outputs, (1, kernel))
        seen = colour_of(inputs, colours)[None, :] < colour_of(outputs, colours)[:, None]
        if kind == "B":
            seen = colour_of(inputs, colours)[None, :] <= colour_of(outputs, colours)[:, None]
        mask = torch.ones_like(self.weight)
        mask[:, :, 0, -1] = seen.to(mask.dtype)
        self.register_buffer("mask", mask, persistent=False)
        self.pad = kernel - 1

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (self.pad, 0)), self.weight * self.mask, self.bias)


def colour_of(width: int, colours: int) -> Tensor:
    """Which colour each of `width` channels belongs to: (width,) in 0 … colours − 1, in equal shares."""
    return torch.arange(width) * colours // width


class GatedLayer(nn.Module):
    """A layer of the gated PixelCNN (van den Oord et al., "Conditional image generation with PixelCNN decoders",
    NeurIPS 2016, figure 2): a vertical stack that sees all rows up to its own, and a horizontal one that sees the
    rows above and, in its row, what is on the left.
    """

    def __init__(self, kind: str, inputs: int, width: int, kernel: int, colours: int) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.vertical = nn.Conv2d(inputs, 2 * width, (self.reach + 1, kernel))
        self.down = nn.Conv2d(2 * width, 2 * width, 1)
        # tanh and sigmoid by layers of their own, so that each keeps its channels in the order of the colours.
        self.horizontal = nn.ModuleList(MaskedConv2d(kind, inputs, width, self.reach + 1, colours) for _ in range(2))
        self.out = MaskedConv2d("B", width, width, 1, colours)
        self.residual = kind == "B"  # the first layer must not hand a pixel to its own prediction

    def forward(self, above: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        tall = self.vertical(F.pad(above, (self.reach, self.reach, self.reach, 0)))
        shifted = F.pad(self.down(tall), (0, 0, 1, 0))[:, :, :-1]  # only rows above this one
        tanh_above, gate_above = shifted.chunk(2, dim=1)
        wide = torch.tanh(self.horizontal[0](left) + tanh_above)
        wide = self.out(wide * torch.sigmoid(self.horizontal[1](left) + gate_above))
        tanh_tall, gate_tall = tall.chunk(2, dim=1)
        return torch.tanh(tanh_tall) * torch.sigmoid(gate_tall), wide + left if self.residual else wide


class PixelCnn(Convolutional):
    """Gated masked convolutions: the output at a pixel has seen only pixels before it, row by row, colour by colour.

    `kernel` is the first layer's, the others have 3; the output has as many channels for every colour.
    """

    def __init__(self, channels: int, width: int, depth: int, kernel: int) -> None:
        super().__init__()
        self.layer_names = tuple(f"layer{i + 1}" for i in range(depth))
        self.reach = 1 + kernel // 2 + depth - 1  # rows above a pixel that its output depends on
        for i, name in enumerate(self.layer_names):
            first = i == 0
            inputs, size = (channels, kernel) if first else (width, 3)
            self.add_module(name, GatedLayer("A" if first else "B", inputs, width, size, channels))

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The horizontal stack's output after every layer, (B, width, H, W), in order."""
        above = left = x
        found = {}
        for name in self.layer_names:
            above, left = self.get_submodule(name)(above, left)
            found[name] = left
        return found


def pixelcnn_width(channels: int, least: int) -> int:
    """`least` channels, or as many more that every colour has the same number."""
    return -(-least // channels) * channels


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


DEEP_DEPTH, PIXELCNN_DEPTH = 3, 5  # where none is given
CODE_DIM = 32  # of the fully connected networks and of pixelcnn's features, where none is given


@dataclass(frozen=True)
class Architecture:
    """What is said of a network's size, from 1; what is None is as the network comes."""

    latent_dim: int | None = None  # size of the code, or channels of pixelcnn
    depth: int | None = None  # layers of "deep" and "pixelcnn"
    kernel: int | None = None  # side of the strided convolutions of "conv" (3) or of the first layer of "pixelcnn" (7)
    # Times the channels of a ResNet, the widening factor of Kolesnikov et al., "Revisiting self-supervised visual
    # representation learning", CVPR 2019, §3.1.
    width: int | None = None

    def given(self) -> dict[str, int]:
        """What is said, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


# Which networks take what is said of their size.
TAKES = {
    "latent_dim": (*RESNETS, "cnn-small", "mlp", "linear", "deep", "conv", "pixelcnn"),
    "depth": ("deep", "pixelcnn"),
    "kernel": ("conv", "pixelcnn"),
    "width": tuple(RESNETS),
}
AS_IT_COMES = Architecture()


def build_backbone(
    name: str, channels: int, image_size: int, stem: str, architecture: Architecture = AS_IT_COMES
) -> nn.Module:
    """A randomly initialised network by name; ValueError for a network unknown or unable to take the images."""
    latent_dim, depth, kernel = architecture.latent_dim, architecture.depth, architecture.kernel
    pixels = channels * image_size**2
    if name in RESNETS:
        block, depths, widths, _ = RESNETS[name]
        widths = tuple((architecture.width or 1) * number for number in widths)
        return coded(
            ResNet(block, depths, widths, channels, *stem_layers(name, stem)), channels, image_size, latent_dim
        )
    if name == "cnn-small":
        widths = (32, 64, 128, 256) if image_size > 64 else (32, 64, 128)
        return coded(SmallCnn(channels, widths), channels, image_size, latent_dim)
    if name == "mlp":
        return FullyConnected(pixels, (512, 512, latent_dim or 256))
    if name == "linear":
        return FullyConnected(pixels, (latent_dim or CODE_DIM,))
    if name == "deep":
        return FullyConnected(pixels, narrowing(pixels, latent_dim or CODE_DIM, depth or DEEP_DEPTH))
    if name == "conv":
        return StridedCnn(channels, image_size, latent_dim, kernel or 3)
    if name == "pixelcnn":
        first = kernel or 7
        if first % 2 == 0 or first > image_size:
            raise ValueError(f"a kernel of {first} must be odd and fit {image_size} pixels")
        return PixelCnn(channels, pixelcnn_width(channels, latent_dim or CODE_DIM), depth or PIXELCNN_DEPTH, first)
    return torchvision_backbone(name, channels, image_size)


def coded(net: "ResNet | SmallCnn", channels: int, image_size: int, latent_dim: int | None) -> nn.Module:
    """The network itself, or with a code of `latent_dim` behind it."""
    if latent_dim is None:
        return net
    training = net.training
    with torch.no_grad():
        last = list(net.eval().maps(torch.zeros(1, channels, image_size, image_size)).values())[-1]
    net.train(training)
    return Coded(net, (last.shape[1], last.shape[2], last.shape[3]), latent_dim)


def narrowing(inputs: int, code: int, depth: int) -> tuple[int, ...]:
    """Widths of `depth` layers from `inputs` down to `code`, each narrower by about the same factor."""
    return tuple(round(inputs * (code / inputs) ** (i / depth)) for i in range(1, depth + 1))


def torchvision_backbone(name: str, channels: int, image_size: int) -> nn.Module:
    """A torchvision classifier with its last layer replaced by the identity, its first fitted to `channels`.

    Dropout and stochastic depth go too: features that are trained on should not be noisy, and what torch's global
    generator draws would depend on interruptions and on the number of workers.
    """
    from torchvision import models
    from torchvision.ops import StochasticDepth

    net: nn.Module = models.get_model(name, weights=None, **torchvision_arguments(name, image_size))
    last = head_path(net, nn.Linear, nn.Conv2d)
    net.set_submodule(last, nn.Identity())
    for path, layer in list(net.named_modules()):
        if isinstance(layer, nn.Dropout | StochasticDepth):
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
