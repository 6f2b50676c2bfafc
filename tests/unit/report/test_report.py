"""The report over small made-up run folders: digits whose 'embeddings' are their pixels."""

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Links
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.report import figures, galleries, print_comparison, table, write_comparison, write_report
from rayssl.pipeline.report.results import Estimate, load_runs
from rayssl.pipeline.search.embeddings import Embeddings, save_embeddings

EVIL = "<script>alert('x')</script>.png"
SIZE, CLASSES, TRAIN, TEST = 8, 4, 60, 40


@dataclasses.dataclass(frozen=True)
class FakeImages:
    ids: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        return np.asarray(self.pixels[i])

    def square(self, indices: Any, size: int) -> NDArray[np.uint8]:
        assert size == SIZE
        return np.asarray(self.pixels[indices])


@dataclasses.dataclass(frozen=True)
class FakeDataset:
    train: FakeImages
    val: FakeImages
    test: FakeImages
    name: str = "digits"
    image_size: int = SIZE
    channels: int = 1
    class_names: tuple[str, ...] | None = ("a", "b", "$c_1$", "<d>")

    def known_as(self, fingerprint: str) -> "FakeDataset":
        return self


def fake_images(n: int, first_id: int) -> FakeImages:
    draw = np.random.default_rng(first_id)
    labels = np.arange(n) % CLASSES
    pixels = (draw.integers(0, 80, (n, SIZE, SIZE, 1)) + 40 * labels[:, None, None, None]).astype(np.uint8)
    return FakeImages(np.arange(first_id, first_id + n), pixels, labels)


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> FakeDataset:
    found = FakeDataset(fake_images(TRAIN, 1), fake_images(4, 1_000), fake_images(TEST, 2_000))
    monkeypatch.setattr("rayssl.pipeline.data.open_dataset", lambda path, **_: found, raising=False)
    monkeypatch.setattr("rayssl.pipeline.augment.view_from_dict", lambda values: values, raising=False)
    sheet = np.full((64, 128, 1), 200, np.uint8)
    monkeypatch.setattr("rayssl.pipeline.augment.gallery", lambda images, views, **_: sheet, raising=False)
    return found


def record(metric: str, value: float, half: float | None = 0.01, **more: Any) -> dict[str, Any]:
    interval = None if half is None else [value - half, value + half]
    known = {"protocol": "k = 20, T = 0.07", "data": "digits", "split": "test", "checkpoint": "last", "seed": 0}
    return {"metric": metric, "value": value, "n": TEST, "interval": interval, **known, **more}


LABELLED = [
    record("knn/top1", 0.98),
    record("probe/top1", 0.97),
    record("probe/layer1/top1", 0.9),
    record("probe/layer2/top1", 0.97),
    record("finetune@10%/top1", 0.93, 0.02),
    record("cluster/acc", 0.7, None),
    record("cluster/nmi", 0.6, None),
    record("health/std", 0.8, None),
    record("health/rankme", 31.4, None),
    record("baseline/raw-pixels/knn/top1", 0.975),
    record("baseline/raw-pixels/cluster/nmi", 0.65, None),
    record("baseline/random-init/knn/top1", 0.87),
    record("baseline/random-init/probe/layer1/top1", 0.8),
]
PLAIN = [record(f"baseline/{name}/knn/top1", value) for name, value in (("hog", 0.9), ("color-histogram", 0.3))]
PRETRAINED = [
    record(f"baseline/{name}/knn/top1", value)
    for name, value in (("pretrained-timm-vit_tiny", 0.99), ("pretrained", 0.95), ("pretrained-b0", 0.6))
]


