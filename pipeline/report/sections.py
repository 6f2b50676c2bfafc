"""Sections of pictures: curves, embedding map, neighbours, reconstructions, augmentations, probe by stage."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.report import figures, galleries, table
from rayssl.pipeline.report.html import bar, bullets, escape, grid, paragraph
from rayssl.pipeline.report.run_data import Material, NothingToShowError, each_run, title_of

if TYPE_CHECKING:
    from rayssl.pipeline.search.embeddings import Embeddings

MAP_POINTS = 1_000  # t-SNE of so many takes seconds
MAP_LEAST = 10
MAP_CLUSTERS = 10  # colours of the map where there are no labels
LEGEND_NAMES = 30
SCRATCH = "#9498a0"
SHARED_CURVES = {
    "train/lr": "learning rate",
    "perf/images_per_s": "images a second",
    "health/std": "spread of the codes (0: collapsed)",
}


def curves_section(materials: Sequence[Material]) -> str:
    """The loss of every run, then what can share one axis; all over optimiser steps."""
    blocks = [_loss_block(material) for material in materials if "train/loss" in material.curves]
    if not blocks:
        raise NothingToShowError("no curves: metrics.jsonl has no rows of pre-training")
    for metric, title in SHARED_CURVES.items():
        curves = [_curve(material, metric) for material in materials if metric in material.curves]
        if curves:
            blocks.append(f"<h3>{escape(title)}</h3>{figures.line_chart(curves)}")
    words = "x: optimiser step. The losses of different methods cannot be compared with each other."
    return grid(blocks) + paragraph(words, "quiet")


def map_section(materials: Sequence[Material]) -> str:
    """Embeddings of the test split in the plane."""
    words = (
        f"Up to {MAP_POINTS:,} test images, PCA then t-SNE. Neighbourhoods are meaningful; distances and the sizes of "
        "islands in two dimensions are not similarities."
    )
    return each_run(materials, _map) + paragraph(words, "quiet")


def neighbours_section(materials: Sequence[Material]) -> str:
    """Test images, each with the training images nearest to it."""
    words = "First column: a test image; then the training images of largest cosine similarity (below each), exactly."
    return each_run(materials, _neighbours, "broad") + paragraph(words, "quiet")


def pictures_section(materials: Sequence[Material]) -> str:
    """The pictures that stages left in figures/, reconstructions among them."""
    found = [_pictures(material) for material in materials if _picture_paths(material)]
    if not found:
        raise NothingToShowError("no pictures in figures/")
    return grid(found, "broad")


def augmentation_section(materials: Sequence[Material]) -> str:
    """What the views do to training images."""
    words = "Each row is a training image as it is, followed by draws of the views that the method is trained on."
    return each_run(materials, _augmentation, "broad") + paragraph(words, "quiet")


def stages_section(materials: Sequence[Material]) -> str:
    """The linear probe of every stage of the encoder."""
    words = (
        "Linear probe on every stage of the encoder, in %. The line across a bar: the same stage of a random encoder."
    )
    return each_run(materials, _stages) + paragraph(words, "quiet")


def few_labels_section(materials: Sequence[Material]) -> str:
    """Accuracy after fine-tuning against the number of labels, beside the same network without pre-training."""
    words = (
        "x: labels a class, as a power of ten; y: test accuracy of the whole network, mean over draws of the labels. "
        "In colour: pre-trained; in grey: the same network from scratch, where `rayssl finetune --scratch` measured it."
    )
    return each_run(materials, _few_labels) + paragraph(words, "quiet")


def _few_labels(material: Material) -> str:
    pattern = re.compile(r"(baseline/random-init/)?finetune@(\d+)-a-class/top1")
    points: dict[bool, list[tuple[int, float]]] = {False: [], True: []}
    for metric, value in material.run.flat.items():
        if match := pattern.fullmatch(metric):
            points[match[1] is not None].append((int(match[2]), value))
    if len(points[False]) < 2:
        raise NothingToShowError("fewer than two amounts of labels: `rayssl finetune RUN --labels-per-class 1,10,100`")
    curves = [
        (np.log10([n for n, _ in sorted(found)]), np.array([y for _, y in sorted(found)]), colour)
        for found, colour in ((points[True], SCRATCH), (points[False], material.colour))
        if found
    ]
    rows = [
        f"{n} labels a class: {100 * y:.1f} %"
        + "".join(f", from scratch {100 * s:.1f} %" for m, s in points[True] if m == n)
        for n, y in sorted(points[False])
    ]
    return figures.line_chart(curves) + bullets(rows, "quiet")


def _loss_block(material: Material) -> str:
    return f"{title_of(material, ': loss')}{figures.line_chart([_curve(material, 'train/loss')])}"


def _curve(material: Material, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    steps, values = material.curves[metric]
    return np.array(steps), np.array(values), material.colour


def _map(material: Material) -> str:
    split = material.split("test")
    seed = int(material.run.config["train"]["seed"])
    rows = np.sort(permutation(len(split.ids), seed, "report-map")[:MAP_POINTS])
    vectors = split.vectors[rows]
    if len(rows) < MAP_LEAST:
        raise NothingToShowError(f"{len(rows)} test images are too few for a map")
    if not np.isfinite(vectors).all() or np.ptp(vectors, axis=0).max() < 1e-6:
        raise NothingToShowError("the embeddings are all alike or not finite: there is no map of them")
    groups, names = _groups(vectors, split.labels, rows, split.class_names, seed)
    palette = figures.colours(len(names))
    return figures.scatter_chart(figures.project(vectors, seed), groups, palette) + _legend(names, palette)


def _groups(
    vectors: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    rows: NDArray[np.int64],
    class_names: Sequence[str] | None,
    seed: int,
) -> tuple[NDArray[np.int64], list[str]]:
    """A group for every point and the groups' names: classes and what has none, or clusters without any label."""
    if labels is None:
        from rayssl.pipeline.base.vectors import kmeans

        k = min(MAP_CLUSTERS, len(vectors) // 2)
        return np.asarray(kmeans(vectors, k, seed), dtype=np.int64), [f"cluster {i + 1}" for i in range(k)]
    names = list(class_names or map(str, range(int(labels.max()) + 1)))
    groups = labels[rows]
    if (groups < 0).any():
        return np.where(groups < 0, len(names), groups), [*names, "no label"]
    return groups, names


def _legend(names: Sequence[str], palette: Sequence[str]) -> str:
    items = [
        f'<span><i class="dot" style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(names[:LEGEND_NAMES], palette, strict=False)
    ]
    more = [f"<span>and {len(names) - LEGEND_NAMES} more</span>"] if len(names) > LEGEND_NAMES else []
    return f'<p class="legend">{"".join(items + more)}</p>'


def _neighbours(material: Material) -> str:
    test, train = material.split("test"), material.split("train")
    seed = int(material.run.config["train"]["seed"])
    queries = galleries.choose_queries(len(test.ids), test.labels, seed)
    found = galleries.nearest(test.vectors[queries], train.vectors, galleries.NEIGHBOURS)
    wanted = {int(test.ids[query]) for query in queries}
    wanted |= {int(train.ids[neighbour.row]) for row in found for neighbour in row}
    tiles = galleries.tiles_by_id(material.dataset, wanted)
    if not tiles:
        raise NothingToShowError("the embedded images are not in the data set any more")
    rows = []
    for query, neighbours in zip(queries, found, strict=True):
        label = _label(test, query)
        cells = [_tile(tiles.get(int(test.ids[query])), test.paths[query], _name(test.class_names, label), "query")]
        for neighbour in neighbours:
            other = _label(train, neighbour.row)
            kind = "" if label is None or other is None else "right" if label == other else "wrong"
            hint = _hint(train.paths[neighbour.row], _name(train.class_names, other))
            cells.append(_tile(tiles.get(int(train.ids[neighbour.row])), hint, f"{neighbour.score:.2f}", kind))
        rows.append(f'<div class="tiles">{"".join(cells)}</div>')
    key = "" if test.labels is None else _key()
    return "".join(rows) + key


def _key() -> str:
    return '<p class="legend"><span class="right">same class</span><span class="wrong">another class</span></p>'


def _label(split: "Embeddings", row: int) -> int | None:
    return None if split.labels is None or split.labels[row] < 0 else int(split.labels[row])


def _name(class_names: Sequence[str] | None, label: int | None) -> str:
    if label is None:
        return "query"
    return class_names[label] if class_names else str(label)


def _hint(path: str, name: str) -> str:
    return f"{path} ({name})" if name != "query" else path


def _tile(address: str | None, hint: str, caption: str, kind: str) -> str:
    image = f'<img src="{address}" alt="{escape(hint)}" title="{escape(hint)}">' if address else "<b>gone</b>"
    return f'<figure class="{kind}">{image}<figcaption>{escape(caption)}</figcaption></figure>'


def _pictures(material: Material) -> str:
    pictures = "".join(_picture(path) for path in _picture_paths(material))
    return title_of(material) + pictures + bullets(_reconstruction_errors(material), "quiet")


def _reconstruction_errors(material: Material) -> list[str]:
    records = [
        record for record in material.run.records if record["metric"].startswith(("reconstruct/", "likelihood/"))
    ]
    return [f"{record['metric']} {record['value']:.4g}: {record['protocol']}" for record in records]


def _picture_paths(material: Material) -> list[Path]:
    return listed(material.run.folder / "figures", "*.png")


def _picture(path: Path) -> str:
    name = escape(path.stem.replace("-", " ").replace("_", " "))
    try:
        address = galleries.file_address(path)
    except OSError:
        return paragraph(f"{path.name} is damaged", "quiet")
    return f'<figure class="picture"><img src="{address}" alt="{name}"><figcaption>{name}</figcaption></figure>'


def _augmentation(material: Material) -> str:
    views = material.run.config["augment"].get("views")
    if not views:
        raise NothingToShowError("config.json has no resolved views")
    sheet = galleries.augmentation_sheet(material.dataset, views, int(material.run.config["train"]["seed"]))
    address = galleries.image_address(sheet, largest=galleries.SHEET, photograph=galleries.SHEET // 2)
    return f'<figure class="picture"><img src="{address}" alt="augmented training images"></figure>'


def _stages(material: Material) -> str:
    pattern = re.compile(r"probe/([^/]+)/top1")
    bars = []
    for metric in dict.fromkeys(record["metric"] for record in material.run.records):  # in the order of the stages
        match, estimate = pattern.fullmatch(metric), material.run.estimate(metric)
        if match and estimate:
            text = table.format_estimate(estimate, percent=True)
            random = material.run.flat.get(f"baseline/random-init/{metric}")
            bars.append(bar(match[1], estimate.value, text, material.colour, estimate.half_width or 0.0, random))
    if not bars:
        raise NothingToShowError("no linear probe: it needs labels and `rayssl probe RUN`")
    return f'<div class="bars">{"".join(bars)}</div>'
