"""A race on Ray: killed and continued without anything done twice, on several nodes the same survivors and bytes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_server import Server
from PIL import Image
from rich.console import Console
from small_run import wait_for

from rayssl.pipeline.race import begin
from rayssl.pipeline.race.live_table import Board
from rayssl.pipeline.race.plan import Round
from rayssl.pipeline.race.race_file import Ledger, load_ledger, save_ledger
from rayssl.pipeline.verify import verify

pytestmark = pytest.mark.ray

NAMES = "rotnet,simclr"
OPTIONS = {
    "data.image-size": "16",
    "encoder.name": "cnn-small",
    "wandb": "disabled",
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """60 images of noise around one of three colours."""
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = rng.integers(0, 160, (16, 16, 3))
        pixels[:, :, number % 3] += 60
        folder = tmp_path / "images" / "rgb"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


def plan(images: Path, out: Path) -> None:
    """A race whose rounds are settled, as after its speeds were measured, with one quick candidate and one slow."""
    changes = {**OPTIONS, "data.path": str(images)}
    board = Board(Console(quiet=True))
    race = begin.plan_race(changes, NAMES, 1.0, out, [], began=time.monotonic(), shown=board, command="")
    ledger = race.ledger
    ledger.speeds = {"simclr": 1.0, "rotnet": 0.025}
    ledger.rounds = [Round(10.0, names=("simclr", "rotnet")), Round(5.0, keep=1, full=True)]
    ledger.planned_minutes, ledger.threads = 1.0, 1
    out.mkdir()
    save_ledger(out, ledger)


def command(images: Path, out: Path, **options: str) -> list[str]:
    """`rayssl race DIR …`"""
    flags = [word for name, value in {**OPTIONS, **options}.items() for word in (f"--{name}", value)]
    start = [
        sys.executable,
        "-m",
        "rayssl.jobs.main",
        "race",
        str(images),
        "--minutes",
        "1",
        "--candidates",
        NAMES,
        "--json",
    ]
    return [*start, "--out", str(out), *flags]


def trained(out: Path) -> dict[str, int]:
    """Candidates that have ended rounds of training."""
    ledger = load_ledger(out)
    return {name: len(ledger.results[name]) for name in ledger.trained if name in ledger.results}


def scores(ledger: Ledger) -> dict[str, list[tuple[int, float | None]]]:
    return {name: [(one.steps, one.score) for one in results] for name, results in ledger.results.items()}


def digests(out: Path) -> dict[str, str]:
    return {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*/encoder.safetensors")
    }


def ends_of_training(run: Path) -> str:
    """When the run's last pre-training ended."""
    return str(json.loads((run / "manifest.json").read_text())["stages"]["pretrain"]["finished"])


def test_killed_and_continued_nothing_is_done_twice_and_several_nodes_agree(
    images: Path, tmp_path: Path, server: Server, nodes: Any
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    plan(images, one)
    plan(images, two)
    here = command(images, one, **{"cluster.address": server.cluster})
    driver = subprocess.Popen(here, stderr=subprocess.PIPE, text=True, start_new_session=True, env=server.environment)
    wait_for(lambda: driver.poll() is not None or trained(one), "a trial that has ended", seconds=300)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=240)
    before = trained(one)
    assert before == {"simclr": 1}
    results, ended = load_ledger(one).results["simclr"], ends_of_training(one / "simclr")

    again = subprocess.run(here, capture_output=True, text=True, timeout=600, env=server.environment)
    assert again.returncode == 0, again.stderr
    assert "\\n" not in again.stderr
    alone = load_ledger(one)
    assert alone.results["simclr"][:1] == results
    [last] = alone.entrants(2)
    if last != "simclr":
        assert ends_of_training(one / "simclr") == ended
    assert not [*one.glob(".control*")]
    told = json.loads(again.stdout)
    assert told["race"] == str(one)
    assert told["winner"] == alone.winner == told["candidates"][0]["name"]

    both = subprocess.run(
        command(images, two, **{"cluster.address": nodes.address}), capture_output=True, text=True, timeout=600
    )
    assert both.returncode == 0, both.stderr
    together = load_ledger(two)
    assert together.entrants(2) == alone.entrants(2)
    assert scores(together) == scores(alone)
    assert digests(two) == digests(one)
    assert together.winner == alone.winner
    assert [found for out in (one, two) for found in verify(out) if found.fault is not None or found.unfinished] == []
