"""How stored values become what is seen: which of them are black and white, and what lies behind transparent pixels.

There is one answer per data set. It is told by the user, or concluded from all of its images.
"""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.reading import AUTO

Pixels = NDArray[np.uint8]
Range = tuple[float, float]
Colour = tuple[int, int, int]

TYPE = "type"  # of --data.range: integers 0 … 65535, floats 0 … 1, or 0 … 255 where an image holds more than 1
WHITE = "white"
COLOURS: dict[str, Colour] = {WHITE: (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}

DEPTHS = (*range(1, 9), 10, 12, 14, 16, 24, 32, 64)  # bits that devices write whole numbers with
OUTLIERS = 5e-4  # share of all pixels, at either end
SET_APART_FROM = 16  # different values at least, that one far from all of them says "no value" beside
USED = 0.25  # of a whole range; where less is, it is stretched

FAINT = 8.0  # mean difference to the background (of 255) up to which a drawing is not seen
LOST = 0.05  # share of transparent images that may be lost on white

_BINS = 1 << 16
_VALUES = 1 << 20  # values of one image that are counted, of more than that every n-th


class Shown(NamedTuple):
    """What is done with values of more than 8 bits, and with transparency."""

    range: Range | None = None  # become black and white; None: by the type of each image
    background: Colour = COLOURS[WHITE]

    @classmethod
    def of(cls, range_: str, background: str) -> "Shown":
        """What was said; "auto" is what is so without a data set to conclude from."""
        return cls(range_of(range_), colour_of(background) or COLOURS[WHITE])


BY_TYPE = Shown()


def range_of(text: str) -> Range | None:
    """LOW,HIGH as numbers; None for auto and type. Raises UserError."""
    if text in (AUTO, TYPE):
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise _wrong_range(text) from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise _wrong_range(text)
    return low, high


def _wrong_range(text: str) -> UserError:
    return UserError(f"--data.range is '{text}': auto, {TYPE}, or LOW,HIGH with LOW below HIGH, e.g. 0,4095")


def colour_of(text: str) -> Colour | None:
    """The colour of a background; None for auto. Raises UserError."""
    if text == AUTO:
        return None
    if text in COLOURS:
        return COLOURS[text]
    if re.fullmatch("#[0-9a-fA-F]{6}", text) is None:
        raise UserError(f"--data.background is '{text}': auto, {', '.join(COLOURS)} or #rrggbb")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def told(range_: Range) -> str:
    """A range as --data.range takes it."""
    return ",".join(np.format_float_positional(value, trim="-") for value in range_)


def to_bytes(values: NDArray[Any], range_: Range | None) -> Pixels:
    """Bytes as they are; other numbers from `range_` to 0 … 255, what lies beyond becomes black or white.

    Without a range, integers are taken for 0 … 65535, and floats for 0 … 1, or 0 … 255 where any exceeds 1. What is
    no number becomes black.
    """
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16 and values.size > _BINS:
        return np.asarray(_of_16_bits(range_)[values])
    whole = np.issubdtype(values.dtype, np.integer)
    if not whole and not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"values of type {values.dtype} are no pixels: whole numbers or floats are")
    finite = values.astype(np.float64)
    if range_ is None:
        largest = 0.0 if whole else np.nan_to_num(finite, posinf=255.0).max(initial=0.0)
        range_ = (0.0, 65535.0) if whole else (0.0, 1.0 if largest <= 1.0 else 255.0)
    low, high = range_
    # Limits first: the largest floats would overflow.
    shares = (np.clip(np.nan_to_num(finite, nan=low, posinf=high, neginf=low), low, high) - low) * (255 / (high - low))
    return np.rint(shares).astype(np.uint8)


@functools.lru_cache(maxsize=4)
def _of_16_bits(range_: Range | None) -> Pixels:
    """Of every value the byte: a look at a table takes an eighth of the memory of floats."""
    return to_bytes(np.arange(_BINS, dtype=np.uint16), range_)


# What the images of a set hold


class Held(NamedTuple):
    """What one image holds that its data set's range and background are concluded from."""

    values: "ValueCount | None" = None
    lost: "tuple[bool, ...] | None" = None  # on each of COLOURS; None: nothing shows through, or nothing is drawn


class ValueCount(NamedTuple):
    """The values of one image, by bins that are finer where values are smaller."""

    low: float
    high: float
    whole: bool  # all of them are whole numbers
    integer: bool  # by their type
    bins: NDArray[np.int64]
    shares: NDArray[np.float64]  # of the image's values in each of these


