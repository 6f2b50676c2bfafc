"""A race with trials in this process: from the plan to the winner, stopped and continued, and its bad input."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from rayssl.jobs.main import main
from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Interrupted, Silent
from rayssl.pipeline.race import begin, end, finals, rounds, story
from rayssl.pipeline.race.live_table import Board
from rayssl.pipeline.race.parts import Ended, Race, Room, Task
from rayssl.pipeline.race.plan import Round
from rayssl.pipeline.race.race_file import FAILED, FINISHED, load_ledger, save_ledger
from rayssl.pipeline.race.trial import run_trial, time_step
from rayssl.pipeline.run.folder import winner_of
from rayssl.pipeline.search.query import query

NAMES = "essl,rotnet,simclr"
SMALL = {"data.image_size": "16", "encoder.name": "cnn-small", "wandb": "disabled"}
Plan = Callable[..., Race]


class Here:
    """Trials one after the other in this process, in an order of one's own; stops or fails where it is told to."""

    def __init__(self, *, reverse: bool = False, at_a_time: int = 2, dies: str = "", stop_at: str = "") -> None:
        self.reverse, self.at_a_time, self.dies, self.stop_at = reverse, at_a_time, dies, stop_at
        self.trials: list[tuple[str, int]] = []

    def __call__(self) -> Any:
        """As `open_track`."""

        @contextmanager
        def opened() -> Iterator[Here]:
            yield self

        return opened()

    def room(self, threads: int | None, trained: int) -> Room:
        """One thread."""
        return Room(threads or 1, self.at_a_time)

    def run(self, tasks: Sequence[Task], threads: int, on_end: Callable[[Ended], None]) -> None:
        """Do them."""
        for task in sorted(tasks, key=lambda task: task.name, reverse=self.reverse):
            if task.name == self.dies:
                on_end(Ended(task.name, reason="the trial's process died"))
            elif task.timed:
                time_step(Path(task.run), Silent())
                on_end(Ended(task.name, seconds_a_step=1.0))
            elif task.name == self.stop_at:
                raise Interrupted(2)
            else:
                config = json.loads((Path(task.run) / "config.json").read_text())
                self.trials.append((task.name, config["train"]["steps"]))
                run_trial(Path(task.run), Silent())
                on_end(Ended(task.name))


