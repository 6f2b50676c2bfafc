"""Records of an evaluation and the file that keeps them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.vectors import knn_classify, normalise
from rayssl.pipeline.evaluation import measure, metrics
from rayssl.pipeline.evaluation.measure import (
    Record,
    drop_stale_records,
    evaluate_embeddings,
    flattered,
    is_evaluated,
    raw_pixel_embeddings,
    read_evaluation,
    write_evaluation,
)
from rayssl.pipeline.evaluation.records import told_of
from rayssl.pipeline.features.whitening import Whitening, fit_whitening
from rayssl.pipeline.run.folder import update_manifest
from rayssl.pipeline.search.embeddings import Embeddings


def make(split: str, n: int, labelled: bool = True, seed: int = 0) -> Embeddings:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    vectors = np.eye(4, 6)[labels] + 0.4 * rng.normal(size=(n, 6))
    return Embeddings(
        ids=np.arange(n, dtype=np.int64),
        paths=[str(i) for i in range(n)],
        labels=labels if labelled else None,
        vectors=vectors.astype(np.float32),
        class_names=None,
        encoder_hash="e",
        data_fingerprint="d",
        split=split,
        data="pets",
    )


def evaluate(train: Embeddings, test: Embeddings, prefix: str = "", k: int = 20) -> dict[str, Record]:
    records = evaluate_embeddings(train, test, k=k, temperature=0.07, clusters=None, seed=3, prefix=prefix)
    return {record["metric"]: record for record in records}


LABEL_FREE = {"health/rankme", "health/uniformity", "health/std"}
LABELLED = (
    {"knn/top1", "knn-whitened/top1", "cluster/acc", "cluster/nmi", "cluster/ari", "cluster/ami"}
    | {"cluster/silhouette"}
    | {f"retrieval/{name}" for name in ("recall@1", "recall@10", "precision@1", "map@r", "r-precision", "mrr")}
)


def test_records_say_what_was_measured() -> None:
    train, test = make("train", 300), make("test", 100, seed=1)
    records = evaluate(train, test)
    assert set(records) == LABEL_FREE | LABELLED
    assert train.labels is not None
    predicted = knn_classify(train.vectors, train.labels, test.vectors, 20, 0.07, 4)
    knn = records["knn/top1"]
    assert knn["value"] == np.mean(predicted == test.labels)
    assert (knn["data"], knn["split"], knn["checkpoint"], knn["seed"], knn["n"]) == ("pets", "test", "last", 3, 100)
    assert "k = 20" in knn["protocol"]
    assert "T = 0.07" in knn["protocol"]
    assert "300 images of train" in knn["protocol"]
    assert "fewer than the 25600" in records["health/rankme"]["protocol"]
    assert records["health/rankme"]["split"] == "train"
    for record in records.values():
        if record["interval"] is not None:
            low, high = record["interval"]
            assert low <= record["value"] <= high
    assert all(records[name]["interval"] for name in LABELLED - {"cluster/ami", "cluster/silhouette"})


def test_whitened_neighbours_are_those_of_whitened_features() -> None:
    """Directions that say nothing outweigh the others, until they are whitened."""
    train, test = make("train", 300), make("test", 100, seed=1)
    for part, seed in ((train, 5), (test, 6)):
        part.vectors[:, 4:] = 5 * np.random.default_rng(seed).normal(size=(len(part.vectors), 2))
    records = evaluate(train, test)
    assert records["knn-whitened/top1"]["value"] > records["knn/top1"]["value"] + 0.1
    assert "whitened" in records["knn-whitened/top1"]["protocol"]
    assert "whitened" not in records["knn/top1"]["protocol"]


def test_whitening_is_fitted_to_training_embeddings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested decides nothing, not even a mean."""
    fitted: list[NDArray[np.float32]] = []

    def watch(vectors: NDArray[np.float32]) -> Whitening:
        fitted.append(vectors)
        return fit_whitening(vectors)

    monkeypatch.setattr(measure, "fit_whitening", watch)
    train, test = make("train", 300), make("test", 100, seed=1)
    evaluate(train, test)
    assert len(fitted) == 1
    np.testing.assert_array_equal(fitted[0], normalise(train.vectors))


def test_without_labels_only_health() -> None:
    assert set(evaluate(make("train", 50, False), make("test", 20, False))) == LABEL_FREE
    assert set(evaluate(make("train", 50), make("test", 0))) == LABEL_FREE


