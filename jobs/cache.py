"""rayssl cache: what is kept between runs, and how to get rid of it."""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from rayssl.jobs.cli import parse
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import say

if TYPE_CHECKING:
    from pathlib import Path

    from rayssl.pipeline.data.cache_room import Kept

SUMMARY = (
    "What is kept between runs, in $RAYSSL_CACHE or ~/.cache/rayssl: decoded images (at most RAYSSL_CACHE_GB, or 64 GB "
    "or a quarter of the disk; what was not used for the longest time goes first), facts about data sets, and data "
    "sets that were downloaded by name."
)


def main(argv: list[str]) -> int:
    """List the cache, or clean it and tell what went."""
    clean_it = click.Option(["--clean"], is_flag=True, help="remove all but downloads and what a process is using")
    days = click.Option(
        ["--older-than"],
        type=click.FloatRange(min=0),
        metavar="DAYS",
        help="with --clean: only what was not used for so long",
    )
    parsed = parse("cache", SUMMARY, argv, [clean_it, days], flags=(), only=())
    if parsed.values["older_than"] is not None and not parsed.values["clean"]:
        raise UserError("--older-than needs --clean: nothing is removed without it")
    from rayssl.pipeline.base.cache_folder import cache_dir
    from rayssl.pipeline.data.cache_room import clean, limit, list_kept

    root = cache_dir()
    removed = clean(root, parsed.values["older_than"]) if parsed.values["clean"] else []
    kept = list_kept(root)
    if parsed.values["json"]:
        print(json.dumps({"folder": str(root), "limit_bytes": limit(root), "kept": [_plain(k) for k in kept],
                          "removed": [_plain(k) for k in removed]}))  # fmt: skip
        return 0
    for line in _table(root, limit(root), kept):
        say(line)
    if parsed.values["clean"]:
        say(f"removed {len(removed)} files and folders, {_bytes(removed)}")
    return 0


def _table(root: "Path", limit: float, kept: list["Kept"]) -> list[str]:
    from rayssl.pipeline.base.progress import format_bytes
    from rayssl.pipeline.data.cache_room import IMAGES

    images = [k for k in kept if k.kind == IMAGES]
    head = f"{root}: {_bytes(kept)}, of which {_bytes(images)} of at most {format_bytes(limit)} are decoded images"
    rows = [f"  {k.kind:<9} {_bytes([k]):>8}  {_age(k.used):>12}  {_what(k)}" for k in kept]
    return [head, *rows]


def _what(kept: "Kept") -> str:
    return (kept.data or kept.place.name) + (" (in use)" if kept.in_use else "")


def _bytes(kept: list["Kept"]) -> str:
    from rayssl.pipeline.base.progress import format_bytes

    return format_bytes(sum(k.bytes for k in kept))


def _age(used: float) -> str:
    from rayssl.pipeline.base.progress import format_duration

    seconds = max(0.0, time.time() - used)
    return f"{seconds / 86400:.0f} days ago" if seconds >= 2 * 86400 else f"{format_duration(seconds)} ago"


def _plain(kept: "Kept") -> dict[str, Any]:
    return {"kind": kept.kind, "path": str(kept.place), "data": kept.data, "bytes": kept.bytes, "used": kept.used,
            "in_use": kept.in_use}  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_verb("cache", sys.argv[1:]))
