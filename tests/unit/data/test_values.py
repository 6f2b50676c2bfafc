"""One range of values and one background per data set: concluded from all images, or as the user says."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Dataset, open_dataset
from rayssl.pipeline.data.decode import decode
from rayssl.pipeline.data.shown import COLOURS, Held, Shown, colour_of, count_values, range_of, surveyed, to_bytes
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.identity import read_as_before
from rayssl.pipeline.run.images import open_data, open_other
from rayssl.pipeline.run.resolve import open_and_resolve

N = 20
Save = Callable[[Path, NDArray[Any]], None]

pytestmark = pytest.mark.usefixtures("cache")


def as_npy(path: Path, values: NDArray[Any]) -> None:
    np.save(path.with_suffix(".npy"), values)


def as_png(path: Path, values: NDArray[Any]) -> None:
    if values.ndim == 2:
        Image.fromarray(values).save(path.with_suffix(".png"))
        return
    import cv2

    cv2.imwrite(str(path.with_suffix(".png")), values[:, :, [2, 1, 0, 3][: values.shape[2]]])


def as_tiff(path: Path, values: NDArray[Any]) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path.with_suffix(".tif"), values, photometric="rgb" if values.ndim == 3 else "minisblack")


def ramps(low: float, high: float, dtype: Any, bands: int = 0) -> list[NDArray[Any]]:
    """Images that hold every value from the lowest to the highest, each in another order."""
    random = np.random.default_rng(0)
    values = np.linspace(low, high, 24 * 24)
    images = [random.permutation(values).reshape(24, 24) for _ in range(N)]
    if bands:
        images = [random.permuted(np.stack([image] * bands, axis=2), axis=0) for image in images]
    return [(np.rint(image) if np.issubdtype(dtype, np.integer) else image).astype(dtype) for image in images]


def opened(folder: Path, images: list[NDArray[Any]], save: Save, **options: Any) -> Dataset:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        save(folder / f"{number:03}", image)
    return open_dataset(folder, image_size=24, **options)


def pixels_of(dataset: Dataset) -> dict[int, NDArray[np.uint8]]:
    parts = [part for part in (dataset.train, dataset.val, dataset.test) if part is not None]
    return {int(Path(path).stem): part[i] for part in parts for i, path in enumerate(part.paths)}


def said(dataset: Dataset, flag: str) -> list[str]:
    return [note.text for note in dataset.notes if note.flag == flag]


# (what it is, lowest and highest value, type, how it is written, the range that is right)
RANGES: list[tuple[str, float, float, Any, Save, str]] = [
    ("12 bits in 16", 0, 4095, np.uint16, as_png, "0,4095"),
    ("12 bits in 16, TIFF", 12, 3800, np.uint16, as_tiff, "0,4095"),
    ("12 bits in 16, array", 0, 4095, np.uint16, as_npy, "0,4095"),
    ("10 bits", 3, 1000, np.uint16, as_png, "0,1023"),
    ("14 bits", 0, 16383, np.uint16, as_tiff, "0,16383"),
    ("16 bits", 0, 65535, np.uint16, as_png, "type"),
    ("bytes in 16 bits", 0, 255, np.uint16, as_png, "0,255"),
    ("a thermal camera", 29000, 31500, np.uint16, as_png, "29000,31500"),
    ("CT", -1024, 3071, np.int16, as_tiff, "-1024,3071"),
    ("CT, array", -1024, 3071, np.int16, as_npy, "-1024,3071"),
    ("CT in 32 bits", -1024, 3071, np.int32, as_tiff, "-1024,3071"),
    ("bytes in int32", 0, 255, np.int32, as_npy, "0,255"),
    ("bytes in int32, TIFF", 0, 255, np.int32, as_tiff, "0,255"),
    ("bytes in int64", 0, 255, np.int64, as_npy, "0,255"),
    ("bytes with a sign", -128, 127, np.int8, as_npy, "-128,127"),
    ("bytes with a sign, TIFF", -128, 127, np.int8, as_tiff, "-128,127"),
    ("32 bits without a sign", 0, 4294967295, np.uint32, as_tiff, "0,4294967295"),
    ("floats to 1", 0, 1, np.float32, as_tiff, "type"),
    ("floats to 1, array", 0, 1, np.float64, as_npy, "type"),
    ("halves", 0, 1, np.float16, as_npy, "type"),
    ("floats to 255", 0, 255, np.float32, as_tiff, "type"),
    ("floats from -1 to 1", -1, 1, np.float32, as_npy, "-1,1"),
    ("small floats", 0, 0.001953125, np.float32, as_npy, "0,0.001953125"),
    ("floats to 65535", 0, 65535, np.float32, as_tiff, "0,65535"),
    ("degrees", -40.5, 120.25, np.float64, as_npy, "-40.5,120.25"),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_whose_zero_is_white_is_turned_over(dtype: Any, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    images = ramps(0, 255 if dtype == np.uint8 else 30000, dtype)
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        tifffile.imwrite(folder / f"{number:03}.tif", image, photometric="miniswhite")
    dataset = open_dataset(folder, image_size=24)
    for number, pixels in pixels_of(dataset).items():
        assert np.corrcoef(pixels.ravel(), images[number].astype(float).ravel())[0, 1] < -0.99
    assert dtype == np.uint8 or "20 of them say that white is zero" in said(dataset, "--data.range")[0]


@pytest.mark.parametrize(("what", "low", "high", "dtype", "save", "expected"), RANGES, ids=[row[0] for row in RANGES])
def test_values_of_every_type_keep_their_grey_levels(
    what: str, low: float, high: float, dtype: Any, save: Save, expected: str, tmp_path: Path
) -> None:
    images = ramps(low, high, dtype)
    dataset = opened(tmp_path / "images", images, save)
    assert dataset.range == expected
    plain = (0, 65535) if np.issubdtype(dtype, np.integer) else (0, 255 if high > 1 else 1)
    black, white = plain if expected == "type" else (float(part) for part in expected.split(","))
    for number, found in pixels_of(dataset).items():
        right = np.rint((images[number].astype(float) - black) * 255 / (white - black))
        assert np.abs(found[:, :, 0] - right).max() <= 1
        assert len(np.unique(found)) > 200 * (high - low) / (white - black)
    (text,) = said(dataset, "--data.range")
    assert f"{N} images hold more than 8 bits" in text
    assert "flat" not in text


@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("save", [as_png, as_tiff, as_npy])
def test_colours_of_12_bits_keep_their_levels(bands: int, save: Save, tmp_path: Path) -> None:
    images = ramps(0, 4095, np.uint16, bands)
    for image in images:
        image[:, :, 3:] = 65535  # opaque
    if save is as_npy:
        images = [image[:, :, :3] for image in images]
    dataset = opened(tmp_path / "images", images, save)
    assert (dataset.range, dataset.channels) == ("0,4095", 3)
    for number, found in pixels_of(dataset).items():
        assert np.abs(found - np.rint(images[number][:, :, :3] * (255 / 4095))).max() <= 1


def test_full_16_bit_and_8_bit_images_are_read_as_ever(tmp_path: Path) -> None:
    wide = opened(tmp_path / "wide", ramps(0, 65535, np.uint16, 3), as_png)
    told = opened(tmp_path / "wide", [], as_png, range="type")
    assert wide.fingerprint == told.fingerprint
    first = next(iter(pixels_of(wide)))
    assert np.array_equal(pixels_of(wide)[first], np.asarray(Image.open(tmp_path / "wide" / f"{first:03}.png")))
    plain = opened(tmp_path / "plain", ramps(0, 255, np.uint8), as_png)
    given = opened(tmp_path / "plain", [], as_png, range="0,4095", background="black")
    assert plain.fingerprint == given.fingerprint
    assert not {note.flag for note in (*plain.notes, *given.notes)} & {"--data.range", "--data.background"}
    assert (plain.range, plain.background, given.range) == ("auto", "auto", "0,4095")


def test_a_range_is_one_for_all_images_and_says_so(tmp_path: Path) -> None:
    images = [image // (1 + number % 4) for number, image in enumerate(ramps(0, 4095, np.uint16))]
    dataset = opened(tmp_path / "images", images, as_png)
    brightest = {number: int(found.max()) for number, found in pixels_of(dataset).items()}
    assert all(abs(value - 255 / (1 + number % 4)) <= 1 for number, value in brightest.items())
    (note,) = [note for note in dataset.notes if note.flag == "--data.range"]
    assert note.guess
    assert "values 0 to 4095 become black to white (0 to 4095 occur)" in note.text


def test_a_range_that_is_told_is_used_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    images = ramps(-1024, 3071, np.int16)
    by_itself = opened(tmp_path / "images", images, as_tiff)
    lungs = opened(tmp_path / "images", [], as_tiff, range="-1000,200")
    again = opened(tmp_path / "images", [], as_tiff, range="-1024,3071")
    assert lungs.range == "-1000,200"
    assert lungs.fingerprint != by_itself.fingerprint == again.fingerprint
    number, found = next(iter(pixels_of(lungs).items()))
    assert np.array_equal(found[:, :, 0], np.rint(np.clip((images[number] + 1000) / 1200, 0, 1) * 255))
    assert not next(note for note in lungs.notes if note.flag == "--data.range").guess


@pytest.mark.parametrize("loader", ["resident", "stream"])
def test_a_range_that_leaves_next_to_nothing_is_warned_of(loader: str, tmp_path: Path) -> None:
    for _ in range(2):  # found, then remembered
        dataset = opened(tmp_path / "images", ramps(0, 4095, np.uint16)[:10], as_png, range="0,65535", loader=loader)
        told, warned = [note for note in dataset.notes if note.flag == "--data.range"]
        assert told.text.endswith("values 0 to 65535 become black to white")
        assert warned.text.startswith("10 of 10 images are nearly flat")


@pytest.mark.parametrize("text", ["4095", "a,b", "5,5", "9,1", "0,inf", "0,nan", "1,2,3", ""])
def test_a_wrong_range_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--data\.range is"):
        range_of(text)


@pytest.mark.parametrize("text", ["red", "#12345", "#gggggg", "255,255,255", ""])
def test_a_wrong_background_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--data\.background is"):
        colour_of(text)


def test_hot_pixels_and_values_that_say_no_value_are_no_part_of_the_range(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    hot = [random.integers(0, 4096, (64, 64), dtype=np.uint16) for _ in range(N)]
    for image in hot[:5]:
        image[tuple(random.integers(0, 64, 2))] = 65535
    dataset = opened(tmp_path / "hot", hot, as_png)
    assert dataset.range == "0,4095"
    assert "outliers" in said(dataset, "--data.range")[0]
    heights = [random.uniform(100, 2500, (32, 32)).astype(np.float32) for _ in range(N)]
    for image in heights:
        image[:8] = -9999
        image[8, 0] = np.nan
    low, high = (float(part) for part in opened(tmp_path / "heights", heights, as_npy).range.split(","))
    assert 95 <= low <= 105
    assert 2480 <= high <= 2500


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from([np.uint16, np.int16, np.int32, np.float32, np.float64]),
    data=st.data(),
)
def test_whatever_the_values_are_most_of_the_grey_levels_are_used(dtype: Any, data: st.DataObject) -> None:
    limits = (np.iinfo(dtype).min, np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else (-(10**6), 10**6)
    low = data.draw(st.integers(limits[0], limits[1] - 64))
    high = data.draw(st.integers(low + 64, limits[1]))
    values = np.linspace(low, high, 4096).astype(dtype)
    parts = np.array_split(np.random.default_rng(0).permutation(values), 4)
    survey = surveyed([Held(count_values(part)) for part in parts])
    found = survey.range()
    assert found is not None
    assert found[0] <= values.min()
    assert found[1] >= values.max()
    bytes_ = to_bytes(values, found)
    assert int(bytes_.max()) - int(bytes_.min()) >= 63  # a quarter
    assert (np.diff(bytes_.astype(int)) >= 0).all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=50))
def test_no_floats_at_all_break_anything(values: list[float]) -> None:
    array = np.array(values)
    counted = count_values(array)
    survey = surveyed([Held(counted), None])
    if counted is not None:
        assert to_bytes(array, survey.range()).shape == array.shape
    assert to_bytes(array, None).dtype == np.uint8


def test_16_bits_by_type_are_divided_by_257() -> None:
    values = np.arange(65536, dtype=np.uint16)
    right = (values.astype(np.uint32) * 255 + 32767) // 65535
    assert np.array_equal(to_bytes(values, None), right)
    for kind in (">u2", "<u2"):  # large images are read by a table
        assert np.array_equal(to_bytes(np.tile(values.astype(kind), (3, 1)), None), np.tile(right, (3, 1)))


@pytest.mark.parametrize("loader", ["resident", "stream"])
def test_every_loader_reads_by_range_and_background(loader: str, tmp_path: Path) -> None:
    images = ramps(0, 4095, np.uint16)
    found = pixels_of(opened(tmp_path / "images", images, as_png, loader=loader))
    for number, image in enumerate(images):
        np.testing.assert_array_equal(found[number][:, :, 0], to_bytes(image, (0, 4095)))
    drawn = pixels_of(drawings(tmp_path / "drawings", WHITE, loader=loader))
    assert all((image.min(axis=(0, 1)) == BLACK).all() for image in drawn.values())


# Backgrounds


def drawing(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """A few strokes on nothing, whose colour under full transparency is another in every file."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((24, 24, 4), np.uint8)
    pixels[:, :, :3] = random.integers(0, 256, 3)
    for row in random.integers(0, 24, 5):
        pixels[row] = (*colour, 255)
    return Image.fromarray(pixels)


