"""One encoded image → the pixels that the pipeline works on."""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from pipeline.errors import UserError

Pixels = NDArray[np.uint8]

_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NPY = b"\x93NUMPY"


class Header(NamedTuple):
    """What an image says of itself before its pixels are decoded; height and width are those after the EXIF turn."""

    height: int
    width: int
    channels: int  # bands as stored, of all pages of a TIFF
    grey: bool


def decode(source: bytes | Path, channels: int | None, load_size: int | None) -> Pixels:
    """One image as the pipeline reads it: (H, W, C) uint8.

    EXIF turned; transparency composited on white; 16-bit and float grey scaled to 0 … 255. The shorter side is at most
    `load_size` (None: as stored). `channels` None: 1 for a grey image, else 3; 1 and 3 convert; any other number
    must be what the image has (RGBA, CMYK, a TIFF of several pages, a .npy array H × W × C).
    Raises UserError when there is no such image.
    """
    try:
        return _decode(source.read_bytes() if isinstance(source, Path) else source, channels, load_size)
    except FileNotFoundError:
        raise UserError(f"{source!s} does not exist") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything, SyntaxError and struct.error included
        what = str(source) if isinstance(source, Path) else "image"
        raise UserError(f"{what} cannot be read: {_reason(error)}") from None


def read_header(source: bytes | Path) -> Header:
    """Size and channels without decoding the pixels; `source` may be the first part of a file. Raises UserError."""
    try:
        if _is_npy(source):
            shape = _load_npy(source.read_bytes() if isinstance(source, Path) else source).shape
            return Header(shape[0], shape[1], shape[2], shape[2] == 1)
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            height, width = image.height, image.width
            if _orientation(image) >= 5:
                height, width = width, height
            grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
            bands = len(image.getbands()) * (getattr(image, "n_frames", 1) if image.format == "TIFF" else 1)
            return Header(height, width, bands, grey)
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"no image: {_reason(error)}") from None


def to_square(image: Pixels, size: int) -> Pixels:
    """(H, W, C) → (size, size, C): the shorter side resized (by area when shrinking, linearly else), centre crop."""
    image = _shorter_side(image, size)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def load_size_of(image_size: int) -> int:
    """Largest shorter side that is kept of an image: 8/7 of what the network sees (256 for 224), room for crops."""
    return math.ceil(image_size * 8 / 7)


def kept_size(height: int, width: int, load_size: int) -> tuple[int, int]:
    """Height and width after the shorter side has been brought down to `load_size`, where it is larger."""
    shorter = min(height, width)
    if shorter <= load_size:
        return height, width
    return _scaled(height, width, load_size)


def _decode(data: bytes, channels: int | None, load_size: int | None) -> Pixels:
    if data.startswith(_NPY):
        pixels = _with_channels(_load_npy(data), channels)
    else:
        with Image.open(io.BytesIO(data)) as image:
            if load_size is not None:
                image.draft(None, (load_size, load_size))  # JPEG only: decodes at ½, ¼ or ⅛, never below that size
            turn = _TURNS.get(_orientation(image))
            pixels = _all_bands(image, channels) if channels not in (None, 1, 3) else _converted(image, channels)
        if turn is not None:
            pixels = _transposed(pixels, turn)
    if load_size is not None and min(pixels.shape[:2]) > load_size:
        pixels = _shorter_side(pixels, load_size)
    return np.ascontiguousarray(pixels)


def _converted(image: Image.Image, channels: int | None) -> Pixels:
    image.load()  # a palette's transparency is known only now
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_bytes(np.asarray(image)))
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = _on_white(image)
    mode = "L" if channels == 1 or (channels is None and grey) else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _all_bands(image: Image.Image, channels: int | None) -> Pixels:
    pages = ImageSequence.Iterator(image) if image.format == "TIFF" else [image]
    bands = [np.asarray(page) for page in pages]
    stacked = np.dstack([_to_bytes(band) for band in bands])
    return _with_channels(stacked, channels)


def _with_channels(pixels: Pixels, channels: int | None) -> Pixels:
    if channels is not None and pixels.shape[2] != channels:
        raise ValueError(f"it has {pixels.shape[2]} channels, not {channels}")
    return pixels


def _on_white(image: Image.Image) -> Image.Image:
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")


def _to_bytes(values: NDArray[Any]) -> Pixels:
    """uint8 as it is; other integers are taken for 0 … 65535; floats for 0 … 1, or 0 … 255 where any exceeds 1."""
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(values.dtype, np.integer):
        wide = np.clip(values, 0, 65535).astype(np.uint32)
        return np.asarray((wide * np.uint32(255) + np.uint32(32767)) // np.uint32(65535), dtype=np.uint8)
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=255.0, neginf=0.0)
    scale = 255.0 if finite.size and finite.max() <= 1.0 else 1.0
    return np.rint(np.clip(finite * scale, 0, 255)).astype(np.uint8)


def _is_npy(source: bytes | Path) -> bool:
    return source.suffix.lower() == ".npy" if isinstance(source, Path) else source.startswith(_NPY)


def _load_npy(data: bytes) -> Pixels:
    values = np.load(io.BytesIO(data), allow_pickle=False)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3:
        raise ValueError(f"array of shape {values.shape}, not height × width × channels")
    return _to_bytes(values)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _transposed(pixels: Pixels, turn: Image.Transpose) -> Pixels:
    bands = [np.asarray(Image.fromarray(pixels[:, :, c]).transpose(turn)) for c in range(pixels.shape[2])]
    return np.dstack(bands)


def _scaled(height: int, width: int, shorter: int) -> tuple[int, int]:
    if height <= width:
        return shorter, max(shorter, round(width * shorter / height))
    return max(shorter, round(height * shorter / width)), shorter


def _shorter_side(image: Pixels, size: int) -> Pixels:
    height, width, channels = image.shape
    if min(height, width) == size:
        return image
    import cv2

    shrinking = min(height, width) > size
    new_height, new_width = _scaled(height, width, size)
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    # OpenCV resizes at most four channels at once.
    bands = [np.ascontiguousarray(image[:, :, first : first + 4]) for first in range(0, channels, 4)]
    resized = [cv2.resize(band, (new_width, new_height), interpolation=method) for band in bands]
    return np.dstack(resized).astype(np.uint8, copy=False)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    if not text:
        return type(error).__name__
    return "not an image, or damaged" if "cannot identify image file" in text[0] else text[0]
