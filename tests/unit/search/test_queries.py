"""Images in the form people have them are the same pixels as the file; what is broken says so and stops no other."""

import http.server
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import decode
from rayssl.pipeline.data.shown import Shown
from rayssl.pipeline.search.queries import images_of, squares_of

Pixels = np.ndarray[Any, Any]
COLOUR = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0]


def read(form: Any, channels: int | None = 3, **options: Any) -> Pixels:
    (one,) = images_of(form, **options)
    pixels = one.read(channels, 64)
    assert pixels is not None, one.problem
    return pixels


def problem_of(form: Any) -> str:
    (one,) = images_of(form)
    assert one.read(3, 64) is None
    assert one.problem is not None
    return one.problem


def png(values: Pixels) -> bytes:
    kept = io.BytesIO()
    Image.fromarray(values).save(kept, "PNG")
    return kept.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fotos ä" / "a b.png"
    path.parent.mkdir()
    path.write_bytes(png(COLOUR))
    return path


@pytest.fixture
def served(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(tmp_path))

        def log_message(self, *given: Any) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


COLOURS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: png(COLOUR),
    "bytearray": lambda: bytearray(png(COLOUR)),
    "file object": lambda: io.BytesIO(png(COLOUR)),
    "PIL": lambda: Image.fromarray(COLOUR),
    "PIL of a palette": lambda: Image.fromarray(COLOUR).quantize(256, dither=Image.Dither.NONE).convert("P"),
    "uint8": lambda: COLOUR,
    "uint8, reversed in memory": lambda: COLOUR[::-1][::-1],
    "float to 1": lambda: COLOUR / 255,
    "float32 to 255": lambda: COLOUR.astype(np.float32),
    "int64": lambda: COLOUR.astype(np.int64),
    "with an opaque alpha": lambda: np.dstack([COLOUR, np.full(GREY.shape, 255, np.uint8)]),
    "tensor": lambda: torch.from_numpy(COLOUR).permute(2, 0, 1),
    "float tensor": lambda: torch.from_numpy(COLOUR).permute(2, 0, 1).float().div(255).requires_grad_(),
    "double tensor": lambda: torch.from_numpy(COLOUR).permute(2, 0, 1).double() / 255,
    "a batch of one": lambda: torch.from_numpy(COLOUR).permute(2, 0, 1)[None],
    "numpy's batch of one": lambda: COLOUR[None],
    "a list": lambda: [COLOUR],
    "a generator": lambda: (one for one in [COLOUR]),
}


@pytest.mark.parametrize("form", COLOURS)
def test_every_form_is_the_same_pixels(form: str) -> None:
    near = 40 if "palette" in form else 0  # of which there are fewer colours than pixels
    assert np.abs(read(COLOURS[form]()).astype(int) - COLOUR).max() <= near


@pytest.mark.parametrize(
    "form",
    [GREY, GREY[:, :, None], GREY / 255, torch.from_numpy(GREY), torch.from_numpy(GREY)[None], Image.fromarray(GREY)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_becomes_what_the_run_sees(form: Any, channels: int) -> None:
    np.testing.assert_array_equal(read(form, channels), np.repeat(GREY[:, :, None], channels, 2))


def test_colours_of_floats_become_grey_as_a_file_does() -> None:
    np.testing.assert_array_equal(read(COLOUR / 255, 1), decode(png(COLOUR), 1, 64))


def test_a_mask_is_black_and_white() -> None:
    assert set(np.unique(read(GREY > 100))) == {0, 255}


def test_sixteen_bits_are_not_taken_for_eight() -> None:
    values = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(read(values, 1)[:, :, 0], GREY)
    dark = np.full((4, 4), 200, dtype=np.uint16)
    assert read(dark, 1).max() <= 1


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(2, 12), st.integers(2, 12), st.sampled_from([1, 3]))))
def test_any_picture_is_the_same_by_every_way(values: Pixels) -> None:
    channels = values.shape[2]
    flat = values[:, :, 0] if channels == 1 else values
    expected = decode(png(flat), channels, 64)
    ways = [values, Image.fromarray(flat), values / 255.0 if values.max() > 1 else values, png(flat)]
    for way in [*ways, torch.from_numpy(values).permute(2, 0, 1)]:
        np.testing.assert_array_equal(read(way, channels), expected)


def test_a_picture_of_pil_is_turned_as_its_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as picture:
        np.testing.assert_array_equal(read(picture), read(str(tmp_path / "turned.png")))


