"""Queries from end to end on a small folder of images."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.seals import files_of
from rayssl.pipeline.data import Dataset, Images, open_dataset
from rayssl.pipeline.data.decode import read_header
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.export import export_encoder, load_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.folder import update_manifest
from rayssl.pipeline.search.embeddings import Embeddings, load_embeddings, save_embeddings
from rayssl.pipeline.search.exclusion import own_keys, own_keys_of_address
from rayssl.pipeline.search.gallery import UNREAD, picture_format, save_gallery, save_run_gallery
from rayssl.pipeline.search.index import build_index, save_index
from rayssl.pipeline.search.queries import images_of
from rayssl.pipeline.search.query import open_index, query
from rayssl.pipeline.stages.start import data_facts

SIZE = 16
ROOT = Path(__file__).resolve().parents[3]
MOST_FRAMES = 6  # of ours, from the command line on
COLOUR = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Case:
    run: Path
    folder: Path
    dataset: Dataset


def draw_images(folder: Path) -> None:
    """24 photographs-like PNGs of two classes, larger than the encoder's input; cat/3.png is a copy of cat/2.png."""
    rng = np.random.default_rng(0)
    for i in range(24):
        coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        path = folder / ("cat" if i < 12 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((48, 36), Image.Resampling.BICUBIC).save(path)
    shutil.copy(folder / "cat" / "2.png", folder / "cat" / "3.png")


def embed(encoder: Encoder, dataset: Dataset, images: Images, split: str, run: Path) -> Embeddings:
    pixels = torch.from_numpy(images.square(np.arange(len(images)), SIZE)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        vectors = encoder(pixels.float() / 255).numpy()
    return Embeddings(
        ids=images.ids,
        paths=images.paths,
        labels=images.labels,
        vectors=vectors,
        class_names=dataset.class_names,
        encoder_hash=encoder_hash(run),
        data_fingerprint=dataset.fingerprint,
        split=split,
        data=dataset.name,
        data_path=dataset.path,
    )


def build(folder: Path, run: Path) -> Case:
    """A run folder as the stages leave it: train and test embedded, both in the index."""
    dataset = open_dataset(str(folder), image_size=SIZE, loader="stream")
    torch.manual_seed(0)
    export_encoder(build_encoder("cnn-small", channels=3, image_size=SIZE), run)
    encoder = load_encoder(run)
    assert dataset.test is not None
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    splits = [embed(encoder, dataset, images, name, run) for name, images in parts.items()]
    for split in splits:
        save_embeddings(split, run / "embeddings" / dataset.name / f"{split.split}.parquet")
    update_manifest(run, {"data": data_facts(dataset)})
    vectors, ids = np.concatenate([s.vectors for s in splits]), np.concatenate([s.ids for s in splits])
    save_index(
        build_index(vectors, ids),
        run / "index" / dataset.name,
        encoder_hash=encoder_hash(run),
        data_fingerprint=dataset.fingerprint,
        factory="auto",
        recall=1.0,
        dim=vectors.shape[1],
        count=len(ids),
    )
    return Case(run, folder, dataset)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Case:
    base = tmp_path_factory.mktemp("query")
    draw_images(base / "pets")
    return build(base / "pets", base / "run")


@pytest.fixture
def case(built: Case, tmp_path: Path) -> Case:
    """A run folder of one's own to damage."""
    shutil.copytree(built.run, tmp_path / "run")
    return replace(built, run=tmp_path / "run")


def paths_of(result: dict[str, object]) -> list[str]:
    return [neighbor["path"] for neighbor in result["neighbors"]]  # type: ignore[attr-defined]


def test_an_indexed_image_finds_its_copy_and_not_itself(built: Case) -> None:
    images = [str(built.folder / "cat" / "2.png"), str(built.folder / "cat" / "3.png")]
    for result, copy, own in zip(query(built.run, images, 5), ("cat/3.png", "cat/2.png"), ("cat/2.png", "cat/3.png")):
        assert paths_of(result)[0] == copy
        assert own not in paths_of(result)
        assert result["neighbors"][0]["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["cat/0.png", "cat/7.png", "dog/12.png", "dog/23.png"])
def test_every_split_is_searched_and_the_image_itself_left_out(built: Case, name: str) -> None:
    [result] = query(built.run, [str(built.folder / name)], 23)
    everything = {path.relative_to(built.folder).as_posix() for path in built.folder.glob("*/*.png")}
    assert set(paths_of(result)) == everything - {name}


def test_an_image_from_elsewhere_finds_the_same_content(built: Case, tmp_path: Path) -> None:
    copy = tmp_path / "dog" / "20.png"
    copy.parent.mkdir()
    shutil.copy(built.folder / "dog" / "20.png", copy)
    [result] = query(built.run, [str(copy)], 24)
    assert paths_of(result)[0] == "dog/20.png"
    assert result["neighbors"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_itself_by_another_spelling(built: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(built.folder)
    (tmp_path / "linked.png").symlink_to(built.folder / "dog" / "20.png")
    monkeypatch.chdir(built.folder / "cat")
    spellings = ["../dog/20.png", str(tmp_path / "link" / "dog" / "20.png"), str(tmp_path / "linked.png")]
    for result in query(built.run, spellings, 5):
        assert "dog/20.png" not in paths_of(result)


def test_answer_has_the_documented_form(built: Case) -> None:
    image = str(built.folder / "cat" / "1.png")
    [result] = json.loads(json.dumps(query(built.run, [image], 4)))
    assert list(result) == ["query", "neighbors"]
    assert result["query"] == image
    assert [neighbor["rank"] for neighbor in result["neighbors"]] == [1, 2, 3, 4]
    scores = [neighbor["score"] for neighbor in result["neighbors"]]
    assert scores == sorted(scores, reverse=True)
    for neighbor in result["neighbors"]:
        assert list(neighbor) == ["rank", "id", "id_str", "path", "label", "score"]
        assert int(neighbor["id_str"]) == neighbor["id"]
        assert neighbor["label"] == neighbor["path"].split("/")[0]


@pytest.mark.parametrize("class_names", [("cat", "dog"), None])
def test_labels_that_are_missing_or_have_no_name(case: Case, class_names: tuple[str, ...] | None) -> None:
    for path in (case.run / "embeddings" / case.dataset.name).glob("*.parquet"):
        split = load_embeddings(path)
        assert split.labels is not None
        labels = np.where(split.labels == 0, 0, -1)
        save_embeddings(replace(split, labels=labels, class_names=class_names), path)
    [result] = query(case.run, [str(case.folder / "cat" / "1.png")], 23)
    first = 0 if class_names is None else "cat"
    for neighbor in result["neighbors"]:
        assert neighbor["label"] == (first if neighbor["path"].startswith("cat") else None)


def test_bad_queries(built: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image to look for"):
        query(built.run, [], 3)
    (tmp_path / "text.png").write_text("no image")
    good = str(built.folder / "cat" / "1.png")
    missing, text = str(tmp_path / "missing.png"), str(tmp_path / "text.png")
    with pytest.raises(UserError, match=r"missing.png does not exist"):
        query(built.run, missing, 3)
    with pytest.raises(UserError, match=r"text.png cannot be read.* \(and so for 1 more: none can be read\)"):
        query(built.run, [text, missing], 3)
    with pytest.raises(UserError, match="k is 25: the index holds 24 vectors"):
        query(built.run, [good], 25)
    with pytest.raises(UserError, match="k is 24: the index holds only 23 vectors besides the image itself"):
        query(built.run, [good], 24)


def test_one_broken_image_does_not_reject_the_others(built: Case, tmp_path: Path) -> None:
    good, missing = str(built.folder / "cat" / "1.png"), str(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no image")
    asked = [missing, good, str(tmp_path / "text.png")]
    results = query(built.run, asked, 3)
    assert [result["query"] for result in results] == asked
    assert ["error" in result for result in results] == [True, False, True]
    assert "missing.png does not exist" in results[0]["error"]
    assert results[0]["neighbors"] == results[2]["neighbors"] == []
    [alone] = query(built.run, good, 3)
    assert paths_of(results[1]) == paths_of(alone)
    scores = [[neighbor["score"] for neighbor in one["neighbors"]] for one in (results[1], alone)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_one_image_in_any_form(built: Case) -> None:
    path = built.folder / "dog" / "20.png"
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
        named = [path, str(path), path.as_uri(), picture]
        assert all("dog/20.png" not in paths_of(query(built.run, one)[0]) for one in named)
        forms = [path.read_bytes(), pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1)]
        for form in forms:
            (result,) = query(built.run, form, 3)
            assert paths_of(result)[0] == "dog/20.png"  # it is not known to be in the index
            assert result["neighbors"][0]["score"] == pytest.approx(1, abs=1e-5)
            assert result["query"] == "image 1"
    assert len(query(built.run, built.folder / "dog", 3)) == 12


def test_values_are_read_by_the_range_of_the_run(case: Case) -> None:
    config = configuration.override(build_recipe("simclr-folder"), {"data.range": "-1000,1000"})
    configuration.save(config, case.run / "config.json")
    pixels = np.asarray(Image.open(case.folder / "cat" / "0.png"))
    bytes_, values = query(case.run, [pixels, pixels * (2000 / 255) - 1000], 5)
    assert values["neighbors"] == bytes_["neighbors"]
    assert values["neighbors"][0]["score"] > 0.999  # it is in the index


@pytest.mark.parametrize("name", ["nosuch", "../pets", "pet"])
def test_another_data_set_that_is_not_there_names_what_is(name: str, built: Case) -> None:
    with pytest.raises(
        UserError, match=r"--data .*: .* has no index of that name.*; there is pets \(.*then rayssl index"
    ):
        query(built.run, built.folder / "cat" / "1.png", 3, name)
    assert query(built.run, built.folder / "cat" / "1.png", 3, "pets")


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP"), ("", "PNG")])
def test_a_gallery_is_written_in_the_format_of_its_suffix(suffix: str, kind: str, built: Case, tmp_path: Path) -> None:
    path = tmp_path / f"gallery{suffix}"
    asked = images_of([COLOUR, b"broken"])
    results = open_index(built.run).search(asked, k=2)
    save_gallery(results, lambda wanted: COLOUR, path, asked)
    with Image.open(path) as picture:
        assert picture.format == kind
    assert read_header(path).own
    with pytest.raises(UserError, match=r"--save .*x\.exe: pictures are written as \.png, \.jpg"):
        save_gallery(results, lambda wanted: COLOUR, tmp_path / "x.exe", asked)
    with pytest.raises(UserError, match="301 queries are too many"):
        picture_format(path, 301)


def test_an_image_of_a_store_does_not_find_itself() -> None:
    assert own_keys_of_address("s3://bucket/photos/cat/1.png", "s3://bucket/photos") == {"cat/1.png"}
    assert own_keys_of_address("s3://bucket/other/1.png", "s3://bucket/photos") == set()
    assert own_keys("", Path("/photos")) == set()


def test_pieces_that_are_missing_or_do_not_match(case: Case) -> None:
    image = str(case.folder / "cat" / "1.png")
    torch.manual_seed(1)
    export_encoder(build_encoder("cnn-small", channels=3, image_size=SIZE), case.run)
    with pytest.raises(UserError, match="the index was built with encoder"):
        query(case.run, [image], 3)
    shutil.rmtree(case.run / "embeddings")
    with pytest.raises(UserError, match="holds no embeddings: `rayssl embed"):
        query(case.run, [image], 3)
    shutil.rmtree(case.run / "index")
    with pytest.raises(UserError, match=r"`rayssl index .*` writes it"):
        query(case.run, [image], 3)


def test_gallery_shows_each_query_and_its_neighbours(built: Case, tmp_path: Path) -> None:
    images = [str(built.folder / "cat" / "2.png"), str(built.folder / "dog" / "20.png")]
    results = query(built.run, images, 3)
    results[1]["neighbors"][0]["label"] = "$price_{"  # no formula
    asked = []

    def lookup(wanted: int) -> np.ndarray:  # type: ignore[type-arg]
        asked.append(wanted)
        return np.full((20, 30, 1 if len(asked) % 2 else 3), 128, dtype=np.uint8)

    save_gallery(results, lookup, tmp_path / "deep" / "gallery.png")
    assert asked == [neighbor["id"] for result in results for neighbor in result["neighbors"]]
    with Image.open(tmp_path / "deep" / "gallery.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 4 * 100
        assert picture.height > 2 * 100
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["gallery.png"]


def test_a_gallery_has_a_grey_square_for_an_image_that_is_gone(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "pets"
    shutil.copytree(case.folder, images)
    config = configuration.override(build_recipe("simclr-folder"), {"data.path": str(images), "data.image-size": SIZE})
    configuration.save(config, case.run / "config.json")
    results = query(case.run, [str(images / "cat" / "2.png")], 4)
    gone = paths_of(results[0])[2]
    (images / gone).unlink()
    shown = []
    monkeypatch.setattr("rayssl.pipeline.search.gallery._show", lambda cell, image, caption: shown.append(image))
    save_run_gallery(case.run, results, tmp_path / "gallery.png")
    assert [image is UNREAD for image in shown] == [False, False, False, True, False]
    assert (tmp_path / "gallery.png").exists()


def test_a_query_imports_only_what_it_needs(built: Case) -> None:
    program = (
        "import sys; from pathlib import Path; from rayssl.pipeline.search.query import query;"
        "query(Path(sys.argv[1]), [sys.argv[2]], 3);"
        "print([name for name in ('ray', 'torchvision', 'sklearn', 'albumentations', 'matplotlib', 'scipy', 'wandb')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(built.run), str(built.folder / "cat" / "1.png")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_gallery_is_no_file_of_the_run(case: Case, tmp_path: Path) -> None:
    results = query(case.run, case.folder / "cat" / "1.png", k=2)
    picture = case.run / "mine.png"
    save_gallery(results, lambda wanted: COLOUR, picture)
    assert picture.exists()
    noted = files_of(case.run / "manifest.json")
    assert "index/pets/index.faiss" in noted
    assert picture.name not in noted


def test_an_open_index_answers_images_and_vectors(built: Case) -> None:
    opened = open_index(built.run)
    image = built.folder / "dog" / "20.png"
    assert opened.search(image, k=4) == opened.search([image], k=4) == query(built.run, image, 4)
    (itself, *_) = opened.search(image, k=4, exclude_self=False)[0]["neighbors"]
    assert (itself["path"], itself["label"]) == ("dog/20.png", "dog")
    stored = load_embeddings(built.run / "embeddings" / "pets" / "train.parquet")
    found = opened.search(vectors=stored.vectors[:3], k=2)
    assert [one["query"] for one in found] == ["vector 1", "vector 2", "vector 3"]
    for one, path in zip(found, stored.paths):
        scores = {neighbor["path"]: neighbor["score"] for neighbor in one["neighbors"]}
        assert scores[path] == pytest.approx(1, abs=1e-5)
    assert opened.search(vectors=stored.vectors[0], k=2) == found[:1]
    assert (len(opened), opened.dim) == (24, stored.vectors.shape[1])


def test_vectors_that_cannot_be_searched_are_one_line(built: Case) -> None:
    opened = open_index(built.run)
    with pytest.raises(UserError, match=r"shape \(1, 3\): the index holds vectors of \d+ dimensions"):
        opened.search(vectors=[1, 2, 3])
    with pytest.raises(UserError, match="NaN or infinity"):
        opened.search(vectors=np.full(opened.dim, np.nan))
    with pytest.raises(UserError, match="give one of them"):
        opened.search(built.folder, vectors=np.ones(opened.dim))
    with pytest.raises(UserError, match="a NoneType is not an image"):
        opened.search()


def test_an_encoder_that_was_replaced_since_the_index_was_opened_is_told(case: Case) -> None:
    opened = open_index(case.run)
    torch.manual_seed(1)
    export_encoder(build_encoder("cnn-small", channels=3, image_size=SIZE), case.run)
    with pytest.raises(UserError, match="another encoder since its index was opened: open it again"):
        opened.search(case.folder / "cat" / "1.png", k=3)
    assert opened.search(vectors=np.ones(opened.dim), k=3)[0]["neighbors"]


def test_no_stored_vector_is_read_and_vectors_are_searched_without_torch(built: Case) -> None:
    program = (
        "import sys, numpy as np, rayssl\n"
        "from rayssl.pipeline.search import embeddings\n"
        "read, columns = embeddings.read_bounded, []\n"
        "def spied(file, path, names, most):\n"
        "    columns.append(list(names))\n"
        "    return read(file, path, names, most)\n"
        "embeddings.read_bounded = spied\n"
        "opened = rayssl.open_index(sys.argv[1])\n"
        "opened.search(vectors=np.ones(opened.dim), k=3)\n"
        "print(columns, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(built.run)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{[['id', 'path', 'label']] * 3} False"


def test_few_functions_stand_between_the_command_and_the_network_and_faiss(built: Case) -> None:
    frames = SourceFileLoader("frames", str(ROOT / "scripts" / "frames")).load_module()
    image = str(built.folder / "cat" / "1.png")
    found = frames.deepest(lambda: frames.run_command(["query", str(built.run), image, "-k", "3"]))
    assert found["network"][-1] == "search/networks:InThisProcess.__call__"
    assert len(found["network"]) <= MOST_FRAMES
    assert found["FAISS"][-1] == "search/live:LiveIndex.search"
    assert len(found["FAISS"]) <= MOST_FRAMES