@pytest.fixture
def plan(images: Path, tmp_path: Path) -> Plan:
    """A race on the tiny images, with rounds of a few steps, as they would have been measured."""

    def make(
        names: str | None = NAMES, minutes: float = 1.0, out: str = "race", fixed: bool = True, **changes: Any
    ) -> Race:
        options = {
            **SMALL,
            "data.path": str(images),
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        board = Board(Console(quiet=True))
        race = begin.plan_race(
            options, names, minutes, tmp_path / out, [], began=time.monotonic(), shown=board, command="rayssl race"
        )
        if fixed and not race.ledger.rounds:
            ledger = race.ledger
            ledger.speeds = dict.fromkeys(ledger.trained, 1.0)
            ledger.rounds = [Round(3.0, names=tuple(ledger.trained)), Round(4.0, keep=2, full=True)]
            ledger.planned_minutes, ledger.threads = minutes, 1
            for name in ledger.trained:
                rounds.make(race, name)
        return race

    return make


def bytes_of(run: Path) -> bytes:
    return (run / "encoder.safetensors").read_bytes()


def test_a_race_from_its_plan_to_a_query_and_the_same_survivors_stopped_or_not(
    plan: Plan, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Here()
    told = story.run_race(plan(), here)
    ledger = load_ledger(tmp_path / "race")
    assert sorted(here.trials[:3]) == [("essl", 3), ("rotnet", 3), ("simclr", 3)]
    scores = {name: ledger.results[name][0].score or 0.0 for name in ledger.trained}
    best = sorted(ledger.trained, key=lambda name: -scores[name])[:2]
    assert sorted(here.trials[3:]) == sorted((name, 7) for name in best)
    assert ledger.finished
    assert ledger.winner in ledger.about
    assert told == ledger.told
    assert told[0].startswith("use: ")
    assert ledger.about[ledger.winner].text in told[0]
    loser = next(name for name in ledger.trained if name not in best)
    assert not (tmp_path / "race" / loser / "checkpoints").exists()
    assert (tmp_path / "race" / loser / "encoder.safetensors").exists()
    assert (tmp_path / "race" / best[0] / "checkpoints").exists()  # it would go on with more minutes
    assert (tmp_path / "race" / "report.html").exists()
    # Every verb given the race means its winner.
    assert winner_of(tmp_path / "race") == tmp_path / "race" / ledger.winner
    [found] = query(tmp_path / "race", [images / "red" / "0.png"], k=3)
    assert [one["rank"] for one in found["neighbors"]] == [1, 2, 3]
    monkeypatch.setattr(end, "run_report", lambda runs, out: None)  # seen once, and most of the time
    # The same again: nothing is done.
    again = Here()
    assert story.run_race(plan(), again) == told
    assert again.trials == []
    # Stopped in the first round, what is there is compared; then it goes on, trials in another order and more at a
    # time, and ends with the same survivors and the same bytes.
    stopped = Here(stop_at="rotnet")
    with pytest.raises(Interrupted):
        story.run_race(plan(out="other"), stopped)
    half = load_ledger(tmp_path / "other")
    assert not half.finished
    assert half.winner is not None
    assert half.told[0].startswith("best so far: ")
    assert [name for name, _ in stopped.trials] == ["essl"]
    rest = Here(reverse=True, at_a_time=4)
    story.run_race(plan(out="other"), rest)
    assert "essl" not in [name for name, steps in rest.trials if steps == 3]
    other = load_ledger(tmp_path / "other")
    assert other.winner == ledger.winner
    assert {name: [one.score for one in other.results[name]] for name in other.names} == {
        name: [one.score for one in ledger.results[name]] for name in ledger.names
    }
    for name in ledger.trained:
        assert bytes_of(tmp_path / "other" / name) == bytes_of(tmp_path / "race" / name)
    # More minutes go on with the best, from their own checkpoints.
    more = Here()
    story.run_race(plan(minutes=1.5), more)
    assert all(name in best for name, _ in more.trials)
    assert len(more.trials) == 2
    assert all(steps > 7 for _, steps in more.trials)
    # Overruled by hand, and the outcome says so.
    race = end.overrule(tmp_path / "race", loser, Board(Console(quiet=True)))
    assert race.ledger.told[0].startswith(f"chosen by hand: {race.ledger.about[loser].text}")
    assert winner_of(tmp_path / "race").name == loser
    with pytest.raises(UserError, match=r"--choose simclrr \(did you mean 'simclr'\?\)"):
        end.overrule(tmp_path / "race", "simclrr", Board(Console(quiet=True)))


def test_what_is_told_of_a_race_stopped_before_a_search_is_what_it_is_searched_by(
    plan: Plan, finished_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = plan("simclr", fixed=False)
    save_ledger_in(race)
    run = race.run_of("simclr")
    shutil.copytree(finished_copy, run)
    config = configuration.load(run / "config.json")
    asked = replace(config.search, vectors="simclr:layer1:avg")  # as the last round was about to ask
    configuration.save(replace(config, search=asked), run / "config.json")
    for name in ("run_index", "run_evaluate", "run_report"):
        monkeypatch.setattr(end, name, lambda *_: None)
    told = end.finish(race, stopped=True)
    searched = finals.chosen(run)
    assert searched.name.startswith("simclr:layer1:avg")
    assert f"searched by {searched.name}" in told[0]
    assert (race.ledger.final[0]["vectors"], race.ledger.final[0]["score"]) == (searched.name, searched.score)


def test_all_trained_candidates_fail_and_the_others_remain(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    race = plan("simclr", fixed=False, minutes=30.0)
    race.shown = Board(Console(stderr=True, width=200))
    story.run_race(race, Here(dies="simclr"))
    ledger = load_ledger(tmp_path / "race")
    assert ledger.results["simclr"][0].state == FAILED
    assert ledger.results["simclr"][0].reason == "the trial's process died"
    assert ledger.winner == "untrained"
    assert ledger.finished
    assert "failed: simclr: the trial's process died" in ledger.told
    err = capsys.readouterr().err
    assert "all candidates that train have failed" in err
    assert "too short" not in err


def test_a_budget_too_short_to_train_compares_what_needs_no_training(plan: Plan, tmp_path: Path) -> None:
    here = Here()
    told = story.run_race(plan("simclr,rotnet", fixed=False, minutes=0.05), here)
    assert here.trials == []
    assert load_ledger(tmp_path / "race").winner == "untrained"
    assert any(line.startswith("no time for simclr, rotnet") for line in told)


def test_images_without_labels_are_ranked_too(plan: Plan, images: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in images.rglob("*.png"):
        shutil.copy(path, plain / f"{path.parent.name}-{path.name}")
    told = story.run_race(plan("simclr", data__path=str(plain)), Here())
    ledger = load_ledger(tmp_path / "race")
    assert not ledger.data["labelled"]
    assert ledger.results["simclr"][0].state == FINISHED
    assert any("200 images" in line for line in told)
    assert not any("%" in line for line in told[:1])


# Another race, another folder


def test_what_is_another_race_is_refused(plan: Plan, images: Path, tmp_path: Path, finished_copy: Path) -> None:
    race = plan("simclr", fixed=False)
    save_ledger_in(race)
    with pytest.raises(UserError, match=r"holds another race: candidates is \['simclr'\] there and \['rotnet'\] here"):
        plan("rotnet")
    with pytest.raises(UserError, match=r"holds another race: data\.image_size is '16' there and '24' here"):
        plan("simclr", data__image_size="24")
    with pytest.raises(UserError, match=r"holds another race: train\.seed is None there and '3' here"):
        plan("simclr", train__seed="3")
    assert plan("simclr", cluster__max_failures="1").ledger.settings == race.ledger.settings
    assert plan("simclr", minutes=0.5).ledger.minutes == 1.0
    copied = tmp_path / "copied"
    shutil.copytree(images, copied)
    (copied / "red" / "0.png").unlink()
    with pytest.raises(UserError, match=f"holds a race on {images}, and {copied} has other images"):
        plan("simclr", data__path=str(copied))
    race.ledger.data["fingerprint"] = "another"
    save_ledger(race.out, race.ledger)
    with pytest.raises(UserError, match="has changed since the race in"):
        plan("simclr")
    with pytest.raises(UserError, match="is the folder of one run, not of a race"):
        plan("simclr", out=str(finished_copy))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    with pytest.raises(UserError, match="is not empty and is not a race"):
        plan("simclr", out="full")
    with pytest.raises(UserError, match="has no winner yet"):
        winner_of(tmp_path / "race")


def save_ledger_in(race: Race) -> None:
    race.out.mkdir()
    save_ledger(race.out, race.ledger)


# Bad input of the command: one line, exit code 2, nothing written


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["race", "{images}", "--minutes", "0"], ["--minutes is 0", "minutes of the whole race"]),
        (["race", "{images}", "--minutes", "-3"], ["--minutes is -3"]),
        (["race", "{images}", "--minutes", "soon"], ["--minutes is 'soon'", "--minutes 15"]),
        (["race", "{images}", "--candidates", "simclrr"], ["unknown 'simclrr'", "did you mean 'simclr'?"]),
        (["race", "{images}", "--candidates", ","], ["--candidates is empty"]),
        (["race", "{images}", "--train.epochs", "3"], ["--train.epochs", "name a recipe", "simclr-folder"]),
        (["race", "{images}", "--method.temperature", "1"], ["--method.temperature", "name a recipe"]),
        (["race", "{images}", "--method.teacher-weights", "x"], ["without --method.teacher"]),
        (["race", "{images}", "--encoder.weights", "x"], ["without --encoder.name"]),
        (["race", "{images}", "--search.vectors", "last"], ["--search.vectors last in a race"]),
        (["race", "{images}", "--then", "serve"], ["--then serve", "--then tune"]),
        (["race", "{one}"], ["1 training images", "at least 2"]),
        (["race", "{tmp}/nowhere"], ["nowhere"]),
        (["race", "{images}", "--out", "{file}/x", "--minutes", "1"], ["file/x cannot be written"]),
        (["race", "{images}", "--data.labels", "{few}"], ["no image to compare candidates by", "give more labels"]),
        (["race", "{images}", "--data.path", "{one}"], ["images are named twice", "{one}"]),
        (["race", "{images}", "--search.dim", "0"], ["--search.dim is '0'", "'auto' or", "greater than 0"]),
        (
            ["race", "{images}", "--method.teacher", "hog"],
            ["hog is not a network", "distill-folder --method.teacher hog"],
        ),
        (
            ["race", "{images}", "--method.teacher", "resnet18", "--method.teacher-weights", "{tmp}/x.pth"],
            ["--method.teacher-weights {tmp}/x.pth is not a file"],
        ),
        (
            [
                *["race", "{images}", "--method.teacher", "resnet18", "--method.teacher-weights", "b.pth"],
                *["--encoder.name", "resnet18", "--encoder.weights", "a.pth"],
            ],
            ["resnet18 is named with two weights, a.pth and b.pth"],
        ),
        (["race"], ["no images given"]),
        (["race", "--choose", "simclr"], ["takes the folder of a race"]),
        (["race", "{tmp}", "--choose", "simclr"], ["is not a race"]),
        (["run", "--data.path", "{images}", "--minutes", "0"], ["--minutes is 0"]),
        (["run", "simclr-digits", "--minutes", "5"], ["--minutes 5 is for a race", "--train.minutes"]),
        (["run", "--candidates", "simclr"], ["--candidates simclr is for a race: name the images"]),
        (["query", "{race}", "x.png"], ["has no winner yet"]),
        (["query", "{damaged}", "x.png"], ["damaged"]),
    ],
)
def test_bad_input(
    argv: list[str], words: list[str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr("rayssl.pipeline.race.networks.found_networks", list)
    monkeypatch.chdir(tmp_path)
    for name in ("one", "race", "damaged"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "one" / "0.png")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "few").write_text("path,label\nred/0.png,a\ngreen/0.png,b\n")
    (tmp_path / "race" / "race.json").write_text('{"schema": 1, "winner": null}')
    (tmp_path / "damaged" / "race.json").write_text('{"schema": 1, "winner": "../.."}')
    places = {
        "images": images,
        "tmp": tmp_path,
        **{name: tmp_path / name for name in ("one", "race", "damaged", "file", "few")},
    }
    before = sorted(tmp_path.rglob("*"))
    code = main([word.format(**places) for word in argv])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("reading images")]
    assert code == 2, err
    assert out == ""
    assert len(lines) == 1, err
    for word in words:
        assert word.format(**places) in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_race_that_is_named_as_images_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "race.json").write_text('{"schema": 1, "winner": null}')
    assert main(["race", str(tmp_path)]) == 2
    assert "--choose NAME" in capsys.readouterr().err
