"""What a large index takes and finds, and what adding and removing images costs it.

    python benchmarks/living_index.py --rows 1000000

Vectors of 128 numbers are made up, points around 1,000 centres, so recall says little about those of real images;
memory and sizes do not depend on that. The index is built as `rayssl index` does, beside FAISS alone with the same kind
of index; then 10,000 vectors come and 10,000 go, each as one generation. CPU seconds, since other work on the machine
lengthens all others.
The result goes to benchmarks/results/living_index.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "living_index.json"
DIM, CENTRES, CHANGED, SIDE = 128, 1000, 10_000, 32


def main() -> None:
    """Each part in a process of its own, so that its peak of memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--part", choices=list(PARTS))
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.run, options.rows)))
        return
    from rayssl.pipeline.run.software import describe_software

    result: dict[str, Any] = {
        "benchmark": "living_index",
        "command": f"python benchmarks/living_index.py --rows {options.rows}",
    }
    result |= describe_software()
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder), options.rows)
        for part in PARTS:
            words = [sys.executable, __file__, "--part", part, "--run", folder, "--rows", str(options.rows)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            result[part] = json.loads(done.stdout.splitlines()[-1])
            print(part, result[part], flush=True)
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def vectors_of(rows: int, seed: int) -> Any:
    """Points around centres that are always the same."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIM), dtype=np.float32)
    rng = np.random.default_rng(seed)
    return centres[rng.integers(0, CENTRES, rows)] + 0.5 * rng.standard_normal((rows, DIM), dtype=np.float32)


def make_run(run: Path, rows: int) -> None:
    """A run folder with an untrained encoder and embeddings that no image has."""
    from rayssl.pipeline import config as configuration
    from rayssl.pipeline.models.encoder import build_encoder
    from rayssl.pipeline.models.export import export_encoder
    from rayssl.pipeline.models.identity import encoder_hash
    from rayssl.pipeline.recipes import build_recipe
    from rayssl.pipeline.run.folder import update_manifest
    from rayssl.pipeline.search.embeddings import Embeddings, save_embeddings

    export_encoder(build_encoder("conv", channels=3, image_size=SIDE, latent_dim=DIM), run)
    config = configuration.override(build_recipe("simclr-folder"), {"data.path": str(run)})
    configuration.save(config, run / "config.json")
    data = {
        "name": "made-up", "path": str(run), "fingerprint": "0" * 32, "train": rows, "val": 0, "test": 0,
        "image_size": SIDE, "channels": 3, "classes": None,
    }  # fmt: skip
    update_manifest(run, {"data": data})
    ids = np.random.default_rng(1).permutation(2**62 - np.arange(rows, dtype=np.int64))
    for split, part in (("train", slice(0, rows)), ("test", slice(0, 0))):
        paths = [f"images/{row:09d}.jpg" for row in range(rows)[part]]
        found = Embeddings(
            ids[part], paths, None, vectors_of(rows, 2)[part], None, encoder_hash(run), "0" * 32, split, "made-up",
            str(run),
        )  # fmt: skip
        save_embeddings(found, run / "embeddings" / "made-up" / f"{split}.parquet")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, of all threads."""
    began = time.process_time()
    found = work()
    return round(time.process_time() - began, 2), found


def peak() -> float:
    """GiB that this process had at most; what getrusage tells includes the process that started it."""
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:")]
    return round(int(line.split()[1]) / 1024**2, 2)


def faiss_alone(run: Path, rows: int) -> dict[str, Any]:
    """Training and adding with the factory string that `auto` becomes."""
    from rayssl.pipeline.search.factory import auto_factory

    x = vectors_of(rows, 2)
    faiss.normalize_L2(x)
    name = auto_factory(rows, DIM)
    index = faiss.index_factory(DIM, name, faiss.METRIC_INNER_PRODUCT)
    seconds = timed(lambda: (index.train(x), index.add(x)))[0]
    return {"factory": name, "CPU seconds": seconds, "peak GiB": peak()}


def built(run: Path, rows: int) -> dict[str, Any]:
    """`rayssl index`, from the embeddings to the generation."""
    from rayssl.pipeline.search.index import load_live
    from rayssl.pipeline.stages.index import run_index

    seconds = timed(lambda: run_index(run))[0]
    memory = peak()
    index, manifest, _ = load_live(run / "index" / "made-up")
    lists = faiss.try_extract_index_ivf(index.base)
    files = {path.name: round(path.stat().st_size / 1e6, 1) for path in (run / "index").rglob("g*/*")}
    return {
        "CPU seconds": seconds, "peak GiB": memory, "recall@10": round(manifest["recall"], 4),
        "lists visited": None if lists is None else int(lists.nprobe), "MB": files,
    }  # fmt: skip


def changed(run: Path, rows: int) -> dict[str, Any]:
    """10,000 come, then 10,000 of the base go."""
    from rayssl.pipeline.search.changes import Change, Known, apply
    from rayssl.pipeline.search.generations import current, read_generation
    from rayssl.pipeline.search.index import load_live
    from rayssl.pipeline.search.items import ints

    folder = run / "index" / "made-up"
    before = read_generation(folder, current(folder))
    paths = [f"/more/{row}.jpg" for row in range(CHANGED)]
    come = Known(paths, np.zeros((CHANGED, 16), np.uint8), ["/more"] * CHANGED)
    new = vectors_of(CHANGED, 3)
    adding, (after, _) = timed(lambda: apply(folder, before, Change(come=come, vectors=new)))
    go = ints(before.items["id"])[:: max(1, rows // CHANGED)][:CHANGED].copy()
    removing, _ = timed(lambda: apply(folder, after, Change(go=go)))
    opening, (index, _, _) = timed(lambda: load_live(folder))
    asked = new[:100] / np.linalg.norm(new[:100], axis=1, keepdims=True)
    searching, _ = timed(lambda: [index.search(one[None], 10) for one in asked])
    return {
        "add, CPU seconds": adding, "remove, CPU seconds": removing, "open, CPU seconds": opening,
        "one query, CPU milliseconds": round(10 * searching, 2), "peak GiB": peak(),
    }  # fmt: skip


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "FAISS alone": faiss_alone, "rayssl index": built, "10,000 images come, 10,000 go": changed
}  # fmt: skip


if __name__ == "__main__":
    main()
