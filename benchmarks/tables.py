"""Write the tables of docs/results.md whose figures are in benchmarks/results/.

    python benchmarks/tables.py            write them
    python benchmarks/tables.py --check    exit code 1 if a table is not what would be written

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; NAME is one of TABLES.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/results.md"
RESULTS = ROOT / "benchmarks/results"
NONE = "–"  # not measured
Row = Sequence[str]

AUTOENCODER = ("model", "squared error", "probe of the latent vector", "probe, best layer", "kNN", "k-means NMI")
SCORES = ("probe/features/top1", "probe/top1", "knn/top1", "cluster/nmi")
CORRUPTIONS = {
    "gaussian": "Gaussian noise, 0.4",
    "salt-and-pepper": "salt and pepper, 25 %",
    "masking": "masking, 25 %",
}
METHODS = ("Gaussian filter", "median filter", "PCA, 32", "as it is")  # that a denoising autoencoder is compared with
OPERATIONS = {"crop": "crop", "rotation": "rotation", "color": "colour", "blur": "blur"}
OPERATIONS |= {"noise": "noise", "cutout": "cutout"}
SEARCHED = {
    "crop alone": "crop alone",
    "random": "found by random search, as many steps",
    "optuna": "found by Optuna",
    "default": "SimCLR's, the recipe's default",
}
OBJECTIVES = {
    "rotation": "rotation",
    "rankme": "RankMe",
    "alignment-uniformity": "alignment and uniformity",
}
LIBRARIES = {
    "ours": "**rayssl**, recipe `simclr-cifar10`",
    "lightly-best": "lightly, every setting at its fastest here (bf16, two processes with PIL, …)",
    "lightly-guide": "lightly as its guide has it",
    "solo-learn": "solo-learn, its script for CIFAR",
    "stable-pretraining": "stable-pretraining, its CIFAR-10 tutorial",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(argv)
    before = PAGE.read_text()
    after = filled(before)
    if given.check:
        return int(after != before)
    PAGE.write_text(after)
    return 0


def filled(page: str) -> str:
    """The page with every marked table made again."""

    def fill(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end of table -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?\n<!-- end of table -->", fill, page, flags=re.DOTALL)


def markdown(head: Row, rows: Iterable[Row]) -> str:
    """A table without alignment."""
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def load(name: str) -> dict[str, Any]:
    """One file of results."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def rounded(value: float, digits: int) -> str:
    """Halves away from zero, as people round; with thousands separated and a minus sign of its own width."""
    exact = Decimal(repr(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{exact:,}".replace("-", "−")


def percent(figure: dict[str, float] | None) -> str:
    """Mean ± standard deviation of a fraction."""
    return NONE if figure is None else f"{rounded(100 * figure['mean'], 1)} ± {rounded(100 * figure['std'], 1)}"


def error(figure: dict[str, float] | None, always: bool = True) -> str:
    """Mean ± standard deviation of a squared error; the deviation is left out, where it may be, if it rounds to 0."""
    if figure is None:
        return NONE
    deviation = rounded(figure["std"], 4)
    return rounded(figure["mean"], 4) + (f" ± {deviation}" if always or float(deviation) else "")


def interval(figure: dict[str, float], scale: float, digits: int) -> str:
    """[low, high]"""
    return f"[{rounded(scale * figure['low'], digits)}, {rounded(scale * figure['high'], digits)}]"


def bold_if(text: str, important: bool) -> str:
    """In bold, or as it is."""
    return f"**{text}**" if important else text


def autoencoders(data: str, untrained: Sequence[str], notes: dict[str, str]) -> str:
    """Every model, what needs no training, and the networks before they were trained."""
    summary = load(f"autoencoders-{data}")["summary"]
    trained = [name for name in summary if ", untrained" not in name and name != "raw pixels" and "PCA" not in name]
    shown = {name: f"`{name}`{notes.get(name, '')}" for name in trained}
    shown |= {name: name.replace("numbers", "dimensions") for name in summary if name == "raw pixels" or "PCA" in name}
    # A network that several models share stands under its own name
    shown |= {f"{notes.get(name, name)}, untrained": f"`{name}`, untrained" for name in untrained}
    rows = []
    for name, title in shown.items():
        figures = summary[name]
        rows.append([title, error(figures.get("reconstruct/mse")), *(percent(figures.get(key)) for key in SCORES)])
    return markdown(AUTOENCODER, rows)


def denoising() -> str:
    """Squared errors by corruption."""
    summary = load("denoising-mnist")["summary"]
    head = ["corruption", "autoencoder", "Gaussian filter", "median filter", "PCA, 32 dimensions", "corrupted image"]
    rows = [
        [title, f"**{error(found['autoencoder'])}**", *(error(found[name], always=False) for name in METHODS)]
        for title, found in ((title, summary[key]) for key, title in CORRUPTIONS.items())
    ]
    return markdown(head, rows)


def probes() -> str:
    """The best layer of two recipes, and of their network before training."""
    found = load("cifar10")
    rows = []
    for recipe in ("rotnet-cifar10", "autoencoder-cifar10"):
        metrics, seeds = found[recipe]["metrics"], found[recipe]["seeds"]
        best, before = metrics["probe/top1"], metrics["baseline/random-init/probe/top1"]
        told = f"{len(seeds)} ({', '.join(map(str, seeds))})"
        rows.append([f"`{recipe}`", f"**{percent(best)}**", percent(before), told])
    return markdown(["recipe", "linear probe", "best layer of the untrained network", "seeds"], rows)


def tune_search() -> str:
    """What searches find, and how far Optuna's is ahead."""
    found = load("tune_search")
    rows = []
    for key, title in SEARCHED.items():
        ahead = found["differences"].get(f"optuna - {key}")
        clear = ahead is not None and ahead["low"] > 0
        told = f"{bold_if(rounded(100 * ahead['mean'], 1), clear)} {interval(ahead, 100, 1)}" if ahead else ""
        rows.append([title, percent(found["summary"][key]), told])
    return markdown(["augmentation", "kNN", "Optuna's advantage (95 % interval)"], rows)


def tune_objectives() -> str:
    """How well label-free objectives rank trials."""
    found = {one["objective"]: one for one in load("tune_search")["agreement"]["all"] if one["against"] == "knn"}
    most = max(found.values(), key=lambda one: float(one["rho"]))
    rows = [
        [title, f"{bold_if(rounded(found[key]['rho'], 2), found[key] is most)} {interval(found[key], 1, 2)}"]
        for key, title in OBJECTIVES.items()
    ]
    return markdown(["objective", "rank correlation (95 % interval)"], rows)


def tune_pairs() -> str:
    """Two operations together; on the diagonal one alone."""
    found = load("tune_pairs")
    mean, best = found["mean"], found["best_pair"]

    def cell(a: str, b: str) -> str:
        key = a if a == b else next(pair for pair in (f"{a}+{b}", f"{b}+{a}") if pair in mean)
        return bold_if(rounded(100 * mean[key], 1), key == best)

    rows = [[title, *(cell(a, b) for b in OPERATIONS)] for a, title in OPERATIONS.items()]
    return markdown(["", *OPERATIONS.values()], rows)


def libraries() -> str:
    """Speed and accuracy of the same training by several libraries."""
    found = load("peers-120s")
    summary, images = {one["competitor"]: one for one in found["summary"]}, 10_000
    rows = []
    for key, title in LIBRARIES.items():
        one, ours = summary[key], key == "ours"
        ratio = rounded(one["overall_speed_ratio"], 1) if key != "lightly-guide" else "1"
        speed = rounded(one["images_per_s_overall"], 0)
        knn = f"{rounded(100 * one['knn'], 1)} ± {rounded(100 * half_width(one['knn'], images), 1)}"
        rows.append([title, rounded(one["training_s"], 0), *(bold_if(text, ours) for text in (speed, ratio, knn))])
    low, high = found["untrained"]["knn_interval"]
    untrained = f"{rounded(100 * found['untrained']['knn'], 1)} ± {rounded(50 * (high - low), 1)}"
    rows.append(["the same network untrained", NONE, NONE, NONE, untrained])
    return markdown(["", "wall-clock seconds", "images/s", "× lightly's guide", "kNN"], rows)


def half_width(share: float, count: int) -> float:
    """Of the 95 % interval of a fraction of `count` images: the normal approximation."""
    return 1.96 * math.sqrt(share * (1 - share) / count)


TABLES: dict[str, Callable[[], str]] = {
    "autoencoders-mnist": lambda: autoencoders(
        "mnist", ("deep", "conv", "mlp"), {"vae": " (error: of binarised images)", "mlp": "denoising-gaussian"}
    ),
    "autoencoders-cifar10": lambda: autoencoders("cifar10", ("linear", "deep", "conv"), {}),
    "denoising-mnist": denoising,
    "probes-cifar10": probes,
    "tune-search": tune_search,
    "tune-objectives": tune_objectives,
    "tune-pairs": tune_pairs,
    "libraries-120s": libraries,
}


if __name__ == "__main__":
    sys.exit(main())
