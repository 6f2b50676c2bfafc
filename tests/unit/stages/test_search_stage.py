"""The stage that chooses what a run is searched by, on a tiny run, and everything that follows the choice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_run import prepare_run, quiet

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.config import override
from rayssl.pipeline.evaluation.measure import read_evaluation
from rayssl.pipeline.launch.embed import embed_run, search_anew
from rayssl.pipeline.models.encoder import Encoder, build_encoder, describe
from rayssl.pipeline.models.export import export_encoder, load_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.run.folder import read_manifest
from rayssl.pipeline.run.images import open_data
from rayssl.pipeline.search.apply import searched_by
from rayssl.pipeline.search.described import searched_splits
from rayssl.pipeline.search.index import load_index
from rayssl.pipeline.search.networks import load_networks
from rayssl.pipeline.search.queries import images_of, squares_of
from rayssl.pipeline.search.query import open_index, query
from rayssl.pipeline.search.store import has_search, read_candidates, read_search, search_hash
from rayssl.pipeline.stages.evaluate import run_evaluate
from rayssl.pipeline.stages.index import run_index
from rayssl.pipeline.stages.search_networks import Given, frozen_one
from rayssl.pipeline.stages.start import Prepared
from rayssl.pipeline.stages.story import run_worker_stages
from rayssl.pipeline.verify import verify


def changed(run: Path, **changes: object) -> None:
    """Other settings of the search, and the stages that follow."""
    config = override(
        configuration.load(run / "config.json"), {key.replace("__", "."): value for key, value in changes.items()}
    )
    configuration.save(config, run / "config.json")
    run_worker_stages(run, ["search"], Silent())
    run_index(run)
    run_evaluate(run)


def faults(run: Path) -> list[str]:
    return [found.fault for found in verify(run) if found.fault is not None]


def test_everything_at_hand_is_compared(finished: Path) -> None:
    candidates = read_candidates(finished)
    sources = {one.source for one in candidates if "+" not in one.source}
    assert sources == {"color-histogram", "hog", "pixels", "untrained", "simclr"}
    assert len(candidates) <= 60
    names = [one.name for one in candidates]
    assert len(set(names)) == len(names)
    assert {"simclr:last", "simclr:last whitened", "simclr:layer2:2x2", "hog whitened"} <= set(names)
    assert len({one.source for one in candidates if "+" in one.source}) == 6
    assert all(one.score == one.correct.mean() for one in candidates)


def test_the_choice_is_found_again_in_index_evaluation_and_query(finished: Path) -> None:
    search = read_search(finished)
    name = read_manifest(finished)["data"]["name"]
    index, manifest = load_index(finished / "index" / name)
    assert manifest["encoder_hash"] == search.hash != encoder_hash(finished)
    splits = searched_splits(finished, name)
    assert splits["train"].vectors.shape[1] == search.dim == index.d
    flat = read_evaluation(finished)["flat"]
    assert {"search/knn/top1", "search/retrieval/map@r", f"choice/{search.vectors.label}"} <= set(flat)
    records = [record for record in read_evaluation(finished)["records"] if record["metric"].startswith("choice/")]
    assert {record["split"] for record in records} == {"val"}
    assert faults(finished) == []


def test_a_query_sees_an_image_as_the_embeddings_do(finished: Path, images: Path) -> None:
    name = read_manifest(finished)["data"]["name"]
    splits = searched_splits(finished, name)
    test = splits["test"]
    paths = [str(Path(test.data_path) / path) for path in test.paths[:4]]
    found = open_index(finished).encode(squares_of(images_of(paths), 3))
    np.testing.assert_allclose(found, test.vectors[:4], rtol=0, atol=1e-5)
    (answer,) = query(finished, [paths[0]], k=3)
    every = np.concatenate([split.vectors for split in splits.values()])
    others = [path for split in splits.values() for path in split.paths]
    cosines = every @ test.vectors[0]
    cosines[others.index(test.paths[0])] = -2
    assert answer["neighbors"][0]["path"] == others[int(cosines.argmax())]
    assert answer["neighbors"][0]["score"] == pytest.approx(float(cosines.max()), abs=1e-5)


@pytest.mark.parametrize("stages", [["embed"], ["probe", "embed"]])
def test_what_a_run_in_bf16_stores_is_what_a_query_computes(
    prepared: Callable[..., Prepared], stages: list[str]
) -> None:
    """Also where the probe has computed the features of all stages before."""
    run = prepared("bf16", changes={"train.precision": "bf16"}).run
    run_worker_stages(run, ["pretrain", *stages], Silent())
    run_index(run)
    opened, stored = open_index(run), searched_splits(run, "colours")["test"]
    asked = images_of([str(Path(stored.data_path) / path) for path in stored.paths])
    found = opened.encode(squares_of(asked, 3))
    np.testing.assert_allclose(found, normalise(stored.vectors), rtol=0, atol=1e-5)


@pytest.mark.parametrize("asked", ["hog", "simclr:layer2:2x2", "hog+simclr:layer1", "color-histogram+pixels+hog"])
def test_named_vectors_are_searched(finished_copy: Path, asked: str) -> None:
    changed(finished_copy, search__vectors=asked, search__whiten=False)
    assert read_search(finished_copy).vectors.label in (asked, f"{asked}:avg")
    assert faults(finished_copy) == []
    name = read_manifest(finished_copy)["data"]["name"]
    path = Path(searched_splits(finished_copy, name)["test"].data_path) / "red" / "0.png"
    assert len(query(finished_copy, [path], k=2)[0]["neighbors"]) == 2


def test_the_last_stage_undoes_the_choice_and_leaves_nothing_behind(finished_copy: Path) -> None:
    changed(finished_copy, search__vectors="last")
    name = read_manifest(finished_copy)["data"]["name"]
    assert not has_search(finished_copy)
    assert not list(finished_copy.glob("**/search*"))
    assert load_index(finished_copy / "index" / name)[1]["encoder_hash"] == encoder_hash(finished_copy)
    assert not [
        metric for metric in read_evaluation(finished_copy)["flat"] if metric.startswith(("search/", "choice/"))
    ]
    assert faults(finished_copy) == []


def test_whitening_of_the_last_stage_can_be_asked_for(finished_copy: Path) -> None:
    changed(finished_copy, search__vectors="last", search__whiten=True)
    assert read_search(finished_copy).vectors.label == "simclr:last whitened"
    flat = read_evaluation(finished_copy)["flat"]
    assert flat["search/knn/top1"] == pytest.approx(flat["knn-whitened/top1"], abs=1e-6)


def test_a_narrower_vector_can_be_asked_for(finished_copy: Path) -> None:
    changed(finished_copy, search__vectors="hog", search__dim=8)
    assert read_search(finished_copy).dim == 8


@pytest.mark.parametrize("asked", ["nothing", "simclr:layer9", "hog:layer1", "simclr:layer1:3x3", "hog+nothing"])
def test_what_there_is_not_is_refused_and_named(finished_copy: Path, asked: str) -> None:
    with pytest.raises(UserError, match=r"--search.vectors .* there are auto, last, color-histogram"):
        changed(finished_copy, search__vectors=asked)
    assert has_search(finished_copy)


@pytest.mark.parametrize("asked", ["nothing", "simclr:layer9", "hog:layer1", "hog+nothing", "hog+"])
def test_what_there_will_not_be_is_refused_before_training(tmp_path: Path, asked: str) -> None:
    with pytest.raises(UserError, match=r"--search.vectors .* there are auto, last, color-histogram"):
        prepare_run(tmp_path / "run", search__vectors=asked)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("asked", ["hog+simclr:layer1:2x2", "simclr", "untrained", "pixels"])
def test_what_there_will_be_is_not_refused(tmp_path: Path, asked: str) -> None:
    prepare_run(tmp_path / "run", search__vectors=asked)


def test_stages_of_pretrained_networks_are_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_encoder(build_encoder("cnn-small", channels=1, image_size=16), tmp_path / "weights")
    found = Given("cnn-small", str(tmp_path / "weights"))
    monkeypatch.setattr("rayssl.pipeline.stages.search_names.available", lambda: [found])
    for asked in ("cnn-small", "cnn-small:last"):
        prepare_run(tmp_path / f"run-{len(asked)}", search__vectors=asked)
    with pytest.raises(UserError, match=r"--search.vectors cnn-small:layer7 .* there are auto, last, cnn-small:"):
        prepare_run(tmp_path / "run", search__vectors="cnn-small:layer7")
    assert not (tmp_path / "run").exists()


def test_a_second_folder_is_searched_by_the_same_function(finished_copy: Path, tmp_path: Path, images: Path) -> None:
    import shutil

    changed(finished_copy, search__vectors="hog+simclr:layer1:2x2")
    shutil.copytree(images, tmp_path / "others")
    embed_run(finished_copy, str(tmp_path / "others"), quiet())
    run_index(finished_copy)
    first, second = (searched_splits(finished_copy, name) for name in (images.name, "others"))
    own = {path: row for split in first.values() for path, row in zip(split.paths, split.vectors, strict=True)}
    for split in second.values():
        np.testing.assert_allclose(split.vectors, [own[path] for path in split.paths], atol=1e-5)
    assert load_index(finished_copy / "index" / "others")[1]["encoder_hash"] == search_hash(finished_copy)
    assert query(finished_copy, [images / "red" / "1.png"], k=1, data="others")[0]["neighbors"][0]["score"] > 0.999


def test_an_encoder_that_was_trained_on_is_chosen_anew(finished_copy: Path) -> None:
    changed(finished_copy, search__vectors="simclr:layer1")
    before, encoder = read_search(finished_copy), load_encoder(finished_copy)
    with torch.no_grad():
        next(encoder.net.parameters()).mul_(1.5)
    export_encoder(encoder, finished_copy, {"method": "simclr"})
    with pytest.raises(UserError, match="rayssl index"):
        query(
            finished_copy, [Path(open_data(configuration.load(finished_copy / "config.json")).path) / "red/0.png"], k=1
        )
    search_anew(finished_copy, quiet(), asked=False)
    assert read_search(finished_copy).hash != before.hash


def test_damage_is_found_and_told_in_a_line(finished_copy: Path) -> None:
    path = finished_copy / "search.json"
    values = json.loads(path.read_text())
    for change in ({"hash": "0" * 64}, {"parts": []}, {"dim": "x"}, {"schema": 9}, {"sha256": "0"}):
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(UserError, match="rayssl index"):
            read_search(finished_copy)
        assert faults(finished_copy)
    path.write_text(json.dumps(values))
    outside = json.loads(json.dumps(values))
    outside["parts"][0]["origin"].update(kind="network", encoder="../elsewhere", hash="0" * 64)
    path.write_text(json.dumps(outside))
    with pytest.raises(UserError):
        load_networks(finished_copy, searched_by(finished_copy), 3)


def test_without_labels_the_choice_is_a_guess_and_said(
    prepared: Callable[..., Prepared], tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(images.glob("*/*.png"))):
        (flat / f"{i}.png").write_bytes(path.read_bytes())
    run = prepared("unlabelled", changes={"data.path": str(flat)}).run
    said: list[str] = []

    class Says(Silent):
        def message(self, text: str) -> None:
            said.append(text)

    run_worker_stages(run, ["pretrain", "embed", "search"], Says())
    run_index(run)
    run_evaluate(run)
    search = read_search(run)
    assert search.vectors.sources == ("color-histogram", "hog", "simclr")
    assert search.facts["guess"] is True
    assert 0 < search.facts["score"] == read_candidates(run)[0].score  # of the three together, like all others
    assert any("a guess" in text and "Label 200 images" in text for text in said)
    assert len(query(run, [flat / "0.png"], k=2)[0]["neighbors"]) == 2
    assert faults(run) == []
    changed(run, search__vectors="hog", search__whiten="false")
    assert read_search(run).facts["told"] == "hog, as asked"  # nothing measures it
    export_encoder(build_encoder("cnn-small", channels=3, image_size=16), tmp_path / "weights")
    given = Given("cnn-small", str(tmp_path / "weights"))
    monkeypatch.setattr("rayssl.pipeline.stages.search_networks.available", lambda: [given])
    changed(run, search__vectors="auto", search__whiten="auto")
    beside, own = read_search(run).vectors.parts
    assert (beside.seen.name, own.seen.source) == ("cnn-small:last", "simclr")
    assert own.seen.name.endswith(":gem")
    assert beside.whitened
    assert own.whitened


def test_a_pretrained_network_on_the_machine_takes_part(
    finished_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    export_encoder(build_encoder("cnn-small", channels=3, image_size=16), tmp_path / "weights")
    given = type("Found", (), {"name": "cnn-small", "weights": str(tmp_path / "weights")})()
    monkeypatch.setattr("rayssl.pipeline.stages.search_networks.available", lambda: [given])
    changed(finished_copy, search__vectors="cnn-small")
    copied, own = (
        load_encoder(place).state_dict() for place in (finished_copy / "search/cnn-small", tmp_path / "weights")
    )
    assert all(torch.equal(copied[key], own[key]) for key in own)
    path = Path(open_data(configuration.load(finished_copy / "config.json")).path) / "red/0.png"
    before = query(finished_copy, [path], k=3)
    assert faults(finished_copy) == []
    changed(finished_copy, search__copy_weights=False)
    assert not (finished_copy / "search" / "cnn-small").exists()
    assert query(finished_copy, [path], k=3) == before
    export_encoder(build_encoder("cnn-small", channels=3, image_size=16), tmp_path / "weights")
    with pytest.raises(UserError, match="bring them back"):
        query(finished_copy, [path], k=3)


def test_few_labelled_validation_images_become_more(prepared: Callable[..., Prepared]) -> None:
    given = prepared("given").dataset
    assert len(given.val) == 5  # a tenth: nothing was left open
    from rayssl.pipeline.run.resolve import with_validation

    config = replace(prepared("open").config, plan=("data.val_fraction",))
    assert with_validation(config, given).data.val_fraction == 0.2
    assert with_validation(config, replace(given, own_val=True)).data.val_fraction == config.data.val_fraction
    assert with_validation(replace(config, plan=()), given) is not None


def test_a_network_that_would_take_too_long_sees_smaller_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def build(given: Given, *, channels: int, image_side: int, enlarged: int) -> Encoder:
        asked.append(enlarged)
        return build_encoder("cnn-small", channels=channels, image_size=enlarged * image_side)

    flops = {times: describe(build_encoder("cnn-small", channels=3, image_size=8 * times))["flops"] for times in (4, 7)}
    monkeypatch.setattr("rayssl.pipeline.stages.search_networks.pretrained_encoder", build)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    said: list[str] = []
    images = SimpleNamespace(train=range(6), val=range(2), test=range(2), channels=3, image_size=8)
    work: Any = SimpleNamespace(
        dataset=images, device=torch.device("cpu"), reporter=SimpleNamespace(message=said.append)
    )

    def size_within(most: float) -> int | None:
        monkeypatch.setattr("rayssl.pipeline.stages.search_networks.FROZEN_FLOPS", most)
        found = frozen_one(Given("cnn-small", "weights"), work)
        return found.image_size if found is not None else None

    assert size_within(10 * flops[7]) == 56
    assert size_within(10 * flops[7] - 1) == 32
    assert not said
    assert size_within(10 * flops[4] - 1) is None
    assert "10 images would take it too long" in said[0]
    assert asked == [7, 7, 4, 7, 4]
