"""Parts of files on web servers (RFC 9110, section 14): an answer is compared with what was asked for.

A server may send the whole file whatever part is asked for, another part, fewer bytes than it says, or a file that was
replaced meanwhile.
"""

import io
import re
from collections.abc import Mapping
from typing import Any

from rayssl.pipeline.base.errors import UserError

BUFFER = 5 << 20  # bytes that are asked for at a time of a file that is read from its beginning
_WHOLE = 16 << 20  # bytes up to which a part is cut out of a whole file, where a server sends nothing else
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_PIECE = 1 << 20

_tags: dict[str, str] = {}  # of files by URL, since they were last listed


def note_tags(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Note the ETags of files that are listed, by URL: parts of another version are refused from now on."""
    for url, info in found.items():
        _tags.pop(url, None)
        if info.get("ETag"):
            _tags[url] = str(info["ETag"])


def read_part(system: Any, url: str, start: int, stop: int) -> bytes:
    """The bytes from `start` up to `stop`, or the end, of a file by fsspec's system for HTTP.

    Raises UserError where the server sends anything else, FileNotFoundError where it has no such file.
    """
    from aiohttp import ClientError
    from fsspec.asyn import sync

    try:
        return bytes(sync(system.loop, _asked, system, url, start, stop)) if start < stop else b""
    except ClientError as error:
        raise UserError(f"{url} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None


class WebFile(io.RawIOBase):
    """A file on a web server that is read in parts; seekable."""

    def __init__(self, system: Any, url: str) -> None:
        self._system, self._url, self._place = system, url, 0
        size = system.info(url).get("size")
        if size is None:
            raise UserError(f"{url} cannot be read in parts: the server does not tell its size: download it")
        self._size = int(size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        before = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, before + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        stop = min(self._place + len(buffer), self._size)
        found = read_part(self._system, self._url, self._place, stop)
        if len(found) < stop - self._place:
            raise UserError(f"{self._url} ends at byte {self._place + len(found):,}, not at {self._size:,} as was told")
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)


async def _asked(system: Any, url: str, start: int, stop: int) -> bytes:
    given = dict(system.kwargs)
    headers = {**given.pop("headers", {}), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    session = await system.set_session()
    async with session.get(system.encode_url(url), headers=headers, **given) as answer:
        if answer.status == 416:  # the file ends before
            return b""
        if answer.status == 404:
            raise FileNotFoundError(url)
        answer.raise_for_status()
        _check_tag(url, answer.headers.get("ETag"))
        if answer.status != 206:
            return await _cut_out(answer, url, start, stop)
        length = _length(url, answer.headers.get("Content-Range", ""), start, stop)
        found = await _at_most(answer, length + 1)
        if len(found) != length:
            sent = "more" if len(found) > length else f"{len(found):,}"
            raise UserError(f"{url} cannot be read: the server sends {sent} bytes where it says {length:,}")
        return found


async def _cut_out(answer: Any, url: str, start: int, stop: int) -> bytes:
    """A part of an answer that holds the whole file."""
    if stop > _WHOLE:
        raise UserError(f"{url} cannot be read in parts: the server sends all of it (no HTTP ranges): download it")
    return (await _at_most(answer, stop))[start:]


async def _at_most(answer: Any, count: int) -> bytes:
    found = bytearray()
    while len(found) < count and (chunk := await answer.content.read(min(_PIECE, count - len(found)))):
        found += chunk
    return bytes(found)


def _length(url: str, told: str, start: int, stop: int) -> int:
    """Bytes of a part by its Content-Range; raises UserError where that is not the part that was asked for."""
    numbers = _RANGE.fullmatch(told)
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2])
        whole = last == stop - 1 or (last < stop - 1 and numbers[3] == str(last + 1))
        if first == start <= last and whole:
            return last + 1 - first
    asked = f"bytes {start}-{stop - 1}"
    raise UserError(f"{url} cannot be read: the server sends {told[:80]!r} where {asked} were asked for")


def _check_tag(url: str, tag: str | None) -> None:
    """Raises UserError where a file is not the one that was listed, or whose first part was read."""
    if tag is not None and _tags.setdefault(url, tag) != tag:
        raise UserError(f"{url} has changed while it was read: start again")