def make_run(folder: Path, method: str = "simclr", records: list[dict[str, Any]] | None = None) -> Path:
    """A run folder with config, manifest and evaluation."""
    folder.mkdir(parents=True)
    data = {"path": "digits", "image_size": None, "channels": None, "limit": None, "val_fraction": 0.1}
    config = {
        "schema": 1,
        "recipe": f"{method}-digits",
        "method": {"name": method},
        "data": {**data, "labels": None, "loader": "auto", "processes": None},
        "augment": {"views": [{"kind": "spec", "operations": []}]},
        "encoder": {"name": "resnet-tiny", "weights": None},
        "train": {"seed": 3, "epochs": 10, "batch_size": 256},
    }
    manifest = {
        "schema": 1,
        "stages": {"pretrain": {"key": "k", "seconds": 21.5}},
        "data": {
            "name": "digits",
            "train": 60,
            "val": 4,
            "test": 40,
            "image_size": 8,
            "channels": 1,
            "fingerprint": "f" * 64,
            "classes": list("abcd"),
        },
        "commit": "abc123",
        "versions": {"torch": "2.15.0"},
        "command": f"rayssl run {method}-digits",
        "unreadable": [[EVIL, "cut off"]],
    }
    records = LABELLED if records is None else records
    flat = {entry["metric"]: entry["value"] for entry in records}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "evaluation.json").write_text(json.dumps({"schema": 1, "records": records, "flat": flat}))
    return folder


def add_embeddings(run: Path, dataset: FakeDataset, labelled: bool = True) -> None:
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        vectors = images.pixels.reshape(len(images), -1).astype(np.float32)
        paths = [EVIL if i == 0 else f"{split}/{i}.png" for i in range(len(images))]
        names = dataset.class_names if labelled else None
        labels = images.labels if labelled else None
        path = run / "embeddings" / "digits" / f"{split}.parquet"
        save_embeddings(Embeddings(images.ids, paths, labels, vectors, names, "hash", "print", split), path)


