"""What is kept between runs: decoded images packed in one memory-mapped file, and facts that are slow to find out."""

import contextlib
import errno
import json
import os
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.cache_folder import cache_dir
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import delete, listed, move, replacing, write_json
from rayssl.pipeline.base.locks import in_turn
from rayssl.pipeline.data.cache_room import hold, make_room, touch
from rayssl.pipeline.data.scan import is_flat
from rayssl.pipeline.data.shown import Pixels

FORMAT = 2  # of packs and facts; another number leaves the old ones unused
_BLOCK = 1 << 20
_BLOCKS = 64


def remembered(key: str, compute: Callable[[], Any]) -> Any:
    """The JSON value that `compute` gave when last called for this key."""
    path = cache_dir() / "facts" / f"{key}-{FORMAT}.json"
    try:
        value = json.loads(path.read_text())
        touch(path)
        return value
    except (OSError, ValueError):
        value = compute()
        with contextlib.suppress(OSError):  # a full disk: it is found out again
            write_json(path, value)
        return value


def remembered_array(key: str, n: int, compute: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    """The `n` numbers that `compute` gave when last called for this key."""
    path = cache_dir() / "facts" / f"{key}-{FORMAT}.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            values: NDArray[np.int64] = kept["values"]
        if values.shape == (n,) and values.dtype == np.int64:
            touch(path)
            return values
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass
    values = compute()
    with contextlib.suppress(OSError), replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, values=values)
    return values


def kept_floats(key: str, n: int) -> NDArray[np.float32] | None:
    """The (n, D) numbers that `keep_floats` wrote under this key; None where there are none."""
    path = _floats(key)
    try:
        values: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if values.ndim != 2 or len(values) != n or values.dtype != np.float32:
        return None
    touch(path)
    return values


def keep_floats(key: str, values: NDArray[np.float32]) -> None:
    """Keep (n, D) numbers that are slow to find out, where there is room for them."""
    with contextlib.suppress(OSError), replacing(_floats(key)) as temporary, temporary.open("wb") as file:
        np.save(file, np.ascontiguousarray(values, dtype=np.float32))


def _floats(key: str) -> Path:
    return cache_dir() / "facts" / f"{key}-{FORMAT}.npy"


def has_pack(key: str) -> bool:
    """Whether there is a pack under `key`, sound or not."""
    return _folder(key).is_dir()


class Pack:
    """Decoded images of any size in one flat file, memory-mapped and shared by all processes that open it.

    `pixels.bin` holds image after image, each (H, W, C) uint8; `sizes.npz` their heights and widths, 0 where an image
    could not be read; `pack.json` those images with the reason, the data set's path, and checksums. It stays in the
    cache as long as one of these objects lives. Raises FileNotFoundError where there is no pack.
    """

    def __init__(self, folder: Path, channels: int) -> None:
        self.folder, self.channels = folder, channels
        self._open()

    def __len__(self) -> int:
        return len(self.heights)

    def read(self, row: int) -> Pixels:
        """(H, W, C) of one image; a copy."""
        return self._view(row).copy()

    def uniform(self) -> Pixels | None:
        """(N, H, W, C) without a copy where all images have one size, else None."""
        if len(self) == 0 or np.ptp(self.heights) or np.ptp(self.widths) or self.heights[0] == 0:
            return None
        return self._pixels.reshape(len(self), int(self.heights[0]), int(self.widths[0]), self.channels)

    def unreadable(self) -> dict[int, str]:
        """Row → reason, of the images that could not be read."""
        return {int(row): reason for row, reason in self._facts["unreadable"]}

    @property
    def flat(self) -> int | None:
        """How many images show nothing; None in a pack that does not say."""
        count = self._facts.get("flat")
        return count if isinstance(count, int) else None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "channels": self.channels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _view(self, row: int) -> Pixels:
        start, height, width = self._offsets[row], int(self.heights[row]), int(self.widths[row])
        return self._pixels[start : start + height * width * self.channels].reshape(height, width, self.channels)

    def _open(self) -> None:
        weakref.finalize(self, os.close, hold(self.folder / "pack.json"))
        self._facts = json.loads((self.folder / "pack.json").read_text())
        with np.load(self.folder / "sizes.npz", allow_pickle=False) as sizes:
            self.heights: NDArray[np.int64] = sizes["heights"].astype(np.int64)
            self.widths: NDArray[np.int64] = sizes["widths"].astype(np.int64)
        ends = np.cumsum(self.heights * self.widths * self.channels)
        self._offsets = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        path = self.folder / "pixels.bin"
        empty = path.stat().st_size == 0  # which cannot be mapped
        self._pixels: Pixels = np.zeros(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, mode="r"))


