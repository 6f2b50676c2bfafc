"""What somebody asks for, in the form they have it: files, folders, URLs, bytes, and images of PIL, numpy and torch."""

import io
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import decode, to_square
from rayssl.pipeline.data.decode import load_size_of, read_header
from rayssl.pipeline.data.formats import SUFFIXES
from rayssl.pipeline.data.shown import BY_TYPE, Shown
from rayssl.pipeline.data.storage import find, is_url

if TYPE_CHECKING:
    from torch import Tensor

MOST_BYTES = 256 * 1024**2  # of one encoded image from elsewhere
PATIENCE = 30.0  # seconds that a server may stay silent
BANDS = (1, 3, 4)  # grey, colours, colours with transparency
FORMS = (
    "give a path, a URL, a folder, bytes, a PIL image, a numpy array (height × width, or height × width × channels), a "
    "torch tensor (channels × height × width), or a list of these"
)

Pixels = NDArray[np.uint8]


@dataclass
class Asked:
    """One image: what it is called, where its encoded bytes are, and why it cannot be read, where it cannot."""

    name: str
    source: Path | bytes = b""
    place: str = ""  # path or URL by which an index may know it
    problem: str | None = None
    numbers: NDArray[Any] | None = None  # as they were given, where `source` takes them for 0 … 1 or 0 … 255

    def read(self, channels: int | None, load_size: int, shown: Shown = BY_TYPE) -> Pixels | None:
        """(H, W, C) as the pipeline reads it; None where that fails, and from then on."""
        if self.problem is None:
            try:
                return decode(self._source_for(shown), channels, load_size, shown)
            except UserError as error:
                self.problem = str(error) if isinstance(self.source, Path) else f"{self.name}: {error}"
        return None

    def _source_for(self, shown: Shown) -> Path | bytes:
        """A run with a range reads numbers by it, as in a file; not those up to 1 where the range goes farther."""
        if self.numbers is None or shown.range is None or self.numbers.max() <= 1 < shown.range[1]:
            return self.source
        return _kept(self.numbers)


@dataclass(frozen=True)
class AskedSquares:
    """Images that are asked for, by position, as squares; black where one cannot be read."""

    asked: list[Asked]
    channels: int
    load_size: int
    shown: Shown = BY_TYPE

    def __len__(self) -> int:
        return len(self.asked)

    def square(self, indices: Any, size: int) -> Pixels:
        """(B, size, size, C)."""
        found = np.zeros((len(indices), size, size, self.channels), dtype=np.uint8)
        for row, index in enumerate(indices):
            pixels = self.asked[int(index)].read(self.channels, self.load_size, self.shown)
            if pixels is not None:
                found[row] = to_square(pixels, size)
        return found


def squares_of(asked: list[Asked], channels: int, shown: Shown = BY_TYPE) -> Callable[[int], AskedSquares]:
    """The images, read for the number of pixels a side that is asked for."""
    return lambda size: AskedSquares(asked, channels, load_size_of(size), shown)


def images_of(given: Any, *, signed: bool = False) -> list[Asked]:
    """Every image of what is given. What is missing or broken has its problem told; nothing else is rejected for it.

    `signed`: the run reads values below zero as an image's, so arrays may hold them. Raises UserError for what is no
    image in any form.
    """
    found = list(_each(given, signed))
    if not found:
        raise UserError("no image to look for: give one or more")
    for number, one in enumerate(found, start=1):
        if not one.name:
            one.name = f"image {number}"
    return found


def _each(given: Any, signed: bool) -> Iterator[Asked]:
    if isinstance(given, Asked):
        yield given
    elif isinstance(given, str):
        yield from _of_text(given)
    elif isinstance(given, os.PathLike):
        yield from _of_path(Path(given))
    elif isinstance(given, (bytes, bytearray, memoryview)):
        yield Asked("", bytes(given))
    elif isinstance(given, Image.Image):
        yield _of_picture(given)
    elif "torch" in sys.modules and isinstance(given, sys.modules["torch"].Tensor):  # else it cannot be one
        for array in _of_tensor(given):
            yield _of_array(array, signed)
    elif isinstance(given, np.ndarray) and given.dtype.kind in "buif":
        for array in given if given.ndim == 4 else [given]:
            yield _of_array(array, signed)
    elif hasattr(given, "read"):
        yield Asked(str(getattr(given, "name", "")), given.read(MOST_BYTES))
    elif isinstance(given, Iterable) and not isinstance(given, dict):
        for one in given:
            yield from _each(one, signed)
    else:
        raise UserError(f"a {type(given).__name__} is not an image to look for: {FORMS}")


def _of_text(text: str) -> Iterator[Asked]:
    if not is_url(text) or os.path.exists(text):
        yield from _of_path(Path(os.path.expanduser(text)))
        return
    scheme = urlsplit(text).scheme.lower()
    if scheme == "file":
        yield from _of_path(Path(urllib.request.url2pathname(urlsplit(text).path)), name=text)
        return
    try:
        data = _fetch(text) if scheme in ("http", "https") else _fetch_from_store(text)
    except UserError as error:
        yield Asked(text, problem=str(error))
        return
    except Exception as error:  # of any library that speaks to a server
        reason = getattr(error, "reason", None) or error
        yield Asked(text, problem=f"{text} cannot be read: {_first_line(reason)}")
        return
    yield Asked(text, data, place=text)


