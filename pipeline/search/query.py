"""The images most similar to a given one: encoder, index and embeddings of a run put together."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayssl.pipeline.base.documents import parse, read_bytes
from rayssl.pipeline.base.errors import MissingError, UserError, nearest
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.lease import settled
from rayssl.pipeline.data import sample_id, storage
from rayssl.pipeline.data.formats import marks
from rayssl.pipeline.data.regular import check_target
from rayssl.pipeline.data.shown import BY_TYPE, Shown
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.export import encoder_hash, load_encoder
from rayssl.pipeline.models.weights import read_manifest as read_export
from rayssl.pipeline.run.folder import data_name, own_data, read_manifest, winner_of
from rayssl.pipeline.search.apply import load_searcher
from rayssl.pipeline.search.embeddings import Embeddings, files_of, load_embeddings
from rayssl.pipeline.search.index import check_embeddings, check_matches, load_index, search
from rayssl.pipeline.search.queries import Asked, images_of, squares_of
from rayssl.pipeline.search.store import FOLDER, search_hash

BATCH = 64
PICTURES = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "pdf", "svg")  # formats of a gallery, by suffix
MOST_ROWS = 300  # of a gallery: beyond that a picture has more pixels than formats and viewers take
UNREAD = np.full((8, 8, 1), 224, dtype=np.uint8)  # in the place of an image that cannot be read
CELL = 160  # side of a picture in the gallery, in pixels


def query(run: Path | str, images: Any, k: int = 10, data: str | None = None) -> list[dict[str, Any]]:
    """For each image its k nearest in the run's index, best first, with cosine scores in −1 … 1:

        [{"query": name, "neighbors": [{"rank": 1, "id": …, "id_str": …, "path": …, "label": …, "score": …}]}]

    `images` may be one image or many, in any form (see search.queries): a path, a folder, a URL, bytes, a PIL
    image, a numpy array, a torch tensor. One that is missing or broken has `"error": why` and no neighbours; the
    others are answered. `id_str` is the id as text, for readers to whom numbers above 2^53 are not exact.

    A label is the class's name where classes have names, else a number, or None. An image that is itself in the
    index does not find itself, by id; a copy of it under another path is found. `data` names the data set, the
    run's own without it. Raises UserError where no image can be read, for a k above the number of vectors, and for an
    index, embeddings or encoder that are missing, damaged or do not match.
    """
    run = winner_of(Path(run))
    return answer(run, images_of(images, signed=reads_below_zero(run)), k, data)


def answer(run: Path, asked: list[Asked], k: int, data: str | None = None) -> list[dict[str, Any]]:
    """What `query` gives, for images that are opened already."""
    name = data or data_name(run)
    if data is not None:
        check_data_name(run, data)
    index, chosen, splits = settled(run, lambda: load_searched(run, name))
    refuse_unread(asked)
    shown = _shown(run)
    vectors = _embedded(load_encoder(run), asked, shown) if chosen is None else _searched(run, asked, shown)
    refuse_unread(asked)
    read = [row for row, one in enumerate(asked) if one.problem is None]
    place, places = _place_of(run, name, splits[0].data_path), [asked[row].place for row in read]
    own = [_own_ids(one, place) | _own_address(one, splits[0].data_path) for one in places]
    scores, ids = search(index, vectors[read], k, own)
    while _add_same(own, places, ids, splits, place):  # ways to the very file that the names do not tell of
        scores, ids = search(index, vectors[read], k, own)
    known = _known(splits, set(ids.ravel().tolist()))
    if len(known) < len(set(ids.ravel().tolist())):
        raise UserError(f"{run}/index/{name} holds images that have no embedding: `rayssl index {run}` builds it again")
    found = {row: _neighbors(known, *pair) for row, pair in zip(read, zip(ids.tolist(), scores.tolist()), strict=True)}
    return [
        {"query": one.name, "neighbors": found[row]}
        if row in found
        else {"query": one.name, "error": one.problem, "neighbors": []}
        for row, one in enumerate(asked)
    ]


def load_searched(run: Path, name: str) -> tuple[Any, str | None, list[Embeddings]]:
    """The index, the hash of what was chosen to be searched, and the embeddings, which fit each other."""
    index, manifest = load_index(run / "index" / name)
    chosen = search_hash(run)
    splits = _load_splits(run / "embeddings" / name / (FOLDER if chosen else ""), run)
    check_matches(manifest, chosen or encoder_hash(run), splits[0].data_fingerprint)
    check_embeddings(manifest, run)
    return index, chosen, splits


def _neighbors(known: dict[int, dict[str, Any]], ids: list[int], scores: list[float]) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "id": found, "id_str": str(found), **known[found], "score": score}
        for rank, (found, score) in enumerate(zip(ids, scores), start=1)
    ]


def refuse_unread(asked: list[Asked]) -> None:
    """Raises UserError, with the first image's reason, where not one can be read."""
    problems = [one.problem for one in asked if one.problem is not None]
    if len(problems) == len(asked):
        more = f" (and so for {len(problems) - 1} more: none can be read)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")


