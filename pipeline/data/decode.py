"""One encoded image → the pixels that the pipeline works on."""

import contextlib
import io
import math
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.formats import MADE_BY, NPY, OWN, formats, missing_for
from rayssl.pipeline.data.regular import open_regular, read_regular
from rayssl.pipeline.data.shown import BY_TYPE, Held, Pixels, Shown, ValueCount, count_values, lost_on, to_bytes

LONGEST = 4  # times the shorter side, or the size that images are read for: of longer ones the middle is kept
_SQUARED_FROM = 8  # the same before an image is enlarged to a square

_LARGE = 1 << 25  # pixels; of larger images one is decoded at a time
_large = threading.RLock()

_ORIENTATION = 0x0112  # EXIF tag
_WIDTH, _HEIGHT, _BITS, _MEANING, _SAMPLES = 256, 257, 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO = 0  # of _MEANING
_UNSIGNED, _SIGNED = 1, 2  # of _SAMPLES
_SMALLEST_SIDE = 16  # pixels: what is at least so long behind a side of 1, 3 or 4 is height and width
_HEAD = 1 << 12  # bytes that hold the header of many images
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_PNG, _PNG_BANDS = b"\x89PNG\r\n\x1a\n", {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by type of colour
_PNG_SAYS = {b"eXIf": 1 << 16, b"tRNS": 0, b"acTL": 4, b"tEXt": 64, b"zTXt": 64, b"iTXt": 64}  # bytes to read
_TURNED_BY_TEXT = (b"Raw profile type", b"XML:com.adobe.xmp")
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
    wide: bool = False  # more than 8 bits, or numbers with a sign
    transparent: bool = False  # it may be, somewhere
    pages: int = 1  # or frames; only the first is read, but for a TIFF's where more channels are asked for
    own: bool = False  # written by this project, to be looked at
    negative: bool = False  # a TIFF of more than 8 bits whose zero is white


def decode(source: bytes | Path, channels: int | None, load_size: int | None, shown: Shown = BY_TYPE) -> Pixels:
    """One image as the pipeline reads it: (H, W, C) uint8.

    EXIF turned; transparency composited on a background, and more than 8 bits scaled to 0 … 255, as `shown` says. The
    shorter side is at most `load_size` (None: as stored), of a very long image the middle is kept. `channels` None: 1
    for a grey image, else 3; 1 and 3 convert; any other number must be what the image has (RGBA, CMYK, a TIFF of
    several pages, a .npy array H × W × C).
    Raises UserError when there is no such image.
    """
    try:
        data = read_regular(source) if isinstance(source, Path) else source
        return _decode(data, channels, load_size, shown)
    except FileNotFoundError:
        raise UserError(f"{source!s} does not exist") from None
    except (MemoryError, UserError):
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything, SyntaxError and struct.error included
        what = str(source) if isinstance(source, Path) else "image"
        raise UserError(f"{what} cannot be read: {_reason(error, data)}") from None


def read_header(source: bytes | Path) -> Header:
    """Size and channels without decoding the pixels; `source` may be the first part of a file. Raises UserError."""
    try:
        with _opened_for_header(source) as file:
            head = file.read(_HEAD)
            if head.startswith(NPY):
                return _npy_header(head)
            if (jpeg := _bare_jpeg(head)) is not None:
                height, width, mode = jpeg
                return Header(height, width, len(mode), mode == "L")
            file.seek(0)
            if head.startswith(_PNG):
                return _png_header(file)
            with _image(file) as image:
                return _header_of(image)
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"no image: {_reason(error)}") from None


def held(data: bytes, channels: int | None) -> Held | None:
    """What the range and the background of a data set are concluded from; None: the image cannot be read."""
    try:
        if data.startswith(NPY):
            with _alone(_npy_pixels(data)):
                return Held(_counted(_load_npy(data)))
        with _image(io.BytesIO(data)) as image, _alone(image.height * image.width):
            if channels not in (None, 1, 3):
                return Held(_counted(_all_values(image, data)))
            values = _wide_values(image, data)
            counted = None if values is None else _counted(_colours(values))
            seen_through = image.mode in _ALPHA or (values is None and _is_transparent(image))
            return Held(counted, lost_on(np.asarray(image.convert("RGBA"))) if seen_through else None)
    except MemoryError:
        raise
    except Exception:
        return None