def drawings(folder: Path, *colours: tuple[int, int, int], **options: Any) -> Dataset:
    folder.mkdir(exist_ok=True)
    for number in range(N):
        drawing(colours[number % len(colours)], number).save(folder / f"{number:03}.png")
    return open_dataset(folder, image_size=24, **options)


WHITE, BLACK, GREY, RED = (255, 255, 255), (0, 0, 0), (128, 128, 128), (255, 0, 0)


@pytest.mark.parametrize(
    ("colours", "expected"),
    [((BLACK,), "white"), ((WHITE,), "black"), ((WHITE, BLACK), "grey"), ((RED,), "white"), ((GREY,), "white"),
     ((WHITE, GREY), "black"), ((BLACK, RED, GREY), "white")],
)  # fmt: skip
def test_a_background_is_found_that_shows_the_drawings(colours: Any, expected: str, tmp_path: Path) -> None:
    dataset = drawings(tmp_path / "drawings", *colours)
    assert dataset.background == expected
    images = pixels_of(dataset)
    assert all(np.ptp(image.reshape(-1, 3), axis=0).max() > 100 for image in images.values())
    assert all(COLOURS[expected] in set(map(tuple, image.reshape(-1, 3).tolist())) for image in images.values())
    (text,) = said(dataset, "--data.background")
    assert f"transparent pixels of {N} images show {expected}" in text
    assert not said(dataset, "--data.range")


