"""The images most similar to a given one: encoder, index and embeddings of a run put together."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data import decode, sample_id, storage, to_square
from pipeline.data.decode import load_size_of
from pipeline.data.formats import OWN
from pipeline.data.shown import BY_TYPE, Shown
from pipeline.embeddings import Embeddings, load_embeddings
from pipeline.encoders import Encoder
from pipeline.errors import UserError
from pipeline.export import encoder_hash, load_encoder
from pipeline.index import check_matches, load_index, search
from pipeline.runfolder import read_manifest, winner_of
from pipeline.search.apply import files_as_squares, load_searcher
from pipeline.search.store import FOLDER, search_hash
from pipeline.weights import read_manifest as read_export

BATCH = 64
CELL = 160  # side of a picture in the gallery, in pixels


def query(run: Path | str, images: Sequence[str | Path], k: int, data: str | None = None) -> list[dict[str, Any]]:
    """For each image file its k nearest in the run's index, best first, with cosine scores in −1 … 1:

        [{"query": path, "neighbors": [{"rank": 1, "id": …, "path": …, "label": …, "score": …}]}]

    A label is the class's name where classes have names, else a number, or None. An image that is itself in the
    index does not find itself, by id; a copy of it under another path is found. `data` names the data set, the
    run's own without it. Raises UserError for a file that is no image, a k above the number of vectors, and an
    index, embeddings or encoder that are missing, damaged or do not match.
    """
    run, asked = winner_of(Path(run)), [str(image) for image in images]
    if not asked:
        raise UserError("no image to look for: give one or more")
    name = data or read_manifest(run)["data"]["name"]
    index, manifest = load_index(run / "index" / name)
    chosen = search_hash(run)
    splits = _load_splits(run / "embeddings" / name / (FOLDER if chosen else ""), run)
    check_matches(manifest, chosen or encoder_hash(run), splits[0].data_fingerprint)
    shown = _shown(run)
    vectors = _embed_files(load_encoder(run), asked, shown) if chosen is None else _searched(run, asked, shown)
    place = _place_of(run, name, splits[0].data_path)
    own = [_own_ids(image, place) for image in asked]
    scores, ids = search(index, vectors, k, own)
    while _add_same(own, asked, ids, splits, place):  # ways to the very file that the names do not tell of
        scores, ids = search(index, vectors, k, own)
    known = _known(splits, set(ids.ravel().tolist()))
    if len(known) < len(set(ids.ravel().tolist())):
        raise UserError(f"{run}/index/{name} holds images that have no embedding: `rayssl index {run}` builds it anew")
    return [
        {
            "query": image,
            "neighbors": [
                {"rank": rank, "id": found, **known[found], "score": score}
                for rank, (found, score) in enumerate(zip(its_ids, its_scores), start=1)
            ],
        }
        for image, its_ids, its_scores in zip(asked, ids.tolist(), scores.tolist())
    ]


def save_gallery(
    results: list[dict[str, Any]],
    images_lookup: Callable[[int], NDArray[np.uint8]],
    path: Path,
    shown: Shown = BY_TYPE,
) -> None:
    """Write a PNG with a row for each query: the image and its neighbours with their scores.

    `images_lookup` gives the image (H, W, C) of a sample id; the queries are read from their files.
    """
    from matplotlib.figure import Figure

    from pipeline.files import replacing

    columns = 1 + max(len(result["neighbors"]) for result in results)
    figure = Figure(figsize=(columns * CELL / 100, len(results) * (CELL + 40) / 100), dpi=100, layout="constrained")
    axes = figure.subplots(len(results), columns, squeeze=False)
    for cell in axes.flat:
        cell.set_axis_off()
    for row, result in zip(axes, results):
        _show(row[0], decode(Path(result["query"]), None, CELL, shown), "query")
        for cell, neighbor in zip(row[1:], result["neighbors"]):
            caption = f"{neighbor['score']:.3f}" + ("" if neighbor["label"] is None else f"  {neighbor['label']}")
            _show(cell, images_lookup(neighbor["id"]), caption)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": OWN})


def save_run_gallery(run: Path, results: list[dict[str, Any]], path: Path, data: str | None = None) -> None:
    """`save_gallery` with the pictures of the images that the index `data` is of."""
    from pipeline import config as configuration
    from pipeline.own import open_own
    from pipeline.prepare import open_other

    config = configuration.load(run / "config.json")
    own = read_manifest(run)["data"]["name"]
    if data is not None and data != own:
        other = _load_splits(run / "embeddings" / data, run)[0].data_path
        size, channels = config.data.image_size, config.data.channels
        dataset = open_other(config.data, other, image_size=size, channels=channels)
    else:
        dataset = open_own(run, config)
    splits = [images for images in (dataset.train, dataset.val, dataset.test) if images is not None]
    places = {int(found): (images, row) for images in splits for row, found in enumerate(images.ids)}

    def look_up(found: int) -> NDArray[np.uint8]:
        images, row = places[found]
        return images[row]

    save_gallery(results, look_up, path, Shown.of(config.data.range, config.data.background))


def _show(cell: Any, image: NDArray[np.uint8], caption: str) -> None:
    """A grey or colour picture; of any other number of channels the first one."""
    pixels = image if image.shape[2] == 3 else image[:, :, 0]
    cell.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    # No mathematics in captions: a class may be called "$"
    cell.set_title(caption, fontsize=9, parse_math=False)


def _load_splits(folder: Path, run: Path) -> list[Embeddings]:
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise UserError(f"{folder} holds no embeddings: `rayssl embed {run}` writes them")
    return [load_embeddings(path) for path in paths]


def _shown(run: Path) -> Shown:
    """How the run reads values and transparency; as ever where its config was not copied along."""
    from pipeline import config as configuration

    if not (run / "config.json").exists():
        return BY_TYPE
    data = configuration.load(run / "config.json").data
    return Shown.of(data.range, data.background)


def _embed_files(encoder: Encoder, images: list[str], shown: Shown) -> NDArray[np.float32]:
    """(Q, D) features of image files, read as the pipeline reads its data sets."""
    load_size = load_size_of(encoder.image_size)
    parts = []
    for start in range(0, len(images), BATCH):
        read = [_read(Path(image), encoder.channels, load_size, shown) for image in images[start : start + BATCH]]
        pixels = torch.from_numpy(np.stack([to_square(image, encoder.image_size) for image in read]))
        with torch.inference_mode():
            parts.append(encoder(pixels.permute(0, 3, 1, 2).float() / 255).numpy())
    return np.concatenate(parts)


def _searched(run: Path, images: list[str], shown: Shown) -> NDArray[np.float32]:
    """(Q, d) of image files by what the run is searched by."""
    channels = int(read_export(run)["channels"])
    searcher = load_searcher(run, channels, torch.device("cpu"), "fp32")
    return searcher(files_as_squares(images, channels, partial(_read, shown=shown)))


def _read(path: Path, channels: int, load_size: int, shown: Shown = BY_TYPE) -> NDArray[np.uint8]:
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the path of an image file")
    if not path.is_file():
        raise UserError(f"image {path} does not exist: give the path of an image file")
    return decode(path, channels, load_size, shown)


def _place_of(run: Path, name: str, data_path: str) -> Path:
    """The folder that the paths of an index are relative to; that of the run's own images may have moved."""
    data = read_manifest(run)["data"]
    return Path(storage.fixed_part(data["path"] if name == data["name"] else data_path))


