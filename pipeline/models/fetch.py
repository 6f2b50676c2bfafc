"""Fetching pretrained weights that were named: the one place that asks the network for them.

torchvision's go to torch's cache, timm's to the hub's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.models.local_weights import torch_cache
from rayssl.pipeline.models.pretrained import torchvision_member
from rayssl.pipeline.models.timm_networks import config_of, is_timm, tags_of
from rayssl.pipeline.models.weights import cached_file, hub_name, timm_licence, torchvision_licence

HUB_FILE = "model.safetensors"
BYTES_OF_MB = 1024 * 1024  # torchvision's unit


@dataclass(frozen=True)
class Remote:
    """Weights that can be fetched."""

    name: str  # --encoder.name
    weights: str  # --encoder.weights
    place: str  # URL, or owner/name of the hub's repository
    bytes: int | None  # where that is known without fetching
    licence: str
    path: Path | None  # where they are on this machine already


def find_remote(name: str, weights: str = "DEFAULT") -> Remote:
    """What would be fetched for a network; the size of a file on the hub is asked there.

    UserError for a network without such weights.
    """
    if is_timm(name):
        return _of_timm(name, weights)
    member = torchvision_member(name, weights)
    if member is None:
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known:
            raise UserError(
                f"no weights are known for {name!r}{nearest(name, known)}: name a torchvision classifier or timm/NAME"
            )
        listed = ", ".join(models.get_model_weights(name).__members__) or "none"
        raise UserError(f"{weights} names no weights of {name}: there are {listed}")
    path = torch_cache() / member.url.rsplit("/", 1)[-1]
    size = member.meta.get("_file_size")
    found = path if path.is_file() else None
    bytes_ = found.stat().st_size if found is not None else round(size * BYTES_OF_MB) if size else None
    return Remote(name, weights, member.url, bytes_, torchvision_licence(member.meta), found)


def fetch(remote: Remote) -> Path:
    """Fetch weights into the cache where they are looked for; UserError, one line, where they cannot be had."""
    if remote.path is not None:
        return remote.path
    if remote.place.startswith(("http://", "https://")):
        return _fetch_url(remote)

    def ask(hub: Any) -> str:
        hub.HfApi().model_info(remote.place)  # which fails at once where there is not a network, and is not tried again
        path: str = hub.hf_hub_download(remote.place, HUB_FILE)
        return path

    return Path(_asked(remote.place, ask))


def _of_timm(name: str, weights: str) -> Remote:
    tag = "" if weights == "DEFAULT" else weights
    config = config_of(name, tag)
    repository, url = hub_name(config), str(config.get("url") or "")
    if not repository and not url:
        listed = ", ".join(tags_of(name)) or "none"
        raise UserError(f"timm knows no place for weights of {name}: there are {listed}")
    path = cached_file(config)
    size = path.stat().st_size if path is not None else _hub_bytes(repository) if repository else None
    return Remote(name, weights, repository or url, size, timm_licence(config), path)


def _fetch_url(remote: Remote) -> Path:
    import torch

    path = torch_cache() / remote.place.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(remote.place, str(path), _hash_in(path.name), progress=False)
    except (OSError, RuntimeError) as error:
        raise _unreachable(remote.place, error, f"put the file at {path}") from None
    return path


def _hash_in(name: str) -> str | None:
    """The start of the sha256 with which torch ends a file's name."""
    _, dash, digest = name.rsplit(".", 1)[0].rpartition("-")
    return digest if dash and len(digest) == 8 else None


def _hub_bytes(repository: str) -> int | None:
    def ask(hub: Any) -> int | None:
        files = hub.HfApi().model_info(repository, files_metadata=True).siblings or ()
        return next((one.size for one in files if one.rfilename == HUB_FILE), None)

    try:
        size: int | None = _asked(repository, ask)
    except UserError:  # what is wrong is said when it is fetched, after the licence
        return None
    return size


def _asked(repository: str, ask: Callable[[Any], Any]) -> Any:
    """What the hub answers, its refusals in one line."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("timm's weights come from the hub: uv pip install huggingface_hub") from None
    try:
        return ask(huggingface_hub)
    except Exception as error:  # its own classes, and those of whatever it asks the network with
        if type(error).__name__ == "GatedRepoError":
            raise UserError(
                f"{repository} is gated: accept its terms at https://huggingface.co/{repository} and log in "
                "(hf auth login), then the same command fetches it"
            ) from None
        raise _unreachable(repository, error, "fetch it on another machine and copy its hub cache here") from None


def _unreachable(place: str, error: Exception, advice: str) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"cannot fetch {place} ({type(error).__name__}: {reason}): {advice}, or give --encoder.weights FILE"
    )
