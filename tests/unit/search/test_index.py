"""The FAISS index: exactness, exclusion by id, files that are safe to load."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.features.whitening import fit_whitening
from rayssl.pipeline.search.effort import build_measured
from rayssl.pipeline.search.factory import auto_factory, built_as, check_factory, memory_of
from rayssl.pipeline.search.index import (
    build_index,
    check_matches,
    load_index,
    measure_recall,
    recall_warning,
    save_index,
    search,
)

DIM = 16


def vectors(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def big_ids(n: int) -> NDArray[np.int64]:
    """Positive 63-bit ids in no order."""
    return np.random.default_rng(1).permutation(2**63 - 1 - np.arange(n, dtype=np.int64))


def save(folder: Path, factory: str = "auto", n: int = 300) -> None:
    index = build_index(vectors(n), big_ids(n), factory)
    save_index(
        index, folder, encoder_hash="e" * 64, data_fingerprint="d" * 64, factory=factory, recall=1.0, dim=DIM, count=n
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "index" / "pets"


def test_search_is_exact_cosine() -> None:
    x, ids, queries = 7 * vectors(200), big_ids(200), vectors(9, seed=5)
    scores, found = search(build_index(x, ids), queries, 6)
    cosine = (queries @ x.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(x, axis=1)
    order = np.argsort(-cosine, axis=1)[:, :6]
    np.testing.assert_array_equal(found, ids[order])
    np.testing.assert_allclose(scores, np.take_along_axis(cosine, order, axis=1), rtol=1e-5)


@pytest.mark.parametrize("own", [0, 1, 2])
def test_own_id_is_dropped_and_the_twins_stay(own: int) -> None:
    """Three identical vectors tie at rank one: which comes first must not matter."""
    x, ids = vectors(50), big_ids(50)
    x[:3] = x[0]
    scores, found = search(build_index(x, ids), x[[own]], 2, [{int(ids[own])}])
    assert set(found[0].tolist()) == {int(ids[i]) for i in range(3) if i != own}
    np.testing.assert_allclose(scores, 1, rtol=1e-6)


def test_exclusions_are_each_querys_own() -> None:
    x, ids = vectors(50), big_ids(50)
    index = build_index(x, ids)
    _, plain = search(index, x[:2], 1)
    np.testing.assert_array_equal(plain[:, 0], ids[:2])
    _, found = search(index, x[:2], 49, [set(), {int(ids[1])}])
    assert ids[0] in found[0]
    assert ids[1] in found[0]
    assert ids[1] not in found[1]
    _, same = search(index, x[:2], 3, [{12345}, set()])  # an id that the index lacks
    np.testing.assert_array_equal(same, search(index, x[:2], 3)[1])


def test_k_beyond_what_there_is() -> None:
    x, ids = vectors(5), big_ids(5)
    index = build_index(x, ids)
    assert search(index, x[:1], 5)[1].shape == (1, 5)
    assert search(index, x[:1], 5, [{99}])[1].shape == (1, 5)
    for k in (0, 6):
        with pytest.raises(UserError, match=rf"k is {k}: the index holds 5 vectors"):
            search(index, x[:1], k)
    with pytest.raises(UserError, match="k is 5: the index holds only 4 vectors besides the image itself"):
        search(index, x[:1], 5, [{int(ids[0])}])


@pytest.mark.parametrize("factory", ["PQ4x4", "IVF4,PQ4x4", "OPQ4,PQ4x4"])
def test_what_is_compared_again_finds_more(factory: str) -> None:
    x, ids = vectors(2000), big_ids(2000)
    rough = measure_recall(build_index(x, ids, factory), x, ids)
    again = measure_recall(build_index(x, ids, f"{factory},RFlat"), x, ids)
    assert rough + 0.2 < again
    told = recall_warning(rough, factory, 2000)
    assert told is not None
    assert f"--index.factory {factory} finds {100 * rough:.1f}% of the ten nearest" in told
    assert "Flat" in told
    assert recall_warning(1.0, "Flat", 2000) is None


def test_codes_of_a_product_quantiser_are_not_trained_for_a_comparison_that_nobody_makes() -> None:
    names = {"PQ8": "PQ8np", "IVF4,PQ4x4": "IVF4,PQ4x4np", "PQ8np": "PQ8np", "IVF4,PQ8x4fs": "IVF4,PQ8x4fs"}
    names |= {"OPQ4_8,PQ4": "OPQ4_8,L2norm,PQ4np", "PQ8+16": "PQ8np+16", "HNSW32_PQ12": "HNSW32_PQ12"}
    assert {name: built_as(name) for name in names} == names


@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF1,Flat"])
def test_a_whitened_index_searches_by_the_cosine_of_whitened_vectors(folder: Path, factory: str) -> None:
    x, ids, queries = vectors(200) * np.geomspace(1, 30, DIM, dtype=np.float32), big_ids(200), vectors(9, seed=5)
    index = build_index(x, ids, factory, fit_whitening(normalise(x)))
    assert measure_recall(index, x, ids, k=5) == 1.0
    facts: dict[str, Any] = {"encoder_hash": "e", "data_fingerprint": "d", "factory": factory, "recall": 1.0}
    save_index(index, folder, **facts, dim=DIM, count=200, whitened=True)
    loaded, manifest = load_index(folder)
    assert manifest["whitened"]
    scores, found = search(loaded, queries, 6)

    whiten = fit_whitening(normalise(x))
    cosine = normalise(whiten(normalise(queries))) @ normalise(whiten(normalise(x))).T
    order = np.argsort(-cosine, axis=1)[:, :6]
    np.testing.assert_array_equal(found, ids[order])
    np.testing.assert_allclose(scores, np.take_along_axis(cosine, order, axis=1), rtol=1e-4, atol=1e-6)


def test_approximate_index_never_pads() -> None:
    x, ids = vectors(600), big_ids(600)
    index = build_index(x, ids, "IVF100,Flat")
    with pytest.raises(UserError, match=r"approximate index found only .*--index.factory Flat"):
        search(index, x[:4], 600)


@pytest.mark.parametrize("factory", ["Flat", "HNSW15", "IVF16,Flat", "SQ8", "IDMap2,Flat", "PCA16,Flat"])
def test_every_kind_keeps_ids_and_survives_its_file(folder: Path, factory: str) -> None:
    save(folder, factory)
    index, manifest = load_index(folder)
    x, ids = vectors(300), big_ids(300)
    assert search(index, x, 1)[1][:, 0].tolist() == ids.tolist()
    assert (manifest["count"], manifest["dim"], manifest["factory"]) == (300, DIM, factory)
    assert (manifest["schema"], manifest["metric"]) == (1, "cosine")
    assert sorted(path.name for path in folder.iterdir()) == ["index.faiss", "manifest.json"]
    before = search(build_index(x, ids, factory), x[:9], 5)
    np.testing.assert_array_equal(search(index, x[:9], 5)[1], before[1])


@pytest.mark.parametrize("factory", ["PCA16,Flat", "PCAR8,Flat", "OPQ4_16,Flat", "PCA16,L2norm,IVF2,Flat", "RR8,SQ8"])
def test_scores_are_cosines_behind_any_transform(factory: str) -> None:
    x, ids = vectors(300) + 2, big_ids(300)
    scores, _ = search(build_index(x, ids, factory), x, 5)
    assert np.abs(scores).max() <= 1
    np.testing.assert_allclose(scores[:, 0], 1, atol=0.01)


def test_a_factory_is_looked_at_before_there_are_vectors() -> None:
    for factory in ("Flat", "HNSW32", "PCA16,IVF16,Flat", "IVF300,Flat"):
        check_factory(factory, DIM, 300)
    with pytest.raises(UserError, match=r"--index\.factory is 'FLAAT': FAISS cannot build it over vectors of"):
        check_factory("FLAAT", DIM, 300)
    with pytest.raises(UserError, match="300 images cannot fill 301 lists"):
        check_factory("IVF301,Flat", DIM, 300)


@pytest.mark.parametrize("factory", ["bogus", "IVF4000,Flat", "PQ5", "LSH", ""])
def test_factory_that_cannot_be_built(factory: str) -> None:
    with pytest.raises(UserError, match=f"--index.factory is '{factory}': FAISS cannot build it over 300") as error:
        build_index(vectors(300), big_ids(300), factory)
    assert "\n" not in str(error.value)
    assert ".cpp" not in str(error.value)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"vectors have the shape \(9, \d+\) and ids \(8,\)"):
        build_index(vectors(9), big_ids(8))
    with pytest.raises(UserError, match=r"queries have the shape \(2, \d+\): the index holds vectors of"):
        search(build_index(vectors(9), big_ids(9)), vectors(2)[:, 1:], 1)


def test_vectors_that_are_not_finite() -> None:
    x = vectors(10)
    x[3, 2] = np.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        build_index(x, big_ids(10))


def test_auto_by_size() -> None:
    by_size = {1: "Flat", 100_000: "Flat", 100_001: "IVF1024,SQfp16", 4_194_304: "IVF8192,SQfp16"}
    assert {n: auto_factory(n) for n in by_size} == by_size


def test_auto_by_memory() -> None:
    n, dim = 1_000_000, 128
    expected = {None: "SQfp16", "300MB": "SQfp16", "200 MB": "SQ8", "0.1GB": "PQ64", "50M": "PQ32", "2GB": "SQfp16"}
    found = {text: auto_factory(n, dim, memory_of(text)) for text in expected}
    assert found == {text: f"IVF4096,{code}" for text, code in expected.items()}
    assert auto_factory(50_000, dim, memory_of("10 MB")) == "IVF1024,SQ8"
    for factory in found.values():
        check_factory(factory, dim, n)
    with pytest.raises(
        UserError, match=r"1,000,000 vectors of 128 numbers take 11,097,152 bytes at least, not 10,000,000"
    ):
        auto_factory(n, dim, memory_of("10MB"))
    for text in ("", "2 GBs", "-1GB", "0", "lots", "1e9"):
        with pytest.raises(UserError, match="a size is needed, such as 2GB or 300MB"):
            memory_of(text)


def test_effort_is_the_least_that_reaches_the_recall_by_vectors_that_were_not_in_the_index() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(300, DIM))
    x = (centres[rng.integers(0, 300, 12_000)] + 0.3 * rng.normal(size=(12_000, DIM))).astype(np.float32)
    ids = big_ids(len(x))
    low, high = (build_measured(x, ids, "IVF64,SQfp16", target) for target in (0.6, 0.99))
    assert low[0].nprobe < high[0].nprobe < 64
    assert 0.6 <= low[1] < 0.99 <= high[1]
    assert low[0].ntotal == high[0].ntotal == len(x)
    queries = (centres[rng.integers(0, 300, 1000)] + 0.3 * rng.normal(size=(1000, DIM))).astype(np.float32)
    exact = search(build_index(x, ids), queries, 10)[1]
    for index, recall in (low, high):
        found = search(index, queries, 10)[1]
        share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), exact.tolist(), strict=True)])
        assert share == pytest.approx(recall, abs=0.03)
    rough, told = build_measured(x, ids, "IVF64,PQ4x4", 0.99)
    assert told < 0.9
    assert rough.nprobe <= 64


def test_recall_of_exact_search_is_one_with_twins_too() -> None:
    x, ids = vectors(400), big_ids(400)
    x[200:] = x[:200]
    x[:30] = x[0]  # more equal ones than k: any of them is right
    assert measure_recall(build_index(x, ids), x, ids, k=10) == 1.0
    assert measure_recall(build_index(x[:1], ids[:1]), x[:1], ids[:1]) == 1.0
    assert measure_recall(build_index(x[:4], ids[:4]), x[:4], ids[:4], k=10) == 1.0


def test_recall_counts_what_is_found() -> None:
    """One list of 20: recall is the share of neighbours in the query's own list, counted here one by one."""
    x, ids = vectors(2000), big_ids(2000)
    index = build_index(x, ids, "IVF20,Flat")
    index.nprobe = 1
    _, exact = search(build_index(x, ids), x, 10, [{int(i)} for i in ids])
    _, found = index.search(x, 11)
    shares = [len((set(f.tolist()) - {own}) & set(e.tolist())) / 10 for f, e, own in zip(found, exact, ids)]
    recall = measure_recall(index, x, ids, k=10, sample=2000)
    assert recall == pytest.approx(np.mean(shares), abs=1e-9)
    assert 0.1 < recall < 0.9


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_missing_index(folder: Path) -> None:
    with pytest.raises(UserError, match=r"manifest.json does not exist: `rayssl index .*/run` writes it"):
        load_index(folder)
    save(folder)
    (folder / "index.faiss").unlink()
    with pytest.raises(UserError, match=r"index.faiss does not exist: `rayssl index .*/run` writes it"):
        load_index(folder)