def test_images_without_a_label_count_for_health_alone() -> None:
    train, test = make("train", 60), make("test", 40)
    expected = evaluate(train, test)

    def padded(embeddings: Embeddings) -> Embeddings:
        """Every image again, without a label."""
        twice = {name: np.concatenate([getattr(embeddings, name)] * 2) for name in ("ids", "vectors", "labels")}
        twice["labels"][len(embeddings.ids) :] = -1
        return replace(embeddings, **twice, paths=embeddings.paths * 2)

    found = evaluate(padded(train), padded(test))
    assert {name: found[name] for name in LABELLED} == {name: expected[name] for name in LABELLED}
    assert found["health/std"]["n"] == 120
    none = replace(test, labels=np.full(40, -1))
    assert set(evaluate(train, none)) == LABEL_FREE


def test_prefix_goes_before_every_metric() -> None:
    records = evaluate(make("train", 50), make("test", 20), prefix="baseline/raw-pixels/")
    assert set(records) == {f"baseline/raw-pixels/{name}" for name in LABEL_FREE | LABELLED}


def test_sets_too_small_leave_out_what_cannot_be_said() -> None:
    one = replace(make("test", 1), labels=np.array([3]))
    records = evaluate(make("train", 10), one)
    assert set(records) == LABEL_FREE | {"knn/top1", "knn-whitened/top1"}
    assert "k = 10" in records["knn/top1"]["protocol"]  # all there are, and says so
    assert set(evaluate(make("train", 1), one)) == {"knn/top1", "knn-whitened/top1"}


def test_diverged_embeddings_are_refused() -> None:
    broken = make("train", 10)
    broken.vectors[2, 3] = np.inf
    with pytest.raises(UserError, match="embeddings of the train split hold NaN or infinity"):
        evaluate(broken, make("test", 5))


@dataclass
class FakeImages:
    pixels: NDArray[np.uint8]
    ids: NDArray[np.int64]
    paths: list[str]
    labels: NDArray[np.int64] | None = None

    def square(self, indices: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        return self.pixels[indices, :size, :size]


@pytest.mark.parametrize(("side", "used"), [(8, 8), (40, 32)])
def test_raw_pixels(side: int, used: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1500, side, side, 1), dtype=np.uint8)
    images = FakeImages(pixels, np.arange(1500, dtype=np.int64), [str(i) for i in range(1500)])
    found = raw_pixel_embeddings(images, "test", image_size=side, channels=1, data="pets")
    np.testing.assert_allclose(found.vectors, pixels[:, :used, :used].reshape(1500, -1) / 255, rtol=1e-6)
    assert (found.split, found.data, found.encoder_hash) == ("test", "pets", "raw-pixels")


def test_raw_pixels_of_no_images() -> None:
    images = FakeImages(np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int64), [])
    assert raw_pixel_embeddings(images, "val", image_size=8, channels=3).vectors.shape == (0, 192)


def record(metric: str, value: float, split: str = "test", data: str = "pets", protocol: str = "p") -> Record:
    return {
        "metric": metric,
        "value": value,
        "protocol": protocol,
        "data": data,
        "split": split,
        "checkpoint": "last",
        "seed": 0,
        "n": 10,
        "interval": [0.0, 1.0],
    }


def test_write_merges_and_replaces(tmp_path: Path) -> None:
    write_evaluation(tmp_path, [record("knn/top1", 0.5), record("probe/top1", 0.6)])
    write_evaluation(tmp_path, [record("knn/top1", 0.7, protocol="another k"), record("knn/top1", 0.9, split="val")])
    found = read_evaluation(tmp_path)
    assert found["schema"] == 1
    assert found["flat"] == {"knn/top1": 0.7, "probe/top1": 0.6}  # of test, not of val
    assert sorted((r["metric"], r["split"], r["value"]) for r in found["records"]) == [
        ("knn/top1", "test", 0.7),
        ("knn/top1", "val", 0.9),
        ("probe/top1", "test", 0.6),
    ]
    write_evaluation(tmp_path, [record("knn/top1", 0.3, data="birds")])
    assert read_evaluation(tmp_path)["flat"]["knn/top1"] == 0.3
    write_evaluation(tmp_path, [record("knn/top1", 0.8)])
    assert read_evaluation(tmp_path)["flat"]["knn/top1"] == 0.8
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


def test_evaluated_records_are_json(tmp_path: Path) -> None:
    records = evaluate(make("train", 60), make("test", 30))
    write_evaluation(tmp_path, list(records.values()))
    found = {r["metric"]: r for r in read_evaluation(tmp_path)["records"]}
    assert found.keys() == records.keys()
    assert all(found[metric].items() >= one.items() for metric, one in records.items())