def add_curves(run: Path, steps: int = 700) -> None:
    rows = [
        {"stage": "pretrain", "step": i, "train/loss": 5 / (1 + i), "train/lr": 0.1, "perf/data_wait": 0.01}
        for i in range(steps)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def add_picture(run: Path) -> None:
    (run / "figures").mkdir()
    Image.fromarray(np.zeros((8, 24), np.uint8)).save(run / "figures" / "reconstructions.png")


@pytest.fixture
def full_run(tmp_path: Path, dataset: FakeDataset) -> Path:
    run = make_run(tmp_path / "simclr-digits")
    add_embeddings(run, dataset)
    add_curves(run)
    add_picture(run)
    return run


def render(runs: list[Path], out: Path) -> tuple[str, Links]:
    write_report(runs, out)
    text = out.read_text()
    return text, Links(text)


def test_a_full_report_shows_everything_and_needs_nothing_from_elsewhere(full_run: Path) -> None:
    text, links = render([full_run], full_run / "report.html")
    assert {"result", "comparison", "nearest-neighbours", "embedding-map", "training", "probe-by-stage"} <= set(
        links.sections
    )
    assert links.addresses
    assert all(address.startswith(("data:image/", "#")) for address in links.addresses)
    assert "url(http" not in text
    assert "@import" not in text
    assert {"script", "link", "iframe", "object"}.isdisjoint(links.tags)
    assert links.tags.count("svg") == 3  # map, loss, learning rate
    # 8 queries with 8 neighbours, the reconstructions and the augmentations
    assert links.tags.count("img") == 8 * 9 + 2
    assert "98.0 ± 1.0" in text
    assert "rayssl run simclr-digits" in text
    assert "abc123" in text


def test_untrusted_names_are_escaped(full_run: Path) -> None:
    text, links = render([full_run], full_run / "report.html")
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    assert "&lt;d&gt;" in text
    assert "d" not in links.tags


def test_links_of_the_contents_lead_to_sections(full_run: Path) -> None:
    text, links = render([full_run], full_run / "report.html")
    contents = re.findall(r'<a href="#([^"]+)"', text)
    assert contents == links.sections


def test_charts_take_the_page_ink(full_run: Path) -> None:
    text, _ = render([full_run], full_run / "report.html")
    assert "currentColor" in text
    assert figures.INK not in text


def test_a_bare_run_leaves_sections_out_with_a_word(tmp_path: Path, dataset: FakeDataset) -> None:
    run = make_run(tmp_path / "bare")
    (run / "evaluation.json").unlink()
    (run / "manifest.json").unlink()
    text, links = render([run], run / "report.html")
    assert "embedding-map" not in links.sections
    assert "Embedding map: no embeddings: `rayssl embed" in text
    assert "Training: no curves" in text
    assert "Nothing has been evaluated yet" in text
    assert "no labels" not in text


def test_unlabelled_data_gets_clusters_and_health(
    tmp_path: Path, dataset: FakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "rayssl.pipeline.base.vectors.kmeans", lambda vectors, k, seed: np.arange(len(vectors)) % k, raising=False
    )
    run = make_run(tmp_path / "photos", records=[record("health/std", 0.8, None), record("health/rankme", 31.4, None)])
    add_embeddings(run, dataset, labelled=False)
    text, links = render([run], run / "report.html")
    assert "embedding-map" in links.sections
    assert "cluster 10" in text
    assert "Without enough labels, accuracy cannot be measured" in text
    assert "comparison" not in links.sections
    assert "31.4" in text
    assert 'figure class="right"' not in text


def test_what_has_no_label_has_no_class_in_the_pictures(tmp_path: Path, dataset: FakeDataset) -> None:
    run = make_run(tmp_path / "partly")
    for images in (dataset.train, dataset.test):
        images.labels[images.labels != 0] = -1
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["data"]["labelled"] = 26
    (run / "manifest.json").write_text(json.dumps(manifest))
    add_embeddings(run, dataset)
    text, _ = render([run], run / "report.html")
    assert "no label</span>" in text
    assert "4, 26 of 104 images labelled" in text
    neighbours = text.partition('id="nearest-neighbours"')[2].partition("</section>")[0]
    assert ">a</figcaption>" in neighbours
    assert "&lt;d&gt;" not in neighbours  # what position −1 of the class names would be


def test_data_that_is_gone_costs_only_its_pictures(full_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: str, **_: Any) -> None:
        raise UserError("digits does not exist")

    monkeypatch.setattr("rayssl.pipeline.data.open_dataset", gone, raising=False)
    text, links = render([full_run], full_run / "report.html")
    assert "embedding-map" in links.sections
    assert "nearest-neighbours" not in links.sections
    assert "Nearest neighbours: digits does not exist" in text


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_collapsed_or_broken_embeddings_have_no_map(tmp_path: Path, dataset: FakeDataset, fill: float) -> None:
    run = make_run(tmp_path / "collapsed", records=[record("health/std", 0.01, None)])
    images = dataset.test
    vectors = np.full((TEST, 5), fill, np.float32)
    embeddings = Embeddings(images.ids, ["x"] * TEST, None, vectors, None, "hash", "print", "test")
    save_embeddings(embeddings, run / "embeddings" / "digits" / "test.parquet")
    text, _ = render([run], run / "report.html")
    assert "there is no map of them" in text
    assert "the codes have collapsed" in text


def test_codes_as_spread_as_those_of_a_random_encoder_are_no_collapse(tmp_path: Path, dataset: FakeDataset) -> None:
    records = [record("health/std", 0.05, None), record("baseline/random-init/health/std", 0.03, None)]
    run = make_run(tmp_path / "narrow", records=records)
    text, _ = render([run], run / "report.html")
    assert "collapsed (spread" not in text


def test_a_loss_that_does_not_fall_and_slow_data_are_warned_of(tmp_path: Path, dataset: FakeDataset) -> None:
    run = make_run(tmp_path / "stuck")
    rows = [{"stage": "pretrain", "step": i, "train/loss": 1.0, "perf/data_wait": 0.5} for i in range(20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, _ = render([run], run / "report.html")
    assert "the loss did not fall" in text
    assert "waited for data 50 % of the time" in text


def test_a_run_is_beside_the_baselines_of_its_own_images(tmp_path: Path) -> None:
    worse = [record("knn/top1", 0.5, n=100)]
    digits, other = make_run(tmp_path / "digits"), make_run(tmp_path / "other", records=worse)
    config = json.loads((other / "config.json").read_text())
    config["data"]["path"] = "/photos"
    (other / "config.json").write_text(json.dumps(config))
    told = printed([digits, other], width=200)
    assert "raw pixels" in told
    assert not [line for line in told.splitlines() if line.startswith("other") and "raw pixels" in line]
    assert "The test split of /photos has 100 images" in told


def test_every_seed_has_its_own_untrained_network(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / name) for name in ("first", "second"))
    config = json.loads((second / "config.json").read_text())
    config["train"]["seed"] = 4
    (second / "config.json").write_text(json.dumps(config))
    labels = [line.split("  ")[0].strip() for line in printed([first, second], width=200).splitlines()]
    assert {"random encoder (seed 3)", "random encoder (seed 4)", "raw pixels"} <= set(labels)
    assert "(seed" not in printed([first])
    told = table.headline(load_runs([first, second]))
    assert told.count("random encoder") == 1  # the best run's own


def test_baselines_have_plain_names_in_a_fixed_order(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", records=[*LABELLED, *PRETRAINED, *PLAIN])
    labels = [row.label for row in table.rows_of(load_runs([run]), [table.KNN])]
    named = ["pretrained resnet-tiny", "pretrained b0", "pretrained timm-vit_tiny"]
    assert labels == ["SimCLR", "raw pixels", "colour histogram", "HOG", "random encoder", *named]
    text = printed([run], width=80)
    assert "…" not in text
    assert [label for label in labels if label.split()[-1] not in text] == []
    values = write_comparison([run], tmp_path / "comparison.json")
    assert values["baselines"]["pretrained timm-vit_tiny"] == {"knn/top1": 0.99}


def test_one_row_stands_for_what_runs_have_in_common(tmp_path: Path) -> None:
    """Pretrained weights are the same for every seed and every network, but those of a run's own network."""
    runs = [make_run(tmp_path / name, records=[*LABELLED, *PRETRAINED, *PLAIN]) for name in ("first", "second")]
    config = json.loads((runs[1] / "config.json").read_text())
    config["train"]["seed"], config["encoder"]["name"] = 4, "resnet18"
    (runs[1] / "config.json").write_text(json.dumps(config))
    labels = [row.label for row in table.rows_of(load_runs(runs), [table.KNN]) if row.baseline]
    assert labels == [
        "raw pixels",
        "colour histogram",
        "HOG",
        "random encoder (resnet-tiny, seed 3)",
        "random encoder (resnet18, seed 4)",
        "pretrained resnet-tiny",
        "pretrained resnet18",
        "pretrained b0",
        "pretrained timm-vit_tiny",
    ]


def test_several_runs_share_one_report(tmp_path: Path, dataset: FakeDataset) -> None:
    runs = [make_run(tmp_path / name, name) for name in ("simclr", "rotnet", "autoencoder")]
    for run in runs[:2]:
        add_embeddings(run, dataset)
    add_picture(runs[2])
    text, links = render(runs, tmp_path / "report.html")
    assert "SimCLR, RotNet, Autoencoder on digits" in text
    assert "Autoencoder: no embeddings" in text
    assert links.tags.count("svg") == 2


def test_no_report_is_half_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json does not exist.*is not a run folder"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is damaged"), ('{"schema": 9}', "schema 9: this version reads schema 1"), ("[]", "no object")],
)
def test_a_damaged_evaluation_is_told(tmp_path: Path, content: str, words: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "evaluation.json").write_text(content)
    with pytest.raises(UserError, match=words):
        write_comparison([run], tmp_path / "comparison.json")


