"""The index of a run, opened once and asked many times."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayssl.pipeline.base.documents import load, parse, read_bytes
from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.lease import settled
from rayssl.pipeline.base.schemas import ReportedConfig
from rayssl.pipeline.base.seals import check
from rayssl.pipeline.data import AUTO, sample_id, storage
from rayssl.pipeline.data.shown import BY_TYPE, Shown
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.identity import read_manifest as read_export
from rayssl.pipeline.run.folder import data_name, own_data, winner_of
from rayssl.pipeline.search.apply import Searcher, searched_by
from rayssl.pipeline.search.exclusion import own_keys, own_keys_of_address, same_file
from rayssl.pipeline.search.generations import CURRENT
from rayssl.pipeline.search.index import check_embeddings, check_matches, load_live, search
from rayssl.pipeline.search.items import Items, load_items
from rayssl.pipeline.search.live import LiveIndex
from rayssl.pipeline.search.onnx_networks import onnx_networks
from rayssl.pipeline.search.queries import Asked, images_of, squares_of
from rayssl.pipeline.search.store import FOLDER, search_hash

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Answer = dict[str, Any]


@dataclass(frozen=True)
class OpenIndex:
    """An index with the paths and labels of its images, as they were when it was opened.

    The encoder is loaded at the first image that is asked for, by ONNX Runtime where the run has it as an ONNX file,
    else by torch; vectors are searched without it.
    """

    run: Path
    name: str  # of the data set
    index: LiveIndex
    items: Items
    hash: str  # of what the vectors are made by
    shown: Shown
    signed: bool
    place: Path  # of the indexed images, now

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self.index.d)

    def __len__(self) -> int:
        """How many vectors there are."""
        return int(self.index.ntotal)

    def search(
        self,
        images: Any = None,
        *,
        vectors: ArrayLike | None = None,
        k: int = 10,
        exclude_self: bool = True,
        where: str | None = None,
    ) -> list[Answer]:
        """For each image, or each of the vectors (Q, D), its k nearest, best first, with cosine scores in −1 … 1:

            [{"query": name, "neighbors": [{"rank": 1, "id": …, "id_str": …, "path": …, "label": …, "score": …}]}]

        `images` may be one image or many, in any form (see search.queries): a path, a folder, a URL, bytes, a PIL
        image, a numpy array, a torch tensor. One that is missing or broken has `"error": why` and no neighbours; the
        others are answered. `id_str` is the id as text, for readers to whom numbers above 2^53 are not exact.

        A label is the class's name where classes have names, else a number, or None. With `exclude_self` an image that
        is itself in the index does not find itself, by id; a copy of it under another path is found. Raises UserError
        where no image can be read, for vectors of another length or that are not finite, and for a k above the number
        of vectors.

        `where`: only images that this expression is true of are found, e.g. "label = 'cat' and year > 2020"; see
        search.where. There may be fewer than k of them.
        """
        only = None if where is None else self.matching(where)
        if vectors is not None:
            return self._answers(_names(images, vectors), *search(self.index, _checked(vectors), k, only=only))
        asked = images_of(images, signed=self.signed)
        refuse_unread(asked)
        queries = self.encode(squares_of(asked, self.encode.channels, self.shown))
        refuse_unread(asked)  # what could be opened may still not be decoded
        rows = [row for row, one in enumerate(asked) if one.problem is None]
        read = [asked[row] for row in rows]
        own = [self._own(one) if exclude_self else set[int]() for one in read]
        scores, ids = search(self.index, queries[rows], k, own, only)
        while exclude_self and self._add_same(own, read, ids):
            scores, ids = search(self.index, queries[rows], k, own, only)
        found = dict(zip(rows, self._answers([one.name for one in read], scores, ids), strict=True))
        return [found.get(row) or _unanswered(one) for row, one in enumerate(asked)]

    def matching(self, where: str) -> Ints:
        """The ids of the images that an expression is true of, ascending; raises UserError for what is none."""
        from rayssl.pipeline.search.where import matching

        return matching(self.items, where, self.items.columns)

    @cached_property
    def encode(self) -> Searcher:
        """From images to the vectors that are searched; raises UserError where the run has another encoder by now."""
        found, channels = searched_by(self.run), int(read_export(self.run)["channels"])
        if found.hash != self.hash:
            raise UserError(f"{self.run} is searched by another encoder since its index was opened: open it again")
        networks = onnx_networks(self.run, found, channels)
        if networks is None:
            from rayssl.pipeline.search.networks import query_networks

            networks = query_networks(self.run, found, channels)
        return Searcher(found, networks, channels)

    def _own(self, asked: Asked) -> set[int]:
        """The ids of an image by its path, but for those that another image has by now."""
        keys = own_keys(asked.place, self.place) | own_keys_of_address(asked.place, self.items.data_path)
        rows = {key: int(self.items.rows(np.array(sample_id(key)))) for key in keys}
        return {sample_id(key) for key, row in rows.items() if row >= 0 and self.items.path(row) == key}

    def _add_same(self, own: list[set[int]], asked: Sequence[Asked], ids: Ints) -> bool:
        """Add found images that are the asked file by a link or another name; whether there were any."""
        any_more = False
        for mine, one, found, rows in zip(own, asked, ids.tolist(), self._rows(ids).tolist(), strict=True):
            there = [(i, row) for i, row in zip(found, rows, strict=True) if i >= 0]
            same = {i for i, row in there if same_file(one.place, self.place / self.items.path(row))}
            any_more = any_more or bool(same)
            mine |= same
        return any_more

    def _rows(self, ids: Ints) -> Ints:
        rows = self.items.rows(ids)
        if (rows[ids >= 0] < 0).any():
            raise UserError(
                f"{self.run}/index/{self.name} holds images that have no embedding: `rayssl index {self.run}` builds "
                "it again"
            )
        return rows

    def _answers(self, names: Sequence[str], scores: Floats, ids: Ints) -> list[Answer]:
        answers = []
        for name, *found in zip(names, ids.tolist(), self._rows(ids).tolist(), scores.tolist(), strict=True):
            neighbors = [
                {"rank": rank, "id": one, "id_str": str(one), **self.items.told(row), "score": score}
                for rank, (one, row, score) in enumerate(zip(*found, strict=True), start=1)
                if one >= 0
            ]
            answers.append({"query": name, "neighbors": neighbors})
        return answers


def open_index(run: Path | str, data: str | None = None) -> OpenIndex:
    """The index of a run, or of the winner of a race: loaded once, to be searched many times.

    `data` names the data set, the run's own without it. Its vectors are not read, and the index stays in its file where
    FAISS can search it there. Raises UserError for an index, embeddings or encoder that are missing, damaged or do not
    match.
    """
    run = winner_of(Path(run))
    name = data or data_name(run)
    if data is not None:
        check_data_name(run, data)
    index, items, made_by = settled(run, lambda: load_searched(run, name))
    place = _place_of(run, name, items)
    return OpenIndex(run, name, index, items, made_by, _shown(run), reads_below_zero(run), place)


def query(run: Path | str, images: Any, k: int = 10, data: str | None = None) -> list[Answer]:
    """What `open_index(run, data).search(images, k=k)` gives, for once."""
    return open_index(run, data).search(images, k=k)


def load_searched(run: Path, name: str) -> tuple[LiveIndex, Items, str]:
    """The index, what is known of its images, and the hash of what its vectors are made by, which fit each other."""
    index, manifest, generation = load_live(run / "index" / name)
    chosen = search_hash(run)
    if generation is None:
        items = load_items(run / "embeddings" / name / (FOLDER if chosen else ""), run)
    else:
        items = generation.living()
    made_by = chosen or encoder_hash(run)
    check_matches(manifest, made_by, items.data_fingerprint)
    check_embeddings(manifest, run)
    return index, items, made_by


def _names(images: Any, vectors: ArrayLike) -> list[str]:
    if images is not None:
        raise UserError("images and vectors to search for: give one of them")
    return [f"vector {number}" for number in range(1, 1 + len(np.atleast_2d(vectors)))]


def _checked(vectors: ArrayLike) -> Floats:
    """(Q, D) of vectors, or of one."""
    found: Floats = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    if not np.isfinite(found).all():
        raise UserError("the vectors to search for hold NaN or infinity: give finite numbers")
    return found


def _unanswered(asked: Asked) -> Answer:
    return {"query": asked.name, "error": asked.problem, "neighbors": []}


def refuse_unread(asked: list[Asked]) -> None:
    """Raises UserError, with the first image's reason, where not one can be read."""
    problems = [one.problem for one in asked if one.problem is not None]
    if len(problems) == len(asked):
        more = f" (and so for {len(problems) - 1} more: none can be read)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")


