"""Where what is kept between runs lies."""

import os
from pathlib import Path

from rayssl.pipeline.base.errors import UserError


def cache_dir() -> Path:
    """$RAYSSL_CACHE, else ~/.cache/rayssl; made where missing. Raises UserError where it cannot be written."""
    folder = Path(os.environ.get("RAYSSL_CACHE") or Path.home() / ".cache" / "rayssl").expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache folder {folder} cannot be made ({error.strerror}): set RAYSSL_CACHE") from None
    return folder
