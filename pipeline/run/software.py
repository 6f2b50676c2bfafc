"""With which versions, of which commit and on which machine a run was made."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

COMMIT = "RAYSSL_COMMIT"  # variable by which a job is told the commit of its code
PACKAGES = ("rayssl", "torch", "torchvision", "ray", "albumentations", "faiss-gpu", "faiss-cpu", "numpy")


def describe_software() -> dict[str, Any]:
    """Commit, versions and machine, for the manifest."""
    return {"commit": _commit(), "versions": _versions(), "machine": _machine()}


def _commit() -> str | None:
    folder = Path(__file__).parent
    call = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(COMMIT) or None  # a submitted job's code is a copy


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