def test_paths_and_addresses(file: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("HOME", str(file.parent))
    addresses = [
        str(file), file, "a b.png", "~/a b.png", file.as_uri(), f"local://{file}", f"{served}/fotos%20%C3%A4/a%20b.png",
    ]  # fmt: skip
    for address in addresses:
        np.testing.assert_array_equal(read(address), COLOUR)
    assert [one.name for one in images_of(addresses)] == [
        str(address).replace("~", str(file.parent)) for address in addresses
    ]


def test_a_folder_is_its_images(file: Path) -> None:
    (file.parent / "notes.txt").write_text("no image")
    (file.parent / "without-suffix").write_bytes(png(COLOUR))
    (file.parent / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    found = images_of([file.parent])
    assert [Path(one.name).name for one in found] == ["a b.png", "broken.jpg", "without-suffix"]
    assert [one.read(3, 64) is not None for one in found] == [True, False, True]


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("none.png", "image none.png does not exist"),
        (f"data:image/png;base64,{'A' * 9000}", "AAA does not exist"),
        ("~nobody-of-this-name/a.png", "image ~nobody-of-this-name/a.png does not exist"),
        ("s3x://bucket/a.png", "s3x://bucket/a.png cannot be opened"),
        ("file:///none/a.png", "/none/a.png does not exist"),
        (b"no image", "image 1: image cannot be read"),
        (b"", "image 1: image cannot be read"),
        (torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)), "as they were before they were normalised"),
        (np.full((4, 4), np.nan), "not finite"),
    ],
)
def test_what_cannot_be_read_is_told(form: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in problem_of(form)


def test_an_address_that_does_not_answer(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the server says 404" in problem_of(f"{served}/none.png")
    assert "cannot be read" in problem_of("http://127.0.0.1:1/a.png")
    monkeypatch.setattr("rayssl.pipeline.search.queries.MOST_BYTES", 20)
    assert "is larger than" in problem_of(f"{served}/fotos%20%C3%A4/a%20b.png")


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (7, "a int is not an image"),
        ({"a": 1}, "a dict is not an image"),
        ([], "no image to look for"),
        (np.zeros(5), "shape \\(5,\\)"),
        (np.zeros((0, 5)), "shape \\(0, 5\\)"),
        (np.zeros((3, 8, 8)), "channels first: give height × width × channels"),
        (torch.zeros(8, 8, 3), "channels last: give channels × height × width"),
        (torch.zeros(8), "not an image: give channels × height × width"),
    ],
)
def test_what_is_no_image_in_any_form_is_refused(form: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        images_of(form)


def test_values_below_zero_where_the_run_reads_them() -> None:
    (one,) = images_of(np.array([[-1000.0, 500.0]]), signed=True)
    assert isinstance(one.source, bytes)
    assert np.load(io.BytesIO(one.source)).min() == -1000


@pytest.mark.parametrize(
    ("values", "range_"),
    [
        (np.linspace(0, 200, 16), (0, 1000)),
        (np.linspace(0, 200, 16).astype(np.int32), (0, 4095)),
        (np.linspace(0, 0.2, 16), (0.01, 0.2)),
        (np.linspace(0, 200, 16).astype(np.uint8), (0, 4095)),
    ],
)
def test_numbers_are_read_by_the_range_of_the_run_as_in_a_file(values: Pixels, range_: tuple[float, float]) -> None:
    shown, kept = Shown(range_), io.BytesIO()
    values = values.reshape(4, 4)
    np.save(kept, values)
    (one,) = images_of(values)
    np.testing.assert_array_equal(one.read(1, 64, shown), decode(kept.getvalue(), 1, 64, shown))


def test_numbers_up_to_1_are_a_picture_where_the_range_of_the_run_goes_farther() -> None:
    (one,) = images_of(GREY / 255)
    np.testing.assert_array_equal(one.read(1, 64, Shown((0, 4095))), GREY[:, :, None])


def test_a_broken_image_among_others_is_black_and_told(file: Path) -> None:
    asked = images_of([file, b"broken", COLOUR])
    squares = squares_of(asked, 3)(8).square([0, 1, 2], 8)
    assert squares.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(squares[0], squares[2])
    assert squares[1].max() == 0
    assert [one.problem is None for one in asked] == [True, False, True]
    assert [one.name for one in asked] == [str(file), "image 2", "image 3"]
