"""Every damaged file of a run is found, and only that."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rayssl.jobs.main import run_verb
from rayssl.pipeline.base import seals
from rayssl.pipeline.base.atomic import UNFINISHED
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.run.folder import begin_stage, read_manifest
from rayssl.pipeline.search.embeddings import files_of
from rayssl.pipeline.search.index import load_index
from rayssl.pipeline.search.store import OWN, read_search
from rayssl.pipeline.stages.done import at_work
from rayssl.pipeline.verify import left_over, verify


def faults(run: Path) -> dict[str, str]:
    """Relative path → fault, of what is damaged."""
    return {str(f.path.relative_to(run)): f.fault for f in verify(run) if f.fault is not None}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_finished_run_is_whole(finished: Path) -> None:
    assert faults(finished) == {}
    checked = {str(finding.path.relative_to(finished)) for finding in verify(finished)}
    data = json.loads((finished / "manifest.json").read_text())["data"]["name"]
    assert checked == {
        "config.json",
        "manifest.json",
        "checkpoints/step-000000005",
        "checkpoints/step-000000005/manifest.json",
        "checkpoints/finetune.json",
        "metrics.jsonl",
        "encoder.json",
        "encoder_module.py",
        "MODEL_CARD.md",
        *(
            f"finetuned/{name}"
            for name in ("encoder.json", "encoder.safetensors", "encoder_module.py", "MODEL_CARD.md")
        ),
        "encoder.safetensors",
        f"embeddings/{data}/train.parquet",
        f"embeddings/{data}/test.parquet",
        f"embeddings/{data}/baseline/random-init/train.parquet",
        f"embeddings/{data}/baseline/random-init/test.parquet",
        f"embeddings/{data}/search/train.parquet",
        f"embeddings/{data}/search/test.parquet",
        "search.json",
        "search.safetensors",
        f"index/{data}/CURRENT",
        f"index/{data}/g000001/manifest.json",
        f"index/{data}/g000001/items.arrow",
        f"index/{data}/g000001/index.faiss",
        "evaluation.json",
    }


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize(
    ("file", "reported"),
    [
        ("checkpoints/step-000000005/model.safetensors", "checkpoints/step-000000005"),
        ("checkpoints/step-000000005/optimizer.safetensors", "checkpoints/step-000000005"),
        ("encoder.safetensors", "encoder.safetensors"),
        ("embeddings/colours/train.parquet", "embeddings/colours/train.parquet"),
        ("embeddings/colours/test.parquet", "embeddings/colours/test.parquet"),
        ("embeddings/colours/search/test.parquet", "embeddings/colours/search/test.parquet"),
        ("search.safetensors", "search.safetensors"),
        ("index/colours/g000001/index.faiss", "index/colours/g000001/index.faiss"),
        ("index/colours/g000001/items.arrow", "index/colours/g000001/items.arrow"),
        ("index/colours/CURRENT", "index/colours/CURRENT"),
    ],
)
def test_damage_is_found(damage: Callable[[Path], None], file: str, reported: str, finished_copy: Path) -> None:
    damage(finished_copy / file)
    found = faults(finished_copy)
    assert reported in found
    assert all("\n" not in fault for fault in found.values())
    assert set(found) <= {reported, file}


@pytest.mark.parametrize("file", ["config.json", "manifest.json", "evaluation.json"])
def test_json_that_is_cut_off(file: str, finished_copy: Path) -> None:
    cut(finished_copy / file)
    assert set(faults(finished_copy)) == {file}


def test_a_missing_half_of_the_encoder(finished_copy: Path) -> None:
    (finished_copy / "encoder.safetensors").unlink()
    assert "encoder.safetensors" in faults(finished_copy)


def test_an_encoder_of_another_run_does_not_fit(finished_copy: Path) -> None:
    from rayssl.pipeline.models.export import export_encoder, load_encoder

    encoder = load_encoder(finished_copy)
    for parameter in encoder.parameters():
        parameter.data += 1
    export_encoder(encoder, finished_copy)
    own = any(origin.encoder == OWN for origin in read_search(finished_copy).origins)
    stale = {str(one.path.relative_to(finished_copy)) for one in verify(finished_copy) if one.unfinished}
    assert stale == {
        "embeddings/colours/train.parquet",
        "embeddings/colours/test.parquet",
        *(["search.json"] if own else []),
        "evaluation.json",  # figures of another encoder are not shown as this one's
    }
    assert faults(finished_copy) == {}


@pytest.mark.parametrize("at", [1, 2, 4, 7, 9, 11, 12])
def test_a_kill_while_an_index_is_written_leaves_the_old_one_or_the_new(
    at: int, finished_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayssl.pipeline import config as configuration
    from rayssl.pipeline.search.query import load_searched
    from rayssl.pipeline.stages.index import run_index

    path = finished_copy / "config.json"
    configuration.save(configuration.override(configuration.load(path), {"index.factory": "HNSW8"}), path)
    replace, calls = os.replace, []

    def killed(source: str, target: str) -> None:
        calls.append(str(target))
        if len(calls) == at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run_index(finished_copy)
    named = any(one.endswith("/CURRENT") for one in calls[:-1])
    monkeypatch.undo()
    assert faults(finished_copy) == {}
    found = load_index(finished_copy / "index" / "colours")[1]["factory"]
    assert found == ("HNSW8" if named else "auto")
    assert len(load_searched(finished_copy, "colours")[1]) == 60
    run_index(finished_copy)
    assert load_index(finished_copy / "index" / "colours")[1]["factory"] == "HNSW8"
    assert len(list((finished_copy / "index" / "colours").glob("g*"))) == 1
    assert not any(one.unfinished for one in verify(finished_copy))


@pytest.mark.parametrize("gone", [False, True])
def test_embeddings_that_were_written_anew_or_are_gone_leave_no_index_that_is_taken_for_theirs(
    gone: bool, finished_copy: Path
) -> None:
    from dataclasses import replace

    from rayssl.pipeline.search.embeddings import load_embeddings, save_embeddings
    from rayssl.pipeline.search.query import load_searched
    from rayssl.pipeline.search.store import FOLDER, has_search
    from rayssl.pipeline.stages.index import run_index

    folder = finished_copy / "embeddings" / "colours" / (FOLDER if has_search(finished_copy) else "")
    load_searched(finished_copy, "colours")
    found = load_embeddings(folder / "test.parquet")
    if gone:
        (folder / "test.parquet").unlink()
    else:  # as many rows of as many numbers, of the same images
        save_embeddings(replace(found, vectors=found.vectors[::-1].copy()), folder / "test.parquet")
        stale = [one for one in verify(finished_copy) if one.path.name == "index.faiss"]
        assert [(one.fault, one.unfinished) for one in stale] == [(None, True)]
    with pytest.raises(UserError, match=r"test\.parquet is (not what the index was built from|damaged)"):
        load_searched(finished_copy, "colours")
    if not gone:
        run_index(finished_copy)
        assert load_searched(finished_copy, "colours")
        assert faults(finished_copy) == {}


@pytest.fixture
def race(finished_copy: Path, tmp_path: Path) -> Path:
    """A race of one candidate, which has won."""
    folder = tmp_path / "race"
    seals.started(folder)
    write_json(folder / "race.json", {"schema": 1, "winner": "cand"})
    finished_copy.rename(folder / "cand")
    return folder


def test_of_a_race_too_no_command_out_of_a_folder_is_run(race: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayssl.pipeline.run.folder import update_manifest

    update_manifest(race / "cand", {"command": "rayssl run evil --out 'elsewhere"})
    (race / "cand/encoder_module.py").write_text("")
    monkeypatch.setattr("rayssl.jobs.verify.run_verb", lambda *words: pytest.fail(f"{words} was run"))
    assert run_verb("verify", [str(race), "--repair", "--yes"]) == 0  # made from the candidate's own checkpoint


@pytest.mark.parametrize("gone", ["cand", "cand/config.json", "cand/checkpoints/step-000000005/model.safetensors"])
def test_what_a_race_lacks_is_told(gone: str, race: Path) -> None:
    assert faults(race) == {}
    path = race / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [name for name in faults(race) if gone.startswith(name) or name == "race.json"]


def test_the_note_of_a_race_is_verified_itself(race: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (race / "files.json").write_text("x")
    assert set(faults(race)) == {"files.json"}
    with pytest.raises(UserError, match=r"files\.json is damaged"):
        seals.started(race)
    assert run_verb("verify", [str(race), "--repair", "--yes"]) == 0
    assert "older" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_found_while_a_run_is_unfinished(finished_copy: Path) -> None:
    begin_stage(finished_copy, "pretrain")
    assert faults(finished_copy) == {}
    told = [one.told for one in verify(finished_copy) if one.path.name == "manifest.json" and one.unfinished]
    assert told == ["pretrain has begun and has not ended"]
    flip(finished_copy / "checkpoints/step-000000005/model.safetensors")
    assert set(faults(finished_copy)) == {"checkpoints/step-000000005"}


def test_a_folder_in_which_nothing_was_finished_is_unfinished(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    [found] = verify(tmp_path)
    assert (found.fault, found.unfinished) == (None, True)


def test_deep_reads_what_is_remembered(finished_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "SETTLED", -1.0)
    monkeypatch.setattr(seals, "_stamp", lambda found: [found.st_size, found.st_ino])  # as where a disk rots
    assert faults(finished_copy) == {}
    for name in ("checkpoints/step-000000005/model.safetensors", "encoder.safetensors"):
        flip(finished_copy / name)
    assert faults(finished_copy) == {}
    found = {str(one.path.relative_to(finished_copy)) for one in verify(finished_copy, deep=True) if one.fault}
    assert {"checkpoints/step-000000005", "encoder.safetensors"} <= found


def test_figures_that_cannot_be_read_are_computed_anew(finished_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(finished_copy / "evaluation.json")
    ran: list[str] = []
    monkeypatch.setattr("rayssl.jobs.verify.run_verb", lambda verb, words: ran.append(verb) or 0)
    run_verb("verify", [str(finished_copy), "--repair", "--yes"])
    assert ran[-1] == "evaluate"
    assert not (finished_copy / "evaluation.json").exists()  # which evaluate would refuse to go on with


def test_left_over_parquet_of_older_versions_is_no_data(finished_copy: Path) -> None:
    folder = finished_copy / "embeddings" / "colours"
    before = files_of(folder)
    shutil.copy(folder / "train.parquet", folder / ".train.parquet.abcdefgh.parquet")
    assert files_of(folder) == before
    assert len(before) == 2


def in_the_place_of_a_file(path: Path) -> Path:
    path.unlink()
    path.mkdir()
    return path


def test_an_empty_folder_in_the_place_of_a_file_does_not_stop_the_repair(finished_copy: Path) -> None:
    data = json.loads((finished_copy / "manifest.json").read_text())["data"]["name"]
    index = finished_copy / "index" / data / "g000001" / "index.faiss"
    before = index.read_bytes()
    in_the_place_of_a_file(index)
    assert run_verb("verify", [str(finished_copy), "--repair", "--yes"]) == 0
    assert index.read_bytes() == before


def test_a_repair_that_fails_is_no_success(finished_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((finished_copy / "manifest.json").read_text())["data"]["name"]
    mine = in_the_place_of_a_file(finished_copy / "index" / data / "g000001" / "index.faiss") / "mine.txt"
    mine.write_text("not to be removed")
    assert run_verb("verify", [str(finished_copy), "--repair", "--yes"]) == 2
    assert "is not repaired: `rayssl index" in capsys.readouterr().err
    assert mine.exists()


def test_a_repair_that_a_signal_stops_starts_no_other(finished_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(finished_copy / "finetuned/encoder.safetensors")
    flip(next(finished_copy.glob("index/*/g*/index.faiss")))
    ran: list[str] = []
    monkeypatch.setattr("rayssl.jobs.verify.run_verb", lambda verb, words: ran.append(verb) or 130)
    assert run_verb("verify", [str(finished_copy), "--repair", "--yes"]) == 130
    assert ran == ["finetune"]


def test_without_a_checkpoint_no_repair_trains_anew(
    finished_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in finished_copy.glob("checkpoints/step-*"):
        shutil.rmtree(path)
        seals.forget_folder(path)
    flip(finished_copy / "encoder.safetensors")
    monkeypatch.setattr("rayssl.jobs.verify.train_again", lambda run: pytest.fail("was trained again"))
    monkeypatch.setattr("rayssl.jobs.verify.run_verb", lambda verb, words: 0)
    assert run_verb("verify", [str(finished_copy), "--repair", "--yes"]) == 2
    assert "to do  " in capsys.readouterr().err


def test_a_damaged_checkpoint_is_removed_and_the_rest_is_whole(finished_copy: Path) -> None:
    flip(finished_copy / "checkpoints/step-000000005/model.safetensors")
    assert run_verb("verify", [str(finished_copy), "--repair", "--yes"]) == 0
    assert not (finished_copy / "checkpoints/step-000000005").exists()
    assert faults(finished_copy) == {}


def test_a_race_without_its_ledger_is_damaged_whatever_is_repaired(race: Path) -> None:
    (race / "race.json").unlink()
    for _ in range(2):
        assert run_verb("verify", [str(race), "--repair", "--yes"]) == 2
    assert "race.json" in seals.files_of(race / seals.OTHERS)


@pytest.mark.parametrize("known", [True, False])
def test_what_a_living_writer_writes_is_not_left_over(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f".x.abcdefgh{UNFINISHED}"
    with path.open("w") as file:
        if known:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            monkeypatch.setattr(
                "rayssl.pipeline.verify.is_locked", lambda path: None
            )  # a file system that does not tell
        assert left_over(tmp_path) == []
    monkeypatch.undo()
    assert left_over(tmp_path) == [path]


def test_a_stage_whose_input_is_wrong_is_not_at_work_any_more(finished_copy: Path) -> None:
    with pytest.raises(UserError, match="wrong"), at_work(finished_copy, "embed/x"):
        raise UserError("wrong")
    assert read_manifest(finished_copy).get("running") is None
    with pytest.raises(OSError, match="full"), at_work(finished_copy, "embed/x"):
        raise OSError("full")
    assert read_manifest(finished_copy)["running"] == "embed/x"
