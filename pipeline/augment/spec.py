"""The declarative augmentation: a list of operations that draws a table of parameters, one row an image.

Only numpy is needed here. A backend applies the table and draws nothing itself, so every backend sees the same
parameters, and they depend on (seed, epoch, sample id, view, operation) alone. Units do not depend on the backend:
shares of the image's side, degrees, turns of the colour wheel, factors, and output pixels for a blur.

Shapes: B images.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, nearest
from pipeline.randomness import uniform

Range = tuple[float, float]
Floats = NDArray[np.float64]

CROP_TRIES = 10  # as torchvision's RandomResizedCrop.get_params


def limited(default: float | Range, low: float, high: float) -> Any:
    """A field with its default and the smallest and largest allowed value; a pair is an increasing range."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Draws:
    """The rows that one operation drew: whether it is applied, and its parameters, (B,) or (B, k) each."""

    name: str
    applied: NDArray[np.bool_]
    values: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Table:
    """The parameters of a batch: the draws of every operation, in the order of the spec's operations."""

    draws: tuple[Draws, ...]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Table":
        """The rows of some images."""
        return Table(
            tuple(
                Draws(d.name, d.applied[rows], {name: values[rows] for name, values in d.values.items()})
                for d in self.draws
            )
        )


@dataclass(frozen=True)
class Operation:
    """One step, applied to a share `p` of the images. A subclass names its parameters and what it draws for them.

    Raises UserError for a parameter outside its range.
    """

    name: ClassVar[str]
    uniforms: ClassVar[int] = 0  # draws in [0, 1) an image, beside the one that decides about applying

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(self.name, field, getattr(self, field.name)))

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        """Parameters from uniform draws `u` (B, uniforms)."""
        return {}

    def draw(self, key: Sequence[int | str | NDArray[np.int64]]) -> Draws:
        """Rows for every key; the key's array part has shape (B,)."""
        u = uniform(key, 1 + self.uniforms)
        applied = u[:, 0] < getattr(self, "p")  # noqa: B009
        return Draws(self.name, applied, self.values(u[:, 1:]))

    def restricted(self, channels: int) -> "Operation | None":
        """The operation for images of so many channels; None where nothing of it has a meaning."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        return {"name": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


@dataclass(frozen=True)
class RandomResizedCrop(Operation):
    """A box of random area and aspect ratio, resized to the output; only as the first operation.

    Samples as torchvision's RandomResizedCrop (Szegedy et al. 2015): area uniform, ratio log-uniform, the first of ten
    tries that fits into the image, else the largest central box of an allowed ratio. All ten are always drawn, so the
    draws have the same number whatever the image; `crop_boxes` picks the box once the image's size is known.
    """

    name = "random_resized_crop"
    uniforms = 2 * CROP_TRIES + 2
    scale: Range = limited((0.2, 1.0), 0.0, 1.0)  # share of the area
    ratio: Range = limited((3 / 4, 4 / 3), 0.01, 100.0)  # width / height
    p: float = limited(1.0, 0.0, 1.0)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        low, high = self.ratio
        return {
            "area": between(u[:, :CROP_TRIES], self.scale),
            "ratio": np.exp(between(u[:, CROP_TRIES : 2 * CROP_TRIES], (math.log(low), math.log(high)))),
            "position": u[:, 2 * CROP_TRIES :],  # (B, 2): of the free room above and to the left of the box
        }


@dataclass(frozen=True)
class HorizontalFlip(Operation):
    """Left and right change places."""

    name = "horizontal_flip"
    p: float = limited(0.5, 0.0, 1.0)


@dataclass(frozen=True)
class VerticalFlip(Operation):
    """Top and bottom change places."""

    name = "vertical_flip"
    p: float = limited(0.5, 0.0, 1.0)


@dataclass(frozen=True)
class QuarterTurn(Operation):
    """A turn by 90, 180 or 270 degrees: for images without an up and down, such as microscopy or satellite images."""

    name = "quarter_turn"
    uniforms = 1
    p: float = limited(0.75, 0.0, 1.0)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"turns": 1 + (3 * u[:, 0]).astype(np.int64)}  # 1, 2 or 3, counter-clockwise


@dataclass(frozen=True)
class Rotation(Operation):
    """A turn round the centre, counter-clockwise; what comes from outside is the image mirrored at its border."""

    name = "rotation"
    uniforms = 1
    degrees: Range = limited((-15.0, 15.0), -180.0, 180.0)
    p: float = limited(0.5, 0.0, 1.0)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"degrees": between(u[:, 0], self.degrees)}


@dataclass(frozen=True)
class Translation(Operation):
    """A shift in both directions by a share of the side; what comes from outside is mirrored at the border."""

    name = "translation"
    uniforms = 2
    share: Range = limited((-0.1, 0.1), -1.0, 1.0)
    p: float = limited(0.5, 0.0, 1.0)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"x": between(u[:, 0], self.share), "y": between(u[:, 1], self.share)}


@dataclass(frozen=True)
class ColorJitter(Operation):
    """Brightness, contrast, saturation and hue in a random order; strengths as in torchvision's ColorJitter.

    Factors lie in [max(0, 1 − strength), 1 + strength], the hue's turn in [−hue, hue] of the colour wheel.
    """

    name = "color_jitter"
    uniforms = 8
    brightness: float = limited(0.4, 0.0, 10.0)
    contrast: float = limited(0.4, 0.0, 10.0)
    saturation: float = limited(0.4, 0.0, 10.0)
    hue: float = limited(0.1, 0.0, 0.5)
    p: float = limited(0.8, 0.0, 1.0)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {
            "brightness": between(u[:, 0], _factors(self.brightness)),
            "contrast": between(u[:, 1], _factors(self.contrast)),
            "saturation": between(u[:, 2], _factors(self.saturation)),
            "hue": between(u[:, 3], (-self.hue, self.hue)),
            "order": np.argsort(u[:, 4:], axis=1),  # (B, 4): 0 brightness, 1 contrast, 2 saturation, 3 hue
        }

    def restricted(self, channels: int) -> "ColorJitter | None":
        if channels == 3:
            return self
        if self.brightness == self.contrast == 0:
            return None
        return dataclasses.replace(self, saturation=0.0, hue=0.0)


@dataclass(frozen=True)
class Grayscale(Operation):
    """Luma in all three channels."""

    name = "grayscale"
    p: float = limited(0.1, 0.0, 1.0)

    def restricted(self, channels: int) -> "Grayscale | None":
        return self if channels == 3 else None


@dataclass(frozen=True)
class GaussianBlur(Operation):
    """Blur by a Gaussian; the kernel is as wide as the sigma needs (3.5 sigma to each side)."""

    name = "gaussian_blur"
    uniforms = 1
    sigma: Range = limited((0.1, 2.0), 0.0, 100.0)  # output pixels
    p: float = limited(0.5, 0.0, 1.0)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"sigma": between(u[:, 0], self.sigma)}


@dataclass(frozen=True)
class Solarize(Operation):
    """Inverts what is at least as bright as a threshold."""

    name = "solarize"
    uniforms = 1
    threshold: Range = limited((0.5, 0.5), 0.0, 1.0)  # share of full brightness
    p: float = limited(0.2, 0.0, 1.0)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"threshold": between(u[:, 0], self.threshold)}


@dataclass(frozen=True)
class Invert(Operation):
    """The negative."""

    name = "invert"
    p: float = limited(0.5, 0.0, 1.0)


@dataclass(frozen=True)
class Gamma(Operation):
    """Brightness to the power of gamma, which is drawn log-uniformly."""

    name = "gamma"
    uniforms = 1
    gamma: Range = limited((0.7, 1.4), 0.01, 100.0)
    p: float = limited(0.5, 0.0, 1.0)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        low, high = self.gamma
        return {"gamma": np.exp(between(u[:, 0], (math.log(low), math.log(high))))}


@dataclass(frozen=True)
class GaussianNoise(Operation):
    """Independent noise on every pixel and channel; `standard_normal` of the drawn key makes it."""

    name = "gaussian_noise"
    uniforms = 2
    sigma: Range = limited((0.0, 0.1), 0.0, 1.0)  # share of full brightness
    p: float = limited(0.5, 0.0, 1.0)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"sigma": between(u[:, 0], self.sigma), "key": (u[:, 1] * 2.0**53).astype(np.int64)}


@dataclass(frozen=True)
class Cutout(Operation):
    """A square, inside the image, filled with the image's mean (DeVries and Taylor 2017)."""

    name = "cutout"
    uniforms = 3
    size: Range = limited((0.1, 0.3), 0.0, 1.0)  # share of the side
    p: float = limited(0.5, 0.0, 1.0)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"size": between(u[:, 0], self.size), "x": u[:, 1], "y": u[:, 2]}  # x, y: of the free room