def check_data_name(run: Path, name: str) -> None:
    """Raises UserError, with the names that there are, where the run has no index of that name."""
    there = [path.parent.name for path in listed(run / "index", "*/manifest.json")]
    if name not in there:
        raise UserError(
            f"--data {name}: {run} has no index of that name{nearest(name, there)}; there is "
            f"{', '.join(there) or 'none'} (rayssl embed {run} --data.path DIR makes one)"
        )


def reads_below_zero(run: Path) -> bool:
    """Whether the run reads values below zero as an image's, as of a scanner: --data.range says so."""
    try:
        text = str(parse(read_bytes(run / "config.json"))["data"].get("range") or "")
        return float(text.split(",")[0]) < 0
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


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
    run: Path, results: list[dict[str, Any]], path: Path, data: str | None = None, asked: list[Asked] | None = None
) -> None:
    """`save_gallery` with the pictures of the images that the index `data` is of."""
    from rayssl.pipeline import config as configuration
    from rayssl.pipeline.run.images import open_data, open_other

    config = configuration.load(run / "config.json")
    own = data_name(run)
    if data is not None and data != own:
        other = _load_splits(run / "embeddings" / data, run)[0].data_path
        size, channels = config.data.image_size, config.data.channels
        said = (read_manifest(run).get("others") or {}).get(data, {}).get("reading")
        dataset = open_other(config.data, other, image_size=size, channels=channels, said=said)
    else:
        dataset = open_data(config)  # also where an image has gone since: the others are shown
    splits = [images for images in (dataset.train, dataset.val, dataset.test) if images is not None]
    places = {int(found): (images, row) for images in splits for row, found in enumerate(images.ids)}

    def look_up(found: int) -> NDArray[np.uint8]:
        images, row = places.get(found, (None, 0))
        return UNREAD if images is None else images[row]

    save_gallery(results, look_up, path, asked, Shown.of(config.data.range, config.data.background))


def _show(cell: Any, image: NDArray[np.uint8], caption: str) -> None:
    """A grey or colour picture; of any other number of channels the first one."""
    pixels = image if image.shape[2] == 3 else image[:, :, 0]
    cell.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    # No mathematics in captions: a class may be called "$"
    cell.set_title(caption, fontsize=9, parse_math=False)


def _load_splits(folder: Path, run: Path) -> list[Embeddings]:
    paths = files_of(folder)
    if not paths:
        raise MissingError(f"{folder} holds no embeddings: `rayssl embed {run}` writes them")
    return [load_embeddings(path) for path in paths]


def _shown(run: Path) -> Shown:
    """How the run reads values and transparency; as ever where its config was not copied along."""
    from rayssl.pipeline import config as configuration

    if not (run / "config.json").exists():
        return BY_TYPE
    data = configuration.load(run / "config.json").data
    return Shown.of(data.range, data.background)


def _embedded(encoder: Encoder, asked: list[Asked], shown: Shown) -> NDArray[np.float32]:
    """(Q, D) features of the images, read as the pipeline reads its data sets."""
    images = squares_of(asked, encoder.channels, shown)(encoder.image_size)
    parts = []
    for start in range(0, len(asked), BATCH):
        rows = range(start, min(start + BATCH, len(asked)))
        pixels = torch.from_numpy(images.square(rows, encoder.image_size))
        with torch.inference_mode():
            parts.append(encoder(pixels.permute(0, 3, 1, 2).float() / 255).numpy())
    return np.concatenate(parts)


def _searched(run: Path, asked: list[Asked], shown: Shown) -> NDArray[np.float32]:
    """(Q, d) of the images by what the run is searched by."""
    channels = int(read_export(run)["channels"])
    searcher = load_searcher(run, channels, torch.device("cpu"), "fp32")
    return searcher(squares_of(asked, channels, shown))


def _own_address(image: str, data_path: str) -> set[int]:
    """The sample id of an image in the indexed store, by its URL."""
    root = f"{data_path.rstrip('/')}/"
    return {sample_id(image.removeprefix(root))} if storage.is_url(image) and image.startswith(root) else set()


def _place_of(run: Path, name: str, data_path: str) -> Path:
    """The folder that the paths of an index are relative to; that of the run's own images may have moved."""
    data = own_data(run)
    return Path(storage.fixed_part(data.get("path", data_path) if name == data["name"] else data_path))


def _own_ids(image: str, folder: Path) -> set[int]:
    """The sample ids that a file in the indexed folder may have, by its own name and by what links lead to."""
    if not image or storage.is_url(image):  # bytes, pixels: nobody knows where they are from
        return set()
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
