"""A run folder has one writer and keeps what it was told."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayssl.pipeline.base.errors import MissingError, UserError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.lease import settled, writer_lock
from rayssl.pipeline.base.seals import note
from rayssl.pipeline.run.folder import mark_stage, read_manifest, read_race, stage_done, stage_key, update_manifest
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.run.software import describe_software

DATA = {
    "name": "x", "fingerprint": "f", "train": 3, "val": 1, "test": 1, "image_size": 8, "channels": 1, "classes": None,
}  # fmt: skip
HOLD = """
import sys
from pathlib import Path
from rayssl.pipeline.base.lease import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_kept_out_until_the_first_is_dead(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"{run} is being written by process {holder.pid} on "), writer_lock(run, 0):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with writer_lock(run, 0):
            pass


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), writer_lock(tmp_path):
        raise RuntimeError("broken")
    with writer_lock(tmp_path, 0):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: Not a directory"), writer_lock(tmp_path / "file" / "run"):
        pass


def test_the_manifest_keeps_what_is_not_replaced(tmp_path: Path) -> None:
    update_manifest(tmp_path, {"seed": 1, "data": DATA})
    mark_stage(tmp_path, "pretrain", "k1", 1.234, steps=9)
    update_manifest(tmp_path, {"seed": 2})
    manifest = read_manifest(tmp_path)
    assert manifest["seed"] == 2
    assert manifest["data"] == DATA
    assert manifest["stages"]["pretrain"]["steps"] == 9
    assert manifest["stages"]["pretrain"]["seconds"] == 1.23


def test_a_stage_is_done_with_its_own_key_only(tmp_path: Path) -> None:
    assert not stage_done(tmp_path, "probe", "a")
    update_manifest(tmp_path, {})
    mark_stage(tmp_path, "probe", "a", 0.0)
    assert stage_done(tmp_path, "probe", "a")
    assert not stage_done(tmp_path, "probe", "b")
    assert not stage_done(tmp_path, "embed", "a")


