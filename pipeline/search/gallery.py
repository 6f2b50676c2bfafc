"""A picture of queries and what was found."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.formats import marks
from rayssl.pipeline.data.regular import check_target
from rayssl.pipeline.data.shown import BY_TYPE, Shown
from rayssl.pipeline.run.folder import data_name, read_manifest
from rayssl.pipeline.search.embeddings import files_of, read_facts
from rayssl.pipeline.search.queries import Asked, images_of

if TYPE_CHECKING:
    from rayssl.pipeline.config import Config

PICTURES = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "pdf", "svg")  # formats of a gallery, by suffix
MOST_ROWS = 300  # of a gallery: beyond that a picture has more pixels than formats and viewers take
UNREAD = np.full((8, 8, 1), 224, dtype=np.uint8)  # in the place of an image that cannot be read
CELL = 160  # side of a picture in the gallery, in pixels


def picture_format(path: Path, queries: int = 1) -> str:
    """The format that a suffix names; raises UserError for one that pictures are not written in, and for too many."""
    check_target(path, "--save")
    kind = path.suffix.lower().removeprefix(".") or "png"
    if kind not in PICTURES:
        raise UserError(f"--save {path}: pictures are written as {', '.join(f'.{one}' for one in PICTURES)}")
    if queries > MOST_ROWS:
        raise UserError(f"--save {path}: {queries} queries are too many for one picture: at most {MOST_ROWS}")
    return kind


def save_gallery(
    results: list[dict[str, Any]],
    images_lookup: Callable[[int], NDArray[np.uint8]],
    path: Path,
    asked: list[Asked] | None = None,
    shown: Shown = BY_TYPE,
) -> None:
    """Write a picture with a row for each query: the image and its neighbours with their scores.

    `images_lookup` gives the image (H, W, C) of a sample id; without `asked` the queries are read from their files.
    The suffix of `path` says in which format.
    """
    from matplotlib.figure import Figure

    from rayssl.pipeline.base.files import replacing

    kind = picture_format(path, len(results))
    asked = asked if asked is not None else images_of([result["query"] for result in results])
    columns = 1 + max(len(result["neighbors"]) for result in results)
    figure = Figure(figsize=(columns * CELL / 100, len(results) * (CELL + 40) / 100), dpi=100, layout="constrained")
    axes = figure.subplots(len(results), columns, squeeze=False)
    for cell in axes.flat:
        cell.set_axis_off()
    for row, result, one in zip(axes, results, asked, strict=True):
        pixels = one.read(None, CELL, shown)
        _show(row[0], UNREAD if pixels is None else pixels, "query" if pixels is not None else "cannot be read")
        for cell, neighbor in zip(row[1:], result["neighbors"]):
            caption = f"{neighbor['score']:.3f}" + ("" if neighbor["label"] is None else f"  {neighbor['label']}")
            _show(cell, images_lookup(neighbor["id"]), caption)
    with replacing(path, noted=False) as temporary:  # a picture of one's own, wherever it is put
        drawn: dict[str, Any] = (
            {"pil_kwargs": marks(kind.upper())} if kind not in ("pdf", "svg") else {}
        )  # so that it is no data later
        figure.savefig(temporary, format=kind, **drawn)


def save_run_gallery(
    run: Path,
    results: list[dict[str, Any]],
    path: Path,
    data: str | None = None,
    asked: list[Asked] | None = None,
    place: Path | None = None,
) -> None:
    """`save_gallery` with the pictures of the images that the index `data` is of.

    `place`: the folder that their paths are relative to. Where they are no files of it, the data set is opened.
    """
    from rayssl.pipeline import config as configuration

    config = configuration.load(run / "config.json")
    shown = Shown.of(config.data.range, config.data.background)
    neighbors = [neighbor for result in results for neighbor in result["neighbors"]]
    files = {one["id"]: (place or Path()) / one["path"] for one in neighbors}
    places = {} if all(file.is_file() for file in files.values()) else _places(run, config, data)

    def look_up(found: int) -> NDArray[np.uint8]:
        if found in places:
            images, row = places[found]
            pixels: NDArray[np.uint8] = images[row]
            return pixels
        read = Asked(str(files[found]), files[found]).read(None, CELL, shown)
        return UNREAD if read is None else read

    save_gallery(results, look_up, path, asked, shown)


def _places(run: Path, config: "Config", data: str | None) -> dict[int, tuple[Any, int]]:
    """Where the images of a data set are by id: in which part, and at which position."""
    from rayssl.pipeline.run.images import open_data, open_other

    if data is not None and data != data_name(run):
        other = str(read_facts(files_of(run / "embeddings" / data)[0])["data_path"])
        size, channels = config.data.image_size, config.data.channels
        said = (read_manifest(run).get("others") or {}).get(data, {}).get("reading")
        dataset = open_other(config.data, other, image_size=size, channels=channels, said=said)
    else:
        dataset = open_data(config)  # also where an image has gone since: the others are shown
    splits = [images for images in (dataset.train, dataset.val, dataset.test) if images is not None]
    return {int(found): (images, row) for images in splits for row, found in enumerate(images.ids)}


def _show(cell: Any, image: NDArray[np.uint8], caption: str) -> None:
    """A grey or colour picture; of any other number of channels the first one."""
    pixels = image if image.shape[2] == 3 else image[:, :, 0]
    cell.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    # No mathematics in captions: a class may be called "$"
    cell.set_title(caption, fontsize=9, parse_math=False)
