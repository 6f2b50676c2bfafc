"""Does a reader beside a writer ever see half a state?

    python benchmarks/readers.py RUN --loads 1000

Copies a finished run folder, has another process write its encoder, searched embeddings and index anew without end,
and loads index, embeddings, encoder, search and evaluation as a query does. Prints how many loads failed, and why.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.lease import settled, writer_lock
from rayssl.pipeline.evaluation.records import read_evaluation
from rayssl.pipeline.models.export import export_encoder, load_encoder
from rayssl.pipeline.run.folder import begin_stage, data_name, mark_stage
from rayssl.pipeline.search.embeddings import digests, load_embeddings, save_embeddings
from rayssl.pipeline.search.index import build_index, save_index
from rayssl.pipeline.search.query import load_searched
from rayssl.pipeline.search.store import FOLDER, has_search, read_search


def main() -> int:
    """Copy, write, load, count; exit code 1 where a load failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--loads", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(options.run, Path(folder, "run")))
        context = multiprocessing.get_context("spawn")
        stop, written = context.Event(), context.Value("i", 0)
        writer = context.Process(target=write, args=(run, stop, written))
        writer.start()
        while not written.value and writer.is_alive():
            time.sleep(0.05)
        faults, slowest = load(run, options.loads)
        stop.set()
        writer.join()
    print(
        f"{options.loads} loads beside {written.value} rewrites: {sum(faults.values())} failed, slowest {slowest:.2f} s"
    )
    for text, count in faults.most_common():
        print(f"{count} × {text}")
    return int(bool(faults))


def load(run: Path, loads: int) -> tuple[Counter[str], float]:
    """What failed, and the seconds of the slowest load."""
    faults: Counter[str] = Counter()
    slowest = 0.0
    for _ in range(loads):
        began = time.perf_counter()
        try:
            settled(run, lambda: load_searched(run, data_name(run)))
            load_encoder(run)
            read_evaluation(run)
            if has_search(run):
                read_search(run)
        except UserError as error:
            faults[str(error)] += 1
        slowest = max(slowest, time.perf_counter() - began)
    return faults, slowest


def write(run: Path, stop: Any, written: Any) -> None:
    """Encoder, embeddings and index anew, other vectors each time, until it is told to stop."""
    name = data_name(run)
    part = FOLDER if has_search(run) else ""
    folder = run / "embeddings" / name / part
    splits = {split: load_embeddings(folder / f"{split}.parquet") for split in ("train", "test")}
    first, encoder = splits["train"], load_encoder(run)
    ids = np.concatenate([split.ids for split in splits.values()])
    while not stop.is_set():
        written.value += 1
        moved = {key: split.vectors + np.float32(1e-3 * written.value) for key, split in splits.items()}
        vectors = np.concatenate(list(moved.values()))
        with writer_lock(run):
            begin_stage(run, "rewrite")
            export_encoder(encoder, run, {"rewrite": written.value})
            for key, split in splits.items():
                save_embeddings(replace(split, vectors=moved[key]), folder / f"{key}.parquet")
            save_index(
                build_index(vectors, ids), run / "index" / name, encoder_hash=first.encoder_hash,
                data_fingerprint=first.data_fingerprint, factory="Flat", recall=1.0, dim=vectors.shape[1],
                count=len(ids), embeddings=digests(run, name, part),
            )  # fmt: skip
            mark_stage(run, "rewrite", "", 0.0)


if __name__ == "__main__":
    raise SystemExit(main())
