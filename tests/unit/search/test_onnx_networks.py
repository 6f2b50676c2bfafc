"""A query by ONNX Runtime: torch's answers without torch, and torch where the file does not fit."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import quiet

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import load, override, save
from rayssl.pipeline.launch.embed import search_anew
from rayssl.pipeline.models.export import export_encoder, load_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.onnx_file import FILE, MANIFEST, remove_onnx
from rayssl.pipeline.run.folder import data_name, read_manifest
from rayssl.pipeline.search.apply import Searcher, searched_by
from rayssl.pipeline.search.described import searched_splits
from rayssl.pipeline.search.networks import InThisProcess, query_networks
from rayssl.pipeline.search.onnx_networks import InOnnxRuntime, onnx_networks
from rayssl.pipeline.search.queries import images_of, squares_of
from rayssl.pipeline.search.query import open_index
from rayssl.pipeline.stages import query_networks as stage
from rayssl.pipeline.stages.index import run_index
from rayssl.pipeline.stages.query_networks import keep_query_networks
from rayssl.pipeline.stages.story import run_worker_stages
from rayssl.pipeline.verify import verify
from rayssl.pipeline.verify.repair import repairs_of

ROOT = Path(__file__).resolve().parents[3]
OTHERS = "untrained"
MIXTURE = f"simclr:layer1:2x2+hog+{OTHERS}+simclr:layer2:gem"  # two networks, of which one is seen twice by


@pytest.fixture(scope="module")
def mixed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is searched by two networks and a descriptor, with the files that queries need."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    shutil.copytree(finished, run)
    config = override(load(run / "config.json"), {"search.vectors": MIXTURE, "search.whiten": True})
    save(config, run / "config.json")
    run_worker_stages(run, ["search"], Silent())
    run_index(run)
    keep_query_networks(run, lambda line: None)
    return run


@pytest.fixture
def case(mixed: Path, tmp_path: Path) -> Path:
    """One's own to damage."""
    shutil.copytree(mixed, tmp_path / "mixed")
    return tmp_path / "mixed"


def own(run: Path) -> Path:
    return run / FILE


def seen_by(run: Path) -> str:
    """What answers: "torch" or "onnx"; all networks by one of them."""
    kinds = {type(one) for one in open_index(run).encode.networks if one is not None}
    return {InThisProcess: "torch", InOnnxRuntime: "onnx"}[kinds.pop()]  # type: ignore[index]


def faults(run: Path) -> dict[str, str]:
    return {str(one.path.relative_to(run)): one.fault for one in verify(run) if one.fault is not None}


def told(run: Path) -> list[str]:
    lines: list[str] = []
    keep_query_networks(run, lines.append)
    return lines


def test_both_ways_give_the_stored_vectors(mixed: Path) -> None:
    stored = searched_splits(mixed, data_name(mixed))["test"]
    asked = images_of([str(Path(stored.data_path) / path) for path in stored.paths])
    search = searched_by(mixed)
    by_onnx, by_torch = onnx_networks(mixed, search, 3), query_networks(mixed, search, 3)
    assert by_onnx is not None
    assert [type(one) for one in by_onnx] == [InOnnxRuntime, type(None), InOnnxRuntime, InOnnxRuntime]
    assert by_onnx[0] is by_onnx[3]  # it sees an image once
    for networks in (by_onnx, by_torch):
        found = Searcher(search, networks, 3)(squares_of(asked, 3))
        np.testing.assert_allclose(found, stored.vectors, rtol=0, atol=1e-5)


def test_how_exact_it_is_is_kept(mixed: Path) -> None:
    for folder in (mixed, mixed / "search" / OTHERS):
        described = json.loads((folder / MANIFEST).read_text())
        assert 0 <= described["parity"] <= 1e-5
        assert described["n"] == read_manifest(mixed)["data"]["train"]
        assert described["encoder"] == encoder_hash(folder)
    assert list(json.loads((mixed / MANIFEST).read_text())["outputs"]) == ["layer1:2x2", "layer2:gem"]
    assert faults(mixed) == {}


PROGRAM = """
import sys
from pathlib import Path
import rayssl
from rayssl.jobs.main import run_verb
unwanted = {"torch", "torchvision", "onnx", "pandas", "ray", "scipy", "sklearn", "matplotlib", "rich", "wandb",
            "pyarrow.compute"}
run, image = sys.argv[1:]
assert run_verb("query", [run, image, "-k", "3"]) == 0
print(sorted(unwanted & set(sys.modules)), rayssl.open_index(run).search(image, k=3)[0]["query"])
print(sorted(unwanted & set(sys.modules)), "onnxruntime" in sys.modules)
"""


def test_a_query_imports_no_torch(mixed: Path, images: Path) -> None:
    image = str(images / "red" / "0.png")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(mixed), image],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-2:] == [f"[] {image}", "[] True"]