def test_new_settings_take_all_old_figures_of_a_data_set_away(tmp_path: Path) -> None:
    before = [
        "knn/top1",
        "cluster/acc",
        "baseline/raw-pixels/cluster/acc",
        "probe/top1",
        "baseline/random-init/probe/top1",
    ]
    write_evaluation(tmp_path, [record(metric, 0.1) for metric in before] + [record("cluster/acc", 0.2, data="cars")])
    write_evaluation(tmp_path, [record("knn/top1", 0.3)], keep=lambda record: not is_evaluated(record, "pets"))
    kept = {(entry["metric"], entry["data"]): entry["value"] for entry in read_evaluation(tmp_path)["records"]}
    assert kept == {
        ("knn/top1", "pets"): 0.3,
        ("cluster/acc", "cars"): 0.2,
        ("probe/top1", "pets"): 0.1,
        ("baseline/random-init/probe/top1", "pets"): 0.1,
    }


def test_more_clusters_than_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"--evaluate\.clusters is 21: test has 20 labelled images"):
        evaluate_embeddings(make("train", 50), make("test", 20), k=5, temperature=0.07, clusters=21, seed=0)


def test_a_failing_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_evaluation(tmp_path, [record("knn/top1", 0.5)])
    with pytest.raises(ValueError, match="JSON"):
        write_evaluation(tmp_path, [record("knn/top1", float("nan"))])
    assert read_evaluation(tmp_path)["flat"] == {"knn/top1": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"schema": 1}', "damaged"),
        (json.dumps({"schema": 2, "records": [], "flat": {}}), "has schema 2: this version reads schema 1"),
    ],
)
def test_unreadable_evaluation(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_evaluation(tmp_path)
    with pytest.raises(UserError, match=message):
        write_evaluation(tmp_path, [record("knn/top1", 0.5)])
    assert (tmp_path / "evaluation.json").read_text() == text


def test_figures_of_an_encoder_that_was_trained_on_are_dropped(tmp_path: Path) -> None:
    old, new = record("knn/top1", 0.5), record("probe/top1", 0.6)
    write_evaluation(tmp_path, [{**old, "checkpoint": "before"}, {**new, "checkpoint": "now"}])
    drop_stale_records(tmp_path, "now")
    assert read_evaluation(tmp_path)["flat"] == {"probe/top1": 0.6}
    drop_stale_records(tmp_path / "no-run", "now")  # without figures there is nothing to drop
    assert not (tmp_path / "no-run").exists()


def test_no_evaluation_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`rayssl evaluate .*` writes it"):
        read_evaluation(tmp_path)


def test_knn_is_left_out_where_training_images_are_of_some_classes() -> None:
    sets = make("train", 60), make("test", 40, seed=1)
    settings = {"k": 20, "temperature": 0.07, "clusters": None, "seed": 3}
    found = {record["metric"] for record in evaluate_embeddings(*sets, **settings, all_classes=False)}  # type: ignore[arg-type]
    assert found == (LABEL_FREE | LABELLED) - {"knn/top1", "knn-whitened/top1"}


def test_what_flatters_a_figure_is_added_to_its_protocol_once(tmp_path: Path) -> None:
    sizes = {"train": 9, "val": 0, "test": 9, "image_size": 8, "channels": 3, "classes": None}
    counts = {"test": 9, "test_in_train": 2}
    update_manifest(tmp_path, {"data": {"name": "pets", "fingerprint": "f", **sizes, "duplicates": counts}})
    plain = {**evaluate(make("train", 30), make("test", 9))["knn/top1"], "protocol": "k=20"}
    (once,) = flattered([cast(Record, plain)], tmp_path)
    assert once["protocol"] == "k=20; flattered: 2 of 9 test images are also in training"
    assert flattered([once], tmp_path) == [once]
    elsewhere = cast(Record, {**plain, "data": "others"})
    assert flattered([elsewhere], tmp_path) == [elsewhere]


def test_intervals_of_retrieval_are_of_proportions_and_of_a_mean() -> None:
    test = make("test", 100, seed=1)
    records = evaluate(make("train", 300), test)
    assert test.labels is not None
    figures = metrics.retrieval_per_query(test.vectors, test.labels)
    recall, mean = figures["recall@1"], figures["map@r"]
    assert records["retrieval/recall@1"]["interval"] == pytest.approx(
        metrics.interval_of_proportion(int(recall.sum()), len(recall))
    )
    assert records["retrieval/map@r"]["interval"] == pytest.approx(metrics.interval_of_mean(mean, least=0.0, most=1.0))


def test_three_figures_that_are_not_shown_are_named(tmp_path: Path) -> None:
    names = [f"knn/{number}" for number in range(5)]
    assert told_of(tmp_path, []) == ""
    assert told_of(tmp_path, names[:3]).startswith("knn/0, knn/1, knn/2 in ")
    for count in (4, 5):
        assert f"knn/2 and {count - 3} more in " in told_of(tmp_path, names[:count])