def test_a_background_that_is_told_is_used_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    black = drawings(tmp_path / "drawings", WHITE)
    blue = drawings(tmp_path / "drawings", WHITE, background="#0000FF")
    white = drawings(tmp_path / "drawings", WHITE, background="white")
    assert blue.background == "#0000ff"
    colours = np.concatenate([image.reshape(-1, 3) for image in pixels_of(blue).values()])
    assert set(map(tuple, colours.tolist())) == {WHITE, (0, 0, 255)}
    assert len({one.fingerprint for one in (black, blue, white)}) == 3
    assert any(note.text.startswith("20 of 20 images are nearly flat") for note in white.notes)
    assert drawings(tmp_path / "drawings", WHITE, background="black").fingerprint == black.fingerprint


def test_one_lost_drawing_of_many_does_not_change_the_background(tmp_path: Path) -> None:
    dataset = drawings(tmp_path / "drawings", *[BLACK] * (N - 1), WHITE)
    assert dataset.background == "white"
    assert "1 are not seen on white" in said(dataset, "--data.background")[0]


def test_opaque_images_with_transparency_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(N):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8))
        image.convert("RGBA").save(tmp_path / "images" / f"{number:03}.png")
    dataset = open_dataset(tmp_path / "images", image_size=24)
    assert (said(dataset, "--data.background"), dataset.background) == ([], "white")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "GIF", "WEBP"])
