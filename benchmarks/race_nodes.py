"""The same race on one node of one core, and on two: the same survivors and bits, in less time?

    python benchmarks/race_nodes.py IMAGES --data.labels LABELS.csv --minutes 6 --runs runs/race-nodes

Starts a Ray cluster of one node on this machine and a race there; once its rounds are written down, the race is killed
and its folder copied. It goes on there to its end, and in the copy on a cluster of two nodes. Prints the minutes that
both took from then on, who was in every round with which score, and whether all encoders have the same bits.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runs import facts

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.cluster.ray_private import few_processes

MEMORY = 80 * 1024**2  # bytes of a node's object store


def main() -> int:
    """Race, race again, compare; exit code 1 where anything but the time differs."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--minutes", default="6")
    parser.add_argument("--runs", type=Path, default=Path("runs/race-nodes"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(rest)
    words = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    race = [sys.executable, "-m", "rayssl.jobs.main", "race", options.images, "--minutes", options.minutes, *words]
    one, two = options.runs / "one-node", options.runs / "two-nodes"
    options.runs.mkdir(parents=True)
    found = {}
    with cluster(1) as address:
        kill_once_planned([*race, "--cluster.address", address, "--out", str(one)], one)
        shutil.copytree(one, two)
        found["one node"] = finished(race, address, one)
    with cluster(2) as address:
        found["two nodes"] = finished(race, address, two)
    same = found["one node"]["outcome"] == found["two nodes"]["outcome"]
    times = found["two nodes"]["minutes"] / found["one node"]["minutes"]
    print(json.dumps(found, indent=2))
    print(
        f"two nodes took {times:.2f} times as long; survivors, scores and bits are {'the same' if same else 'OTHERS'}"
    )
    if options.out is not None:
        write_json(
            options.out, {**facts("race_nodes", options.images), **found, "times": round(times, 3), "same": same}
        )
    return int(not same)


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """The address of a cluster of so many nodes with a core each."""
    from ray.cluster_utils import Cluster

    with few_processes():
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": MEMORY})
        for _ in range(nodes - 1):
            started.add_node(num_cpus=1, object_store_memory=MEMORY)
    try:
        yield started.address
    finally:
        started.shutdown()


def kill_once_planned(command: list[str], out: Path) -> None:
    """Start a race, and end it when it has written down its rounds."""
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    path = out / "race.json"
    while not (path.exists() and json.loads(path.read_text()).get("rounds")):
        if driver.poll() is not None:
            raise SystemExit(f"the race ended with exit code {driver.returncode} before its rounds were planned")
        time.sleep(0.2)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


def finished(race: list[str], address: str, out: Path) -> dict[str, Any]:
    """A race that goes on to its end: how long that took, and what came of it."""
    began = time.monotonic()
    subprocess.run([*race, "--cluster.address", address, "--out", str(out)], check=True, stderr=subprocess.DEVNULL)
    minutes = (time.monotonic() - began) / 60
    told = json.loads((out / "race.json").read_text())
    outcome = {
        name: {
            "rounds": [[one["round"], one["steps"], one["score"]] for one in results],
            "encoder": digest(out / name / "encoder.safetensors"),
        }
        for name, results in sorted(told["results"].items())
    }
    return {"minutes": round(minutes, 2), "winner": told["winner"], "outcome": outcome}


def digest(path: Path) -> str | None:
    """The first letters of a file's sha256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else None


if __name__ == "__main__":
    raise SystemExit(main())
