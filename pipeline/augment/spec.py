"""The declarative augmentation: a list of operations that draws a table of parameters, one row an image.

Only numpy is needed here. A backend applies the table and draws nothing itself, so every backend sees the same
parameters, and they depend on (seed, epoch, sample id, view, operation) alone. Units do not depend on the backend:
shares of the image's side, degrees, turns of the colour wheel, factors, and output pixels for a blur.

Shapes: B images.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self, get_args, get_type_hints

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.base.randomness import uniform
from rayssl.pipeline.base.settings_files import cut, shown

Range = tuple[float, float]  # low, high
Floats = NDArray[np.float64]

Share = Annotated[float, Interval(ge=0, le=1)]
Shares = Annotated[Range, Interval(ge=0, le=1)]
SignedShares = Annotated[Range, Interval(ge=-1, le=1)]
Degrees = Annotated[Range, Interval(ge=-180, le=180)]
Pixels = Annotated[Range, Interval(ge=0, le=100)]
Ratios = Annotated[Range, Interval(ge=0.01, le=100)]
Strength = Annotated[float, Interval(ge=0, le=10)]
Turns = Annotated[float, Interval(ge=0, le=0.5)]

CROP_TRIES = 10  # as torchvision's RandomResizedCrop.get_params
SCALES = Interval(ge=0.05, le=1.0)  # of a view's side in units of the image size
# A crop that shrinks at least so many times in both directions is averaged; up to there bilinear weights are as near.
AVERAGED_FROM = 1.5


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


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step, applied to a share `p` of the images. A subclass names its parameters and what it draws for them.

    Raises UserError for a parameter outside its range.
    """

    name: ClassVar[str]
    uniforms: ClassVar[int] = 0  # draws in [0, 1) an image, beside the one that decides about applying
    p: Share

    def __post_init__(self) -> None:
        for parameter, (kind, limits) in _parameters(type(self)).items():
            path = f"{self.name}.{parameter}"
            value = getattr(self, parameter)
            checked = _number(path, value, limits) if kind is float else _range(path, value, limits)
            object.__setattr__(self, parameter, checked)

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        """Parameters from uniform draws `u` (B, uniforms)."""
        return {}

    def draw(self, key: Sequence[int | str | NDArray[np.int64]]) -> Draws:
        """Rows for every key; the key's array part has shape (B,)."""
        u = uniform(key, 1 + self.uniforms)
        return Draws(self.name, u[:, 0] < self.p, self.values(u[:, 1:]))

    def restricted(self, channels: int) -> "Operation | None":
        """The operation for images of so many channels; None where nothing of it has a meaning."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        return {"name": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(Operation):
    """A box of random area and aspect ratio, resized to the output; only as the first operation.

    Samples as torchvision's RandomResizedCrop (Szegedy et al. 2015): area uniform, ratio log-uniform, the first of ten
    tries that fits into the image, else the largest central box of an allowed ratio. All ten are always drawn, so the
    draws have the same number whatever the image; `boxes` picks once the image's size is known.
    """

    name = "random_resized_crop"
    uniforms = 2 * CROP_TRIES + 2
    scale: Shares = (0.2, 1.0)  # share of the area
    ratio: Ratios = (3 / 4, 4 / 3)  # width / height
    p: Share = 1.0

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        low, high = self.ratio
        return {
            "area": between(u[:, :CROP_TRIES], self.scale),
            "ratio": np.exp(between(u[:, CROP_TRIES : 2 * CROP_TRIES], (math.log(low), math.log(high)))),
            "position": u[:, 2 * CROP_TRIES :],  # (B, 2): of the free room above and to the left of the box
        }

    def boxes(self, draws: Draws, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.int64]:
        """The drawn boxes (B, 4) as top, left, height, width in pixels of images of heights and widths (B,)."""
        pixels = draws.values["area"] * (heights * widths)[:, None]
        tried_w = np.rint(np.sqrt(pixels * draws.values["ratio"])).astype(np.int64)
        tried_h = np.rint(np.sqrt(pixels / draws.values["ratio"])).astype(np.int64)
        fits = (tried_w > 0) & (tried_w <= widths[:, None]) & (tried_h > 0) & (tried_h <= heights[:, None])
        rows, first = np.arange(len(fits)), fits.argmax(axis=1)
        box_h, box_w = tried_h[rows, first], tried_w[rows, first]
        top, left = np.floor(draws.values["position"].T * np.stack([heights - box_h + 1, widths - box_w + 1]))
        drawn = np.stack([top.astype(np.int64), left.astype(np.int64), box_h, box_w], axis=1)
        return np.where(fits.any(axis=1)[:, None], drawn, self._central_boxes(heights, widths))

    def _central_boxes(self, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.int64]:
        low, high = self.ratio
        box_h = np.maximum(1, np.minimum(heights, np.rint(widths / low).astype(np.int64)))
        box_w = np.maximum(1, np.minimum(widths, np.rint(heights * high).astype(np.int64)))
        return np.stack([(heights - box_h) // 2, (widths - box_w) // 2, box_h, box_w], axis=1)


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip(Operation):
    """Left and right change places."""

    name = "horizontal_flip"
    p: Share = 0.5


@dataclass(frozen=True, kw_only=True)
class VerticalFlip(Operation):
    """Top and bottom change places."""

    name = "vertical_flip"
    p: Share = 0.5


@dataclass(frozen=True, kw_only=True)
class QuarterTurn(Operation):
    """A turn by 90, 180 or 270 degrees: for images without an up and down, such as microscopy or satellite images."""

    name = "quarter_turn"
    uniforms = 1
    p: Share = 0.75

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"turns": 1 + (3 * u[:, 0]).astype(np.int64)}  # 1, 2 or 3, counter-clockwise


@dataclass(frozen=True, kw_only=True)
class Rotation(Operation):
    """A turn round the centre, counter-clockwise; what comes from outside is the image mirrored at its border."""

    name = "rotation"
    uniforms = 1
    degrees: Degrees = (-15.0, 15.0)
    p: Share = 0.5

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"degrees": between(u[:, 0], self.degrees)}


@dataclass(frozen=True, kw_only=True)
class Translation(Operation):
    """A shift in both directions by a share of the side; what comes from outside is mirrored at the border."""

    name = "translation"
    uniforms = 2
    share: SignedShares = (-0.1, 0.1)
    p: Share = 0.5

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"x": between(u[:, 0], self.share), "y": between(u[:, 1], self.share)}


@dataclass(frozen=True, kw_only=True)
class ColorJitter(Operation):
    """Brightness, contrast, saturation and hue in a random order; strengths as in torchvision's ColorJitter.

    Factors lie in [max(0, 1 − strength), 1 + strength], the hue's turn in [−hue, hue] of the colour wheel.
    """

    name = "color_jitter"
    uniforms = 8
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: Turns = 0.1
    p: Share = 0.8

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


@dataclass(frozen=True, kw_only=True)
class Grayscale(Operation):
    """Luma in all three channels."""

    name = "grayscale"
    p: Share = 0.1

    def restricted(self, channels: int) -> "Grayscale | None":
        return self if channels == 3 else None


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Operation):
    """Blur by a Gaussian; the kernel is as wide as the sigma needs (3.5 sigma to each side)."""

    name = "gaussian_blur"
    uniforms = 1
    sigma: Pixels = (0.1, 2.0)  # output pixels
    p: Share = 0.5

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"sigma": between(u[:, 0], self.sigma)}


@dataclass(frozen=True, kw_only=True)
class Solarize(Operation):
    """Inverts what is at least as bright as a threshold."""

    name = "solarize"
    uniforms = 1
    threshold: Shares = (0.5, 0.5)  # share of full brightness
    p: Share = 0.2

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"threshold": between(u[:, 0], self.threshold)}


@dataclass(frozen=True, kw_only=True)
class Invert(Operation):
    """The negative."""

    name = "invert"
    p: Share = 0.5


@dataclass(frozen=True, kw_only=True)
class Gamma(Operation):
    """Brightness to the power of gamma, which is drawn log-uniformly."""

    name = "gamma"
    uniforms = 1
    gamma: Ratios = (0.7, 1.4)
    p: Share = 0.5

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        low, high = self.gamma
        return {"gamma": np.exp(between(u[:, 0], (math.log(low), math.log(high))))}


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Operation):
    """Independent noise on every pixel and channel; `standard_normal` of the drawn key makes it."""

    name = "gaussian_noise"
    uniforms = 2
    sigma: Shares = (0.0, 0.1)  # share of full brightness
    p: Share = 0.5

    def values(self, u: Floats) -> dict[str, NDArray[Any]]:
        return {"sigma": between(u[:, 0], self.sigma), "key": (u[:, 1] * 2.0**53).astype(np.int64)}


@dataclass(frozen=True, kw_only=True)
class Cutout(Operation):
    """A square, inside the image, filled with the image's mean (DeVries and Taylor 2017)."""

    name = "cutout"
    uniforms = 3
    size: Shares = (0.1, 0.3)  # share of the side
    p: Share = 0.5

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
    scale: float = 1.0  # side of the view in units of the image size; smaller for the local views of multi-crop

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        object.__setattr__(self, "scale", _number("scale", self.scale, SCALES))
        late = [i for i, operation in enumerate(self.operations) if isinstance(operation, RandomResizedCrop) and i > 0]
        if late:
            raise UserError(
                f"random_resized_crop is operation {late[0] + 1}: it makes the square that the others work on "
                "and must be the first, once"
            )

    def to_dict(self) -> dict[str, Any]:
        """{"operations": [{"name": "horizontal_flip", "p": 0.5}, …]}, plain JSON values; "scale" where it is not 1."""
        scale = {} if self.scale == 1 else {"scale": self.scale}
        return {"operations": [operation.to_dict() for operation in self.operations], **scale}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Back from `to_dict`; parameters left out have their defaults.

        Raises UserError for an unknown operation or parameter (with the nearest) or a value outside its range.
        """
        operations = values.get("operations")
        unknown = sorted(set(values) - {"operations", "scale"})
        if unknown or not isinstance(operations, list | tuple):
            found = ", ".join(map(str, values)) or "nothing"
            raise UserError(f'augmentation spec has the keys {cut(found)}: it must be {{"operations": [ … ]}}')
        return cls(tuple(_operation_from_dict(operation) for operation in operations), values.get("scale", 1.0))

    def side(self, image_size: int) -> int:
        """Of the view, in pixels."""
        return max(1, round(self.scale * image_size))

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
        return replace(self, operations=tuple(operation for operation in operations if operation is not None))


def between(u: Floats, limits: Range) -> Floats:
    """Uniform draws in [0, 1) spread over a range."""
    low, high = limits
    return low + (high - low) * u


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
        raise UserError(f'augmentation operation is {shown(values)}: it must be {{"name": "horizontal_flip", …}}')
    name = values["name"]
    if name not in OPERATIONS:
        raise UserError(
            f"unknown augmentation '{cut(name)}'{nearest(name, OPERATIONS)}: known are {', '.join(OPERATIONS)}"
        )
    operation = OPERATIONS[name]
    names = list(_parameters(operation))
    for parameter in values:
        if parameter != "name" and parameter not in names:
            hint = nearest(parameter, names)
            raise UserError(f"{name} has no parameter '{cut(str(parameter))}'{hint}: known are {', '.join(names)}")
    return operation(**{parameter: value for parameter, value in values.items() if parameter != "name"})


def _parameters(operation: type[Operation]) -> dict[str, tuple[Any, Interval]]:
    hints = get_type_hints(operation, include_extras=True)
    names = [field.name for field in dataclasses.fields(operation)]
    parameters = {name: get_args(hints[name]) for name in names}
    return {name: (kind, limits) for name, (kind, limits) in parameters.items()}


def _number(path: str, value: Any, limits: Interval) -> float:
    if not _is_number(value) or not limits.ge <= value <= limits.le:
        raise UserError(f"{path} is {shown(value)}: must be a number from {limits.ge:g} to {limits.le:g}")
    return float(value)


def _range(path: str, value: Any, limits: Interval) -> Range:
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(map(_is_number, pair)) or not limits.ge <= pair[0] <= pair[1] <= limits.le:
        found = list(pair) if pair else value
        raise UserError(f"{path} is {shown(found)}: must be [low, high] from {limits.ge:g} to {limits.le:g}")
    return float(pair[0]), float(pair[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