def test_every_kind_of_transparency_shows_the_background(mode: str) -> None:
    image, options, kind = Image.new("RGBA", (2, 1), (0, 0, 0, 255)), {}, mode if mode in ("GIF", "WEBP") else "PNG"
    image.putpixel((0, 0), (10, 10, 10, 0))
    if mode == "P":
        image = Image.frombytes("P", (2, 1), b"\0\1")
        image.putpalette([10, 10, 10, 0, 0, 0])
        options = {"transparency": 0}
    elif mode in ("RGB", "L"):
        image = Image.new(mode, (2, 1))
        image.putpixel((0, 0), 10 if mode == "L" else (10, 10, 10))
        options = {"transparency": 10 if mode == "L" else (10, 10, 10)}
    elif mode == "LA":
        image = image.convert("LA")
    file = io.BytesIO()
    image.save(file, kind, **({"lossless": True} if kind == "WEBP" else options))
    grey = decode(file.getvalue(), 1, None, Shown(None, GREY))
    colour = decode(file.getvalue(), 3, None, Shown(None, RED))
    assert grey[0, :, 0].tolist() == [128, 0]
    assert colour[0].tolist() == [[255, 0, 0], [0, 0, 0]]


def test_flat_bytes_are_told_without_a_flag_that_would_not_help(tmp_path: Path) -> None:
    masks = [image > 100 for image in ramps(0, 255, np.uint8)]
    dataset = opened(tmp_path / "masks", [mask.astype(np.uint8) for mask in masks], as_png)
    (note,) = [note for note in dataset.notes if "nearly flat" in note.text]
    assert (note.guess, note.flag) == (True, "")