def count_values(values: NDArray[Any]) -> ValueCount | None:
    """None where not one of them is a number."""
    flat = values.reshape(-1)
    integer = bool(np.issubdtype(flat.dtype, np.integer))
    if not integer:
        flat = flat[np.isfinite(flat)]
    if not flat.size:
        return None
    some = flat[:: -(-flat.size // _VALUES)]
    with np.errstate(over="ignore"):
        single = some.astype(np.float32)
    single = single[np.isfinite(single)]
    counts = np.bincount(_bin_of(single), minlength=_BINS) if single.size else np.zeros(_BINS, np.int64)
    bins = np.flatnonzero(counts)
    whole = integer or bool((np.rint(some) == some).all())
    return ValueCount(
        float(flat.min()), float(flat.max()), whole, integer, bins, counts[bins] / max(1, int(counts.sum()))
    )


def _bin_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The upper half of a float's bits, turned so that bins are in the order of values; about 1 % wide."""
    bits = (values + np.float32(0)).view(np.uint32)  # −0 is 0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return (ordered >> 16).astype(np.int64)


def _lowest_of(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """The value that is nearest to minus infinity in a bin."""
    ordered = bins.astype(np.uint32) << 16
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def lost_on(pixels: Pixels) -> tuple[bool, ...] | None:
    """Whether the drawing in (H, W, 4) pixels would not be seen on each of COLOURS."""
    opacity = pixels[:, :, 3].astype(np.float32)
    total = float(opacity.sum())
    if total == 0 or opacity.min(initial=255) == 255:
        return None
    colours = pixels[:, :, :3].astype(np.int16)
    seen = (np.abs(colours - np.array(colour, np.int16)).max(axis=2) for colour in COLOURS.values())
    return tuple(float((difference * opacity).sum()) / total < FAINT for difference in seen)


@dataclass
class Survey:
    """What all images of a data set hold, image by image."""

    images: int = 0  # of more than 8 bits
    low: float = np.inf
    high: float = -np.inf
    least_high: float = np.inf  # of the darkest image
    whole: bool = True
    kinds: set[bool] = field(default_factory=set)  # whether they are integers, by type
    shares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(_BINS))
    transparent: int = 0
    lost: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(COLOURS), np.int64))

    def add(self, held: Held) -> None:
        """One more image."""
        if held.lost is not None:
            self.transparent += 1
            self.lost += np.array(held.lost, np.int64)
        if (found := held.values) is None:
            return
        self.images += 1
        self.low, self.high = min(self.low, found.low), max(self.high, found.high)
        self.least_high = min(self.least_high, found.high)
        self.whole &= found.whole
        self.kinds.add(found.integer)
        self.shares[found.bins] += found.shares

    def without_outliers(self) -> Range:
        """The lowest and the highest value, but for few that lie far away from all others.

        One of 2,000 pixels at either end may go where that more than halves the range: pixels that are stuck, metal in
        the body. So may one value that lies farther from all others than they from each other: it says "no value".
        """
        bins = np.flatnonzero(self.shares)
        if not len(bins):
            return self.low, self.high
        upto = np.cumsum(self.shares[bins]) / self.shares.sum()
        first, last = int(np.searchsorted(upto, OUTLIERS)), int(np.searchsorted(upto, 1 - OUTLIERS))
        # Bins below zero hold their values from the top down, so both ends of each are needed.
        lowest, highest = _lowest_of(bins), np.nextafter(_lowest_of(bins + 1), -np.inf)
        low, high = self.low, self.high
        inner = highest[last] - lowest[first]
        if last > first and lowest[first] - low > inner:
            low = lowest[first]
        if last > first and high - highest[last] > inner:
            high = highest[last]
        kept = (highest >= low) & (lowest <= high)
        return _without_what_is_set_apart(max(low, self.low), min(high, self.high), lowest[kept], highest[kept])

    def range(self) -> Range | None:
        """The values that become black and white; None where all are one.

        Whole numbers from 0 on: 0 to the largest of as many bits as the highest value needs (255, 4095, 65535, …),
        but the lowest to the highest where less than a quarter of that is used (a thermal camera's 29,000 … 31,500).
        Floats: 0 … 1 or 0 … 255 where they fill at least a quarter of it. All else, as signed CT: lowest to highest.
        """
        low, high = self.without_outliers()
        if self.whole and low >= 0:
            bits = next((bits for bits in DEPTHS if high < 2.0**bits), DEPTHS[-1])
            full = (0.0, 2.0**bits - 1)
            return (low, high) if low < high and high - low < USED * full[1] else full
        for largest in (1.0, 255.0):
            if low >= 0 and USED * largest <= high <= largest:
                return 0.0, largest
        return (low, high) if low < high else None

    def is_by_type(self, range_: Range | None) -> bool:
        """Whether each image by itself, by its type, is read alike."""
        if range_ is None or self.kinds == {True}:
            return range_ in (None, (0.0, 65535.0))
        return self.kinds == {False} and (range_ == (0.0, 1.0) or (range_ == (0.0, 255.0) and self.least_high > 1))

    def background(self) -> str:
        """White, but where it hides more than one of 20 drawings the one of COLOURS that hides the fewest."""
        names = list(COLOURS)
        if self.lost[names.index(WHITE)] <= LOST * self.transparent:
            return WHITE
        return names[int(self.lost.argmin())]


def _without_what_is_set_apart(
    low: float, high: float, lowest: NDArray[np.float64], highest: NDArray[np.float64]
) -> Range:
    if len(lowest) > SET_APART_FROM and lowest[1] - low > highest[-1] - lowest[1]:
        low, lowest, highest = float(lowest[1]), lowest[1:], highest[1:]
    if len(lowest) > SET_APART_FROM and high - highest[-2] > highest[-2] - lowest[0]:
        high = float(highest[-2])
    return low, high


def surveyed(held: Iterable[Held | None], progress: Callable[[int], None] = lambda _: None) -> Survey:
    """What images hold, counted; None for those that cannot be read."""
    survey = Survey()
    for number, one in enumerate(held, start=1):
        if one is not None:
            survey.add(one)
        progress(number)
    return survey