def _of_path(path: Path, name: str | None = None) -> Iterator[Asked]:
    if os.path.isdir(path):  # unlike pathlib's it does not mind a name that no file can have
        yield from _of_folder(path)
    elif os.path.isfile(path):
        yield Asked(name or str(path), path, place=str(path))
    else:
        what = "is not a file" if os.path.exists(path) else "does not exist"
        yield Asked(name or str(path), problem=f"image {path} {what}: give the path of an image file")


def _of_folder(folder: Path) -> Iterator[Asked]:
    paths = [folder / relative for relative in find(str(folder))[1].paths]
    images = [path for path in paths if path.suffix.lower() in SUFFIXES or _is_image(path)]
    if not images:
        yield Asked(str(folder), problem=f"folder {folder} holds no images")
    for path in images:
        yield Asked(str(path), path, place=str(path))


def _is_image(path: Path) -> bool:
    try:
        read_header(path)
    except (UserError, OSError):
        return False
    return True


def _fetch(url: str) -> bytes:
    """The bytes behind a web address, through the proxies that the environment names."""
    request = urllib.request.Request(url, headers={"User-Agent": "rayssl"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return _bounded(answer.read(MOST_BYTES + 1), url)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} cannot be read: the server says {error.code} {error.reason}") from None


def _fetch_from_store(url: str) -> bytes:
    """The bytes behind s3://, gs:// and whatever else fsspec opens."""
    import fsspec

    try:
        system, inner = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url} cannot be opened: {_first_line(error)}") from None
    return _bounded(bytes(system.cat_file(inner, start=0, end=MOST_BYTES + 1)), url)


def _bounded(data: bytes, url: str) -> bytes:
    if len(data) > MOST_BYTES:
        raise UserError(f"{url} is larger than {MOST_BYTES // 1024**2} MB: no image to look for")
    return data


def _of_picture(picture: Image.Image) -> Asked:
    """An image of PIL's, by a format that keeps its pixels, its transparency and which way up it is."""
    name, kept = str(getattr(picture, "filename", "") or ""), io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(picture)
        kind = "PNG" if upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF"
        upright.save(kept, format=kind)
    except (OSError, ValueError, SyntaxError) as error:
        return Asked(name, problem=f"{name or 'a PIL image'} cannot be read: {_first_line(error)}")
    return Asked(name, kept.getvalue(), place=name)


def _of_tensor(tensor: "Tensor") -> Iterator[NDArray[Any]]:
    """(C, H, W) or (H, W), and a batch of (B, C, H, W), to arrays with the channels last."""
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.element_size() == 2:  # numpy has no bf16
        values = values.float()
    if values.ndim not in (2, 3, 4):
        raise UserError(f"a tensor of shape {tuple(tensor.shape)} is not an image: give channels × height × width")
    for one in values if values.ndim == 4 else [values]:
        if one.ndim == 3 and one.shape[0] not in BANDS and one.shape[-1] in BANDS:
            raise UserError(
                f"a tensor of shape {tuple(one.shape)} has its channels last: give channels × height × width "
                "(.permute(2, 0, 1))"
            )
        yield one.permute(1, 2, 0).numpy() if one.ndim == 3 else one.numpy()


def _of_array(values: NDArray[Any], signed: bool) -> Asked:
    """(H, W) or (H, W, C), uint8, bool, or numbers from 0 to 1, to 255 or to 65535."""
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise UserError(f"an array of shape {values.shape} is not an image: give height × width, or with × channels")
    if values.ndim == 3 and values.shape[0] in BANDS and values.shape[2] not in BANDS:
        raise UserError(
            f"an array of shape {values.shape} has its channels first: give height × width × channels "
            "(.transpose(1, 2, 0)), or a torch tensor"
        )
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        return Asked("", problem="the array holds values that are not finite")
    if low < 0 and not signed:
        return Asked(
            "",
            problem=f"the array holds values from {low:.4g} to {high:.4g}: give them as they were before they were "
            "normalised, 0 to 1 or 0 to 255",
        )
    taken = _as_bytes(values, signed)
    asked = _encoded(taken)
    if taken is not values and values.dtype != np.bool_:
        asked.numbers = values
    return asked


def _as_bytes(values: NDArray[Any], signed: bool) -> NDArray[Any]:
    """Floats and wide integers that hold 0 … 255, or 0 … 1, as bytes; what is wider stays for the run's own range."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8 or signed or values.max() > 255:
        return values
    if values.dtype.kind == "f":
        return np.rint(values * (255.0 if values.max() <= 1 else 1.0)).astype(np.uint8)
    return values if values.dtype == np.uint16 else values.astype(np.uint8)  # 16 bits may be a dark picture of 16


def _encoded(values: NDArray[Any]) -> Asked:
    if values.dtype == np.uint8 and (values.ndim == 2 or values.shape[2] in BANDS):
        flat = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
        return _of_picture(Image.fromarray(np.ascontiguousarray(flat)))
    if values.dtype == np.uint16 and values.ndim == 2:
        return _of_picture(Image.fromarray(np.ascontiguousarray(values)))
    return Asked("", _kept(values))


def _kept(values: NDArray[Any]) -> bytes:
    """As a .npy file has them."""
    kept = io.BytesIO()
    np.save(kept, np.ascontiguousarray(values), allow_pickle=False)
    return kept.getvalue()


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
