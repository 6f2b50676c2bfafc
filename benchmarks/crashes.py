"""Kill pre-training again and again, start the same command each time, and compare with an undisturbed run.

    python benchmarks/crashes.py --recipe simclr-cifar10 --data.path FOLDER --data.limit 1000 --train.batch-size 32 \
        --train.epochs 6 --kills 5 --seed 0

Each kill is `kill -9`. Every kind has its turn; the order and the moments are drawn from the seed:
  start       the driver alone, some seconds after it started: Ray comes up, nothing is trained yet
  driver      the driver alone, when a drawn step is logged; Ray's processes find out by themselves
  machine     the driver, the worker and all of Ray at once, when a drawn step is logged
  checkpoint  the same, while a checkpoint is being written: at the first sight of its temporary folder
The first kill is always of the kind `checkpoint`, and is repeated until it leaves a half-written checkpoint behind.
Ends with 1 where a loss or the exported encoder differs in a single bit.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.run.software import describe_software

KINDS = ("checkpoint", "driver", "machine", "start")
TRIES = 5  # to hit the writing of a checkpoint
STARTING_SECONDS = (3.0, 20.0)  # after the start of the command
WATCH_SECONDS = 300


def main() -> int:
    """Parse, run, compare, write the result."""
    options, flags = parse()
    with tempfile.TemporaryDirectory(prefix="crashes-") as folder:
        result = measure(options, flags, Path(folder))
    write_json(options.out, result)
    print(json.dumps({key: result[key] for key in ("recipe", "kills", "torn_checkpoints", "steps", "identical")}))
    return 0 if result["identical"] else 1


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Own options, and flags that go to the command as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="simclr-digits")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file [benchmarks/results/crashes-RECIPE.json]")
    options, flags = parser.parse_known_args()
    options.out = options.out or Path(__file__).parent / "results" / f"crashes-{options.recipe}.json"
    return options, flags


def measure(options: argparse.Namespace, flags: list[str], folder: Path) -> dict[str, Any]:
    """Both runs and their comparison."""
    began = time.monotonic()
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    finish(command(options.recipe, undisturbed, flags))
    steps = len(losses(undisturbed))
    kills = []
    for kind, moment in plan(options.kills, options.seed, steps):
        kills += list(kill(command(options.recipe, disturbed, flags), disturbed, kind, moment))
        say(f"killed: {kills[-1]}")
    finish(command(options.recipe, disturbed, flags))
    same_losses = losses(disturbed) == losses(undisturbed)
    hashes = [digest(run / "encoder.safetensors") for run in (undisturbed, disturbed)]
    return {
        "benchmark": "crashes",
        "command": " ".join(["python", "benchmarks/crashes.py", *sys.argv[1:]]),
        **describe_software(),
        "recipe": options.recipe,
        "config": read_config(undisturbed),
        "steps": steps,
        "kills": len(kills),
        "torn_checkpoints": sum(one["torn"] for one in kills),
        "killed": kills,
        "equal_losses": sum(a == b for a, b in zip(losses(disturbed), losses(undisturbed))),
        "encoder_sha256": {"undisturbed": hashes[0], "disturbed": hashes[1]},
        "identical": same_losses and hashes[0] == hashes[1],
        "seconds": round(time.monotonic() - began, 1),
    }


def command(recipe: str, run: Path, flags: list[str]) -> list[str]:
    """The command of both runs; the flags of the caller win."""
    own = ["--train.threads", "1", "--train.checkpoint-epochs", "1", "--wandb", "disabled"]
    return [sys.executable, "-m", "rayssl.jobs.main", "pretrain", recipe, "--out", str(run), *own, *flags]


def plan(kills: int, seed: int, steps: int) -> list[tuple[str, float]]:
    """Kinds and moments, by the step that has to be reached (for `start` the seconds)."""
    rng = random.Random(seed)
    places = sorted(rng.randrange(1, int(0.9 * steps)) for _ in range(kills))
    others = [KINDS[number % len(KINDS)] for number in range(1, kills)]
    rng.shuffle(others)
    kinds = ["checkpoint", *others]
    return [(kind, rng.uniform(*STARTING_SECONDS) if kind == "start" else at) for kind, at in zip(kinds, places)]


def kill(call: list[str], run: Path, kind: str, moment: float) -> Iterator[dict[str, Any]]:
    """Start the command and kill it; for `checkpoint` until one was hit. One record a kill."""
    for _ in range(TRIES if kind == "checkpoint" else 1):
        before = half_written(run)
        with started(call) as driver:
            at = wait_and_kill(driver, run, kind, moment)
        # Where only the driver died, the worker may still be at it.
        torn = kind in ("checkpoint", "machine") and not half_written(run) <= before
        yield {"kind": kind, "moment": round(moment, 2), "seen": at, "torn": torn}
        if torn:
            return


def wait_and_kill(driver: subprocess.Popen[bytes], run: Path, kind: str, moment: float) -> int:
    """Kill at the moment; returns the last logged step."""
    if kind == "start":
        time.sleep(moment)
        driver.kill()
        return last_step(run)
    wait_until(driver, lambda: last_step(run) >= moment)
    if kind == "driver":
        driver.kill()
        return last_step(run)
    family = [writer(run), driver.pid, *descendants(driver.pid)]  # the writer dies first
    if kind == "checkpoint":
        before = half_written(run)
        wait_until(driver, lambda: not half_written(run) <= before, pause=0)
    for process in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return last_step(run)


def half_written(run: Path) -> set[tuple[str, int]]:
    """Folders of checkpoints that are being written, or were when their writer died: name and inode."""
    found = set()
    for path in (run / "checkpoints").glob(".writing-*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino))
    return found


def writer(run: Path) -> int:
    """The process that holds the lock of the run folder."""
    found = re.search(r"process (\d+)", (run / ".lock").read_text())
    assert found is not None
    return int(found[1])


def descendants(process: int) -> list[int]:
    """Children, their children and so on, by their parents in /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = children.get(process, [])
    return found + [one for child in found for one in descendants(child)]


def wait_until(driver: subprocess.Popen[bytes], condition: Callable[[], bool], pause: float = 0.02) -> None:
    """Wait for the condition while the driver lives."""
    deadline = time.monotonic() + WATCH_SECONDS
    while not condition():
        if driver.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the command ended with {driver.poll()} before it was killed: train longer")
        time.sleep(pause)


@contextlib.contextmanager
def started(call: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a session of its own; what is left of it in the end is killed."""
    driver = subprocess.Popen(call, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def finish(call: list[str]) -> None:
    """Run the command to its end."""
    say(" ".join(call[1:]))
    subprocess.run(call, check=True, stderr=subprocess.DEVNULL)


def losses(run: Path) -> list[tuple[str, str]]:
    """(step, loss) of pre-training, as text: two numbers with the same text are the same number."""
    rows = [json.loads(line, parse_float=str, parse_int=str) for line in (run / "metrics.jsonl").open()]
    return [(row["step"], row["train/loss"]) for row in rows if row["stage"] == "pretrain"]


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config; of the path of the images only the name, the rest is this machine's own business."""
    config: dict[str, Any] = json.loads((run / "config.json").read_text())
    config["data"]["path"] = Path(config["data"]["path"]).name
    return config


def last_step(run: Path) -> int:
    """The last step that is logged, −1 before the first."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return -1
    steps = re.findall(r'^\{"stage": "pretrain", "step": (\d+)', text, flags=re.MULTILINE)
    return int(steps[-1]) if steps else -1


def digest(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def say(text: str) -> None:
    """A line for people."""
    print(f"[{time.strftime('%T')}] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
