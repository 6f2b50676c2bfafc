"""The cache: the same pixels with and without it, whole or rebuilt, from one process or several."""

import io
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Dataset, open_dataset, open_set, to_square
from rayssl.pipeline.data.cache import open_pack
from rayssl.pipeline.data.folder import ImageFiles

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures of many kinds and sizes, and four files that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i, (height, width) in enumerate([(90, 60), (40, 40), (37, 80), (300, 50), (64, 65), (20, 31)] * 2):
        pixels = random.integers(0, 256, (height, width, 4 if i == 4 else 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 0 else 1
        Image.fromarray(pixels).save(folder / f"{i}.{'png' if i % 2 == 0 else 'jpg'}", exif=exif)
    whole = (folder / "1.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "text.tiff").write_text("II*")
    return folder


def every_image(dataset: Dataset) -> dict[str, NDArray[np.uint8]]:
    assert dataset.test is not None
    found: dict[str, NDArray[np.uint8]] = {}
    for images in (dataset.train, dataset.val, dataset.test):
        found |= {path: images[i] for i, path in enumerate(images.paths)}
    return found


def pack_of(cache: Path) -> Path:
    (folder,) = [path for path in (cache / "packs").iterdir() if path.is_dir()]
    return folder


def test_resident_and_stream_agree(photos: Path) -> None:
    resident = open_dataset(str(photos), image_size=32, loader="resident")
    stream = open_dataset(str(photos), image_size=32, loader="stream")
    assert resident.fingerprint == stream.fingerprint
    assert resident.unreadable == stream.unreadable
    one, other = every_image(resident), every_image(stream)
    assert list(one) == list(other)
    assert len(one) == 12
    for path, image in one.items():
        assert np.array_equal(image, other[path])
    assert one["0.png"].shape == (37, 56, 3)  # turned, and its shorter side brought down from 60 to ceil(32 · 8/7)
    assert one["5.jpg"].shape == (20, 31, 3)
    squares = resident.train.square([2, 0], 32)
    assert np.array_equal(squares, stream.train.square(np.array([2, 0]), 32))
    assert np.array_equal(squares[1], to_square(resident.train[0], 32))
    assert resident.train.square([], 32).shape == (0, 32, 32, 3)


def test_broken_files_are_set_aside_by_name(photos: Path) -> None:
    for _ in range(2):  # found, then remembered
        for loader in ("resident", "stream"):
            aside = dict(open_dataset(str(photos), image_size=32, loader=loader).unreadable)
            assert sorted(aside) == ["cut.jpg", "empty.png", "page.jpg", "text.tiff"]
            assert "truncated" in aside["cut.jpg"]
            assert aside["page.jpg"] == "not an image, or damaged"


def test_second_open_decodes_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for loader in ("resident", "stream"):
        open_dataset(str(photos), loader=loader)
    monkeypatch.setattr(open_set, "decode_all", None)
    monkeypatch.setattr(open_set, "look", None)
    for loader in ("resident", "stream", "auto"):
        open_dataset(str(photos), loader=loader)


def test_a_replaced_file_is_read_again(photos: Path) -> None:
    before = open_dataset(str(photos), image_size=32)
    data = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(data, "BMP")
    (photos / "red.bmp").write_bytes(data.getvalue())
    open_dataset(str(photos), image_size=32)
    data = io.BytesIO()
    Image.new("RGB", (32, 32), "blue").save(data, "BMP")
    (photos / "red.bmp").write_bytes(data.getvalue())  # of the same size
    after = open_dataset(str(photos), image_size=32)
    assert every_image(after)["red.bmp"][0, 0].tolist() == [0, 0, 255]
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize("name", ["pixels.bin", "sizes.npz", "pack.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_cache_is_rebuilt(photos: Path, cache: Path, name: str, damage: str) -> None:
    expected = every_image(open_dataset(str(photos), image_size=32, loader="resident"))
    file = pack_of(cache) / name
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data)
    found = every_image(open_dataset(str(photos), image_size=32, loader="resident"))
    assert all(np.array_equal(found[path], image) for path, image in expected.items())
    assert pack_of(cache)


def _sum(folder: str) -> int:
    dataset = open_dataset(folder, image_size=32, loader="resident")
    return int(sum(int(image.sum()) for image in every_image(dataset).values()))


def test_processes_that_build_at_once_both_end_well(photos: Path, cache: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        sums = list(pool.map(_sum, [str(photos)] * 2))
    assert sums == [_sum(str(photos))] * 2
    assert pack_of(cache)


def test_a_build_that_fails_leaves_nothing(cache: Path) -> None:
    def images() -> Iterator[NDArray[np.uint8] | str]:
        yield np.zeros((2, 2, 1), np.uint8)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"no room left in .* --data.loader stream"):
        open_pack("key", 2, 1, images, lambda done: None)
    assert [path.name for path in (cache / "packs").iterdir()] == ["key-2.lock"]


def test_a_killed_builders_left_over_is_swept(photos: Path, cache: Path) -> None:
    open_dataset(str(photos), image_size=32, loader="resident")
    folder = pack_of(cache)
    (folder / "pack.json").unlink()
    (folder.parent / f".{folder.name}-killed").mkdir()
    open_dataset(str(photos), image_size=32, loader="resident")
    assert not list(folder.parent.glob(".*"))


def test_pickled_images_open_the_pack_again(photos: Path) -> None:
    train = open_dataset(str(photos), image_size=32).train.select([1, 3])
    again = pickle.loads(pickle.dumps(train))
    assert again.paths == train.paths
    assert np.array_equal(again[1], train[1])
    again[1][:] = 0  # a copy: the cache cannot be written through it
    assert train[1].any()


def test_auto_streams_what_does_not_fit(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_set, "LARGEST_CACHE", 1000)
    open_dataset(str(photos))
    assert not (cache / "packs").exists()


def test_progress_ends_with_all(photos: Path) -> None:
    calls: list[tuple[int, int]] = []
    open_dataset(str(photos), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (16, 16)


def test_a_cache_folder_that_cannot_be_made(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYSSL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cache folder .* cannot be made .* set RAYSSL_CACHE"):
        open_dataset(str(photos))


@pytest.mark.parametrize("loader", ["resident", "stream"])
def test_a_failing_disk_is_no_broken_image(photos: Path, monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    def fail(self: ImageFiles, i: int) -> bytes:
        raise OSError(5, "Input/output error", self.keys[i])

    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, "read", fail)
        with pytest.raises(UserError, match=r"reading images failed: .*Input/output error"):
            open_dataset(str(photos), loader=loader)
    assert len(open_dataset(str(photos), loader=loader).unreadable) == 4
