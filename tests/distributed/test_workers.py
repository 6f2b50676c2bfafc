"""Processes that torchrun starts: the same curve as one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_run import arguments, losses, pretrain_here, read_rows

CHANGES = {"train__steps": 20, "train__precision": "fp64"}


def torchrun(run: Path) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine; rank 0 writes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "-m", "rayssl.jobs.pretrain", *arguments(run, **CHANGES)[1:]],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_torchrun_with_two_processes_gives_the_curve_of_one(tmp_path):
    alone = pretrain_here(tmp_path / "alone", **CHANGES)
    done = torchrun(tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("encoder.safetensors") == 1  # only rank 0 speaks
    steps, found = zip(*losses(tmp_path / "two"))
    assert steps == tuple(range(20))
    np.testing.assert_allclose(found, [loss for _, loss in losses(alone)], rtol=1e-9, atol=0)
    assert read_rows(tmp_path / "two")[-1]["train/lr"] == read_rows(alone)[-1]["train/lr"]


def test_wrong_input_under_torchrun_is_one_line(tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "notes.txt").write_text("mine")
    done = torchrun(tmp_path / "two")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("rayssl: ")]
    assert len(told) == 1
    assert "is not empty and is not a run folder" in told[0]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["notes.txt"]


@pytest.mark.parametrize("end", ["leave(3)", "leave(main.run_verb('run', []))", "command()"])
def test_a_process_of_torchruns_is_gone_before_the_interpreter_ends(end):
    code = f"""
import atexit
import sys
from types import SimpleNamespace
from rayssl.jobs import main
class Late:
    def __del__(self): print("late")
late = Late()
atexit.register(print, "closed")
print("told")
sys.argv = ["rayssl", "run"]
main.importlib.import_module = lambda _: SimpleNamespace(main=lambda _: sys.exit(3))
main.{end}
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TORCHELASTIC_RUN_ID": "none"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.split()) == (3, ["told", "closed"])
