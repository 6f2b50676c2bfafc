"""Charts as SVG text that takes its ink from the page, so that they read well on light and on dark.

Charts carry no names: labels and legends are HTML, where untrusted text is escaped and long text wraps.
"""

import colorsys
import io
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ten hues of similar weight which stand out on white and on near-black (Observable's categorical palette).
PALETTE = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0",
)  # fmt: skip
INK = "#010203"  # stands for the page's text colour until the SVG is written
MAX_POINTS = 300  # a curve's points; neighbours are averaged down to so many
TSNE_ITERATIONS = 500
PCA_DIMENSIONS = 50  # what t-SNE starts from, as its authors advise (van der Maaten and Hinton 2008, §4.2)


def colours(n: int) -> list[str]:
    """`n` colours as #rrggbb: the palette's, or hues evenly spread where it has too few."""
    if n <= len(PALETTE):
        return list(PALETTE[:n])
    rgb = [colorsys.hls_to_rgb(i / n, 0.42 + 0.2 * (i % 2), 0.7) for i in range(n)]
    return [f"#{round(255 * r):02x}{round(255 * g):02x}{round(255 * b):02x}" for r, g, b in rgb]


def line_chart(curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], str]]) -> str:
    """SVG of curves (x, y, colour) over one axis of steps."""
    figure, axes = plain_chart()
    for x, y, colour in curves:
        axes.plot(*_thinned(x, y), color=colour, linewidth=1.6, solid_joinstyle="round")
    axes.margins(x=0.02)
    return svg_of(figure)


def plain_chart(height: float = 2.2) -> "tuple[Figure, Axes]":
    """A figure, 4 × `height` inches, and its axes: a faint grid without a frame."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, height), layout="constrained")
    axes = figure.add_subplot()
    axes.locator_params(nbins=5)
    axes.grid(color=INK, alpha=0.12, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    return figure, axes


def scatter_chart(points: NDArray[np.float64], groups: NDArray[np.int64], palette: Sequence[str]) -> str:
    """SVG of points (N, 2), coloured by group, without axes: their coordinates mean nothing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 4.0))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    for group in np.unique(groups):
        chosen = points[groups == group]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=14, color=palette[group % len(palette)], alpha=0.8, linewidths=0)
    return svg_of(figure)


def project(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """Vectors (N, D), N ≥ 5, to the plane (N, 2): L2-normalised, PCA to 50 dimensions, t-SNE."""
    return _project(np.ascontiguousarray(vectors, dtype=np.float32).tobytes(), vectors.shape[1], seed)


@lru_cache(maxsize=16)  # a run's own report and the one that compares it with others show the same map
def _project(data: bytes, dim: int, seed: int) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    vectors = np.frombuffer(data, dtype=np.float32).reshape(-1, dim)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    pca = PCA(min(PCA_DIMENSIONS, *unit.shape), random_state=seed)
    perplexity = min(30.0, (len(unit) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, max_iter=TSNE_ITERATIONS, init="pca", random_state=seed)
    with threadpool_limits(1):  # threads that wait for each other cost more than they bring: 4 times slower with two
        reduced = pca.fit_transform(unit)
        return np.asarray(tsne.fit_transform(reduced), dtype=np.float64)


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(x) <= MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def svg_of(figure: "Figure") -> str:
    """The figure as an <svg> element without names of its own, addresses or a fixed size."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # matplotlib's names of parts repeat from chart to chart
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return re.sub(r"(font: [\d.]+px) [^;\"]+", r"\1 system-ui, sans-serif", text)
