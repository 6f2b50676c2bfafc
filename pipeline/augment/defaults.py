"""The views that methods use unless a file says otherwise. Every function tells where its strengths come from."""

from dataclasses import replace

from rayssl.pipeline.augment.spec import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    RandomResizedCrop,
    Rotation,
    Spec,
    Translation,
)

TINY = 16  # below this side a crop of a fifth of the area is a handful of pixels
LARGE = 96  # from this side on blur and strong colour jitter help


def simclr_views(
    *, image_size: int, channels: int, mirror: bool, crop: float | None = None, color: float | None = None
) -> tuple[Spec, Spec]:
    """Two views of one strong spec.

    Large: SimCLR (Chen et al. 2020), section 3 and appendix A, colour strength 1. Small: the set that is published for
    CIFAR-10, half as strong, with grey at 0.1 (dkobak/simclr-cifar10) and without blur, as in SimCLR's appendix B.9.
    Tiny: mild crops, turns and shifts, for digits of 8 × 8 pixels.

    `crop` is the smallest share of the area that a view shows, `color` the strength of jitter, grey and blur: 1 as
    SimCLR's, 0 without.
    """
    if image_size < TINY:
        operations = _tiny()
    elif image_size < LARGE:
        operations = _small()
    else:
        operations = _large()
    spec = Spec(_mirrored(_adjusted(operations, crop, color), mirror)).restricted(channels)
    return spec, spec


def rotnet_views(*, image_size: int, channels: int, mirror: bool, crop: float | None = None) -> tuple[Spec]:
    """One view: a mild crop in place of the paper's padded crop (Gidaris et al. 2018, section 3.1), and mirroring.

    Never a rotation: that is what the network has to tell. `crop`: the smallest share of the area that is seen.
    """
    scale = (crop or (0.8 if image_size < TINY else 0.6), 1.0)
    return (Spec(_mirrored((RandomResizedCrop(scale=scale),), mirror)),)


def rotation_view(
    *, image_size: int, channels: int, mirror: bool, crop: float | None = None, color: float | None = None
) -> Spec:
    """The crop that E-SSL's rotation loss turns (Dangovski et al. 2022, section 4.1), with SimCLR's colours.

    Without the colours the turns could be told from statistics that SimCLR's views hide.
    """
    return simclr_views(image_size=image_size, channels=channels, mirror=mirror, crop=crop, color=color)[0]


def autoencoder_views(*, image_size: int, channels: int, mirror: bool) -> tuple[Spec]:
    """One view: the clean image. The method corrupts it by itself, since it needs both."""
    return (plain_view(),)


def distill_views(
    *, image_size: int, channels: int, mirror: bool, crop: float | None = None, color: float | None = None
) -> tuple[Spec]:
    """One view: most of the image, a little lighter or darker; chosen on validation photographs (docs/distillation.md).

    `crop` is the smallest share of the area that a view shows, `color` the strength of the jitter.
    """
    light = ColorJitter(brightness=0.2, contrast=0.2, saturation=0.0, hue=0.0, p=1.0)
    operations = _adjusted((RandomResizedCrop(scale=(0.35, 1.0)), light), crop, color)
    return (Spec(_mirrored(operations, mirror)).restricted(channels),)


def finetune_view(*, image_size: int, channels: int, mirror: bool) -> Spec:
    """A mild crop, and mirroring."""
    return Spec(_mirrored((RandomResizedCrop(scale=(0.6, 1.0)),), mirror))


def plain_view() -> Spec:
    """The image itself, its shorter side resized and its centre cut to the square."""
    return Spec()


def _tiny() -> tuple[Operation, ...]:
    return (
        RandomResizedCrop(scale=(0.6, 1.0)),
        Rotation(degrees=(-15.0, 15.0), p=0.5),
        Translation(share=(-0.1, 0.1), p=0.5),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
    )


def _small() -> tuple[Operation, ...]:
    return (
        RandomResizedCrop(scale=(0.2, 1.0)),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        Grayscale(p=0.1),
    )


def _large() -> tuple[Operation, ...]:
    return (
        RandomResizedCrop(scale=(0.08, 1.0)),
        ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8),
        Grayscale(p=0.2),
        GaussianBlur(sigma=(0.1, 2.0), p=0.5),
    )


def _adjusted(operations: tuple[Operation, ...], crop: float | None, color: float | None) -> tuple[Operation, ...]:
    """The operations with another crop, and with colours of another strength."""

    def adjusted(operation: Operation) -> Operation | None:
        if isinstance(operation, RandomResizedCrop) and crop is not None:
            return replace(operation, scale=(crop, 1.0))
        if isinstance(operation, ColorJitter) and color is not None:
            light, hue = 0.8 * color, 0.2 * color  # SimCLR, appendix A
            return replace(operation, brightness=light, contrast=light, saturation=light, hue=hue) if color else None
        if isinstance(operation, Grayscale) and color is not None:
            return replace(operation, p=0.2 * color) if color else None
        if isinstance(operation, GaussianBlur) and color is not None:
            return replace(operation, p=0.5 * color) if color else None
        return operation

    return tuple(kept for operation in operations if (kept := adjusted(operation)) is not None)


def _mirrored(operations: tuple[Operation, ...], mirror: bool) -> tuple[Operation, ...]:
    # The flip follows the crop, as the papers have it.
    return (*operations[:1], HorizontalFlip(p=0.5), *operations[1:]) if mirror else operations