def test_the_command_ends_with_all_that_it_had_to_say(mixed: Path, images: Path) -> None:
    """Though it does not wait for Python to end."""
    image = str(images / "red" / "0.png")
    command = [sys.executable, "-m", "rayssl.jobs.main", "query", str(mixed), image, str(mixed / "no.png"), "--json"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 3  # one of the images cannot be read
    answered, failed = json.loads(done.stdout)
    assert len(answered["neighbors"]) == 10
    assert "no.png does not exist" in failed["error"]


def test_descriptors_alone_need_neither(finished_copy: Path) -> None:
    search = searched_by(finished_copy)
    plain = replace(
        search,
        origins=tuple(replace(one, kind="descriptor") for one in search.origins),
    )
    assert onnx_networks(finished_copy, plain, 3) == (None,) * len(plain.origins)


def without_runtime(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayssl.pipeline.search.onnx_networks.can_run", lambda: False)


def without_file(run: Path, _: Any) -> None:
    remove_onnx(run / "search" / OTHERS)


def of_another_encoder(run: Path, _: Any) -> None:
    rewrite(run, encoder="0" * 64)


def of_other_outputs(run: Path, _: Any) -> None:
    rewrite(run, outputs={"layer1:2x2": 4})


def rewrite(run: Path, **changes: object) -> None:
    write_json(run / MANIFEST, {**json.loads((run / MANIFEST).read_text()), **changes})


@pytest.mark.parametrize("how", [without_runtime, without_file, of_another_encoder, of_other_outputs])
def test_torch_answers_where_there_is_no_file_that_fits(
    how: Callable[[Path, Any], None], case: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images / "red" / "0.png"
    assert seen_by(case) == "onnx"
    (before,) = open_index(case).search(image, k=5)
    how(case, monkeypatch)
    assert seen_by(case) == "torch"
    (after,) = open_index(case).search(image, k=5)
    assert [one["path"] for one in after["neighbors"]] == [one["path"] for one in before["neighbors"]]
    scores = [[one["score"] for one in found["neighbors"]] for found in (before, after)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_an_encoder_that_was_trained_on_is_not_seen_by(case: Path, images: Path) -> None:
    encoder = load_encoder(case)
    with torch.no_grad():
        next(encoder.net.parameters()).mul_(1.5)
    export_encoder(encoder, case, {"method": "simclr"})
    with pytest.raises(UserError, match=r"holds another encoder than .* is searched by: `rayssl index"):
        open_index(case).search(images / "red" / "0.png", k=1)
    assert [one.told for one in verify(case) if one.path == own(case) and one.unfinished]
    assert faults(case) == {}


def test_damage_is_one_line_and_made_again_by_the_command_that_it_names(case: Path, images: Path) -> None:
    content = own(case).read_bytes()
    own(case).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"queries\.onnx is damaged \(its sha256 .* `rayssl index {case}` writes it"):
        open_index(case).search(images / "red" / "0.png", k=1)
    assert FILE in faults(case)
    assert [(one.verb, one.folder) for one in repairs_of(case, [FILE, f"search/{OTHERS}/{FILE}"])] == [("index", case)]
    before = (case / "search.json").stat().st_mtime_ns
    search_anew(case, quiet(), asked=False)  # which has nothing to do
    assert "by ONNX Runtime" in told(case)[0]
    assert (case / "search.json").stat().st_mtime_ns == before
    assert own(case).read_bytes() == content
    assert faults(case) == {}


def test_what_is_there_is_left_alone(case: Path) -> None:
    before = own(case).stat().st_mtime_ns
    assert told(case) == []
    assert own(case).stat().st_mtime_ns == before


def test_files_of_an_earlier_choice_go(case: Path) -> None:
    save(override(load(case / "config.json"), {"search.vectors": OTHERS, "search.whiten": False}), case / "config.json")
    run_worker_stages(case, ["search"], Silent())
    run_index(case)
    assert len(told(case)) == 1
    assert not own(case).exists()
    assert (case / "search" / OTHERS / FILE).exists()
    assert seen_by(case) == "onnx"
    assert faults(case) == {}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("LARGEST_DIFFERENCE", 0.0, r"vectors are .* off, more than 0e\+00"),
        ("pooled_graph", lambda *_: (_ for _ in ()).throw(stage.NoGraphError("no operator")), "no operator"),
    ],
)
def test_what_is_not_exact_or_cannot_be_written_is_told_once_and_not_kept(
    name: str, value: object, reason: str, case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(case).unlink()  # or it would be left as it is
    with monkeypatch.context() as patch:
        patch.setattr(stage, name, value)
        (line,) = told(case)
    assert line.startswith("queries: by torch (")
    assert re.search(reason, line)
    assert not list(case.glob("**/queries.*"))
    assert told(case) == []  # and is not tried again
    assert seen_by(case) == "torch"
    assert faults(case) == {}


def test_images_that_are_gone_are_told_and_the_next_time_it_is_tried_again(case: Path, images: Path) -> None:
    own(case).unlink()
    config = load(case / "config.json")
    save(replace(config, data=replace(config.data, path="/nowhere")), case / "config.json")
    (line,) = told(case)
    assert line.startswith("queries: by torch (")
    save(config, case / "config.json")
    assert "by ONNX Runtime" in told(case)[0]


def test_weights_that_were_not_copied_have_no_file(case: Path) -> None:
    search = searched_by(case)
    elsewhere = replace(
        search, origins=tuple(replace(one, encoder=None) if one.kind == "network" else one for one in search.origins)
    )
    assert onnx_networks(case, elsewhere, 3) is None
