"""A trial of a user's own pipelines on a few images, in a process of its own with bounded memory and time.

A file may ask for kernels or patches without measure, or return what is no image: that is known before anything trains.

`python -m rayssl.pipeline.augment.trial SIZE CHANNELS SEED` is that process. It reads the views, as JSON, from its
input, and prints why one of them does not work.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayssl.pipeline.augment import View, apply_batch, view_from_dict, view_to_dict
from rayssl.pipeline.augment.user_pipeline import UserPipeline
from rayssl.pipeline.base.documents import parse
from rayssl.pipeline.base.errors import UserError

MEMORY = 8 * 1024**3  # bytes of address space; the libraries themselves take some 2 GB of it
SECONDS = 30  # of computing, of which importing albumentations takes some 4
DRAWS = 4  # images, as the parameters are random
FAILED = 2  # exit code


def try_pipelines(views: Sequence[View], *, size: int, channels: int, seed: int) -> None:
    """Raises UserError where a view is a pipeline of the user's own that fails, or takes too long or too much memory.

    It gets images (size, size, channels).
    """
    own = dict.fromkeys(view for view in views if isinstance(view, UserPipeline) and _is_known(view.compose))
    if not own:
        return
    command = [sys.executable, "-P", "-m", __name__, str(size), str(channels), str(seed)]
    done = subprocess.run(
        command,
        input=json.dumps([view_to_dict(view) for view in own]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if done.returncode == FAILED:
        raise UserError(done.stdout.strip())
    if done.returncode:
        raise UserError(
            f"the albumentations pipeline cannot be applied to {DRAWS} images within {SECONDS} seconds and "
            f"{MEMORY // 1024**3} GB of memory: choose smaller parameters"
        )


def _is_known(transform: Any) -> bool:
    """Whether all transforms are albumentations' own: others are known only where somebody has imported them."""
    own = type(transform).__module__.startswith("albumentations.")
    return own and all(map(_is_known, getattr(transform, "transforms", ())))


def _main() -> int:
    size, channels, seed = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    ids = np.arange(1, DRAWS + 1, dtype=np.int64)
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)
    try:
        for number, values in enumerate(parse(sys.stdin.buffer.read())):
            view = view_from_dict(values)
            apply_batch(view, [noise] * DRAWS, size=size, seed=seed, epoch=0, ids=ids, view=number)
    except UserError as error:
        print(error)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(_main())
