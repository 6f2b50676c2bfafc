"""A run folder that was edited, or made by somebody else: one line that says what, and nothing outside of it."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_files import SPECIAL
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rayssl.jobs.index import line_of
from rayssl.jobs.main import run_verb
from rayssl.pipeline import config as configuration
from rayssl.pipeline.base import documents
from rayssl.pipeline.base.documents import DamagedError
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.base.schemas import SearchFile, is_plain, json_schemas, stays_inside
from rayssl.pipeline.evaluation.measure import write_evaluation
from rayssl.pipeline.evaluation.records import read_evaluation
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.report.results import load_runs
from rayssl.pipeline.report.table import remarks
from rayssl.pipeline.run.folder import data_name, read_manifest, winner_of
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.search.index import load_index
from rayssl.pipeline.search.store import read_candidates, read_search
from rayssl.pipeline.stages.done import has_records
from rayssl.pipeline.stages.evaluate import run_evaluate
from rayssl.pipeline.stages.index import run_index
from rayssl.pipeline.training.checkpoint import checkpoint_fault, list_checkpoints

ROOT = Path(__file__).resolve().parents[3]
READERS: dict[str, Callable[[Path], object]] = {
    "manifest.json": read_manifest,
    "evaluation.json": read_evaluation,
    "encoder.json": load_encoder,
    "search.json": lambda run: (read_search(run), read_candidates(run)),
    "config.json": lambda run: configuration.load(run / "config.json"),
    "index/colours/g000001/manifest.json": lambda run: load_index(run / "index" / "colours"),
    "checkpoints/step-000000005/manifest.json": lambda run: checkpoint_fault(list_checkpoints(run / "checkpoints")[0]),
    "metrics.jsonl": lambda run: list(MetricsLog(run).rows()),
}
HOSTILE = {
    "no UTF-8": b'{"schema": 1, "x": "\xff"}',
    "NaN": b'{"schema": 1, "x": NaN}',
    "no finite number": b'{"schema": 1, "x": 1e999}',
    "400 digits": b'{"schema": 1, "x": ' + b"9" * 400 + b"}",
    "nested": b'{"schema": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested less": b'{"schema": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}",
    "a list": b"[1, 2]",
    "null": b"null",
    "empty": b"",
    "another version": b'{"schema": 7}',
}


@pytest.fixture(scope="module")
def older(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run without notes, as an enemy would leave it: only the schemas guard what is read."""
    run = tmp_path_factory.mktemp("older") / "run"
    shutil.copytree(finished, run)
    manifest = json.loads((run / "manifest.json").read_text())
    kept = {key: value for key, value in manifest.items() if key not in ("files", "writing", "seal")}
    (run / "manifest.json").write_text(json.dumps(kept))
    return run


def one_line(read: Callable[[Path], object], run: Path) -> str:
    """What a reader says of a damaged file; empty where it takes it."""
    try:
        found = read(run)
        said = found if isinstance(found, str) else ""  # of a checkpoint, its fault
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("file", READERS)
def test_a_file_of_nonsense_is_one_line(file: str, what: str, older: Path) -> None:
    path = older / file
    before = path.read_bytes()
    try:
        path.write_bytes(HOSTILE[what] + (b"\n" if file.endswith("l") else b""))
        if not (file == "metrics.jsonl" and what in ("empty", "another version", "NaN")):
            assert str(path.parent if "checkpoints" in file else path) in one_line(READERS[file], older)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("kind", ["pipe", "link to itself", "folder", "device"])
