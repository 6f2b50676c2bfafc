"""The networks that queries see by, as ONNX files beside their weights, so that a query imports no torch.

They are kept only where ONNX Runtime gives the searched vectors that torch gives.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.documents import DamagedError
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.data import Dataset, Images
from rayssl.pipeline.features.pooled_graph import pooled_graph
from rayssl.pipeline.models.encoder import Encoder, describe
from rayssl.pipeline.models.identity import read_manifest as read_export
from rayssl.pipeline.models.onnx_file import can_run, network_of, remove_onnx, write_onnx
from rayssl.pipeline.models.onnx_graph import NoGraphError
from rayssl.pipeline.run.folder import mark_stage, read_manifest, stage_done, stage_key
from rayssl.pipeline.run.own_images import open_own
from rayssl.pipeline.search.apply import Network, Searcher, searched_by
from rayssl.pipeline.search.networks import InThisProcess, load_networks
from rayssl.pipeline.search.onnx_networks import InOnnxRuntime, folder_of, in_parts, names_by_hash, onnx_networks
from rayssl.pipeline.search.store import FOLDER, Search

STAGE = "queries"
FORMAT = 1  # changes with what is written
LARGEST_DIFFERENCE = 1e-5  # of the numbers of searched vectors, whose length is 1
MOST_IMAGES, LEAST_IMAGES = 256, 8  # that are compared
MOST_FLOPS = 5e10  # for which a network sees so many: about a second of a core


@dataclass(frozen=True)
class Graph:
    """An encoder as an ONNX file; `described` as in queries.json."""

    folder: Path
    encoder: Encoder
    content: bytes
    described: dict[str, Any]


def keep_query_networks(run: Path, tell: Callable[[str], None], dataset: Dataset | None = None) -> None:
    """Write the files that queries need, unless that is done, and tell in a line how exact they are.

    `dataset`: the run's images, where they are open. What keeps a file from being made is told, and is no error.
    """
    search = searched_by(run)
    folders = {digest: folder_of(run, search, digest) for digest in names_by_hash(search)}
    places = [folder for folder in folders.values() if folder is not None]
    remove_others(run, places)
    if len(places) < len(folders) or not folders or not can_run() or is_done(run, search):
        return
    began = time.perf_counter()
    try:
        graphs = graphs_of(run, search, dict(zip(folders, places, strict=True)))
        difference, n = compare(run, search, graphs, dataset)
    except UserError as error:  # images that are not there, for example: the next time they may be
        tell(f"queries: by torch ({error})")
        return
    except NoGraphError as error:
        remove_others(run, [])
        mark_stage(run, STAGE, key_of(search), time.perf_counter() - began)
        tell(f"queries: by torch ({error})")
        return
    with writer_lock(run):
        for one in graphs.values():
            write_onnx(one.folder, one.content, {**one.described, "parity": difference, "n": n})
        mark_stage(run, STAGE, key_of(search), time.perf_counter() - began, parity=difference)
    tell(f"queries: by ONNX Runtime, vectors at most {difference:.1e} from torch's ({n} images)")


def is_done(run: Path, search: Search) -> bool:
    """Whether the files are there and whole, or it is known that there can be none."""
    if not stage_done(run, STAGE, key_of(search)):
        return False
    if read_manifest(run)["stages"][STAGE].get("parity") is None:
        return True
    try:
        return onnx_networks(run, search, int(read_export(run)["channels"])) is not None
    except UserError:
        return False


def key_of(search: Search) -> str:
    """A hash of what the files depend on."""
    return stage_key(STAGE, FORMAT, search.hash)


def remove_others(run: Path, places: list[Path]) -> None:
    """Files of an earlier choice, which nothing reads any more."""
    with writer_lock(run):
        for folder in [run, *(path for path in listed(run / FOLDER) if path.is_dir())]:
            if folder not in places:
                remove_onnx(folder)


def graphs_of(run: Path, search: Search, folders: Mapping[str, Path]) -> dict[str, Graph]:
    """Every network that is searched by, by its hash; raises NoGraphError, or UserError where one cannot be loaded."""
    encoders = load_networks(run, search, int(read_export(run)["channels"]))
    by_hash = {str(origin.hash): encoder for origin, encoder in zip(search.origins, encoders, strict=True)}
    found = {}
    for digest, names in names_by_hash(search).items():
        encoder = by_hash[digest]
        assert encoder is not None
        content, outputs = pooled_graph(encoder, names)
        described = {"encoder": digest, "channels": encoder.channels, "image_size": encoder.image_size}
        found[digest] = Graph(folders[digest], encoder, content, {**described, "outputs": outputs})
    return found


def compare(run: Path, search: Search, graphs: Mapping[str, Graph], dataset: Dataset | None) -> tuple[float, int]:
    """Largest difference of searched vectors between ONNX Runtime and torch, and over how many images of the run.

    Raises NoGraphError where that is too large, or ONNX Runtime lacks an operator.
    """
    images = some_images(run, dataset, sum(describe(one.encoder)["flops"] for one in graphs.values()))
    by_torch: dict[str, Network] = {digest: InThisProcess(one.encoder) for digest, one in graphs.items()}
    by_onnx: dict[str, Network] = {}
    for digest, one in graphs.items():
        try:
            by_onnx[digest] = InOnnxRuntime(network_of(one.content, one.described))
        except DamagedError as error:
            raise NoGraphError(str(error)) from None
    vectors = [
        Searcher(search, in_parts(search, networks), images.channels)(lambda size: images)
        for networks in (by_torch, by_onnx)
    ]
    difference = float(np.abs(vectors[0] - vectors[1]).max())
    if not difference <= LARGEST_DIFFERENCE:
        raise NoGraphError(f"ONNX Runtime's vectors are {difference:.1e} off, more than {LARGEST_DIFFERENCE:.0e}")
    return difference, len(images)


def some_images(run: Path, dataset: Dataset | None, flops: float) -> Images:
    """Training images, evenly spread: as many as a network of so many operations an image sees in a few seconds."""
    if dataset is None:
        dataset = open_own(run, configuration.load(run / "config.json"))
    n = min(max(int(MOST_FLOPS / max(flops, 1)), LEAST_IMAGES), MOST_IMAGES, len(dataset.train))
    return dataset.train.select(np.linspace(0, len(dataset.train) - 1, n).astype(int))
