"""Checkpoints: atomic, hashed, verified on load, without pickle.

A checkpoint is a folder `checkpoints/step-<n>/` with the tensors as safetensors, everything else as JSON, and a
manifest with the sha256 of each file. It is written under another name and renamed when it is whole.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from rayssl.pipeline.base.atomic import writing
from rayssl.pipeline.base.documents import load
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import delete, listed, move, sha256
from rayssl.pipeline.base.schemas import CheckpointFile, CheckpointState
from rayssl.pipeline.base.seals import check, digest, forget, forget_folder, note

SCHEMA = 1
EXTRA = "extra.safetensors"
WRITING = ".writing-"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    keep: int,
    facts: Any,
    extra: dict[str, Tensor] | None = None,
) -> Path:
    """Write the state after `step` optimiser steps; keep the last `keep` checkpoints.

    `facts` is any JSON value, `extra` are more tensors: see `load_extra`.
    """
    final = folder / f"step-{step:09d}"
    with writing(final):
        _remove_unfinished(folder)
        temporary = folder / f"{WRITING}{step:09d}"
        temporary.mkdir(parents=True)
        tensors, numbers = _flatten_optimizer(optimizer)
        save_file(_contiguous(model.state_dict()), temporary / "model.safetensors")
        save_file(_contiguous(tensors), temporary / "optimizer.safetensors")
        if extra:
            save_file(_contiguous(extra), temporary / EXTRA)
        (temporary / "state.json").write_text(json.dumps({"step": step, "optimizer": numbers, "facts": facts}))
        _write_manifest(temporary, step)
        if final.exists() and checkpoint_fault(final) is None:  # the same step again holds the same state
            delete(temporary)
        else:
            forget(final / "manifest.json")
            delete(final)
            move(temporary, final)
        _sync(folder)
        note(final / "manifest.json")
        _prune(folder, keep, step)
    return final


def _remove_unfinished(folder: Path) -> None:
    """What a killed writer has left: there is one writer at a time."""
    for left in listed(folder, f"{WRITING}*"):
        delete(left)


def load_checkpoint(folder: Path, *, model: nn.Module, optimizer: Optimizer | None = None) -> tuple[int, Any]:
    """Restore the newest whole checkpoint in place and return (step, facts); (0, None) where there is none.

    A damaged checkpoint is passed over for the one before. Raises UserError when all are damaged, and for one of
    another network.
    """
    newest = find_checkpoint(folder)
    if newest is None:
        return 0, None
    try:
        model.load_state_dict(load_file(newest / "model.safetensors"))
    except RuntimeError as error:
        raise UserError(
            f"{newest} is of another network ({_last_line(error)}); train again with another --out"
        ) from None
    state = load(newest / "state.json", CheckpointState, "remove the checkpoint, and the one before is taken")
    if optimizer is not None:
        _restore_optimizer(optimizer, load_file(newest / "optimizer.safetensors"), state["optimizer"])
    return int(state["step"]), state["facts"]


def load_extra(folder: Path, step: int) -> dict[str, Tensor]:
    """The `extra` tensors of the checkpoint after `step` steps, which `load_checkpoint` has found whole; {} without."""
    path = folder / f"step-{step:09d}" / EXTRA
    return load_file(path) if path.exists() else {}


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


def find_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files match their hashes; None where there is none at all."""
    found = list_checkpoints(folder)
    for candidate in found:
        if checkpoint_fault(candidate) is None:
            return candidate
    if found:
        raise UserError(
            f"{found[0]} is damaged ({checkpoint_fault(found[0])}), and no other checkpoint is whole: "
            "restore it from a backup, or start again in a new --out"
        )
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to the end, newest first."""
    return [path for path in reversed(listed(folder, "step-*")) if path.is_dir()]


def checkpoint_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file matches its hash."""
    try:
        check(checkpoint / "manifest.json", "an older checkpoint is taken, or training starts again")
        manifest = load(checkpoint / "manifest.json", CheckpointFile, "an older one is taken")
        missing = {"model.safetensors", "optimizer.safetensors", "state.json"} - manifest["sha256"].keys()
        if missing:
            return f"the manifest lacks {', '.join(sorted(missing))}"
        for name, written in manifest["sha256"].items():
            if digest(checkpoint / name) != written:
                return f"{name} does not match its hash"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is gone"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except UserError as error:
        return str(error)
    return None


def _write_manifest(folder: Path, step: int) -> None:
    digests = {}
    for path in listed(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        digests[path.name] = sha256(path)
    (folder / "manifest.json").write_text(json.dumps({"schema": SCHEMA, "step": step, "sha256": digests}, indent=2))
    _sync(folder / "manifest.json")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _prune(folder: Path, keep: int, step: int) -> None:
    # Later ones than the one just written were passed over when the run was continued: they are damaged.
    found = list_checkpoints(folder)
    kept = [path for path in found if path.name <= f"step-{step:09d}"][:keep]
    for old in set(found) - set(kept):
        forget_folder(old)
        delete(old)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # Cloned, because safetensors refuses tensors that share memory.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _flatten_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            elif value is not None:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    # Groups hold hyper-parameters, which the config decides and the schedule sets at every step.
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # Files hold plain rows; the fused kernels of a GPU refuse what does not lie in memory as its parameter does.
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
