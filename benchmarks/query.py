"""What a query costs in an index: seconds and memory of the whole command, and of one search of an open index.

    python benchmarks/query.py OUT
    python benchmarks/query.py OUT --rows 1000000 --tree before=../before --tree after=.

In OUT a run is made for each number of rows, where it is not there: an untrained encoder, also as the ONNX file that
queries see by, and made-up vectors of 128 numbers (points around 1,000 centres) with paths and labels, in an index as
`rayssl index` builds it. Nothing is said of how well they are found. Every tree, a checkout of this project, answers in
turn with its own `rayssl query`; beside them stands `import torch`, and the ratio of the medians to it is told.
Median and extremes of the rounds go to benchmarks/results/query.json. Leave it the machine.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "query.json"
DIM, CENTRES, SIDE, CLASSES = 128, 1000, 32, 100
TORCH = "import torch"
Cost = tuple[float, float, float]  # seconds, seconds of CPU time, GiB
SEARCH = """
import sys, time, numpy as np, rayssl
opened = rayssl.open_index(sys.argv[1])
asked = np.random.default_rng(1).standard_normal((50, opened.dim), dtype=np.float32)
def seconds(search):
    times = []
    for one in asked:
        began = time.perf_counter()
        search(one[None])
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
unit = asked / np.linalg.norm(asked, axis=1, keepdims=True)
rows = iter(unit)
print(seconds(lambda one: opened.search(vectors=one)), seconds(lambda one: opened.index.search(next(rows)[None], 10)))
"""


def main() -> None:
    """Make the runs, ask in turn, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 1_000_000])
    parser.add_argument("--factory", nargs="+", default=["auto"], help="one for all runs, or one each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=DIR")
    options = parser.parse_args()
    trees = dict(one.split("=", 1) for one in options.tree) or {"after": str(ROOT)}
    result: dict[str, Any] = described(options)
    for rows, factory in zip(options.rows, options.factory * (len(options.rows) if len(options.factory) == 1 else 1)):
        run = (options.out / f"rows-{rows}").resolve()
        if not (run / "asked.png").exists():
            make_apart(run, rows, factory)
        costs = costs_of(run, trees, options.rounds)
        result[f"{rows:,} rows"] = {
            "whole command": {name: {**summary(one), **compared(one, costs[TORCH])} for name, one in costs.items()},
            "search of an open index": {name: search_times(run, tree) for name, tree in trees.items()},
        }
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(result, indent=2))


def costs_of(run: Path, trees: dict[str, str], rounds: int) -> dict[str, list[Cost]]:
    """The whole command in every tree, and the import of torch, in turns."""
    asked = [sys.executable, "-m", "rayssl.jobs.main", "query", str(run), str(run / "asked.png"), "--json"]
    commands = {name: (asked, tree) for name, tree in trees.items()}
    commands[TORCH] = ([sys.executable, "-c", TORCH], str(ROOT))
    found: dict[str, list[Cost]] = {name: [] for name in commands}
    for one in range(-1, rounds):  # the first round only warms up: files are hashed and compiled once
        for name, (command, tree) in commands.items():
            cost = cost_of(command, tree)
            if one >= 0:
                found[name].append(cost)
    return found


def compared(costs: list[Cost], torch: list[Cost]) -> dict[str, float]:
    """Ratios of medians to those of importing torch, which was done in turns with it."""
    own, other = ([statistics.median(values) for values in zip(*one, strict=True)] for one in (costs, torch))
    return {"seconds / import torch": round(own[0] / other[0], 2), "CPU / import torch": round(own[1] / other[1], 2)}


def described(options: argparse.Namespace) -> dict[str, Any]:
    """The command, without this machine's places, the commit, versions and machine."""
    from rayssl.pipeline.run.software import describe_software

    rows, factories = (" ".join(map(str, one)) for one in (options.rows, options.factory))
    command = f"python benchmarks/query.py OUT --rows {rows} --factory {factories} --rounds {options.rounds}"
    trees = "".join(f" --tree {one.partition('=')[0]}=DIR" for one in options.tree)
    return {"benchmark": "query", "command": f"{command}{trees}", **describe_software()}