@pytest.mark.parametrize("file", READERS)
def test_what_is_no_file_is_one_line(file: str, kind: str, older: Path) -> None:
    path = older / file
    path.rename(path.with_name("aside"))
    try:
        SPECIAL[kind](path)
        assert "damaged" in one_line(READERS[file], older)
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        path.with_name("aside").rename(path)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is something in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield (*place, key)
        yield from places(one, (*place, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40)
@given(st.sampled_from(sorted(READERS)), st.integers(0, 10**6), JSON, st.booleans())
def test_any_edit_is_read_or_refused_in_one_line(
    older: Path, file: str, number: int, value: Any, removed: bool
) -> None:
    path = older / file
    before = path.read_text()
    first, line_end, rest = before.partition("\n") if file.endswith("l") else (before, "", "")
    values = json.loads(first)
    *above, last = list(places(values))[number % len(list(places(values)))]
    inside = values
    for key in above:
        inside = inside[key]
    if removed:
        del inside[last]
    else:
        inside[last] = value
    try:
        path.write_text(json.dumps(values) + line_end + rest)
        one_line(READERS[file], older)
        one_line(lambda run: [remarks(load_runs([run]))], older)
    finally:
        path.write_text(before)


@pytest.mark.parametrize("name", ["../../victim", "..", "/etc", "a/b", "", "x" * 300, "a\0b", 5, None])
def test_a_data_set_is_no_way_out_of_the_folder(name: object, finished_copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((finished_copy / "manifest.json").read_text())
    manifest = {key: value for key, value in manifest.items() if key not in ("files", "writing", "seal")}
    manifest["data"]["name"] = name
    (finished_copy / "manifest.json").write_text(json.dumps(manifest))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(data\.name is .*plain name"):
        run_index(finished_copy)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_of_more_values_than_memory_could_hold_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(documents, "MOST_VALUES", 100)
    documents.parse(b"[" + b"{}," * 40 + b"{}]")
    with pytest.raises(DamagedError, match="more than 100 values"):
        documents.parse(b"[" + b"{}," * 60 + b"{}]")


def test_of_thousands_of_wrong_values_their_number_is_told() -> None:
    values = {"schema": 1, "candidates": [{}] * (documents.MOST_TOLD + 1)}
    with pytest.raises(DamagedError, match=r"\d,\d+ of its values are not what they should be"):
        documents.fit(values, SearchFile)


@pytest.mark.parametrize("winner", ["..", "../victim", "/tmp", 5, "a/b"])
def test_a_winner_is_a_folder_of_the_race(winner: object, tmp_path: Path) -> None:
    (tmp_path / "race.json").write_text(json.dumps({"schema": 1, "winner": winner}))
    with pytest.raises(UserError, match=r"race\.json is damaged \(winner is "):
        winner_of(tmp_path)


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_what_is_written_does_not_follow_a_link(name: str, tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("mine")
    run.mkdir()
    (run / name).symlink_to(victim)
    with pytest.raises(UserError, match=rf"{name} is a link or folder, not a file: remove it"), writer_lock(run):
        MetricsLog(run).append([{"step": 1}])
    assert victim.read_text() == "mine"


def test_a_folder_that_is_a_link_elsewhere_is_not_written_to(finished_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    shutil.rmtree(finished_copy / "index")
    (finished_copy / "index").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=r"index is a link to .*: nothing is written outside"):
        run_index(finished_copy)
    assert list((tmp_path / "victim").iterdir()) == []


def test_links_within_a_run_are_no_way_out(finished_copy: Path) -> None:
    (finished_copy / "latest").symlink_to("checkpoints")
    with writer_lock(finished_copy):
        pass


@pytest.mark.parametrize("folder", ["embeddings", "embeddings/colours", "index"])
@pytest.mark.parametrize("verb", ["verify", "query", "report"])
def test_a_folder_that_is_a_link_to_itself_is_told(
    finished_copy: Path, folder: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "asked.png")
    shutil.rmtree(finished_copy / folder)
    (finished_copy / folder).symlink_to(Path(folder).name)
    image = [str(tmp_path / "asked.png")] if verb == "query" else []
    code = run_verb(verb, [str(finished_copy), *image])
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert code == 2 or (verb, folder) == ("report", "index")  # which a report does not read


@pytest.mark.parametrize("path", ["a", "a/b.json", "..a/b", "ä/ö"])
def test_paths_inside(path: str) -> None:
    assert stays_inside(path)
    assert is_plain(path) == ("/" not in path)


@pytest.mark.parametrize("path", ["", "/a", "a//b", "a/../b", "..", "./a", "a/", "a\\b", "\0", 7])
def test_paths_that_lead_out(path: object) -> None:
    assert not stays_inside(path)


# Figures


def edit_figure(run: Path, metric: str = "knn/top1", to: float = 0.913) -> None:
    values = json.loads((run / "evaluation.json").read_text())
    for record in values["records"]:
        if record["metric"] == metric and record["split"] == "test":
            record["value"] = to
    values["flat"][metric] = to
    (run / "evaluation.json").write_text(json.dumps(values))


def test_an_edited_figure_is_not_shown_and_computed_anew(finished_copy: Path, images: Path) -> None:
    true = read_evaluation(finished_copy)["flat"]
    edit_figure(finished_copy)
    (shown,) = load_runs([finished_copy])
    assert "knn/top1" not in shown.flat
    assert any("knn/top1 in " in text and "rayssl evaluate" in text for text in remarks([shown]))
    run_evaluate(finished_copy)
    assert read_evaluation(finished_copy)["flat"] == true
    assert read_evaluation(finished_copy)["set_aside"] == []


@pytest.mark.parametrize(
    "damage", ["figure", "evaluation.json", "encoder.json", "search.json", "embeddings/*/test.parquet"]
)
def test_a_report_that_lacks_something_because_of_damage_says_so(
    damage: str, finished_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "figure":
        edit_figure(finished_copy)
    elif damage != "encoder.json":
        next(finished_copy.glob(damage)).unlink()
    else:
        values = json.loads((finished_copy / damage).read_text())
        (finished_copy / damage).write_text(json.dumps({**values, "image_size": values["image_size"] + 1}))
    assert run_verb("report", [str(finished_copy)]) == 2
    assert "the report lacks what is damaged" in capsys.readouterr().err


def test_an_edited_figure_of_a_probe_is_computed_by_the_probe(finished_copy: Path) -> None:
    edit_figure(finished_copy, "probe/top1")
    assert not has_records(finished_copy, "probe/")
    assert has_records(finished_copy, "finetune@")


def test_an_edited_flat_view_shows_nothing(finished_copy: Path) -> None:
    true = read_evaluation(finished_copy)["flat"]
    values = json.loads((finished_copy / "evaluation.json").read_text())
    values["flat"]["knn/top1"] = 0.913
    (finished_copy / "evaluation.json").write_text(json.dumps(values))
    assert read_evaluation(finished_copy)["flat"] == true
    assert not has_records(finished_copy, "health/")  # so `rayssl evaluate` writes it again


def test_figures_of_other_embeddings_are_set_aside(finished_copy: Path) -> None:
    from rayssl.pipeline.search.embeddings import load_embeddings, save_embeddings

    path = finished_copy / "embeddings" / data_name(finished_copy) / "test.parquet"
    before = load_embeddings(path)
    save_embeddings(replace(before, vectors=before.vectors + 1), path)
    found = read_evaluation(finished_copy)
    assert "knn/top1" in found["set_aside"]
    assert "knn/top1" not in found["flat"]
    assert "probe/top1" in found["flat"]


def test_a_record_without_a_seal_is_that_of_an_older_version(tmp_path: Path) -> None:
    record = {"metric": "knn/top1", "value": 0.5, "protocol": "p", "data": "d", "split": "test", "checkpoint": "c"}
    values = {"schema": 1, "records": [record], "flat": {"knn/top1": 0.5}}
    (tmp_path / "evaluation.json").write_text(json.dumps(values))
    assert read_evaluation(tmp_path)["flat"] == {"knn/top1": 0.5}
    write_evaluation(tmp_path, [])
    assert read_evaluation(tmp_path)["flat"] == {"knn/top1": 0.5}


# Commands


def test_verify_finds_what_is_gone_and_repairs_it(finished_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, name = finished_copy / "index", data_name(finished_copy)
    (index / name / "g000001" / "index.faiss").unlink()
    (finished_copy / "encoder_module.py").write_text("")
    (finished_copy / f".evaluation.json.{'a' * 8}.json").write_text("left by a kill")
    assert run_verb("verify", [str(finished_copy)]) == 2
    told = capsys.readouterr().err
    assert f"DAMAGED  {index / name / 'g000001' / 'index.faiss'}" in told
    assert "left over" in told
    assert run_verb("verify", [str(finished_copy), "--repair"]) == 2
    told = capsys.readouterr().err
    assert f"to do  rayssl index {finished_copy}" in told
    assert "removed" in told
    assert run_verb("verify", [str(finished_copy), "--repair", "--yes"]) == 0
    assert run_verb("verify", [str(finished_copy), "--deep"]) == 0
    assert "left over" not in capsys.readouterr().err.splitlines()[-1]


def test_no_command_out_of_a_folder_is_run(
    finished_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayssl.pipeline.run.folder import update_manifest

    update_manifest(finished_copy, {"command": f"rayssl run simclr-digits --out {tmp_path / 'elsewhere'}"})
    (finished_copy / "encoder_module.py").write_text("")
    monkeypatch.setattr("rayssl.jobs.verify.run_verb", lambda *words: pytest.fail(f"{words} was run"))
    assert run_verb("verify", [str(finished_copy), "--repair", "--yes"]) == 0
    assert not (tmp_path / "elsewhere").exists()


def test_json_of_run_folders_is_read_in_one_place() -> None:
    """Others parse what is not of run folders: flags, caches, data sets, what processes tell each other."""
    allowed = {
        "pipeline/base/documents.py", "pipeline/config.py", "pipeline/tune/search.py",
        "pipeline/base/settings_files.py",
        "pipeline/tune/trial.py", "pipeline/cluster/tune.py",
        "pipeline/cluster/train.py", "pipeline/service/client.py",
    }  # fmt: skip
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("pipeline", "jobs", "rayssl")
        for path in (ROOT / folder).rglob("*.py")
        if "json.load" in path.read_text() and "pipeline/data" not in path.as_posix()
    }
    assert found <= allowed


def test_the_json_schemas_are_those_of_the_code() -> None:
    """Made again by `python -m rayssl.pipeline.base.schemas docs/schemas`."""
    folder = ROOT / "docs" / "schemas"
    assert {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")} == json_schemas()


@pytest.mark.parametrize("facts", [{}, {"vectors": "many", "recall": 1.0}, {"vectors": 3}])
def test_an_index_without_its_numbers_is_one_line(facts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="does not say how many vectors"):
        line_of(facts)


def test_a_metric_has_no_endless_name(older: Path) -> None:
    path = older / "evaluation.json"
    values = json.loads(path.read_text())
    values["records"][0]["metric"] = "x" * 10**6
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="at most 1000 letters") as caught:
        read_evaluation(older)
    assert len(str(caught.value)) < 1000
