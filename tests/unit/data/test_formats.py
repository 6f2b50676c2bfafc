"""Every format is read, upright, with the pixels that it shows; what is no image of these is left alone."""

import importlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.decode import decode, held, read_header
from rayssl.pipeline.data.formats import FORMATS, HEIF, OWN, SUFFIXES, formats, looks_like_image, marks, missing_for
from rayssl.pipeline.data.shown import Shown

UPRIGHT = np.zeros((16, 32, 3), np.uint8)  # red, blue over green, black
UPRIGHT[:8, :16, 0] = UPRIGHT[:8, 16:, 2] = UPRIGHT[8:, :16, 1] = 255

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "BMP": {}, "GIF": {}, "PPM": {}, "JPEG2000": {},
}  # fmt: skip
LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
TURNED = ("PNG", "TIFF", "WEBP", "JPEG", "AVIF")  # formats that have the tag
SUFFIX_OF = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "PPM": "ppm"}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def npy(values: NDArray[Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, values)
    return data.getvalue()


def as_stored(upright: NDArray[Any], orientation: int) -> NDArray[Any]:
    """How a camera stores an upright picture for each value of the tag (EXIF 2.3, section 4.6.4)."""
    turned = upright.swapaxes(0, 1)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: turned, 6: turned[::-1], 7: turned[::-1, ::-1], 8: turned[:, ::-1],
    }  # fmt: skip
    return np.ascontiguousarray(stored[orientation])


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def is_upright(data: bytes, tolerance: int) -> bool:
    """In the header and in the pixels, decoded whole and small, in colour and in grey."""
    grey = np.asarray(Image.fromarray(UPRIGHT).convert("L")).astype(int)
    small = decode(data, 3, 8).astype(int)
    return (
        read_header(data)[:2] == (16, 32)
        and np.abs(decode(data, 3, None).astype(int) - UPRIGHT).max() <= tolerance
        and np.abs(decode(data, 1, None)[:, :, 0] - grey).max() <= tolerance
        and np.abs(small[[2, 6, 2], [2, 2, 12]] - UPRIGHT[[4, 12, 4], [4, 4, 24]]).max() <= tolerance + 8
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNED)
def test_every_format_is_turned_once_in_header_and_pixels(kind: str, orientation: int) -> None:
    options = LOSSLESS | LOSSY
    stored = Image.fromarray(as_stored(UPRIGHT, orientation))
    assert is_upright(encoded(stored, kind, exif=exif_of(orientation), **options[kind]), 8 if kind in LOSSY else 0)


@pytest.mark.skipif(HEIF not in formats(), reason="pi-heif is not installed")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_turned_once_in_header_and_pixels(orientation: int) -> None:
    # They say it twice, as those of phones: in a box that the decoder heeds, and in EXIF.
    with zipfile.ZipFile(Path(__file__).parent / "files" / "turned-heic.zip") as archive:
        assert is_upright(archive.read(f"{orientation}.heic"), 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "F", "RGB;16"])
