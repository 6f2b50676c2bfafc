"""The GPU benchmark's speedrun, as far as a CPU can try it: it goes on in another call, and its text is checked."""

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TEXT = "simclr optimizer=muon small=0.5 epochs=2 held_out=0.1"


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/accelerator.py, which is in no package."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which it sets; taken back afterwards
    spec = importlib.util.spec_from_file_location("accelerator", ROOT / "benchmarks" / "accelerator.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "accelerator", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr("rayssl.pipeline.training.loop.POLL_SECONDS", 0.0)  # it looks at the time after every step
    monkeypatch.setattr(module, "rate_encoder", lambda *given: {})
    monkeypatch.setattr(module, "calibrate", lambda *given: 1.0)
    monkeypatch.setattr(module, "set_speed", lambda *given: None)  # torch's settings are those of all tests
    return module


def test_a_speedrun_goes_on_in_another_call(accelerator: ModuleType, tmp_path: Path) -> None:
    def bench(seconds: float, checkpoints: Path | None):
        deadline = time.monotonic() + accelerator.FOR_RATING + seconds
        return accelerator.Bench(torch.device("cpu"), True, None, deadline, (TEXT,), 1.0, checkpoints, {})

    whole = accelerator.measure_speedrun(TEXT, bench(600, None))
    for step in (1, 2):  # a call whose time is over does one step
        assert accelerator.measure_speedrun(TEXT, bench(0, tmp_path)) == {"unfinished": f"step {step} of 8"}
    rest = accelerator.measure_speedrun(TEXT, bench(600, tmp_path))
    assert rest["losses"] == whole["losses"]
    assert (rest["steps"], rest["devices"]) == (8, ["cpu"] * 3)
    other = TEXT.replace("muon", "sgd")  # other settings begin again
    assert accelerator.measure_speedrun(other, bench(0, tmp_path)) == {"unfinished": "step 1 of 8"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("simclr decay=-1", "--train.weight_decay is '-1'"),
        ("simclr compiled", "'compiled' is no name=value"),
        ("nope", "unknown recipe 'nope-cifar10'"),
    ],
)
def test_a_wrong_text_is_refused_before_anything_is_done(
    accelerator: ModuleType, text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--out", str(tmp_path / "out"), "--speedrun", text])
    with pytest.raises(SystemExit) as error:
        accelerator.parse()
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "out").exists()
    assert accelerator.fault_of_speedrun("lightly minutes=1 encoder.width=2 compile=yes") is None