# What a run remembers


def test_a_run_written_before_reads_its_images_as_it_did(tmp_path: Path) -> None:
    values = configuration.to_dict(configuration.Config())
    assert (values["data"]["range"], values["data"]["background"]) == ("auto", "auto")
    for name in ("range", "background", "key", "splits"):
        del values["data"][name]
    data = configuration.from_dict(values).data
    assert (data.range, data.background) == ("type", "white")
    reading = {"range": data.range, "background": data.background}
    twelve = opened(tmp_path / "images", ramps(0, 4095, np.uint16), as_png, **reading)
    assert max(int(image.max()) for image in pixels_of(twelve).values()) == 16


def test_a_run_writes_down_what_it_concluded_and_reads_other_images_so(tmp_path: Path) -> None:
    opened(tmp_path / "images", ramps(-1024, 3071, np.int16), as_tiff)
    for number in range(N):
        drawing(WHITE, number).resize((24, 24)).save(tmp_path / "images" / f"{900 + number}.png")
    given = configuration.override(build_recipe("simclr-mnist"), {"data.path": str(tmp_path / "images")})
    before, dataset = open_and_resolve(given, lambda text: None)
    assert (before.data.range, before.data.background) == ("-1024,3071", "black")
    assert open_data(before).fingerprint == dataset.fingerprint
    other = opened(tmp_path / "other", ramps(0, 1000, np.int16), as_tiff)
    assert other.range == "0,1023"
    seen = open_other(before.data, other.path, image_size=24, channels=1)
    assert seen.range == "-1024,3071"
    low, high = min(int(i.min()) for i in pixels_of(seen).values()), max(int(i.max()) for i in pixels_of(seen).values())
    assert (low, high) == (64, 126)  # 0 and 1000 of −1024 … 3071


def test_where_nothing_had_to_be_concluded_it_is_for_other_images(tmp_path: Path) -> None:
    opened(tmp_path / "images", ramps(0, 255, np.uint8), as_png)
    given = configuration.override(build_recipe("simclr-mnist"), {"data.path": str(tmp_path / "images")})
    config, _ = open_and_resolve(given, lambda text: None)
    assert (config.data.range, config.data.background) == ("auto", "auto")
    other = opened(tmp_path / "other", ramps(0, 4095, np.uint16), as_png)
    assert open_other(config.data, other.path, image_size=24, channels=1).range == "0,4095"


def test_a_run_that_goes_on_reads_as_before() -> None:
    given = configuration.Config()
    before = configuration.override(given, {"data.range": "type", "data.background": "white"})
    now = read_as_before(given, before)
    assert (now.data.range, now.data.background) == ("type", "white")
    other = configuration.override(given, {"data.range": "0,100"})
    assert read_as_before(other, before).data.range == "0,100"