def test_a_tiff_of_any_kind_is_turned_once(mode: str, compression: str | None, orientation: int) -> None:
    upright = np.arange(3 * 5, dtype=np.uint8).reshape(3, 5)
    shown = Shown((0.0, 255.0))
    if mode == "RGB;16":
        tifffile = pytest.importorskip("tifffile")
        upright = np.stack([upright, upright + 20, upright + 40], axis=2).astype(np.uint8)
        file = io.BytesIO()
        stored = as_stored(upright, orientation).astype(np.uint16)
        packed = {None: None, "tiff_lzw": None, "tiff_adobe_deflate": "zlib"}[compression]
        tag = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(file, stored, photometric="rgb", compression=packed, extratags=tag)
        data = file.getvalue()
    else:
        kind = {"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8)
        stored = as_stored(upright, orientation).astype(kind)
        image = Image.fromarray(stored)
        image = image.convert("RGB") if mode == "RGB" else image
        data = encoded(image, "TIFF", exif=exif_of(orientation), compression=compression)
    found = decode(data, None, None, shown)
    assert np.array_equal(found, np.broadcast_to(np.atleast_3d(upright), found.shape))
    assert read_header(data)[:2] == (3, 5)


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_every_format_shows_its_pixels_by_suffix_and_by_content(kind: str) -> None:
    data = encoded(Image.fromarray(UPRIGHT), kind, **(LOSSLESS | LOSSY)[kind])
    assert is_upright(data, 8 if kind in LOSSY else 0)
    assert looks_like_image(data[:32])
    assert f".{SUFFIX_OF.get(kind, kind.lower())}" in SUFFIXES


def test_of_several_frames_the_first_is_read() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert read_header(data).pages == 3, kind
        assert np.abs(decode(data, 3, None)[0, 0].astype(int) - [255, 0, 0]).max() <= 8, kind


@pytest.mark.parametrize("dtype", ["u1", "?", "i1", "u2", "i2", "<i4", ">u2", "u4", "i8", "f2", "<f4", ">f4", "f8"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_arrays_of_every_type_are_read(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    header, found = read_header(npy(values)), decode(npy(values), None, None, Shown((0.0, 1.0)))
    assert header[:4] == (5, 7, np.atleast_3d(values).shape[2], shape != (5, 7, 3))
    assert header.wide == (dtype not in ("u1", "?"))
    assert np.array_equal(found, np.atleast_3d(values).astype(np.uint8) * (1 if dtype == "u1" else 255))


def test_grey_and_colour_arrays_convert() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colour).convert("L"))
    assert np.array_equal(decode(npy(colour), 1, None)[:, :, 0], expected)
    assert np.array_equal(decode(npy(colour[:, :, 0]), 3, None), np.repeat(colour[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((2, 2, 2, 2)), np.zeros((0, 4)), np.zeros((4, 4), complex)])
def test_arrays_that_are_no_images_are_refused(values: NDArray[Any]) -> None:
    with pytest.raises(UserError):
        decode(npy(values), None, None)
    assert held(npy(values), None) is None or values.size


def test_a_header_is_read_from_the_first_part_of_a_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF"):
        data = encoded(Image.fromarray(noise), kind)
        (tmp_path / kind).write_bytes(data)
        assert read_header(data[: 1 << 16])[:2] == read_header(data)[:2] == (300, 200)
        assert read_header(tmp_path / kind) == read_header(data)
    assert read_header(npy(noise)[:200]) == read_header(npy(noise))


@pytest.mark.parametrize(
    ("mode", "channels", "grey", "transparent"),
    [("1", 1, True, False), ("L", 1, True, False), ("LA", 2, True, True), ("P", 1, False, False),
     ("RGB", 3, False, False), ("RGBA", 4, False, True), ("I;16", 1, True, False)],
)  # fmt: skip
def test_a_png_header_is_what_pillow_says(mode: str, channels: int, grey: bool, transparent: bool) -> None:
    image = Image.new(mode, (5, 3)) if mode != "I;16" else Image.fromarray(np.zeros((3, 5), np.uint16))
    header = read_header(encoded(image, "PNG"))
    assert header == (3, 5, channels, grey, mode == "I;16", transparent, 1, False, False)
    if mode in ("L", "P", "RGB"):
        seen_through = encoded(image, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
        assert read_header(seen_through).transparent


def test_an_old_way_to_say_the_turn_of_a_png_is_heeded() -> None:
    exif = exif_of(6).tobytes()
    lines = "\n".join(exif.hex()[i : i + 72] for i in range(0, 2 * len(exif), 72))
    said = PngImagePlugin.PngInfo()
    said.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{lines}\n", zip=True)
    assert is_upright(encoded(Image.fromarray(as_stored(UPRIGHT, 6)), "PNG", pnginfo=said), 0)


def test_what_pillow_would_start_a_program_for_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="not an image"):
        read_header(tmp_path / "a.jpg")
    for kind in ("EPS", "WMF", "ICO", "PDF", "FITS", "HDF5"):
        assert kind not in formats()
    for kind in ("ICO", "TGA", "PCX"):
        with pytest.raises(UserError, match="not an image"):
            decode(encoded(Image.fromarray(UPRIGHT), kind), None, None)
    assert set(FORMATS) <= set(formats())


@pytest.mark.parametrize(
    "head",
    [b"", b"BM is a text", b"P6 is not a picture", b"%PDF-1.7", b"RIFF\0\0\0\0WAVEfmt ", b"GIF", b"\0\0\0 ftypisom",
     b"II*\0\x10\0\0\0CR\x02\0", b"PK\x03\x04", b"<svg xmlns="],
)  # fmt: skip
def test_what_only_begins_like_an_image_is_none(head: bytes) -> None:
    assert not looks_like_image(head[:32])


def test_without_its_library_a_heic_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    assert looks_like_image(head)
    for module in ("formats", "decode"):
        monkeypatch.setattr(importlib.import_module(f"rayssl.pipeline.data.{module}"), "formats", lambda: FORMATS)
    assert missing_for(head) is not None
    with pytest.raises(UserError, match="pip install pi-heif"):
        decode(head, None, None)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_of_this_project_are_known_by_their_mark(kind: str) -> None:
    image = Image.fromarray(UPRIGHT)
    assert read_header(encoded(image, kind, **marks(kind))).own
    assert not read_header(encoded(image, kind)).own
    other = Image.Exif()
    other[0x0131] = f"not {OWN}"
    assert not read_header(encoded(image, kind, exif=other)).own


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_arrays_with_channels_first_are_refused_as_such(bands: int) -> None:
    with pytest.raises(UserError, match="channels first"):
        decode(npy(np.zeros((bands, 24, 24), np.uint8)), 3, None)
    assert decode(npy(np.zeros((3, 24, 3), np.uint8)), 3, None).shape == (3, 24, 3)


def test_an_array_that_is_cut_off_takes_no_memory() -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)})
    with pytest.raises(UserError, match="is cut off"):
        decode(file.getvalue(), None, None)
    with pytest.raises(UserError, match="is cut off"):
        decode(npy(np.zeros((24, 24), np.uint8))[:-1], None, None)