def test_comparison_json_round_trip(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name) for name in ("simclr", "rotnet")]
    values = write_comparison(runs, tmp_path / "comparison.json")
    assert json.loads((tmp_path / "comparison.json").read_text()) == values
    assert values["schema"] == 1
    assert [(run["name"], run["recipe"]) for run in values["runs"]] == [
        ("simclr", "simclr-digits"),
        ("rotnet", "rotnet-digits"),
    ]
    assert values["runs"][0]["flat"]["finetune@10%/top1"] == 0.93
    assert values["baselines"]["raw pixels"] == {"knn/top1": 0.975, "cluster/nmi": 0.65}


def printed(runs: list[Path], width: int = 100, colour: bool = False) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_terminal=colour, color_system="standard" if colour else None)
    print_comparison(runs, console)
    return buffer.getvalue()


def test_the_terminal_table_has_runs_then_baselines(tmp_path: Path) -> None:
    worse = [{**entry, "value": entry["value"] - 0.05, "interval": None} for entry in LABELLED[:7]]
    runs = [make_run(tmp_path / "a", "simclr"), make_run(tmp_path / "b", "rotnet", worse)]
    text = printed(runs)
    lines = [line.strip() for line in text.splitlines()]
    labels = ["SimCLR", "RotNet", "raw pixels", "random encoder"]
    rows = [next(line for line in lines if line.startswith(label)) for label in labels]
    assert [lines.index(row) for row in rows] == sorted(lines.index(row) for row in rows)
    assert rows[0].split("  ")[-1].strip() == "60.0"
    assert "98.0 ± 1.0" in rows[0]
    assert "93.0" in rows[1]
    assert "±" not in rows[1]
    assert rows[2].count("–") == 3
    assert "smoke test which raw pixels nearly solve (kNN 97.5 %)" in " ".join(lines)
    assert "rayssl run simclr-folder --data.path DIR" in " ".join(lines)