def check_data_name(run: Path, name: str) -> None:
    """Raises UserError, with the names that there are, where the run has no index of that name."""
    written = [*listed(run / "index", f"*/{CURRENT}"), *listed(run / "index", "*/manifest.json")]
    there = sorted({path.parent.name for path in written})
    if name not in there:
        raise UserError(
            f"--data {name}: {run} has no index of that name{nearest(name, there)}; there is "
            f"{', '.join(there) or 'none'} (rayssl embed {run} --data.path DIR, then rayssl index {run}, makes one)"
        )


def reads_below_zero(run: Path) -> bool:
    """Whether the run reads values below zero as an image's, as of a scanner: --data.range says so."""
    try:
        text = str(parse(read_bytes(run / "config.json"))["data"].get("range") or "")
        return float(text.split(",")[0]) < 0
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _shown(run: Path) -> Shown:
    """How the run reads values and transparency; as ever where its config was not copied along.

    The rest of the config is left alone: its method would import torch.
    """
    path, remedy = run / "config.json", "restore it, or start the run again in a new --out"
    if not path.exists():
        return BY_TYPE
    data = load(path, ReportedConfig, remedy)["data"]
    check(path, remedy)
    return Shown.of(data.get("range") or AUTO, data.get("background") or AUTO)


def _place_of(run: Path, name: str, items: Items) -> Path:
    """The folder that the paths of an index are relative to; that of the run's own images may have moved."""
    if items.place is not None and Path(items.place).is_dir():
        return Path(items.place)
    data = own_data(run)
    return Path(storage.fixed_part(data.get("path", items.data_path) if name == data["name"] else items.data_path))