def test_damaged_file_is_refused_before_faiss_reads_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder)
    path = folder / "index.faiss"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr("faiss.read_index", lambda *_: pytest.fail("FAISS was given a damaged file"))
    with pytest.raises(UserError, match=r"damaged \(its sha256 is not the manifest's\)"):
        load_index(folder)


def test_file_that_claims_more_than_it_holds(folder: Path) -> None:
    """A forged count with a matching sha256 ends in an error, not in an allocation of terabytes."""
    from rayssl.pipeline.base.files import sha256

    save(folder, "Flat")
    path = folder / "index.faiss"
    count = (300 * DIM).to_bytes(8, "little")
    content = path.read_bytes()
    assert content.count(count) == 1
    path.write_bytes(content.replace(count, (2**39).to_bytes(8, "little")))
    rewrite(folder, sha256=sha256(path))
    with pytest.raises(UserError, match=r"damaged \(FAISS cannot read it\)"):
        load_index(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 7}, "has schema 7: this version reads schema 1"),
        ({"count": 299}, "holds 300 vectors of 16 dimensions, its manifest says 299 of 16"),
        ({"dim": 8}, "its manifest says 300 of 8"),
    ],
)
def test_manifest_that_does_not_fit(folder: Path, changes: dict[str, Any], message: str) -> None:
    save(folder)
    rewrite(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_index(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not JSON of ours: no object"),
        ("\xff", "byte 0 is no UTF-8"),
        ('{"schema": 1}', "it lacks dim, count, encoder_hash"),
    ],
)
def test_damaged_manifest(folder: Path, text: str, message: str) -> None:
    save(folder)
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        load_index(folder)


def test_another_encoder_or_other_data_is_refused(folder: Path) -> None:
    save(folder)
    manifest = load_index(folder)[1]
    check_matches(manifest, "e" * 64, "d" * 64)
    with pytest.raises(UserError, match=r"built with encoder eeee.* `rayssl embed RUN`, then `rayssl index RUN`"):
        check_matches(manifest, "f" * 64, "d" * 64)
    with pytest.raises(UserError, match=r"built over data dddd.*`rayssl index RUN` builds it again"):
        check_matches(manifest, "e" * 64, "f" * 64)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat", "IVF4,SQ8", "SQ8,RFlat", "PCA8,Flat"])
def test_an_index_that_stays_in_its_file_finds_the_same_also_when_the_file_is_gone(folder: Path, factory: str) -> None:
    save(folder, factory)
    loaded, mapped = load_index(folder)[0], load_index(folder, mapped=True)[0]
    (folder / "index.faiss").unlink()  # as where another one is put in its place
    for found, expected in zip(search(mapped, vectors(5, 3), 4), search(loaded, vectors(5, 3), 4), strict=True):
        np.testing.assert_array_equal(found, expected)
