"""Files from elsewhere that lie, wait or never end: set aside and counted, or refused in a line."""

import ast
import contextlib
import io
import os
import re
import struct
import sys
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import SPECIAL, png, write_images, write_parquet, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import decode, open_dataset
from rayssl.pipeline.data.columns import read_columns
from rayssl.pipeline.data.dataset import Dataset
from rayssl.pipeline.data.shards import _scan
from rayssl.pipeline.data.tabular import read_table
from rayssl.pipeline.search.gallery import picture_format
from rayssl.pipeline.search.queries import images_of

ROOT = Path(__file__).resolve().parents[3]
NAMES = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(6)]


def opened(path: Path | str, **said: object) -> Dataset:
    return open_dataset(path, image_size=16, **said)  # type: ignore[arg-type]


def images(dataset: Dataset) -> int:
    return sum(len(part) for part in (dataset.train, dataset.val, dataset.test) if part is not None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", NAMES)
    return tmp_path / "images"


@pytest.mark.parametrize("pattern", ["", "/*/*", "/**/*.png", "/{cat,dog}/[0-9]*"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_set_aside(folder: Path, kind: str, pattern: str) -> None:
    SPECIAL[kind](folder / "cat" / "9.png")
    found = opened(f"{folder}{pattern}")
    assert images(found) == len(NAMES)
    if kind != "folder":
        assert sum(n for _, n in found.passed_over) + len(found.unreadable) == 1


@pytest.mark.parametrize("suffix", [".jpg", ".parquet", ".tar"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_refused_as_the_data(tmp_path: Path, kind: str, suffix: str) -> None:
    SPECIAL[kind](tmp_path / f"x{suffix}")
    with pytest.raises(UserError):
        opened(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("option", ["labels", "splits"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_refused_as_a_table(folder: Path, tmp_path: Path, kind: str, option: str) -> None:
    SPECIAL[kind](tmp_path / "table.csv")
    with pytest.raises(UserError, match=r"table\.csv"):
        opened(folder, **{option: str(tmp_path / "table.csv")})


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_told_as_a_query(tmp_path: Path, kind: str) -> None:
    SPECIAL[kind](tmp_path / "x.png")
    (asked,) = images_of(tmp_path / "x.png")
    assert asked.read(3, 16) is None
    assert asked.problem is not None


def test_a_pipe_in_the_place_of_a_listed_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(UserError, match="not a regular file"):
        decode(tmp_path / "x.png", 3, 16)


def test_more_bytes_than_are_read_in_one_piece_are_never_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "cat" / "9.png").open("wb") as file:
        file.write(png(1))
        file.truncate(1 << 40)
    found = opened(folder)
    assert [path for path, _ in found.unreadable] == ["cat/9.png"]
    assert "RAYSSL_LARGEST_GB" in found.unreadable[0][1]
    monkeypatch.setenv("RAYSSL_LARGEST_GB", "much")
    with pytest.raises(UserError, match="RAYSSL_LARGEST_GB is 'much'"):
        decode(folder / "cat" / "0.png", 3, 16)


def test_a_table_larger_than_is_read_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="RAYSSL_LARGEST_GB"):
        read_table(str(tmp_path / "t.csv"), ("path",))


def test_a_header_of_one_long_field_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("0" * 300_000)
    assert len(read_table(str(tmp_path / "t.csv"), ("path",)).header[0]) == 300_000


@pytest.mark.parametrize("suffix", ["", ".jpg", ".png"])
def test_no_interpreter_is_started_by_a_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n"
    (folder / "cat" / f"evil{suffix}").write_bytes(program)
    assert images(opened(folder)) == len(NAMES)
    assert images_of(program)[0].read(3, 16) is None
    assert not (tmp_path / "started").exists()


def test_every_image_is_opened_by_named_formats() -> None:
    for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                assert "formats" in {word.arg for word in node.keywords}, f"{path}:{node.lineno}"


@pytest.mark.parametrize("place", ["x.npy", "x.png"])
@pytest.mark.parametrize(
    "shape", [(60000, 60000, 300), (10**6, 10**6, 3), (10**30, 10**30), (-1, 5, 3), (0, 5, 3), (5, 0, 3), (9,)]
)
def test_an_array_is_as_large_as_its_bytes(folder: Path, shape: tuple[int, ...], place: str) -> None:
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (len(head) + 10) % 64) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(100)
    (folder / "cat" / place).write_bytes(data)
    assert [path for path, _ in opened(folder).unreadable] == [f"cat/{place}"]


def long_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((width + 1) * height)))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 60000), (60000, 1), (2, 65535)])
def test_a_long_image_is_cut_before_it_is_enlarged(folder: Path, size: tuple[int, int]) -> None:
    (folder / "cat" / "long.png").write_bytes(long_png(*size))
    found = open_dataset(folder, image_size=224)
    part = next(part for part in (found.train, found.val, found.test) if part and "cat/long.png" in part.paths)
    row = part.paths.index("cat/long.png")
    assert max(part[row].shape) <= 1024
    assert part.square([row], 224).shape == (1, 224, 224, 3)