def _counted(values: NDArray[Any]) -> ValueCount | None:
    return None if _is_bytes(values) else count_values(values)


def to_square(image: Pixels, size: int) -> Pixels:
    """(H, W, C) → (size, size, C): the shorter side resized (by area when shrinking, linearly else), centre crop."""
    image = _shorter_side(_middle(image, _SQUARED_FROM * min(image.shape[:2])), size)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def load_size_of(image_size: int) -> int:
    """Largest shorter side that is kept of an image: 8/7 of what the network sees (256 for 224), room for crops."""
    return math.ceil(image_size * 8 / 7)


def kept_size(height: int, width: int, load_size: int) -> tuple[int, int]:
    """Height and width that are kept: the shorter side at most `load_size`, the longer not much longer."""
    shorter = min(height, width)
    longest = LONGEST * max(shorter, load_size)
    height, width = min(height, longest), min(width, longest)
    if shorter <= load_size:
        return height, width
    return _scaled(height, width, load_size)


def _alone(pixels: int) -> contextlib.AbstractContextManager[Any]:
    """One at a time where an image is large, so that the threads that decode need the memory of one of them."""
    return _large if pixels > _LARGE else contextlib.nullcontext()


@contextlib.contextmanager
def _opened_for_header(source: bytes | Path) -> Iterator[BinaryIO]:
    if isinstance(source, Path):
        with open_regular(source) as file:
            yield file
    else:
        yield io.BytesIO(source)


def _npy_header(head: bytes) -> Header:
    """Of an array, from the first bytes of its file."""
    file = io.BytesIO(head)
    shape, kind = _npy_says(file)
    height, width, bands = _npy_shape(shape)
    return Header(height, width, bands, bands == 1, wide=kind not in (np.uint8, np.bool_))


def _npy_pixels(data: bytes) -> int:
    shape, _ = _npy_says(io.BytesIO(data))
    return math.prod(shape[:2])


