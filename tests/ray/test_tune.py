"""A search on Ray Tune: killed and continued, with a trial that dies and one that diverges; on several nodes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from job_server import Server
from small_run import wait_for

from rayssl.pipeline.tune.trials import FAILED, FINISHED, STOPPED, Trial, load_trials

pytestmark = pytest.mark.ray

SMALL = {"encoder.name": "cnn-small", "data.limit": 256, "train.batch-size": 64, "wandb": "disabled"}


def command(out: Path, **settings: Any) -> list[str]:
    """`rayssl tune simclr-digits …`; `train__steps` stands for --train.steps, others for --tune.…"""
    named = {name.replace("__", ".") if "__" in name else f"tune.{name}": value for name, value in settings.items()}
    flags = [word for name, value in {**SMALL, **named}.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "rayssl.jobs.main", "tune", "simclr-digits", "--out", str(out), *flags]


def tune(out: Path, server: Server | None = None, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = server.environment if server is not None else None
    words = command(out, **there(server), **settings)
    return subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment)


def start(out: Path, server: Server, **settings: Any) -> subprocess.Popen[str]:
    """A search that is interrupted."""
    words = command(out, **there(server), **settings)
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True, env=server.environment)


def there(server: Server | None) -> dict[str, Any]:
    """On the cluster that is there: starting one takes long."""
    return {"cluster__address": server.cluster} if server is not None else {}


def ended(out: Path) -> dict[int, Trial]:
    return {trial.number: trial for trial in load_trials(out)}


def trial_processes(server: Server) -> set[int]:
    """The processes in which trials run on a cluster."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines() if len(line.split(None, 2)) == 3]
    parents = {int(pid): int(parent) for pid, parent, _ in rows}

    def belongs(pid: int) -> bool:
        while pid in parents:
            if pid == server.pid:
                return True
            pid = parents[pid]
        return False

    return {int(pid) for pid, _, words in rows if words.startswith("ray::") and "Func" in words and belongs(int(pid))}


def test_a_search_whose_trial_is_killed_and_that_is_stopped_goes_on_and_repeats_nothing(
    server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    settings = {"space": "crop,color,rotation", "search": "optuna", "trials": 4, "share": 1, "images": 200}
    settings["train__steps"] = 120
    earlier = trial_processes(server)
    driver = start(out, server, **settings)
    wait_for(lambda: driver.poll() is not None or trial_processes(server) - earlier, "a trial", seconds=300)
    [victim, *_] = trial_processes(server) - earlier
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: driver.poll() is not None or len(ended(out)) >= 2, "two trials that have ended", seconds=400)
    assert driver.poll() is None, driver.communicate()
    driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=240)
    assert driver.returncode == 130, told
    assert told.splitlines()[-1] == "rayssl: stopped; the same command goes on with the trials that are left"
    assert (out / "best.json").exists()
    before = ended(out)
    assert len(before) < 4

    [died] = [trial for trial in before.values() if trial.state == FAILED]
    assert died.reason == "the trial's process died: it was killed, or out of memory"
    again = tune(out, server, **settings)
    assert again.returncode == 0, again.stderr
    after = ended(out)
    assert sorted(after) == [0, 1, 2, 3]
    assert {number: after[number] for number in before} == before
    assert f"{4 - len(before)} trials of 120 steps, " in again.stderr
    assert not list(out.glob(".control*"))
    best = max((trial for trial in after.values() if trial.state == FINISHED), key=lambda trial: trial.score or 0)
    assert json.loads((out / "best.json").read_text())["views"] == best.views[:1]
    assert f"best     trial {best.number}: knn {best.score:.4f}" in again.stderr
    once_more = tune(out, **settings)  # without the cluster: it would have to start one
    assert once_more.returncode == 0
    assert "starting Ray" not in once_more.stderr


def test_what_diverges_loses_and_the_search_goes_on(server: Server, tmp_path: Path) -> None:
    space = tmp_path / "space.json"
    config = {"train.learning_rate": {"values": [0.1, 1e30]}}
    space.write_text(
        json.dumps({"operations": {"crop": {"p": {"values": [0.0, 1.0]}, "scale": 0.3}}, "config": config})
    )
    out = tmp_path / "tuned"
    settings: dict[str, Any] = {"space": space, "search": "grid", "objective": "rotation", "images": 200}
    done = tune(out, server, **settings, share=0.2, scheduler="asha", concurrent=2)
    assert done.returncode == 0, done.stderr
    assert "4 trials of 24 steps, 2 at a time" in done.stderr
    trials = ended(out)
    assert len(trials) == 4
    for trial in trials.values():
        diverges = trial.changes["train.learning_rate"] > 1
        assert (trial.state == FAILED) == diverges
        if diverges:
            assert "finite" in trial.reason or "the loss is" in trial.reason
            assert trial.score is None
    assert {trial.state for trial in trials.values()} <= {FAILED, FINISHED, STOPPED}


def test_a_population_that_is_killed_goes_on_and_copies_its_best(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    settings: dict[str, Any] = {
        "space": "crop,rotation",
        "parameters": "train.learning-rate=0.0001..1",
        "images": 200,
        "share": 0.4,
    }
    settings |= {"search": "random", "scheduler": "pbt", "trials": 4}
    driver = start(out, server, **settings)
    wait_for(lambda: driver.poll() is not None or [*out.glob("population/*/rows.json")], "a report", seconds=300)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=240)
    kept = {int(path.parent.name): json.loads(path.read_text()) for path in out.glob("population/*/rows.json")}
    assert kept
    for number, rows in kept.items():  # what an earlier session wrote down is told from what is done again
        rows[-1]["score"] = 0.123
        (out / "population" / f"{number:04d}" / "rows.json").write_text(json.dumps(rows))
    done = tune(out, server, **settings)
    assert done.returncode == 0, done.stderr
    trials = ended(out)
    assert [trial.state for trial in trials.values()] == [FINISHED] * 4
    for number, rows in kept.items():
        assert trials[number].curve[: len(rows)] == [(row["step"], row["score"]) for row in rows]
        assert trials[number].curve[len(rows)][0] > rows[-1]["step"]
    assert not [*out.glob("population/*")]
    assert not [*out.glob(".control*")]
    assert not [*server.temporary.rglob("schedule.json")]  # nor what processes that were ended worked on
    copied = [trial for trial in trials.values() if trial.schedule]
    assert copied
    for trial in copied:
        steps = [row["step"] for row in trial.schedule]
        assert steps == sorted(set(steps))  # the history of one network, not of a place in the population
        assert steps[-1] == trial.curve[-1][0] == 48
        assert trial.changes["train.learning_rate"] == trial.schedule[-1]["parameters"]["train.learning_rate"]


def test_trials_of_two_workers_on_three_nodes_score_as_those_of_one(nodes: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"space": "crop,color,rotation", "search": "random", "share": 0.2, "images": 200}
    settings |= {"train__precision": "fp64", "cluster__address": nodes.address}
    alone = tune(tmp_path / "one", trials=3, **settings)
    assert alone.returncode == 0, alone.stderr
    assert "3 trials of 24 steps, 3 at a time" in alone.stderr
    together = tune(tmp_path / "two", trials=1, cluster__workers=2, **settings)
    assert together.returncode == 0, together.stderr
    assert re.search("1 at a time, 2 workers with 1 core each", together.stderr)
    one, two = ended(tmp_path / "one")[0], ended(tmp_path / "two")[0]
    assert one.parameters == two.parameters
    assert two.scores == pytest.approx(one.scores, rel=1e-4)
