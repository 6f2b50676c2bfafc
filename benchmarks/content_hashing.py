"""What it costs to know a folder by the content of its files, against names and sizes alone.

    python benchmarks/content_hashing.py --out benchmarks/results/content_hashing.json

Writes so many small PNG files into a folder of its own, and times two things by both ways in turn: listing the folder
(walk, digest of names and sizes, and of content), and opening it as a data set whose images are decoded already. Cold:
no digest is remembered and the files are not in the page cache; warm: as the second time and ever after. A figure is
the median over pairs, and a ratio the median of the ratios of pairs.
"""

import argparse
import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image
from runs import facts

from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.data import content, open_dataset, storage
from rayssl.pipeline.data.content import Contents

A_FOLDER = 1000  # files


def main() -> int:
    """Write files, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=24, help="pixels; 24: about 1.8 kB a file")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--cold-pairs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["RAYSSL_CACHE"] = f"{place}/cache"
        folder = Path(place, "photos")
        size = write_files(folder, options.files, options.side)
        time.sleep(3)  # what was written just now is not remembered
        found = {
            "list, cold": pairs(lambda: listed(folder), options.cold_pairs, lambda: forget(folder)),
            "list, warm": pairs(lambda: listed(folder), options.pairs),
        }
        for way in (contextlib.nullcontext, names_and_sizes):
            with way():
                opened(folder)  # decodes once
        found["open, warm"] = pairs(lambda: opened(folder), options.pairs)
    result = {**facts("content_hashing", "small files"), "files": options.files, "bytes a file": size, **found}
    if options.out:
        write_json(options.out, result)
    for name, row in found.items():
        print(
            f"{name}: {row['before']:.2f} s by names and sizes, {row['after']:.2f} s with content, × {row['ratio']:.2f}"
        )
    return 0


def write_files(folder: Path, count: int, side: int) -> float:
    """Noise, each file another; returns the mean size."""
    random, total = np.random.default_rng(0), 0
    for i in range(count):
        path = folder / f"{i // A_FOLDER:04d}" / f"{i % A_FOLDER:03d}.png"
        if i % A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        data = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(data, "PNG", compress_level=0)
        total += path.write_bytes(data.getvalue())
    os.sync()
    return total / count


def listed(folder: Path) -> None:
    """What tells one set from another."""
    root, files = storage.find(str(folder))
    files.identity(), files.stamp(), Contents(root, files).digest()


def opened(folder: Path) -> None:
    """The data set."""
    open_dataset(str(folder), loader="resident")


def forget(folder: Path) -> None:
    """No digest is remembered, and none of the files is in the page cache."""
    shutil.rmtree(Path(os.environ["RAYSSL_CACHE"]) / "facts", ignore_errors=True)
    for path in folder.glob("*/*.png"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


@contextlib.contextmanager
def names_and_sizes() -> Iterator[None]:
    """As it was: sizes and times of last change are asked for, and nothing is read."""

    def columns(found: list[os.stat_result]) -> tuple[Any, Any]:
        sizes = np.array([status.st_size for status in found], dtype=np.int64)
        return sizes, np.array([status.st_mtime_ns for status in found], dtype=np.int64)

    nothing = mock.patch.object(content.Contents, "digest", return_value="")
    with mock.patch.object(storage, "_columns", columns), nothing:
        yield


def pairs(work: Callable[[], None], count: int, before_each: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Seconds by both ways in turn; the order changes from pair to pair."""
    work()
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    ways = {"before": names_and_sizes, "after": contextlib.nullcontext}
    for number in range(count):
        for name in sorted(ways, reverse=number % 2 == 0):
            before_each()
            with ways[name]():
                began = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - began)
    ratios = [after / before for before, after in zip(seconds["before"], seconds["after"])]
    return {
        **{name: statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(ratios),
        "seconds": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
