"""Which encodings of images are read, and how files are told to be images by their first bytes."""

import functools
import importlib
import re
from typing import Any

# Pillow's names. It knows others which start programs (EPS), or which nobody stores photos in (WMF, fonts, icons).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
HEIF = "HEIF"  # by pi-heif

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".npy", ".gif", ".avif", ".heic",
    ".heif", ".hif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip

OWN = "rayssl"  # what pictures of this project say that they were made by
MADE_BY = 0x0131  # EXIF and TIFF tag

NPY = b"\x93NUMPY"

_STARTS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF87a", b"GIF89a", NPY,
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51",
)  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes


def looks_like_image(head: bytes) -> bool:
    """Whether a file's first 32 bytes are those of a format that is read. Raw files of cameras are not."""
    if head[8:10] == b"CR" and head.startswith(b"II*\0"):  # Canon's raw files begin like a TIFF
        return False
    return (
        head.startswith(_STARTS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (*_HEIF_BRANDS, *_AVIF_BRANDS))
        or (head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS)
        or re.match(rb"P[1-6]\s+(#|[0-9])", head) is not None
    )


def written_here(head: bytes) -> bool:
    """Whether a file that starts so is a PNG or JPEG that this project wrote, to be looked at."""
    if head.startswith(b"\x89PNG"):
        return b"tEXtSoftware\0" + OWN.encode() in head[:4096]
    return head.startswith(b"\xff\xd8\xff") and b"Exif" in head[:64] and OWN.encode() + b"\0" in head[:1024]


def is_heif(head: bytes) -> bool:
    """Whether a file's first bytes are those of HEIC or HEIF."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


@functools.cache
def formats() -> tuple[str, ...]:
    """Those that can be read here."""
    from PIL import Image

    Image.init()
    known = tuple(name for name in FORMATS if name in Image.OPEN)  # an older Pillow has no AVIF
    try:
        importlib.import_module("pi_heif").register_heif_opener()
    except ImportError:
        return known
    return (*known, HEIF)


def missing_for(head: bytes) -> str | None:
    """What has to be installed to read this file."""
    return "HEIC: `pip install pi-heif` reads it" if is_heif(head) and HEIF not in formats() else None


def marks(kind: str) -> dict[str, Any]:
    """Options of Pillow's `save` that say that a picture (PNG, JPEG or WEBP) was made by this project."""
    from PIL import Image, PngImagePlugin

    if kind == "PNG":
        said = PngImagePlugin.PngInfo()
        said.add_text("Software", OWN)
        return {"pnginfo": said}
    exif = Image.Exif()
    exif[MADE_BY] = OWN
    return {"exif": exif}