def _own_ids(image: str, folder: Path) -> set[int]:
    """The sample ids that a file in the indexed folder may have, by its own name and by what links lead to."""
    path = Path(os.path.abspath(image))
    places = {path, path.parent.resolve() / path.name, path.resolve()}
    return {
        sample_id(place.relative_to(one).as_posix())
        for one in {folder, folder.resolve()}
        for place in places
        if place.is_relative_to(one)
    }


def _add_same(
    own: list[set[int]], images: list[str], ids: NDArray[np.int64], splits: list[Embeddings], folder: Path
) -> bool:
    """Add found images that are the asked file itself, by a link or another name; whether there were any."""
    known = _known(splits, set(ids.ravel().tolist()))
    same = [
        {found for found in row if found in known and _same_file(image, folder / known[found]["path"])}
        for image, row in zip(images, ids.tolist())
    ]
    for mine, more in zip(own, same):
        mine |= more
    return any(same)


def _same_file(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # not both are files on this machine
        return False


def _known(splits: list[Embeddings], wanted: set[int]) -> dict[int, dict[str, Any]]:
    """Id → path and label of the wanted images."""
    return {
        found: {"path": split.paths[row], "label": _label(split, row)}
        for split in splits
        for row, found in enumerate(split.ids.tolist())
        if found in wanted
    }


def _label(embeddings: Embeddings, row: int) -> str | int | None:
    if embeddings.labels is None or embeddings.labels[row] < 0:
        return None
    label = int(embeddings.labels[row])
    return label if embeddings.class_names is None else embeddings.class_names[label]
