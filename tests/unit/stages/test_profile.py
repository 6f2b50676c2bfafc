"""rayssl profile: the parts make up the whole, and the floor is counted right."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayssl.jobs.main import run_verb
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.stages import profile
from rayssl.pipeline.stages.profile import Floor, saved_bytes
from rayssl.pipeline.training.cuda_graph import RecordedStep


@pytest.fixture
def profiled(images: Path, tmp_path: Path, monkeypatch, capsys) -> tuple[dict, str, Path]:
    """What `rayssl profile` prints for a tiny run: JSON, text, folder it ran in."""
    monkeypatch.chdir(tmp_path)
    before = threading.enumerate()
    flags = "--data.image-size 16 --encoder.name cnn-small --train.batch-size 8 --train.precision fp32 --steps 2 --json"
    assert run_verb("profile", ["simclr-folder", "--data.path", str(images), *flags.split()]) == 0
    assert "loader" not in {thread.name for thread in threading.enumerate() if thread not in before}
    said = capsys.readouterr()
    return json.loads(said.out), said.err, tmp_path


def test_parts_make_up_the_step_and_only_the_trace_is_left(profiled):
    found, text, folder = profiled
    assert list(found["parts"]) == ["data", "augmentation", "forward", "backward", "optimizer", "rest"]
    assert all(ms > 0 for part, ms in found["parts"].items() if part not in ("data", "rest"))
    assert 0 < found["encoder_ms"] < found["parts"]["forward"]
    assert found["images_per_s"] == pytest.approx(8e3 / found["step_ms"])
    assert found["floor"]["flops"] > 0
    assert "augmentation" in text
    assert [path.name for path in folder.iterdir()] == ["trace.json"]
    names = {event.get("name", "") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert any("convolution" in name for name in names)
    assert found["operators"][0][1] >= found["operators"][-1][1] > 0


@pytest.fixture
def words(images: Path, tmp_path: Path, monkeypatch) -> list[str]:
    """A tiny profile on the CPU whose views are made by the device."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = "--data.image-size 16 --encoder.name cnn-small --train.batch-size 8 --train.precision fp32 --steps 1 --json"
    return ["simclr-folder", "--data.path", str(images), *flags.split(), "--augment.backend", "batched"]


def test_a_compiled_network_is_measured_after_its_operations_were_counted(words, monkeypatch, capsys):
    calls = []
    for name in ("find_floor", "compile_or_capture", "instrumented_pass", "plain_pass"):
        monkeypatch.setattr(profile, name, noted(calls, name, getattr(profile, name)))
    with torch.compiler.set_stance("force_eager"):
        assert run_verb("profile", [*words, "--train.compile", "yes"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["compiled"], found["recorded"]) == (True, False)  # a CPU has no graphs
    assert "network compiled" in said.err
    assert calls == ["find_floor", "compile_or_capture", "instrumented_pass", "plain_pass"]


def noted(calls: list[str], name: str, call):
    def noting(*given):
        calls.append(name)
        return call(*given)

    return noting


def test_a_recorded_step_is_measured_whole(words, monkeypatch, capsys):
    steps = []
    take_step = RecordedStep.__call__

    def held(work: Work) -> torch.Tensor:
        return torch.from_numpy(work.dataset.train.padded(np.arange(len(work.dataset.train)))[0])

    monkeypatch.setattr(RecordedStep, "__call__", lambda *given: steps.append(given) or take_step(*given))
    monkeypatch.setattr(profile, "compile_or_capture", lambda *_: True)
    monkeypatch.setattr(Work, "resident", held)
    assert run_verb("profile", words) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["recorded"]
    assert "CUDA graph" in said.err
    assert len(steps) == profile.WARM_UP + 1 + profile.TRACED


def test_bytes_saved_for_backward_count_a_storage_once():
    x = torch.rand(4, 5, requires_grad=True)
    layer = nn.Linear(5, 3, bias=False)
    assert saved_bytes(lambda: layer(x)) == 4 * (4 * 5 + 3 * 5)
    assert saved_bytes(lambda: x * x) == 4 * 4 * 5


def test_what_is_counted_is_let_go():
    # Else a step's worth of memory is lost, and a step that is recorded later finds nodes of another stream.
    layer = nn.Linear(5, 3)

    def node():
        return torch.autograd.graph.get_gradient_edge(layer.weight).node

    def call() -> None:
        layer(torch.randn(4, 5)).exp().sum()  # exp keeps its own output
        node().metadata["counted"] = True

    saved_bytes(call)
    assert "counted" not in node().metadata


def test_the_floor_is_the_slower_of_operations_and_bytes():
    assert Floor(flops=100, bytes=10, flops_per_s=1000, bytes_per_s=1000).ms == pytest.approx(100)
    assert Floor(flops=1, bytes=10, flops_per_s=1000, bytes_per_s=1000).ms == pytest.approx(10)


@pytest.mark.parametrize(
    "words", [["nope"], ["simclr-digits", "--steps", "0"], ["simclr-digits", "--trace", "no/where/t"]]
)
def test_wrong_input_is_one_line(words, capsys):
    assert run_verb("profile", words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