def test_stage_keys() -> None:
    assert stage_key("x", {"a": 1, "b": (1, 2)}) == stage_key("x", {"b": [1, 2], "a": 1})
    assert len({stage_key("x", {"a": value}) for value in (1, 2, None, "1", 1.5, True)}) == 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"schema": 2, "stages": {}}', "has schema 2: this version reads schema 1"),
        ("{}", "has schema None"),
        ('{"schema": 1', "damaged"),
        ("", "damaged"),
        ("[1]", "damaged"),
    ],
)
def test_a_manifest_that_cannot_be_read(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder \(no manifest\.json\)"):
        read_manifest(tmp_path)


def test_a_jobs_commit_is_that_of_the_code_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_COMMIT", "abc")
    monkeypatch.setenv("PATH", "")  # no git
    assert describe_software()["commit"] == "abc"


def test_software_is_described() -> None:
    found = describe_software()
    assert found["versions"]["python"].split(".")[0] == "3"
    assert found["versions"]["torch"]
    json.dumps(found)


def rows(stage: str, steps: range) -> list[dict[str, object]]:
    return [{"stage": stage, "step": step, "train/loss": step / 3} for step in steps]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    assert list(log.rows()) == []
    log.append(rows("pretrain", range(3)))
    log.append([])
    log.append(rows("pretrain", range(3, 5)))
    assert list(log.rows()) == rows("pretrain", range(5))


def test_figures_that_are_no_numbers_are_left_out_of_older_logs_and_are_damage_in_those_that_are_noted(
    tmp_path: Path,
) -> None:
    log = MetricsLog(tmp_path)
    log.path.write_text('{"stage": "pretrain", "step": 0, "train/loss": NaN, "health/std": -Infinity}\n')
    assert list(log.rows()) == [{"stage": "pretrain", "step": 0}]
    update_manifest(tmp_path, {})
    note(log.path)
    with pytest.raises(UserError, match=r"line 1 of .*metrics\.jsonl is damaged .*NaN"):
        list(log.rows())


def test_cut_back_to_a_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append(rows("pretrain", range(6)) + rows("finetune/0", range(6)))
    log.cut_back("pretrain", 4)
    assert list(log.rows()) == rows("pretrain", range(4)) + rows("finetune/0", range(6))


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_last_line_that_was_cut_off_is_dropped(cut: int, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append(rows("pretrain", range(4)))
    text = log.path.read_text()
    log.path.write_text(text[:-cut])
    assert list(log.rows()) == rows("pretrain", range(4 if cut == 1 else 3))
    log.cut_back("pretrain", 3)
    log.append(rows("pretrain", range(3, 5)))
    assert list(log.rows()) == rows("pretrain", range(5))
    assert log.path.read_text().count("\n") == 5


def test_cutting_back_what_is_not_there_writes_nothing(tmp_path: Path) -> None:
    MetricsLog(tmp_path).cut_back("pretrain", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_waits_until_what_another_process_replaces_fits(tmp_path: Path) -> None:
    names = ("a.json", "b.json")

    def write(number: int) -> None:
        for name in names:
            write_json(tmp_path / name, number)

    def read() -> int:
        one, other = (json.loads((tmp_path / name).read_text()) for name in names)
        if one != other:
            raise UserError(f"{one} does not fit {other}")
        return int(one)

    write(0)
    with writer_lock(tmp_path):
        pass
    child = os.fork()
    if child == 0:
        with writer_lock(tmp_path):
            for number in range(1, 300):
                write(number)
        os._exit(0)
    try:
        found = [settled(tmp_path, read)]
        while found[-1] < 299:
            found.append(settled(tmp_path, read))
    finally:
        os.waitpid(child, 0)
    assert found == sorted(found)
    assert len(set(found)) > 2
    write_json(tmp_path / names[0], -1)  # nobody writes: it is told at once
    with pytest.raises(UserError, match="-1 does not fit 299"):
        settled(tmp_path, read)


@contextmanager
def written_elsewhere(run: Path) -> Iterator[None]:
    """Another process is the writer of a folder."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with writer_lock(run):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        yield
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)


def test_what_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    reads = []

    def read() -> None:
        reads.append(1)
        raise MissingError("index.faiss does not exist")

    with written_elsewhere(tmp_path), pytest.raises(MissingError):
        settled(tmp_path, lambda: settled(tmp_path / "index", read))
    assert len(reads) == 2  # at once, and not for as long as the other writes


def test_what_is_read_within_is_read_again_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    states, looks = iter([("old", "new"), ("new", "new")]), []

    def read() -> str:
        one, other = next(states)

        def within() -> str:
            looks.append(one)
            if one != other:  # and does not become the same by looking at the other again
                raise UserError(f"{one} does not fit {other}")
            return one

        return settled(tmp_path / "index", within)

    with written_elsewhere(tmp_path):
        assert settled(tmp_path, read) == "new"
    assert looks == ["old", "new"]


def test_what_is_replaced_between_two_looks_is_found_at_the_second(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    answers = iter([MissingError("search/train.parquet does not exist"), "embeddings"])

    def read() -> str:
        answer = next(answers)
        if isinstance(answer, MissingError):
            raise answer
        return answer

    assert settled(tmp_path, read) == "embeddings"


def test_a_log_with_a_line_that_is_damaged_goes_on(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "pretrain", "step": 0}\n{"stage": "pre\n{"stage": "pretrain", "step": 1}\n'
    )
    with pytest.raises(UserError, match="line 2 of"):
        list(log.rows())
    log.cut_back("pretrain", 1)
    assert list(log.rows()) == [{"stage": "pretrain", "step": 0}]


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_a_hard_link_to_another_file_is_not_written_to(tmp_path: Path, name: str) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    run.mkdir()
    mine.write_text("mine\n")
    os.link(mine, run / name)
    with pytest.raises(UserError, match="has another name elsewhere"), writer_lock(run):
        MetricsLog(run).append([{"stage": "pretrain", "step": 0}])
    assert mine.read_text() == "mine\n"


def test_no_folder_of_a_run_leads_elsewhere(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    update_manifest(run, {"data": DATA})
    (run / "anomalies").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"is a link to .*elsewhere: nothing is written outside"):
        write_json(run / "anomalies" / "scores.json", {})
    assert list(elsewhere.iterdir()) == []
    (tmp_path / "linked").symlink_to(run)  # a link to the run itself is none
    write_json(tmp_path / "linked" / "figures" / "a.json", {})
    assert (run / "figures" / "a.json").exists()


def test_a_folder_without_a_race_is_told_how_to_run_one(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"is not a race \(no race.json\): `rayssl race DIR` runs one"):
        read_race(tmp_path)