def cost_of(command: list[str], tree: str) -> Cost:
    """Seconds, seconds of CPU time and peak resident GiB of a whole process."""
    began = time.perf_counter()
    # In the tree: `python -m` looks into the current folder first.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tree, env={**os.environ, "PYTHONPATH": tree})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024**2


def summary(costs: list[Cost]) -> dict[str, Any]:
    """Median and extremes."""
    seconds, cpu, memory = zip(*costs, strict=True)
    extremes = [round(min(seconds), 2), round(max(seconds), 2)]
    return {
        "seconds": round(statistics.median(seconds), 2),
        "from … to": extremes,
        "CPU seconds": round(statistics.median(cpu), 2),
        "peak GiB": round(statistics.median(memory), 2),
    }


def search_times(run: Path, tree: str) -> dict[str, float] | None:
    """Median milliseconds of one search by a vector, k 10, and of FAISS alone; None of a tree without `open_index`."""
    environment = {**os.environ, "PYTHONPATH": tree}
    program = [sys.executable, "-c", SEARCH, str(run)]
    done = subprocess.run(program, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        return None
    with_paths, alone = (round(1000 * float(one), 3) for one in done.stdout.split())
    return {"with paths and labels": with_paths, "FAISS alone": alone}


def make_apart(run: Path, rows: int, factory: str) -> None:
    """`make_run` in another process: what this one has in memory counts in the peaks of those that it starts."""
    process = multiprocessing.get_context("spawn").Process(target=make_run, args=(run, rows, factory))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{run} could not be made")


def make_run(run: Path, rows: int, factory: str) -> None:
    """A run folder with an untrained encoder, and an index over vectors that no image has."""
    from rayssl.pipeline.features import LAST
    from rayssl.pipeline.features.pooled_graph import pooled_graph
    from rayssl.pipeline.models.encoder import build_encoder
    from rayssl.pipeline.models.export import export_encoder
    from rayssl.pipeline.models.identity import encoder_hash
    from rayssl.pipeline.models.onnx_file import write_onnx
    from rayssl.pipeline.run.folder import update_manifest
    from rayssl.pipeline.search.embeddings import Embeddings, digests, save_embeddings
    from rayssl.pipeline.search.index import build_index, save_index

    rng = np.random.default_rng(0)
    encoder = build_encoder("resnet-tiny", channels=3, image_size=SIDE).eval()
    export_encoder(encoder, run)
    centres = rng.standard_normal((CENTRES, DIM), dtype=np.float32)
    vectors = centres[rng.integers(0, CENTRES, rows)] + 0.5 * rng.standard_normal((rows, DIM), dtype=np.float32)
    labels = rng.integers(0, CLASSES, rows)
    classes = [f"class {one}" for one in range(CLASSES)]
    counts = {"train": rows * 9 // 10, "val": 0, "test": rows - rows * 9 // 10}
    data = {
        "name": "made-up", "path": str(run.resolve()), "fingerprint": "0" * 32, **counts,
        "image_size": SIDE, "channels": 3, "classes": classes,
    }  # fmt: skip
    facts: dict[str, Any] = {"class_names": tuple(classes), "data": "made-up", "data_path": data["path"]}
    ids = rng.permutation(rows).astype(np.int64) + 1
    paths = [f"class {label}/image {one:09d}.jpg" for one, label in zip(ids.tolist(), labels.tolist(), strict=True)]
    update_manifest(run, {"data": data})
    for split, part in (("train", slice(0, counts["train"])), ("test", slice(counts["train"], rows))):
        embeddings = Embeddings(
            ids[part], paths[part], labels[part], vectors[part], encoder_hash=encoder_hash(run),
            data_fingerprint="0" * 32, split=split, **facts,
        )  # fmt: skip
        save_embeddings(embeddings, run / "embeddings" / "made-up" / f"{split}.parquet")
    index = build_index(vectors, ids, factory)
    save_index(
        index, run / "index" / "made-up", encoder_hash=encoder_hash(run), data_fingerprint="0" * 32,
        factory=factory, recall=1.0, dim=DIM, count=rows, embeddings=digests(run, "made-up", ""),
    )  # fmt: skip
    content, outputs = pooled_graph(encoder, [LAST])
    described = {"encoder": encoder_hash(run), "channels": 3, "image_size": SIDE, "outputs": outputs}
    write_onnx(run, content, described)
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(run / "asked.png")


if __name__ == "__main__":
    main()