# A new operation is one class above, one line here and one function in each backend.
OPERATIONS: dict[str, type[Operation]] = {
    operation.name: operation
    for operation in (
        RandomResizedCrop,
        HorizontalFlip,
        VerticalFlip,
        QuarterTurn,
        Rotation,
        Translation,
        ColorJitter,
        Grayscale,
        GaussianBlur,
        Solarize,
        Invert,
        Gamma,
        GaussianNoise,
        Cutout,
    )
}


@dataclass(frozen=True)
class Spec:
    """Operations in the order in which they are applied.

    Without a RandomResizedCrop, or where it is not applied, the image is first resized and cut to the central square.
    Raises UserError where a RandomResizedCrop is not the first operation.
    """

    operations: tuple[Operation, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        late = [i for i, operation in enumerate(self.operations) if isinstance(operation, RandomResizedCrop) and i > 0]
        if late:
            raise UserError(
                f"random_resized_crop is operation {late[0] + 1}: it makes the square that the others work on "
                "and must be the first, once"
            )

    def to_dict(self) -> dict[str, Any]:
        """{"operations": [{"name": "horizontal_flip", "p": 0.5}, …]}, plain JSON values."""
        return {"operations": [operation.to_dict() for operation in self.operations]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Back from `to_dict`; parameters left out have their defaults.

        Raises UserError for an unknown operation or parameter (with the nearest) or a value outside its range.
        """
        operations = values.get("operations")
        unknown = sorted(set(values) - {"operations"})
        if unknown or not isinstance(operations, list | tuple):
            found = ", ".join(map(str, values)) or "nothing"
            raise UserError(f'augmentation spec has the keys {found}: it must be {{"operations": [ … ]}}')
        return cls(tuple(_operation_from_dict(operation) for operation in operations))

    def draw(self, *, seed: int, epoch: int, ids: NDArray[np.int64], view: int) -> Table:
        """The table of parameters of the images `ids` (B,) in one view.

        A row depends on (seed, epoch, id, view) and on an operation's name and number among those of its name: not on
        the other images of the batch nor on the other operations of the spec.
        """
        seen: dict[str, int] = {}
        draws = []
        for operation in self.operations:
            number = seen.setdefault(operation.name, 0)
            seen[operation.name] += 1
            draws.append(operation.draw([seed, "augment", epoch, ids, view, operation.name, number]))
        return Table(tuple(draws))

    def restricted(self, channels: int) -> "Spec":
        """The spec for images of so many channels: what needs red, green and blue is dropped unless there are three.

        Operations that stay draw as before.
        """
        operations = (operation.restricted(channels) for operation in self.operations)
        return Spec(tuple(operation for operation in operations if operation is not None))


def between(u: Floats, limits: Range) -> Floats:
    """Uniform draws in [0, 1) spread over a range."""
    low, high = limits
    return low + (high - low) * u


def crop_boxes(draws: Draws, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Boxes (B, 4) as top, left, height, width in pixels of images with these heights and widths (B,).

    `draws` are those of a RandomResizedCrop, see there. The fallback keeps the whole image where its ratio is among
    the drawn ones' range, as near as the ten drawn ratios tell it.
    """
    area, ratio, position = draws.values["area"], draws.values["ratio"], draws.values["position"]
    pixels = area * (heights * widths)[:, None]
    box_w = np.rint(np.sqrt(pixels * ratio)).astype(np.int64)
    box_h = np.rint(np.sqrt(pixels / ratio)).astype(np.int64)
    fits = (box_w > 0) & (box_w <= widths[:, None]) & (box_h > 0) & (box_h <= heights[:, None])
    rows, first = np.arange(len(area)), fits.argmax(axis=1)
    height, width = box_h[rows, first], box_w[rows, first]
    top = np.floor(position[:, 0] * (heights - height + 1)).astype(np.int64)
    left = np.floor(position[:, 1] * (widths - width + 1)).astype(np.int64)
    return np.stack([top, left, height, width], axis=1)


def standard_normal(key: int, n: int) -> NDArray[np.float32]:
    """`n` normal draws, a function of the key alone (Box and Muller 1958)."""
    u = uniform([key, "noise"], n + n % 2)
    radius = np.sqrt(-2.0 * np.log1p(-u[0::2]))
    angle = 2.0 * np.pi * u[1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[:n].astype(np.float32)


def _factors(strength: float) -> Range:
    return max(0.0, 1.0 - strength), 1.0 + strength


def _operation_from_dict(values: Any) -> Operation:
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise UserError(f'augmentation operation is {values!r}: it must be {{"name": "horizontal_flip", …}}')
    name = values["name"]
    if name not in OPERATIONS:
        raise UserError(f"unknown augmentation '{name}'{nearest(name, OPERATIONS)}: known are {', '.join(OPERATIONS)}")
    operation = OPERATIONS[name]
    known = [field.name for field in dataclasses.fields(operation)]
    for parameter in values:
        if parameter != "name" and parameter not in known:
            hint = nearest(parameter, known)
            raise UserError(f"{name} has no parameter '{parameter}'{hint}: known are {', '.join(known)}")
    return operation(**{parameter: value for parameter, value in values.items() if parameter != "name"})


def _checked(name: str, field: "dataclasses.Field[Any]", value: Any) -> float | Range:
    low, high = field.metadata["low"], field.metadata["high"]
    if not isinstance(field.default, tuple):
        if not _is_number(value) or not low <= value <= high:
            raise UserError(f"{name}.{field.name} is {value!r}: must be a number from {low:g} to {high:g}")
        return float(value)
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(map(_is_number, pair)) or not low <= pair[0] <= pair[1] <= high:
        shown = list(pair) if pair else value
        raise UserError(f"{name}.{field.name} is {shown!r}: must be two numbers, low ≤ high, from {low:g} to {high:g}")
    return float(pair[0]), float(pair[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