def _npy_says(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    return shape, kind


def _png_header(file: BinaryIO) -> Header:
    """Of the chunks of a PNG: Pillow would decode the pixels to look for a turn behind them."""
    width, height, bits, colour = struct.unpack(">IIBB", file.read(26)[16:])
    if height * width == 0 or colour not in _PNG_BANDS:
        raise ValueError("not an image, or damaged")
    chunks = list(_png_chunks(file))
    kinds = dict(chunks)
    if any(content.startswith(_TURNED_BY_TEXT) for _, content in chunks):
        file.seek(0)
        with _image(file) as image:
            turn = _orientation(image)
    else:
        turn = _turn_of(kinds.get(b"eXIf", b""))
    return Header(
        *((width, height) if turn >= 5 else (height, width)),
        channels=_PNG_BANDS[colour],
        grey=colour in (0, 4),
        wide=bits == 16,
        transparent=colour in (4, 6) or b"tRNS" in kinds,
        pages=int.from_bytes(kinds.get(b"acTL", b"\0\0\0\1")[:4], "big"),
        own=(b"tEXt", b"Software\0" + OWN.encode()) in chunks,
    )


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of those that say more than the first one, as far as the file goes; of texts the beginning."""
    file.seek(33)
    while len(start := file.read(8)) == 8 and start[4:] != b"IEND":
        left, kind = int.from_bytes(start[:4], "big"), start[4:]
        if kind in _PNG_SAYS:
            content = file.read(min(left, _PNG_SAYS[kind]))
            left -= len(content)
            yield kind, content
        file.seek(left + 4, io.SEEK_CUR)


def _turn_of(exif: bytes) -> int:
    try:
        read = Image.Exif()
        read.load(exif)
        return int(read.get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _header_of(image: Image.Image) -> Header:
    height, width = image.height, image.width
    if image.format == "TIFF":  # Pillow may have turned its size already, or not
        height, width = int(image.tag_v2[_HEIGHT]), int(image.tag_v2[_WIDTH])  # type: ignore[attr-defined]
    if _orientation(image) >= 5:
        height, width = width, height
    pages = getattr(image, "n_frames", 1)
    return Header(
        height,
        width,
        channels=len(image.getbands()) * (pages if image.format == "TIFF" else 1),
        grey=image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"),
        wide=_is_wide(image),
        transparent=_is_transparent(image),
        pages=pages,
        own=_is_own(image),
        negative=_is_wide(image) and _is_negative(image),
    )


def _is_wide(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I") or _is_wide_colour(image, b"") or _has_sign(image)


def _is_wide_colour(image: Image.Image, data: bytes) -> bool:
    """Colours, or grey with transparency, of 16 bits, of which Pillow gives the upper 8."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    return data[24] == 16 if data.startswith(_PNG) else image.format == "TIFF" and _tag(image, _BITS, 8) == 16


def _has_sign(image: Image.Image) -> bool:
    """A TIFF of 8 bits with a sign, which Pillow does not heed."""
    return image.format == "TIFF" and image.mode == "L" and _tag(image, _SAMPLES, _UNSIGNED) == _SIGNED


def _is_negative(image: Image.Image) -> bool:
    """A TIFF whose zero is white: Pillow turns over 8 bits of it, and nothing else."""
    return image.format == "TIFF" and _tag(image, _MEANING, 1) == _WHITE_IS_ZERO


def _tag(image: Image.Image, number: int, otherwise: int) -> int:
    values = image.tag_v2.get(number, otherwise)  # type: ignore[attr-defined]
    return int(values[0] if isinstance(values, tuple) else values)


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in _ALPHA or "transparency" in image.info


def _is_own(image: Image.Image) -> bool:
    made_by = image.info.get("Software") if image.format == "PNG" else None
    if made_by is None and image.format in ("JPEG", "WEBP", "TIFF"):
        made_by = image.getexif().get(MADE_BY)
    return made_by == OWN


def _image(file: BinaryIO) -> Image.Image:
    return Image.open(file, formats=formats())


def _decode(data: bytes, channels: int | None, load_size: int | None, shown: Shown) -> Pixels:
    turn, header = 1, _bare_jpeg(data)
    with _alone(header[0] * header[1] if header else 0):
        pixels = _jpeg(data, header, channels, load_size)
    if data.startswith(NPY):
        with _alone(_npy_pixels(data)):
            pixels = _brought_down(_with_channels(to_bytes(_load_npy(data), shown.range), channels), load_size)
    elif pixels is None:
        with _image(io.BytesIO(data)) as image, _alone(image.height * image.width):
            # Pillow turns a TIFF while it decodes it; of every other format it gives the pixels as they are stored.
            turn = _orientation(image) if image.format != "TIFF" else 1
            pixels = _jpeg(data, (image.height, image.width, image.mode), channels, load_size)
            if pixels is None:
                pixels = _brought_down(_any_image(image, data, channels, load_size, shown), load_size)
    return np.ascontiguousarray(_turned(pixels, turn))


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


def _any_image(image: Image.Image, data: bytes, channels: int | None, load_size: int | None, shown: Shown) -> Pixels:
    if channels not in (None, 1, 3):
        return _with_channels(to_bytes(_all_values(image, data), shown.range), channels)
    if load_size is not None:
        image.draft(None, (load_size, load_size))  # JPEG only: decodes at ½, ¼ or ⅛, never below that size
    return _converted(image, data, channels, shown)


def _converted(image: Image.Image, data: bytes, channels: int | None, shown: Shown) -> Pixels:
    image.load()  # a palette's transparency is known only now
    # Without a range colours of 16 bits are read by their upper 8: so does Pillow, and so did all runs.
    if shown.range is not None or not _is_wide_colour(image, data):
        values = _wide_values(image, data)
        if values is not None:
            image = _as_image(to_bytes(values, shown.range), image.mode)
    grey = image.mode in ("1", "L", "LA", "La")
    if _is_transparent(image):
        image = _on_background(image, shown)
    mode = "L" if channels == 1 or (channels is None and grey) else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _as_image(pixels: Pixels, mode: str) -> Image.Image:
    image = Image.fromarray(pixels.squeeze(2) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    return image.convert("LA") if mode == "LA" else image


def _wide_values(image: Image.Image, data: bytes) -> NDArray[Any] | None:
    """The values of an image of more than 8 bits, upright in a TIFF and white above black; None: it has no more."""
    values = _stored_values(image, data)
    if values is None or not _is_negative(image):
        return values
    return ~values if np.issubdtype(values.dtype, np.integer) else -values


def _stored_values(image: Image.Image, data: bytes) -> NDArray[Any] | None:
    if _is_wide_colour(image, data):
        return _wide_colours(data)
    image.load()
    if _has_sign(image):
        return np.asarray(image).view(np.int8)
    if image.mode != "F" and not image.mode.startswith("I"):
        return None
    values = np.asarray(image)
    # Pillow's 32 bits have a sign, whatever the file says.
    unsigned = image.format == "TIFF" and _tag(image, _BITS, 0) == 32 and _tag(image, _SAMPLES, 1) == _UNSIGNED
    return values.view(np.uint32) if unsigned and values.dtype == np.int32 else values


def _wide_colours(data: bytes) -> NDArray[Any]:
    """RGB or RGBA of 16 bits, which Pillow cannot give but OpenCV can: a TIFF upright, as from Pillow, too."""
    import cv2

    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.ndim != 3 or found.dtype != np.uint16:
        raise ValueError("colours of 16 bits that cannot be read")
    order = cv2.COLOR_BGRA2RGBA if found.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(found, order))


def _colours(values: NDArray[Any]) -> NDArray[Any]:
    """Without transparency, which has its own range."""
    return values[:, :, :3] if values.ndim == 3 and values.shape[2] == 4 else values


def _all_values(image: Image.Image, data: bytes) -> NDArray[Any]:
    """(H, W, C) of all bands, and of all pages of a TIFF."""
    if image.format != "TIFF" or getattr(image, "n_frames", 1) == 1:
        values = _wide_values(image, data)
        return np.atleast_3d(np.asarray(image) if values is None else values)
    return np.dstack([_page_values(page) for page in ImageSequence.Iterator(image)])


def _page_values(page: Image.Image) -> NDArray[Any]:
    values = None if _is_wide_colour(page, b"") else _wide_values(page, b"")  # OpenCV would give the first page
    return np.asarray(page) if values is None else values


def _is_bytes(values: NDArray[Any]) -> bool:
    return values.dtype in (np.uint8, np.bool_)


def _with_channels(pixels: Pixels, channels: int | None) -> Pixels:
    """Grey and colour convert; any other number of channels must be the image's."""
    bands = pixels.shape[2]
    if channels is None:
        channels = 1 if bands == 1 else 3
    if (bands, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    if (bands, channels) == (3, 1):
        return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    if bands != channels:
        raise ValueError(f"it has {bands} channels, not {channels}")
    return pixels


def _on_background(image: Image.Image, shown: Shown) -> Image.Image:
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*shown.background, 255)), colours).convert("RGB")


