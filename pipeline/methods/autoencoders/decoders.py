"""From a code back to an image (B, C, H, W): the mirror of each kind of encoder. Results are before the last sigmoid.

Shapes: B images, D latent dimensions, C channels, H × W pixels; h × w of a small map.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.pipeline.models.backbones import Coded, FullyConnected, StridedCnn, strided_sides
from rayssl.pipeline.models.encoder import Encoder

MIN_WIDTH = 16  # channels of the up-sampling decoder's last and narrowest stage


def build_decoder(encoder: Encoder, code_dim: int) -> nn.Module:
    """The mirror of an encoder, for a code of `code_dim` numbers: the encoder's own and what is added to them."""
    channels, size = encoder.channels, encoder.image_size
    if isinstance(encoder.net, FullyConnected):
        return FullyConnectedDecoder(encoder.net, code_dim, channels, size)
    if isinstance(encoder.net, StridedCnn):
        return StridedDecoder(encoder.net, code_dim, channels, size)
    if isinstance(encoder.net, Coded):
        return UpsamplingDecoder(encoder.net.map_shape, channels, size, code_dim)
    return UpsamplingDecoder(encoder.output_shape(encoder.feature_map), channels, size, None)


class FullyConnectedDecoder(nn.Module):
    """The encoder's widths in reverse, ReLU between: (B, D) → (B, C, H, W)."""

    def __init__(self, net: FullyConnected, code_dim: int, channels: int, size: int) -> None:
        super().__init__()
        hidden = [len(net.get_submodule(name).weight) for name in net.layer_names[:-1]]  # type: ignore[arg-type]
        widths = [code_dim, *reversed(hidden), channels * size * size]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1], nn.Unflatten(1, (channels, size, size)))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z.flatten(1))  # type: ignore[no-any-return]


class StridedDecoder(nn.Module):
    """Transposed convolutions, ReLU between: over the whole smallest map, then of stride 2.

    For 28×28 grey it is 64→32 (7), 32→16 (3, s2, p1, output padding 1), 16→1 (3, s2, p1, output padding 1). The output
    padding makes every size exactly that of the encoder's map.
    """

    def __init__(self, net: StridedCnn, code_dim: int, channels: int, size: int) -> None:
        super().__init__()
        sides = strided_sides(size)[::-1]
        widths = [16 << i for i in reversed(range(len(sides) - 1))] + [channels]
        kernel = net.get_submodule("layer1")[0].kernel_size[0] if net.layer_names else 3  # type: ignore[index]
        layers: list[nn.Module] = [nn.ConvTranspose2d(code_dim, widths[0], sides[0])]
        for (width_in, width_out), (small, large) in zip(pairwise(widths), pairwise(sides), strict=True):
            padding = large - transposed_size(small, kernel, 2, kernel // 2, 0)
            layers += [nn.ReLU(), nn.ConvTranspose2d(width_in, width_out, kernel, 2, kernel // 2, padding)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z.flatten(1)[:, :, None, None])  # type: ignore[no-any-return]


def transposed_size(size: int, kernel: int, stride: int, padding: int, output_padding: int) -> int:
    """o = s (i − 1) + (k − 1) − 2p + p_out + 1, of a transposed convolution without dilation."""
    return stride * (size - 1) + (kernel - 1) - 2 * padding + output_padding + 1


class UpsamplingDecoder(nn.Module):
    """Mirror of an encoder that halves the image: a map (B, D, h, w), or a code that becomes one, → (B, C, H, W).

    A stage is up-sampling to the exact size, a 3×3 convolution, BatchNorm and ReLU; the width halves with every stage.
    Resizing before convolving leaves no checkerboard (Odena et al., "Deconvolution and checkerboard artifacts", 2016).
    """

    def __init__(self, shape: tuple[int, ...], channels: int, size: int, code_dim: int | None) -> None:
        super().__init__()
        depth, height, width = shape
        self.size = size
        self.to_map: nn.Module = nn.Identity()
        if code_dim is not None:
            self.to_map = nn.Sequential(
                nn.Flatten(), nn.Linear(code_dim, depth * height * width), nn.Unflatten(1, shape)
            )
        widths = [depth] + [max(MIN_WIDTH, depth >> (stage + 1)) for stage in range(count_halvings(size, height))]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width_in, width_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.ReLU(inplace=True),
            )
            for width_in, width_out in pairwise(widths)
        )
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.to_map(z)
        for number, stage in enumerate(self.stages):
            side = halved(self.size, len(self.stages) - 1 - number)
            x = stage(F.interpolate(x, size=(side, side), mode="nearest"))
        if x.shape[-1] != self.size:
            x = F.interpolate(x, size=(self.size, self.size), mode="nearest")
        return self.to_image(x)  # type: ignore[no-any-return]


def halved(side: int, times: int) -> int:
    """What a stride of 2 leaves of a side after so many times, rounding up."""
    return -(-side >> times)


def count_halvings(size: int, target: int) -> int:
    """How often `size` must be halved, rounding up, to be at most `target`."""
    times = 0
    while size > target:
        size, times = -(-size // 2), times + 1
    return times