def test_the_table_fits_eighty_columns(tmp_path: Path) -> None:
    text = printed([make_run(tmp_path / "a")], width=80)
    assert "…" not in text
    assert "97.5 ± 1.0" in text
    assert "random encoder" in text


def test_no_figure_is_cut_where_names_are_long(tmp_path: Path) -> None:
    text = printed([make_run(tmp_path / ("summer-" * 9)), make_run(tmp_path / "others")], width=80)
    assert "…" not in text
    assert text.count("98.0 ± 1.0") == 2


def test_no_figure_is_lost_in_a_narrow_window(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a")]
    narrow, wide = (re.findall(r"\d+\.\d ± \d+\.\d", printed(runs, width=width)) for width in (40, 200))
    assert narrow == wide


def test_the_best_of_a_column_is_bold(tmp_path: Path) -> None:
    text = printed([make_run(tmp_path / "a")], colour=True)
    bold = re.findall(r"\x1b\[1m\s*([^\x1b]+?)\s*\x1b\[0m", text)
    assert "98.0 ± 1.0" in bold
    assert "65.0" in bold  # raw pixels' clusters are better than the run's
    assert "60.0" not in bold


def test_a_run_that_was_not_evaluated_says_so(tmp_path: Path) -> None:
    assert "rayssl evaluate RUN" in printed([make_run(tmp_path / "a", records=[])])


@pytest.mark.parametrize(
    ("estimate", "percent", "text"),
    [
        (Estimate(0.98765, 0.0114), True, "98.8 ± 1.1"),
        (Estimate(1.0), True, "100.0"),
        (Estimate(31.416), False, "31.4"),
        (Estimate(31.416, 0.123), False, "31.4 ± 0.12"),
        (None, True, "–"),
    ],
)
def test_figures_are_written_with_their_half_width(estimate: Estimate | None, percent: bool, text: str) -> None:
    assert table.format_estimate(estimate, percent) == text


def test_the_half_width_is_half_the_interval_also_where_it_is_lopsided(tmp_path: Path) -> None:
    records = [{**record("knn/top1", 0.98), "interval": [0.95, 0.99]}]
    (run,) = load_runs([make_run(tmp_path / "a", records=records)])
    estimate = run.estimate("knn/top1")
    assert estimate is not None
    assert estimate.half_width == pytest.approx(0.02)


def test_the_headline_tells_clear_from_unclear_differences(tmp_path: Path) -> None:
    (run,) = load_runs([make_run(tmp_path / "a")])
    assert table.headline([run]) == (
        "SimCLR reaches 98.0 ± 1.0 % kNN; raw pixels 97.5 ± 1.0 % (no clear difference); random encoder 87.0 ± 1.0 %."
    )


def test_baselines_that_win_are_named(tmp_path: Path) -> None:
    (run,) = load_runs([make_run(tmp_path / "a")])
    assert "SimCLR loses to raw pixels at k-means NMI." in table.remarks([run])
    assert not any("random encoder" in remark for remark in table.remarks([run]))


def test_who_wins_is_said_in_words(tmp_path: Path) -> None:
    winners = [{**entry, "value": 0.999, "interval": [0.998, 1.0]} for entry in [*PLAIN, *PRETRAINED]]
    (run,) = load_runs([make_run(tmp_path / "a", records=[record("knn/top1", 0.5), *winners])])
    names = ["a colour histogram", "HOG", "pretrained resnet-tiny", "pretrained b0", "pretrained timm-vit_tiny"]
    told = [remark for remark in table.remarks([run]) if "loses" in remark]
    assert told == [f"SimCLR loses to {name} at kNN." for name in names]


@pytest.mark.parametrize(("whitened", "told"), [(0.97, True), (0.91, False), (0.8, False)])
def test_a_clear_gain_by_whitening_is_told(whitened: float, told: bool, tmp_path: Path) -> None:
    records = [record("knn/top1", 0.9), record("knn-whitened/top1", whitened)]
    (run,) = load_runs([make_run(tmp_path / "a", records=records)])
    expected = f"SimCLR: kNN of whitened embeddings is {100 * whitened:.1f} ± 1.0 %"
    assert any(remark.startswith(expected) for remark in table.remarks([run])) is told


@pytest.mark.parametrize(("width", "name"), [(None, "resnet-tiny"), (1, "resnet-tiny"), (2, "resnet-tiny 2×")])
def test_a_wide_network_is_called_so(width: int | None, name: str, tmp_path: Path) -> None:
    (run,) = load_runs([make_run(tmp_path / "a")])
    run.config["encoder"] = {"name": "resnet-tiny", "width": width}
    assert run.network == name


def test_nobody_is_told_to_whiten_what_is_whitened(tmp_path: Path) -> None:
    records = [record("knn/top1", 0.9), record("knn-whitened/top1", 0.97)]
    (run,) = load_runs([make_run(tmp_path / "a", records=records)])
    assert any("--search.whiten true" in remark for remark in table.remarks([run]))
    run.manifest["stages"] = {"search": {"vectors": "simclr:last whitened"}}
    assert not any("--search.whiten" in remark for remark in table.remarks([run]))
    run.manifest["stages"] = {}
    run.config["index"] = {"whiten": True}
    assert not any("--search.whiten" in remark for remark in table.remarks([run]))


def test_the_test_split_is_called_small_with_its_size(tmp_path: Path) -> None:
    (run,) = load_runs([make_run(tmp_path / "a")])
    assert any("has 40 images" in remark for remark in table.remarks([run]))


def test_runs_of_one_method_are_told_apart_by_folder(tmp_path: Path) -> None:
    runs = load_runs([make_run(tmp_path / "x" / "a"), make_run(tmp_path / "y" / "a")])
    assert [run.label for run in runs] == ["x/a", "y/a"]


def test_nearest_is_exact_cosine() -> None:
    draw = np.random.default_rng(0)
    queries = draw.standard_normal((3, 7)).astype(np.float32)
    train = draw.standard_normal((20, 7)).astype(np.float32) * draw.uniform(0.1, 9, (20, 1)).astype(np.float32)
    for query, found in zip(queries, galleries.nearest(queries, train, 5), strict=True):
        cosines = [float(query @ row / np.linalg.norm(query) / np.linalg.norm(row)) for row in train]
        assert [neighbour.row for neighbour in found] == sorted(range(20), key=lambda i: -cosines[i])[:5]
        assert found[0].score == pytest.approx(max(cosines), abs=1e-6)


def test_queries_cover_the_classes() -> None:
    labels = np.array([0] * 90 + [1] * 5 + [2] * 5)
    rows = galleries.choose_queries(100, labels, seed=0, count=6)
    assert sorted(labels[rows].tolist()) == [0, 0, 1, 1, 2, 2]
    assert rows == galleries.choose_queries(100, labels, seed=0, count=6)
    assert len(set(galleries.choose_queries(5, None, seed=0))) == 5


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (2, "L"), (6, "RGB")])
def test_tiles_show_any_number_of_channels(channels: int, mode: str) -> None:
    import base64

    image = np.random.default_rng(0).integers(0, 255, (8, 8, channels)).astype(np.uint8)
    address = galleries.image_address(image)
    assert address.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as picture:
        assert picture.mode == mode
        assert np.array_equal(np.asarray(picture).reshape(8, 8, -1), image[..., : 3 if mode == "RGB" else 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_contact_sheet_has_a_row_for_each_stack(tmp_path: Path, channels: int) -> None:
    stacks = [np.full((5, 32, 32, channels), value, np.uint8) for value in (0, 100, 200)]
    galleries.save_contact_sheet(stacks, tmp_path / "figures" / "sheet.png")
    with Image.open(tmp_path / "figures" / "sheet.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[:2] == (3 * 66, 5 * 66)
    assert [int(pixels[row * 66 + 10, 10].max()) for row in range(3)] == [0, 100, 200]
    assert int(pixels[65, 0].min()) == 255


def test_stages_come_in_the_order_of_the_encoder(tmp_path: Path, dataset: FakeDataset) -> None:
    names = ["stem", "layer1", "features"]
    run = make_run(tmp_path / "a", records=[record(f"probe/{name}/top1", 0.5) for name in names])
    text, _ = render([run], run / "report.html")
    section = text[text.index('id="probe-by-stage"') :]
    assert [section.index(f"<span>{name}</span>") for name in names] == sorted(
        section.index(f"<span>{name}</span>") for name in names
    )


def test_few_labels_are_a_curve_beside_the_network_from_scratch(tmp_path: Path, dataset: FakeDataset) -> None:
    records = [record(f"finetune@{n}-a-class/top1", 0.5 + n / 1000) for n in (1, 10, 100)]
    records += [record(f"baseline/random-init/finetune@{n}-a-class/top1", n / 1000) for n in (1, 100)]
    run = make_run(tmp_path / "a", records=records)
    text, _ = render([run], run / "report.html")
    section = text[text.index('id="few-labels"') :]
    assert "100 labels a class: 60.0 %, from scratch 10.0 %" in section
    assert "10 labels a class: 51.0 %<" in section
    other = make_run(tmp_path / "b", records=records[:1])
    text, _ = render([other], other / "report.html")
    assert 'id="few-labels"' not in text
    assert "fewer than two amounts of labels" in text


def test_a_projection_is_computed_once_and_keeps_neighbourhoods() -> None:
    draw = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], 30)
    vectors = (np.eye(3)[groups] @ draw.standard_normal((3, 16)) + 0.05 * draw.standard_normal((90, 16))).astype(
        np.float32
    )
    points = figures.project(vectors, 0)
    assert points is figures.project(vectors.copy(), 0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(90)
    assert (groups[distances.argmin(axis=1)] == groups).all()


def test_long_curves_are_averaged_down() -> None:
    x = np.arange(100_000, dtype=np.float64)
    svg = figures.line_chart([(x, np.sin(x), "#123456")])
    assert len(svg) < 40_000


def test_there_are_enough_distinct_colours() -> None:
    assert len(set(figures.colours(10))) == 10
    assert len(set(figures.colours(100))) == 100
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in figures.colours(100))
