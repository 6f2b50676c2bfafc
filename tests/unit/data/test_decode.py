"""Every kind of image becomes the pixels that it shows."""

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import decode, to_square
from rayssl.pipeline.data.decode import kept_size, read_header

decoding = importlib.import_module("rayssl.pipeline.data.decode")  # the package's name `decode` is the function


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    pixels = noise(9, 13, 3)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), kind, **options), None, None), pixels)


def test_jpeg_is_close_and_decoded_small_stays_above_the_size_asked_for() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 800).astype(np.uint8)[None, :, None], (600, 800, 3)).copy()
    image = decode(encoded(Image.fromarray(ramp), "JPEG", quality=95), None, 64)
    assert image.shape == (64, 85, 3)
    assert np.abs(image[32, :, 0].astype(float) - np.linspace(0, 255, 85)).max() < 4


def test_grey_stays_grey_and_converts_both_ways() -> None:
    grey = noise(5, 6)
    data = encoded(Image.fromarray(grey))
    assert np.array_equal(decode(data, None, None), grey[:, :, None])
    assert np.array_equal(decode(data, 3, None), np.repeat(grey[:, :, None], 3, axis=2))
    colour = Image.fromarray(noise(5, 6, 3))
    assert np.array_equal(decode(encoded(colour), 1, None)[:, :, 0], np.asarray(colour.convert("L")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turn_is_undone(orientation: int) -> None:
    upright = noise(4, 7, 3)
    # How a camera stores an upright picture for each value of the tag (EXIF 2.3, section 4.6.4).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(decode(data, None, None), upright)
    assert read_header(data)[:2] == (4, 7)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_shows_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((0, 0), (10, 20, 30, 0))
    options: dict[str, Any] = {}
    if mode == "P":
        image = Image.frombytes("P", (2, 1), b"\0\1")
        image.putpalette([10, 20, 30, 0, 0, 0])
        options = {"transparency": 0}
    elif mode == "RGB":
        image = image.convert("RGB")
        image.putpixel((0, 0), (10, 20, 30))
        options = {"transparency": (10, 20, 30)}
    else:
        image = image.convert(mode)
    pixels = decode(encoded(image, **options), None, None)
    assert pixels.shape == (1, 2, 1 if mode == "LA" else 3)
    assert (pixels[0, 0] == 255).all()
    assert (pixels[0, 1] == 0).all()


def test_half_transparent_black_is_grey() -> None:
    pixels = decode(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))), None, None)
    assert np.abs(pixels.astype(int) - 127).max() <= 1


def test_cmyk_becomes_colour() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    pixels = decode(encoded(image, "JPEG", quality=100), None, None)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels[8, 8].astype(int) - [255, 0, 0]).max() <= 3
    assert decode(encoded(image, "TIFF"), 4, None)[0, 0].tolist() == [0, 255, 255, 0]


def test_16_bit_and_float_are_scaled() -> None:
    wide = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert decode(encoded(Image.fromarray(wide), kind), None, None)[0, :, 0].tolist() == [0, 100, 255]
    share = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert decode(encoded(Image.fromarray(share), "TIFF"), None, None)[0, :, 0].tolist() == [0, 128, 255]


def test_one_bit_and_palette() -> None:
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert decode(encoded(bits), None, None)[0, :, 0].tolist() == [0, 255]
    palette = Image.frombytes("P", (2, 1), b"\0\1")
    palette.putpalette([1, 2, 3, 40, 50, 60])
    assert decode(encoded(palette), None, None)[0].tolist() == [[1, 2, 3], [40, 50, 60]]


def test_more_channels_where_asked_for() -> None:
    six = noise(5, 4, 6)
    pages = [Image.fromarray(six[:, :, c]) for c in range(6)]
    tiff = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    array = io.BytesIO()
    np.save(array, six)
    assert np.array_equal(decode(tiff, 6, None), six)
    assert np.array_equal(decode(array.getvalue(), 6, None), six)
    assert read_header(tiff).channels == read_header(array.getvalue()).channels == 6
    assert np.array_equal(decode(encoded(Image.fromarray(noise(3, 3, 4))), 4, None), noise(3, 3, 4))
    with pytest.raises(UserError, match="it has 3 channels, not 6"):
        decode(encoded(Image.fromarray(noise(3, 3, 3))), 6, None)