def _load_npy(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    shape, kind = _npy_says(file)
    if math.prod(shape) * kind.itemsize > len(data) - file.tell() and not kind.hasobject:
        raise ValueError(f"array of shape {shape} is cut off")  # numpy would ask for the memory first
    values: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return values.reshape(_npy_shape(values.shape))


def _npy_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(H, W, C) of an array."""
    if len(shape) not in (2, 3):
        raise ValueError(f"array of shape {shape}, not height × width × channels")
    height, width, bands = (*shape, 1)[:3]
    if 0 in shape:
        raise ValueError(f"array of shape {shape} holds nothing")
    if height in (1, 3, 4) and min(width, bands) >= _SMALLEST_SIDE:
        raise ValueError(f"array of shape {shape}, channels first: height × width × channels is read")
    return height, width, bands


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


def _middle(image: Pixels, longest: int) -> Pixels:
    """The middle of an image that is longer than that in either direction."""
    top, left = ((side - min(side, longest)) // 2 for side in image.shape[:2])
    return image[top : top + longest, left : left + longest]


def _brought_down(image: Pixels, size: int | None) -> Pixels:
    """The shorter side shrunk to `size` where it is larger, on the way into the cache or the stream.

    Of an image much longer than that the middle is kept, so that no shape asks for more memory than the size allows.
    OpenCV averages areas slowly. Up to 1.5 times, linear interpolation is as near to Lanczos as Pillow's bilinear
    resize, and from there to 2 times the mean of 2 × 2 linear ones as near as the mean over areas.
    """
    if size is None:
        return image
    image = _middle(image, LONGEST * max(size, min(image.shape[:2])))
    height, width = image.shape[:2]
    if min(height, width) <= size:
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


def _reason(error: Exception, data: bytes = b"") -> str:
    text = str(error).strip().splitlines()
    if not text:
        return type(error).__name__
    if "cannot identify image file" in text[0]:
        return needs_heif if (needs_heif := missing_for(data)) else "not an image, or damaged"
    return text[0]
