"""What is noted of finished files: every change of one is found, and a kill at any moment is no damage."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rayssl.pipeline.base import seals
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_json, write_text
from rayssl.pipeline.run.folder import mark_stage, read_manifest, update_manifest
from rayssl.pipeline.run.metrics_log import MetricsLog


@pytest.fixture
def run(tmp_path: Path, cache: Path) -> Path:
    """A folder with a manifest and two finished files."""
    folder = tmp_path / "run"
    folder.mkdir()
    update_manifest(folder, {})
    write_text(folder / "a.txt", "first")
    write_json(folder / "index" / "x" / "manifest.json", {"b": 1})
    return folder


def told(run: Path) -> dict[str, str]:
    """Path → "whole", "unfinished" or what is wrong."""
    return {
        one.path.relative_to(run).as_posix(): "unfinished" if one.unfinished else one.fault or "whole"
        for one in seals.audit(run)
    }


def test_what_is_written_is_noted_and_whole(run: Path) -> None:
    assert told(run) == {"a.txt": "whole", "index/x/manifest.json": "whole"}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_text("fir5t"), "sha256"),
        (lambda path: path.write_text(""), "0 bytes, not the 5"),
        (lambda path: path.unlink(), "gone"),
        (lambda path: (path.unlink(), path.mkdir()), "a folder, not a file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "a pipe, not a file"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "a device, not a file"),
        (lambda path: (path.unlink(), path.symlink_to(path.name)), "cannot be read|leads to itself"),
    ],
)
def test_every_damage_is_found_also_after_the_file_was_whole(
    damage: Callable[[Path], object], says: str, run: Path
) -> None:
    told(run)
    damage(run / "a.txt")
    with pytest.raises(UserError, match=says):
        seals.check(run / "a.txt", "do something")
    assert told(run)["a.txt"] != "whole"
    assert told(run)["index/x/manifest.json"] == "whole"


def test_a_change_that_keeps_size_and_time_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "SETTLED", -1.0)  # so that what is hashed is remembered at once
    before = (run / "a.txt").stat()
    os.utime(run / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns - 10**10))
    told(run)
    (run / "a.txt").write_text("fir5t")
    os.utime(run / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns - 10**10))
    assert told(run)["a.txt"] != "whole"


def test_a_file_is_read_in_full_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = seals.Stamps.of(run)
    monkeypatch.setattr(seals, "SETTLED", -1.0)
    found = stamps.digest("a.txt")
    monkeypatch.setattr(seals.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert stamps.digest("a.txt") == found
    seals.forget_stamps(run)
    with pytest.raises(BaseException, match="read again"):
        list(seals.audit(run))


def test_what_was_hashed_is_remembered_by_other_processes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "SETTLED", -1.0)
    told(run)
    monkeypatch.setattr(seals.Stamps, "_kept", {})  # as in another process
    monkeypatch.setattr(seals.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert told(run)["a.txt"] == "whole"


@pytest.mark.parametrize("text", ["", "[]", '{"a.txt": 5}', "[" * 100_000, '{"a.txt": [1, 2]}'])
def test_a_memory_that_is_damaged_costs_time_alone(text: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(run)
    memory = seals._memory(run)
    assert memory is not None
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(text)
    monkeypatch.setattr(seals.Stamps, "_kept", {})
    assert told(run)["a.txt"] == "whole"


@pytest.mark.parametrize("point", ["before the rename", "after the rename"])
def test_a_kill_while_a_file_is_replaced_is_no_damage(point: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def killed(source: str, target: str) -> None:
        if Path(target).name != "a.txt":
            return replace(source, target)
        if point == "after the rename":
            replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(run / "a.txt", "second")
    assert told(run)["a.txt"] == ("whole" if point == "before the rename" else "unfinished")
    monkeypatch.setattr(os, "replace", replace)
    write_text(run / "a.txt", "second")
    assert told(run)["a.txt"] == "whole"


def test_a_changed_manifest_is_refused_and_a_newer_key_is_not(run: Path) -> None:
    update_manifest(run, {"of a newer version": {"x": [1]}})
    assert read_manifest(run)["of a newer version"] == {"x": [1]}
    values = json.loads((run / "manifest.json").read_text())
    values["files"]["a.txt"]["sha256"] = "0" * 64
    (run / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"it was changed after it was written.*give the command that started"):
        read_manifest(run)


def test_a_run_of_before_has_no_notes_and_is_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": 1, "stages": {}}')
    write_text(tmp_path / "a.txt", "x")
    update_manifest(tmp_path, {"seed": 3})
    assert list(seals.audit(tmp_path)) == []
    assert seals.fits(tmp_path / "a.txt") is None
    seals.check(tmp_path / "a.txt", "")


def test_rows_are_unfinished_while_a_stage_logs_and_noted_when_it_has_ended(run: Path) -> None:
    log = MetricsLog(run)
    log.append([{"stage": "pretrain", "step": 0, "train/loss": 0.1}])
    assert "metrics.jsonl" not in told(run)
    mark_stage(run, "pretrain", "k", 1.0)
    assert told(run)["metrics.jsonl"] == "whole"
    log.append([{"stage": "finetune/0", "step": 0, "train/loss": 0.1}])
    assert told(run)["metrics.jsonl"] == "unfinished"
    log.cut_back("finetune/0", 0)
    mark_stage(run, "finetune", "k", 1.0)
    assert told(run)["metrics.jsonl"] == "whole"


def test_runs_below_a_race_note_their_files_themselves(tmp_path: Path) -> None:
    seals.started(tmp_path)
    write_text(tmp_path / "report.html", "x")
    write_text(tmp_path / "trials" / "0001.json", "{}")
    write_text(tmp_path / "simclr" / "config.json", "{}")
    assert set(told(tmp_path)) == {"report.html", "trials/0001.json"}


def test_a_reader_beside_a_writer_never_takes_the_new_for_damage(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a reader's look at the note and at the file, a writer replaces the file."""
    fault = seals._fault

    def slow(*args: object) -> str | None:
        monkeypatch.setattr(seals, "_fault", fault)
        write_text(run / "a.txt", "written in between")
        return fault(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(seals, "_fault", slow)
    seals.check(run / "a.txt", "")
    assert seals.fits(run / "a.txt") is True


def test_a_hole_is_not_read(tmp_path: Path) -> None:
    """1 TB of zeros that takes no room on the disk: whoever hashed it would sit there for an hour."""
    (tmp_path / "whole").write_bytes(b"weights" * 1000)
    whole = seals.digest(tmp_path / "whole")
    os.truncate(tmp_path / "whole", 1 << 40)
    assert seals.digest(tmp_path / "whole") == ""
    assert len(whole) == 64