def test_what_is_no_image(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    for data in (b"", b"<html>", whole[: len(whole) // 2]):
        with pytest.raises(UserError, match="image cannot be read") as error:
            decode(data, None, None)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no\.png does not exist"):
        decode(tmp_path / "no.png", None, None)
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(UserError, match=r"bad\.png cannot be read: not an image"):
        decode(tmp_path / "bad.png", None, None)


def test_pickled_arrays_are_refused() -> None:
    data = io.BytesIO()
    np.save(data, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError):
        decode(data.getvalue(), None, None)


def test_to_square_crops_the_centre_and_averages_areas() -> None:
    image = noise(4, 8, 3)
    assert np.array_equal(to_square(image, 4), image[:, 2:6])
    means = image.reshape(2, 2, 4, 2, 3).astype(float).mean(axis=(1, 3))[:, 1:3]
    assert np.abs(to_square(image, 2) - means).max() <= 0.5
    assert to_square(noise(3, 5, 1), 7).shape == (7, 7, 1)
    assert to_square(noise(30, 50, 6), 7).shape == (7, 7, 6)
    assert np.array_equal(to_square(np.full((5, 3, 1), 9, np.uint8), 8), np.full((8, 8, 1), 9))


# JPEGs: OpenCV decodes the plain ones, Pillow is the reference and takes the rest


def photo(height: int, width: int, channels: int = 3) -> Image.Image:
    """Smooth shapes with some noise, as photographs have them."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / (9 + 5 * c)) * np.cos(y / (13 - 3 * c)) for c in range(channels)]
    noisy = np.dstack(waves) + np.random.default_rng(0).normal(0, 4, (height, width, channels))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8).squeeze())


def by_pillow(data: bytes, channels: int | None, load_size: int | None, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_jpeg", lambda *_: None)
        return decode(data, channels, load_size)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("load_size", [None, 100, 64])
def test_a_jpeg_is_within_two_levels_of_pillows(
    options: dict[str, Any], channels: int, load_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(photo(203, 301, channels), "JPEG", **{"quality": 90, **options})
    for wanted in (None, 1, 3):
        found, expected = decode(data, wanted, load_size), by_pillow(data, wanted, load_size, monkeypatch)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("load_size", [None, 40])
def test_a_turned_jpeg_is_turned_once(orientation: int, load_size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(90, 130), "JPEG", quality=95, exif=exif)
    found, expected = decode(data, 3, load_size), by_pillow(data, 3, load_size, monkeypatch)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert (found.shape[0] > found.shape[1]) == (orientation >= 5)


@pytest.mark.parametrize("side", [*range(60, 70), 127, 128, 129, 191, 192, 193, 255, 256, 511, 512, 513, 600])
def test_no_jpeg_is_decoded_below_the_size_asked_for(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(side, side + 7), "JPEG")
    seen = []
    bring_down = decoding._brought_down

    def watch(image: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
        seen.append(min(image.shape[:2]))
        return bring_down(image, size)

    monkeypatch.setattr(decoding, "_brought_down", watch)
    assert min(decode(data, 3, 64).shape[:2]) == min(side, 64)
    assert seen[0] >= min(side, 64)
    assert seen[0] <= 2 * 64  # no more is decoded than is needed


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_pillow_decodes_what_is_not_plain(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    data = encoded(photo(40, 50).convert(mode), "JPEG")
    calls = []
    imdecode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *words: calls.append(words) or imdecode(*words))
    for tail in (b"", b"\0" * 8):
        decode(data + tail, None, None)
    assert len(calls) == (mode != "CMYK")  # and never one that does not end as it should


def test_every_cut_of_a_jpeg_is_refused() -> None:
    for options in ({}, {"progressive": True}):
        data = encoded(photo(64, 96), "JPEG", quality=90, **options)
        for end in range(700, len(data) - 100, 97):
            with pytest.raises(UserError, match="cannot be read"):
                decode(data[:end], 3, None)


@pytest.mark.parametrize("size", [100, 90, 80, 70, 67, 66, 60, 51])
def test_bringing_down_is_as_near_to_lanczos_as_pillows_bilinear(size: int) -> None:
    image = Image.fromarray(load_sample_image("china.jpg")[100:200, 200:340])
    found = decode(encoded(image), 3, size)
    goal = np.asarray(image.resize((found.shape[1], size), Image.Resampling.LANCZOS)).astype(float)
    bilinear = np.asarray(image.resize((found.shape[1], size), Image.Resampling.BILINEAR)).astype(float)
    assert found.shape == (*kept_size(100, 140, size), 3)
    assert np.square(found - goal).mean() <= np.square(bilinear - goal).mean()


def test_bringing_down_takes_any_number_of_channels() -> None:
    for n in (1, 2, 4, 5, 9):
        array = io.BytesIO()
        np.save(array, np.full((40, 60, n), 7, np.uint8))
        for size in (35, 25, 20, 10):
            assert (decode(array.getvalue(), n, size) == np.full((*kept_size(40, 60, size), n), 7)).all()