def open_pack(
    key: str,
    n: int,
    channels: int,
    images: Callable[[], Iterable[Pixels | str]],
    progress: Callable[[int], None],
    *,
    data: str = "",
    expected: float = 0,
) -> Pack:
    """The pack of `n` images under `key`, built from `images()` (pixels, or why there are none) where it is missing.

    `data` is the data set's path, for people; for `expected` bytes of pixels room is made before they are decoded.
    Several processes may ask at once. Raises UserError where there is no room for it.
    """
    folder = _folder(key)
    if (pack := _sound(folder, n, channels)) is not None:
        return pack
    folder.parent.mkdir(parents=True, exist_ok=True)
    with in_turn(folder.parent / f"{folder.name}.lock"):
        if (pack := _sound(folder, n, channels)) is not None:  # built while this process waited
            return pack
        make_room(cache_dir(), expected)
        pack = _build(folder, channels, images(), progress, data)
    make_room(cache_dir(), 0)  # what was expected is an estimate
    return pack


def _folder(key: str) -> Path:
    return cache_dir() / "packs" / f"{key}-{FORMAT}"


def _sound(folder: Path, n: int, channels: int) -> Pack | None:
    """The pack if it is there and undamaged."""
    try:
        pack = Pack(folder, channels)
        facts = json.loads((folder / "pack.json").read_text())
        expected = int((pack.heights * pack.widths).sum()) * channels
        sound = (
            len(pack) == n
            and (folder / "pixels.bin").stat().st_size == expected
            and facts["sizes"] == _checksum(folder / "sizes.npz")
            and facts["pixels"] == _checksum(folder / "pixels.bin")
            and isinstance(pack.unreadable(), dict)
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, BadZipFile):
        return None
    return pack if sound else None


def _build(
    folder: Path, channels: int, images: Iterable[Pixels | str], progress: Callable[[int], None], data: str
) -> Pack:
    for left_over in listed(folder.parent, f".{folder.name}-*"):  # of a process that was killed: it is our turn now
        delete(left_over)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _write(temporary, images, progress, data)
        delete(folder)  # a damaged one
        held = Pack(temporary, channels)  # so that it does not go before it is opened in its place
        with contextlib.suppress(FileExistsError):
            move(temporary, folder)
        pack = Pack(folder, channels)
        del held
        return pack
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"no room left in {folder.parent} for the decoded images: --data.loader stream, or set RAYSSL_CACHE"
            ) from None
        raise
    finally:
        delete(temporary)


def _write(folder: Path, images: Iterable[Pixels | str], progress: Callable[[int], None], data: str) -> None:
    heights, widths, unreadable, flat = [], [], [], 0
    with (folder / "pixels.bin").open("wb", buffering=_BLOCK) as file:
        for row, image in enumerate(images):
            if isinstance(image, str):
                unreadable.append((row, image))
            else:
                file.write(image.data)
                flat += is_flat(image)
            height, width = (0, 0) if isinstance(image, str) else image.shape[:2]
            heights.append(height)
            widths.append(width)
            progress(row + 1)
        file.flush()
        os.fsync(file.fileno())
    np.savez(folder / "sizes.npz", heights=np.array(heights, np.int32), widths=np.array(widths, np.int32))
    facts = {
        "data": data,
        "unreadable": unreadable,
        "flat": flat,
        "sizes": _checksum(folder / "sizes.npz"),
        "pixels": _checksum(folder / "pixels.bin"),
    }
    write_json(folder / "pack.json", facts)


def _checksum(path: Path) -> int:
    """CRC-32 of 64 blocks of 1 MiB spread over the file: all of a small file, and never slow."""
    size = path.stat().st_size
    total = size & 0xFFFFFFFF
    starts = range(0, size, _BLOCK)
    chosen = starts[:: max(1, -(-len(starts) // _BLOCKS))]
    with path.open("rb") as file:
        for start in chosen:
            file.seek(start)
            total = zlib.crc32(file.read(_BLOCK), total)
    return total
