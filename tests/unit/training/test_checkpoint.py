"""A checkpoint comes back bit for bit, or is known to be damaged."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models.trainable import parameter_groups
from rayssl.pipeline.training import checkpoint
from rayssl.pipeline.training.checkpoint import (
    checkpoint_fault,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from rayssl.pipeline.training.optimizers import OPTIMIZERS, build_optimizer


def new_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    return model.to(memory_format=torch.channels_last)


def new_pair(name: str = "sgd", seed: int = 0) -> tuple[nn.Module, Optimizer]:
    model = new_model(seed)
    return model, build_optimizer(name, parameter_groups(model, 1e-3), learning_rate=0.1, momentum=0.9)


def work(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        model(torch.randn(4, 3, 5, 5)).square().mean().backward()
        optimizer.step()


def assert_same(first: nn.Module, second: nn.Module) -> None:
    other = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, other[name]), name
        assert tensor.dtype == other[name].dtype


def save(folder: Path, step: int, keep: int = 9, seed: int = 0) -> Path:
    model, optimizer = new_pair(seed=seed)
    work(model, optimizer, range(step))
    return save_checkpoint(folder, step=step, model=model, optimizer=optimizer, keep=keep, facts={"at": step})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_a_checkpoint_is_going_on(name: str, tmp_path: Path) -> None:
    model, optimizer = new_pair(name)
    work(model, optimizer, range(5))
    save_checkpoint(tmp_path, step=5, model=model, optimizer=optimizer, keep=2, facts={"stage": "x", "n": [1, None]})
    again, its_optimizer = new_pair(name, seed=7)
    work(again, its_optimizer, range(2))  # leave nothing as it was
    assert load_checkpoint(tmp_path, model=again, optimizer=its_optimizer) == (5, {"stage": "x", "n": [1, None]})
    assert_same(model, again)
    before, after = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    assert before.keys() == after.keys()
    for index, values in before.items():
        assert values.keys() == after[index].keys()
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[index][key])), key
    work(model, optimizer, range(5, 9))
    work(again, its_optimizer, range(5, 9))
    assert_same(model, again)


def test_adamw_counts_its_steps_on(tmp_path: Path) -> None:
    model, optimizer = new_pair("adamw")
    work(model, optimizer, range(3))
    save_checkpoint(tmp_path, step=3, model=model, optimizer=optimizer, keep=2, facts=None)
    again, its_optimizer = new_pair("adamw", seed=1)
    load_checkpoint(tmp_path, model=again, optimizer=its_optimizer)
    assert {float(values["step"]) for values in its_optimizer.state_dict()["state"].values()} == {3.0}


def test_hyper_parameters_come_from_the_config_and_not_from_the_file(tmp_path: Path) -> None:
    save(tmp_path, 2)
    model = new_model()
    optimizer = build_optimizer("sgd", parameter_groups(model, 0.25), learning_rate=0.5, momentum=0.8)
    load_checkpoint(tmp_path, model=model, optimizer=optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}


def test_double_precision_and_integers_keep_their_type(tmp_path: Path) -> None:
    model, optimizer = new_pair()
    model.double()
    save_checkpoint(tmp_path, step=1, model=model, optimizer=optimizer, keep=1, facts=None)
    again, _ = new_pair(seed=3)
    again.double()
    load_checkpoint(tmp_path, model=again)
    assert_same(model, again)
    assert again.state_dict()["1.num_batches_tracked"].dtype == torch.int64


def test_weights_that_are_shared_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save_checkpoint(tmp_path, step=1, model=model, optimizer=optimizer, keep=1, facts=None)
    again = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert load_checkpoint(tmp_path, model=again)[0] == 1
    assert_same(model, again)


def test_no_checkpoint_is_step_0(tmp_path: Path) -> None:
    model, optimizer = new_pair()
    assert load_checkpoint(tmp_path / "none", model=model, optimizer=optimizer) == (0, None)
    assert find_checkpoint(tmp_path) is None


def test_another_network_is_told(tmp_path: Path) -> None:
    save(tmp_path, 2)
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(45, 2))
    with pytest.raises(UserError, match="step-000000002 is of another network") as error:
        load_checkpoint(tmp_path, model=other)
    assert "\n" not in str(error.value)


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000010", "step-000000009"]


def test_one_passed_over_goes_and_takes_no_whole_ones_place(tmp_path: Path) -> None:
    save(tmp_path, 2)
    flip_a_byte(save(tmp_path, 4) / "model.safetensors")
    model, optimizer = new_pair()
    assert load_checkpoint(tmp_path, model=model, optimizer=optimizer)[0] == 2
    written = save(tmp_path, 3, keep=1)
    assert list_checkpoints(tmp_path) == [written]
    assert load_checkpoint(tmp_path, model=model, optimizer=optimizer)[0] == 3


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit of the weights": lambda folder: flip_a_byte(folder / "model.safetensors"),
    "a flipped bit of the optimiser": lambda folder: flip_a_byte(folder / "optimizer.safetensors"),
    "a changed number": lambda folder: flip_a_byte(folder / "state.json"),
    "weights cut off": lambda folder: cut_off(folder / "model.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a manifest cut off": lambda folder: cut_off(folder / "manifest.json"),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "a manifest of no use": lambda folder: (folder / "manifest.json").write_text("[]"),
    "another schema": lambda folder: (folder / "manifest.json").write_text('{"schema": 99, "sha256": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_passed_over(damage: Callable[[Path], object], tmp_path: Path) -> None:
    older = save(tmp_path, 2)
    newest = save(tmp_path, 4)
    assert checkpoint_fault(newest) is None
    damage(newest)
    assert checkpoint_fault(newest) is not None
    assert find_checkpoint(tmp_path) == older
    model, optimizer = new_pair(seed=5)
    assert load_checkpoint(tmp_path, model=model, optimizer=optimizer) == (2, {"at": 2})
    damage(older)
    with pytest.raises(UserError, match=r"is damaged .* and no other checkpoint is whole") as error:
        load_checkpoint(tmp_path, model=model, optimizer=optimizer)
    assert "\n" not in str(error.value)
    assert str(newest) in str(error.value)


def test_a_damaged_checkpoint_is_written_anew(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    flip_a_byte(path / "model.safetensors")
    assert save(tmp_path, 3) == path
    assert checkpoint_fault(path) is None


def test_a_half_written_checkpoint_is_ignored_and_cleaned(tmp_path: Path) -> None:
    half = tmp_path / ".writing-000000009"
    shutil.copytree(save(tmp_path, 2), half)
    assert find_checkpoint(tmp_path) == tmp_path / "step-000000002"
    save(tmp_path, 3)
    assert not half.exists()


@pytest.mark.parametrize("fails", ["replace", "manifest", "weights"])
def test_a_crash_while_writing_leaves_the_old_one_whole(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save(tmp_path, 2, keep=1)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        if fails == "replace":
            patch.setattr(os, "replace", fail)
        else:
            patch.setattr(checkpoint, "_write_manifest" if fails == "manifest" else "save_file", fail)
        with pytest.raises(OSError, match="no space left"):
            save(tmp_path, 4, keep=1)
    assert list_checkpoints(tmp_path) == [old]
    assert find_checkpoint(tmp_path) == old
    assert checkpoint_fault(save(tmp_path, 4, keep=1)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000004"]


def test_every_file_is_hashed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["sha256"]) == {file.name for file in path.iterdir()} - {"manifest.json"}
