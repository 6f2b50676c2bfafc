"""One encoded image → the pixels that the pipeline works on."""

import io
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from pipeline.errors import UserError

Pixels = NDArray[np.uint8]

_ORIENTATION = 0x0112  # EXIF tag
_NPY = b"\x93NUMPY"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Segments before a frame's header that say nothing about size, mode or orientation: APPn but APP1 (EXIF, XMP), comments
# and tables.
_SKIPPED = frozenset({*range(0xE0, 0xF0), 0xFE, 0xDB, 0xC4, 0xDD} - {0xE1})

_LINEAR_UP_TO, _TWICE_UP_TO = 1.5, 2.0  # times that an image is brought down: see `_brought_down`


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


def looks_like_image(head: bytes) -> bool:
    """Whether a file that starts so is an image of a format that is read."""
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", _NPY)) or (
        head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    )


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
    turn = 1
    pixels = _jpeg(data, _bare_jpeg(data), channels, load_size)
    if data.startswith(_NPY):
        pixels = _with_channels(_load_npy(data), channels)
    elif pixels is None:
        with Image.open(io.BytesIO(data)) as image:
            turn = _orientation(image)
            pixels = _jpeg(data, (image.height, image.width, image.mode), channels, load_size)
            if pixels is None:
                pixels = _any_image(image, channels, load_size)
    return np.ascontiguousarray(_turned(_brought_down(pixels, load_size), turn))


def _bare_jpeg(data: bytes) -> tuple[int, int, str] | None:
    """(height, width, mode) of a JPEG of 8 bits without EXIF or XMP; None: not so plain, Pillow's parser has to look.

    A small image takes Pillow's parser as long as its pixels. ITU-T T.81, annex B.
    """
    place = 2 if data.startswith(_JPEG) else len(data)
    while place + 10 <= len(data) and data[place] == 0xFF:
        kind, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if kind in (0xC0, 0xC1, 0xC2):  # baseline, extended or progressive
            bits, height, width, bands = struct.unpack_from(">BHHB", data, place + 4)
            mode = {1: "L", 3: "RGB"}.get(bands)
            known = mode is not None and bits == 8 and 0 < height * width <= (Image.MAX_IMAGE_PIXELS or 0)
            return (height, width, mode) if known and mode is not None else None
        if kind not in _SKIPPED:
            return None
        place += 2 + length
    return None


def _jpeg(
    data: bytes, header: tuple[int, int, str] | None, channels: int | None, load_size: int | None
) -> Pixels | None:
    """The pixels of a JPEG that needs nothing but decoding, brought down but not turned; None: it is Pillow's.

    OpenCV is quicker and uses the same libjpeg. Only Pillow is sure to refuse a file that was cut off, so what lacks
    the mark of the end is left to it.
    """
    if header is None or not data.startswith(_JPEG) or not data.endswith(_JPEG_END):
        return None
    height, width, mode = header
    if (mode, channels) not in (("L", None), ("L", 1), ("L", 3), ("RGB", None), ("RGB", 3)):
        return None
    import cv2

    flag = _jpeg_flag(mode == "L", _jpeg_scale(height, width, load_size))
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if found is None:
        return None
    pixels = _brought_down(np.atleast_3d(found).astype(np.uint8, copy=False), load_size)  # first: less to convert
    return np.repeat(pixels, channels or 1, 2) if mode == "L" else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def _jpeg_flag(grey: bool, scale: int) -> int:
    import cv2

    kind = "GRAYSCALE" if grey else "COLOR"
    return int(getattr(cv2, f"IMREAD_{kind}" if scale == 1 else f"IMREAD_REDUCED_{kind}_{scale}"))


def _jpeg_scale(height: int, width: int, load_size: int | None) -> int:
    """How many times smaller (1, 2, 4, 8) a JPEG is decoded, never below `load_size`: the choice of Pillow's draft."""
    times = 1 if load_size is None else min(height, width) // load_size
    return next((scale for scale in (8, 4, 2) if times >= scale), 1)


def _any_image(image: Image.Image, channels: int | None, load_size: int | None) -> Pixels:
    if load_size is not None:
        image.draft(None, (load_size, load_size))  # JPEG only: decodes at ½, ¼ or ⅛, never below that size
    return _all_bands(image, channels) if channels not in (None, 1, 3) else _converted(image, channels)


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


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """What a camera stored with this value of the tag, upright (EXIF 2.3, section 4.6.4)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _scaled(height: int, width: int, shorter: int) -> tuple[int, int]:
    if height <= width:
        return shorter, max(shorter, round(width * shorter / height))
    return max(shorter, round(height * shorter / width)), shorter


def _shorter_side(image: Pixels, size: int) -> Pixels:
    height, width = image.shape[:2]
    if min(height, width) == size:
        return image
    import cv2

    shrinking = min(height, width) > size
    return _resized(image, *_scaled(height, width, size), cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def _brought_down(image: Pixels, size: int | None) -> Pixels:
    """The shorter side shrunk to `size` where it is larger, on the way into the cache or the stream.

    OpenCV averages areas slowly. Up to 1.5 times, linear interpolation is as near to Lanczos as Pillow's bilinear
    resize, and from there to 2 times the mean of 2 × 2 linear ones as near as the mean over areas.
    """
    height, width = image.shape[:2]
    if size is None or min(height, width) <= size:
        return image
    import cv2

    new_height, new_width = _scaled(height, width, size)
    times = min(height, width) / size
    if times < _LINEAR_UP_TO:
        return _resized(image, new_height, new_width, cv2.INTER_LINEAR)
    if times < _TWICE_UP_TO:
        image = _resized(image, 2 * new_height, 2 * new_width, cv2.INTER_LINEAR)
    return _resized(image, new_height, new_width, cv2.INTER_AREA)


def _resized(image: Pixels, height: int, width: int, method: int) -> Pixels:
    import cv2

    # OpenCV resizes at most four channels at once.
    bands = [np.ascontiguousarray(image[:, :, first : first + 4]) for first in range(0, image.shape[2], 4)]
    resized = [cv2.resize(band, (width, height), interpolation=method) for band in bands]
    return np.asarray(resized[0] if resized[0].ndim == 3 and len(resized) == 1 else np.dstack(resized), dtype=np.uint8)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    if not text:
        return type(error).__name__
    return "not an image, or damaged" if "cannot identify image file" in text[0] else text[0]