def test_a_bomb_is_set_aside_by_its_claim(folder: Path) -> None:
    data = bytearray(long_png(4, 4))
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (folder / "cat" / "bomb.png").write_bytes(data)
    (path, reason), *_ = opened(folder).unreadable
    assert (path, "exceeds limit" in reason) == ("cat/bomb.png", True)


def jpeg(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height)).save(data, "JPEG")
    return data.getvalue()


def array(width: int, height: int) -> bytes:
    data = io.BytesIO()
    np.save(data, np.zeros((height, width), np.uint8))
    return data.getvalue()


@pytest.mark.parametrize(("written", "step"), [(long_png, "_any_image"), (jpeg, "_jpeg"), (array, "_load_npy")])
@pytest.mark.parametrize("reader", ["decode", "held"])
def test_large_images_are_decoded_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, written: Callable[[int, int], bytes], step: str, reader: str
) -> None:
    module = sys.modules[decode.__module__]
    step = step if reader == "decode" or step == "_load_npy" else "_wide_values"
    read = (lambda data: decode(data, 1, 64)) if reader == "decode" else (lambda data: module.held(data, 1))
    monkeypatch.setattr(module, "_LARGE", 100)
    inside, most, gate, met = 0, 0, threading.Lock(), threading.Event()
    real = getattr(module, step)

    def counted(*given: object) -> object:
        nonlocal inside, most
        with gate:
            inside += 1
            most = max(most, inside)
        if inside > 1:
            met.set()
        met.wait(0.05)  # for another, which would come at once
        try:
            return real(*given)
        finally:
            with gate:
                inside -= 1

    monkeypatch.setattr(module, step, counted)
    threads = [threading.Thread(target=read, args=(written(300, 300),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """Of a tar file, with a size that may be anything."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    digits = (b"\x80" if size >= 0 else b"\xff") + (size % 256**11).to_bytes(11, "big")
    block[124:136], block[156:157], block[148:156] = digits, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def shard(tmp_path: Path, more: bytes, *, front: bool) -> Path:
    path = tmp_path / "shards" / "a.tar"
    path.parent.mkdir()
    write_tar(path, {f"{i:02}{end}": data for i in range(8) for end, data in ((".png", png(i)), (".cls", str(i % 2)))})
    whole = padded(path.read_bytes().rstrip(b"\0"))
    path.write_bytes((more + whole if front else whole + more) + bytes(1024))
    return path.parent


@pytest.mark.parametrize("front", [True, False])
@pytest.mark.parametrize("kind", [b"0", b"L", b"K", b"x", b"g"])
@pytest.mark.parametrize("size", [-512, -1, 2**33, 2**62, 2**70])
@pytest.mark.parametrize("name", ["z.png", "z.cls", "z.txt"])
def test_a_member_is_as_large_as_its_file(tmp_path: Path, name: str, size: int, kind: bytes, front: bool) -> None:
    with pytest.raises(UserError, match=r"cannot be read as a tar file: .* claims"):
        opened(shard(tmp_path, header(name, size, kind) + bytes(512), front=front))


@pytest.mark.parametrize("front", [True, False])
@pytest.mark.parametrize("kind", [b"0", b"Z", b"8"])
@pytest.mark.parametrize(
    "record",
    [
        b"30 size=99999999999999999999\n", b"28 size=4611686018427387904\n", b"23 size=99999999999999\n",
        b"14 size=-1000\n", b"14 size=-1536\n", b"11 size=-1\n", b"9" * 20 + b" a=b\n", b"9" * 500_000,
    ],
    ids=lambda record: record[:30].decode(),
)  # fmt: skip
def test_extended_headers_claim_no_more(tmp_path: Path, record: bytes, kind: bytes, front: bool) -> None:
    more = header("pax", len(record), b"x") + padded(record) + header("z.png", 0, kind)
    with pytest.raises(UserError, match="cannot be read as a tar file"):
        opened(shard(tmp_path, more, front=front))


def test_headers_before_headers_end(tmp_path: Path) -> None:
    more = (header("pax", 14, b"x") + padded(b"14 path=z.png\n")) * 2000 + header("z.png", 0)
    with pytest.raises(UserError, match="too many headers"):
        opened(shard(tmp_path, more, front=True))


def test_sparse_members_are_set_aside(tmp_path: Path) -> None:
    block = bytearray(header("z.cls", 512, b"S"))
    block[257:265], block[386:410] = b"ustar  \0", b"%011o\0%011o\0" % (0, 512)
    block[483:495], block[148:156] = b"\x80" + (200 * 10**9).to_bytes(11, "big"), b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    found = opened(shard(tmp_path, bytes(block) + bytes(512), front=True))
    assert (images(found), dict(found.passed_over)) == (8, {"members of tar shards: sparse files": 1})


def test_a_shard_that_was_cut_is_told(tmp_path: Path) -> None:
    folder = shard(tmp_path, b"", front=False)
    assert not any("cut off" in note.text for note in opened(folder).notes)
    whole = (folder / "a.tar").read_bytes()
    (folder / "a.tar").write_bytes(whole[: whole.index(b"04.png") + 100])
    assert any("cut off" in note.text for note in opened(folder).notes)
    (folder / "a.tar").write_bytes(whole[:600])
    with pytest.raises(UserError, match="it ends within a member"):
        opened(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"label": ' + "9" * 5000 + "}"])
def test_a_label_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    more = header("00.json", len(text)) + padded(text.encode())
    assert images(opened(shard(tmp_path, more, front=True))) == 8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1535), st.integers(0, 255)), max_size=8))
def test_any_header_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(header("a.png", 8) + padded(b"x" * 8) + header("a.cls", 1) + padded(b"1") + bytes(1024))
    for place, value in changes:
        data[place] = value
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(UserError):
            assert _scan(file.name, "a.tar", "first").path == file.name


def parquet(path: Path, image: pa.Array, label: pa.Array, **said: object) -> Path:
    path.mkdir()
    pq.write_table(pa.table({"image": image, "label": label}), path / "a.parquet", compression="zstd", **said)
    return path


def bombs() -> dict[str, tuple[list[bytes], list[str], bool]]:
    good, zeros = [png(i) for i in range(8)], bytes(9_000_000)
    return {
        "one image": ([zeros * 3, *good[1:]], ["a"] * 8, False),
        "many images": ([zeros] * 8, ["a"] * 8, False),
        "one image in every row": ([zeros] * 8, ["a"] * 8, True),
        "one label in every row": (good, ["a" * 9_000_000] * 8, True),
    }


@pytest.mark.parametrize("kind", ["one image", "many images", "one image in every row", "one label in every row"])
def test_columns_that_grow_are_refused_by_their_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    contents, labels, dictionary = bombs()[kind]
    path = parquet(tmp_path / "data", pa.array(contents), pa.array(labels), use_dictionary=dictionary)
    del contents, labels
    monkeypatch.setenv("RAYSSL_LARGEST_GB", "0.02")
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    with pytest.raises(UserError, match="RAYSSL_LARGEST_GB"):
        opened(path)
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert pool.bytes_allocated() < 40_000_000


def test_a_dictionary_that_does_not_grow_too_far_is_read_to_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [png(i) for i in range(8)] * 4
    path = parquet(tmp_path / "data", pa.array(contents), pa.array(["a", "b"] * 16))
    at_once = opened(path)
    monkeypatch.setenv("RAYSSL_LARGEST_GB", str(3 * sum(map(len, contents)) / 1e9))
    monkeypatch.setenv("RAYSSL_CACHE", str(tmp_path / "another"))
    in_batches = opened(path)
    assert at_once.train.ids.tolist() == in_batches.train.ids.tolist()
    assert all(np.array_equal(at_once.train[i], in_batches.train[i]) for i in range(len(at_once.train)))


@pytest.mark.parametrize(
    ("column", "group", "gigabytes", "rows"),
    [
        ("image", 0, "1", 1 << 6),
        ("label", None, "1", 1 << 12),
        ("image", None, "1", 1 << 12),
        ("image", 0, "0.002", None),
    ],
)
def test_no_more_rows_are_decoded_at_once_than_fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    group: int | None,
    gigabytes: str,
    rows: int | None,
) -> None:
    path = tmp_path / "a.parquet"
    contents = [np.random.default_rng(i).bytes(100_000 if i == 0 else 4) for i in range(5000)]
    pq.write_table(pa.table({"image": contents, "label": ["a", "b"] * 2500}), path)
    sizes: list[int] = []
    whole = pq.ParquetFile.iter_batches

    def noted(self: pq.ParquetFile, *given: object, **said: object) -> Iterator[pa.RecordBatch]:
        for batch in whole(self, *given, **said):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    monkeypatch.setenv("RAYSSL_LARGEST_GB", gigabytes)
    assert read_columns(str(path), [column], group).num_rows == 5000
    # A quarter of what may be read at once, should every row hold all of the dictionary.
    claim = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    assert max(sizes) == (rows or int(float(gigabytes) * 1e9) // (4 * claim))


def whole_number(value: int) -> bytes:
    """As a parquet footer holds it."""
    value, digits = value << 1, []
    while value >= 128:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def test_a_footer_that_claims_too_little_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [bytes(500_000)] * 200}), path, compression="zstd", use_dictionary=False)
    claim = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[start:-8].replace(whole_number(claim), whole_number(56))
    path.write_bytes(data[:start] + footer + struct.pack("<I", len(footer)) + b"PAR1")
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size == 56
    monkeypatch.setenv("RAYSSL_LARGEST_GB", "0.02")
    with pytest.raises(UserError, match="RAYSSL_LARGEST_GB") as refused:
        read_columns(str(path), ["image"], 0)
    (reached,) = re.findall(r"has ([\d.]+) GB", str(refused.value))
    assert float(reached) < 0.05  # of 0.1


NO_TEXT = pa.array([b"ok", b"\xff"] * 4).cast(pa.binary()).view(pa.string())


@pytest.mark.parametrize("place", ["label", "split", "path"])
def test_bytes_in_a_column_of_texts_are_refused(tmp_path: Path, place: str) -> None:
    columns = {"image": pa.array([png(i) for i in range(8)]), "label": pa.array(["a", "b"] * 4)}
    columns |= {place: NO_TEXT}
    if place == "path":
        columns["image"] = pa.StructArray.from_arrays([columns["image"], columns.pop("path")], names=["bytes", "path"])
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "data" / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet: column .* not UTF-8"):
        opened(tmp_path / "data")


@pytest.mark.parametrize(
    "values", [NO_TEXT, pa.array([2**31 - 1] * 8, pa.date32()), pa.array([0] * 8, pa.timestamp("us", "Nowhere/Else"))]
)
def test_values_that_python_cannot_hold_are_refused_in_a_table(folder: Path, tmp_path: Path, values: pa.Array) -> None:
    pq.write_table(pa.table({"path": NAMES[:8], "label": values}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet cannot be read as parquet: column 'label'"):
        opened(folder, labels=str(tmp_path / "t.parquet"))


def test_names_of_classes_with_half_of_a_character_say_nothing(tmp_path: Path) -> None:
    columns = {"image": [png(i) for i in range(8)], "label": [0, 1] * 4}
    write_parquet(tmp_path / "half" / "a.parquet", columns, {"label": ["\ud800", "b"]})
    write_parquet(tmp_path / "whole" / "a.parquet", columns, {"label": ["a", "b"]})
    assert opened(tmp_path / "half").class_names == ("0", "1")
    assert opened(tmp_path / "whole").class_names == ("a", "b")


def test_a_footer_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "data", pa.array([png(i) for i in range(8)]), pa.array(["a", "b"] * 4)) / "a.parquet"
    optional, required = b"\x25\x02\x18\x05image", b"\x25\x00\x18\x05image"
    data = path.read_bytes()
    assert data.count(optional) == 1
    path.write_bytes(data.replace(optional, required))  # while it counts rows that hold nothing: Arrow would end us
    with pytest.raises(UserError, match="cannot be read as parquet: Definition level histogram size mismatch"):
        opened(path)


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "data", pa.nulls(3_000_000, pa.binary()), pa.nulls(3_000_000, pa.int64()))
    with pytest.raises(UserError, match="claims 3,000,000 rows"):
        opened(path)


def struct_of(*columns: tuple[str, list[object]]) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array(values) for _, values in columns], names=[name for name, _ in columns])


def test_odd_columns_are_read_or_refused(tmp_path: Path) -> None:
    good: list[object] = [png(i) for i in range(8)]
    labels = pa.array(["a", "b"] * 4)
    one_null = opened(parquet(tmp_path / "null", struct_of(("bytes", [None, *good[1:]])), labels))
    assert (images(one_null), len(one_null.unreadable)) == (7, 1)
    numbers = opened(parquet(tmp_path / "numbers", struct_of(("bytes", good), ("path", list(range(8)))), labels))
    assert images(numbers) == 8
    for name, image in {
        "texts": struct_of(("bytes", ["a"] * 8)),
        "twice": struct_of(("bytes", good), ("bytes", good)),
        "nothing": struct_of(("bytes", [None] * 8)),
    }.items():
        with pytest.raises(UserError):
            opened(parquet(tmp_path / name, image, labels))


def test_metadata_nested_deep_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = pa.table({"image": [png(i) for i in range(8)], "label": ["a", "b"] * 4})
    pq.write_table(table.replace_schema_metadata({"huggingface": "[" * 100_000}), tmp_path / "data" / "a.parquet")
    assert opened(tmp_path / "data").class_names == ("a", "b")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_footer_is_read_or_refused(changes: list[tuple[float, int]]) -> None:
    from rayssl.pipeline.data.columns import open_part, read_columns

    kept = io.BytesIO()
    pq.write_table(pa.table({"image": [png(i) for i in range(4)], "label": [0, 1, 0, 1]}), kept)
    data = bytearray(kept.getvalue())
    footer = int.from_bytes(data[-8:-4], "little")
    for place, value in changes:
        data[len(data) - 8 - footer + int(place * footer)] = value
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(UserError):
            part = open_part(file.name, "a.parquet")
            names = [name for name in ("image", "label") if name in part.names]
            assert read_columns(file.name, names).num_columns == len(names)


def test_links_to_folders_above_are_followed_once(folder: Path) -> None:
    for name in ("a", "b", "c"):
        (folder / "cat" / name).symlink_to("..")
    assert images(opened(f"{folder}/**/*.png")) == len(NAMES)


@pytest.mark.parametrize(
    "pattern",
    ["{0..999999999}.png", "{a,b}" * 40, "{a,b}" * 20_000, f"{{0..{'9' * 5000}}}.png", f"{{{'1' * 5000}..9}}.png"],
    ids=["range", "choices", "many choices", "many digits", "many digits first"],
)
def test_a_pattern_stands_for_a_bounded_number_of_names(folder: Path, pattern: str) -> None:
    with pytest.raises(UserError, match="stands for"):
        opened(f"{folder}/{pattern}")


@pytest.mark.parametrize("target", ["/dev/null", "pipe.png"])
def test_no_picture_takes_the_place_of_a_device_or_a_pipe(tmp_path: Path, target: str) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="--save"):
        picture_format(tmp_path / target)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "is no name of a file"),
        ("--json", "'--json' is no name of a file"),
        ("a\0.png", "is no name of a file"),
        ("s3://bucket/a.png", "is a URL"),
        ("{tmp}/" + "a" * 240 + ".png", "a name of more than 230 bytes"),
        ("{tmp}/file/below/a.png", "/file is not a folder"),
        ("{tmp}/dead/a.png", "/dead is not a folder"),
        ("{tmp}", "not a regular file"),
    ],
)
def test_a_picture_that_cannot_be_written_is_told_before(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dead").symlink_to(tmp_path / "none")
    with pytest.raises(UserError, match=message) as caught:
        picture_format(Path(target.format(tmp=tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["new/deep/a.png", "no suffix", ".png", "a.JPG", "loop.png"])
def test_odd_names_of_pictures_that_can_be_written(tmp_path: Path, target: str) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    picture_format(tmp_path / target)
    assert not (tmp_path / "new").exists()


def test_a_class_whose_name_is_no_text_is_none(folder: Path) -> None:
    odd = os.fsencode(folder) + b"/od\xff"
    os.mkdir(odd)
    Path(os.fsdecode(odd + b"/1.png")).write_bytes(png(3))
    found = opened(folder)
    assert (found.class_names, len(found.unreadable)) == (("cat", "dog"), 1)


def test_a_table_whose_name_no_file_can_have(folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        opened(folder, labels="/tmp/a\0b")
