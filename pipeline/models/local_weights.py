"""Files with pretrained weights on this machine: in torch's cache, the hub's cache and installed packages.

Nothing here asks the network, imports torch, or imports a package that it finds.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path, PurePosixPath

from rayssl.pipeline.base.files import listed

SUFFIXES = (".safetensors", ".pth", ".pt")  # that are read without executing anything
LEAST_BYTES = 100_000  # what is smaller holds no network; Python's own .pth files are among them
_HASH = re.compile(r"[-_][0-9a-f]{8}$")  # with which torch ends the names of files that it downloads


@dataclass(frozen=True)
class Packaged:
    """The one file with weights of an installed Python package."""

    package: str  # as it is installed by
    path: Path
    licence: str  # as the package states it


@dataclass(frozen=True)
class Snapshot:
    """Weights of one model in the hub's cache."""

    repository: str  # owner/name
    path: Path


def torch_cache() -> Path:
    """Where torch.hub keeps files: torchvision's weights, and those that timm fetches by URL."""
    home = os.environ.get("TORCH_HOME") or _cache_home() / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def hub_cache() -> Path:
    """Where huggingface_hub keeps repositories."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if given := os.environ.get(variable):
            return Path(given).expanduser()
    return Path(os.environ.get("HF_HOME") or _cache_home() / "huggingface").expanduser() / "hub"


def downloaded() -> list[Path]:
    """Files in torch's cache."""
    return _weights_in(torch_cache())


def hub_snapshots() -> list[Snapshot]:
    """One file a repository in the hub's cache: of the revision that `main` stands for, else of any."""
    found = []
    for folder in listed(hub_cache(), "models--*--*"):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        if path := snapshot_file(repository):
            found.append(Snapshot(repository, path))
    return found


def snapshot_file(repository: str, name: str | None = None) -> Path | None:
    """The file of a repository in the hub's cache that holds weights; `name`: the one of that name."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    for revision in _revisions(folder):
        if name is not None and (revision / name).is_file():
            return revision / name
        files = _weights_in(revision)
        if name is None and files:
            return min(files, key=lambda path: (SUFFIXES.index(path.suffix), path.name != "model.safetensors", path))
    return None


def package_weights() -> list[Packaged]:
    """Installed packages with exactly one file of weights, told by the list of their files."""
    found = [_packaged(distribution) for distribution in metadata.distributions()]
    return sorted((one for one in found if one is not None), key=lambda one: one.package)


def package_file(package: str) -> Packaged | None:
    """The one file with weights of a package; none where it is not installed or has none, or several."""
    try:
        return _packaged(metadata.distribution(package))
    except (metadata.PackageNotFoundError, ValueError, OSError):
        return None


def network_of(path: Path) -> str:
    """The network that a file's name speaks of, in the spelling of timm and torchvision."""
    return _HASH.sub("", path.stem).replace("-", "_")


@cache
def timm_has(network: str) -> bool:
    """Whether the installed timm defines a network of that name; told by its source, without importing it."""
    return any(f"\ndef {network}(" in text for text in _timm_sources())


def is_installed(package: str) -> bool:
    """Whether a top-level package can be imported."""
    return util.find_spec(package) is not None


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _revisions(folder: Path) -> list[Path]:
    snapshots = folder / "snapshots"
    try:
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    found = [path for path in listed(snapshots) if path.is_dir()]
    return sorted(found, key=lambda path: path.name != main)


def _weights_in(folder: Path) -> list[Path]:
    return sorted(path for path in listed(folder) if path.suffix in SUFFIXES and _bytes(path) >= LEAST_BYTES)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link into the cache's blobs that leads nowhere
        return 0


def _packaged(distribution: metadata.Distribution) -> Packaged | None:
    files = [place for place in _recorded(distribution) if place.suffix in SUFFIXES and len(place.parts) > 1]
    paths = [Path(str(distribution.locate_file(place))) for place in files]
    paths = [path for path in paths if _bytes(path) >= LEAST_BYTES]
    if len(paths) != 1:
        return None
    return Packaged(distribution.metadata["Name"].replace("-", "_"), paths[0], _stated_licence(distribution))


def _recorded(distribution: metadata.Distribution) -> Iterator[PurePosixPath]:
    # Not `distribution.files`, which makes an object of each of torch's ten thousand.
    for line in (distribution.read_text("RECORD") or "").splitlines():
        place = line.split(",", 1)[0].strip('"')
        if place.endswith(SUFFIXES):
            yield PurePosixPath(place)


def _stated_licence(distribution: metadata.Distribution) -> str:
    """What a package's metadata say, else the first line of its licence file."""
    for key in ("License-Expression", "License"):
        stated = str((distribution.metadata.get_all(key) or [""])[0]).strip()
        if stated and stated != "UNKNOWN":
            return stated.splitlines()[0]
    for place in ("LICENSE", "licenses/LICENSE"):
        lines = [line.strip() for line in (distribution.read_text(place) or "").splitlines()]
        if first := next((line for line in lines if line), None):
            return first
    return "not stated"


@cache
def _timm_sources() -> tuple[str, ...]:
    spec = util.find_spec("timm")
    folders = spec.submodule_search_locations if spec is not None else None
    paths = [path for folder in folders or () for path in listed(Path(folder), "models/*.py")]
    return tuple(path.read_text(encoding="utf-8") for path in paths)
