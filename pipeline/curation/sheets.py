"""Contact sheets: lines of pictures with what is to be known of each, below a curve where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.files import replacing
from rayssl.pipeline.base.terminal import plain
from rayssl.pipeline.curation.subject import Ints, Subject
from rayssl.pipeline.data.formats import marks

MOST_LINES = 40
MOST_IN_LINE = 10
TILE = 112  # pixels a side
GAP = 6
TEXT = 13  # pixels a line of text
LETTERS = 18  # of a caption: more do not fit below a tile
INK, PAPER = (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class Line:
    """Pictures that belong together."""

    title: str
    rows: Ints  # of the subject
    captions: list[str]


def save_sheet(subject: Subject, lines: Sequence[Line], path: Path, above: NDArray[np.uint8] | None = None) -> None:
    """Write a PNG, whole or not at all, with the first 40 lines of at most 10 pictures, below a picture (H, W, 3)."""
    from PIL import Image, ImageDraw

    shown = lines[:MOST_LINES]
    columns = max((min(len(line.rows), MOST_IN_LINE) for line in shown), default=1)
    head = 0 if above is None else above.shape[0]
    height = head + sum(_height(line) for line in shown) + GAP
    width = max(columns * (TILE + GAP) + GAP, 4 * TILE, 0 if above is None else above.shape[1])
    sheet = Image.new("RGB", (width, height), PAPER)
    if above is not None:
        sheet.paste(Image.fromarray(above), (0, 0))
    draw, top = ImageDraw.Draw(sheet), head + GAP
    for line in shown:
        _draw_line(sheet, draw, subject, line, top)
        top += _height(line)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True, **marks("PNG"))


def pairs_curve(points: Sequence[tuple[float, int, int]], chosen: float) -> NDArray[np.uint8]:
    """A picture (H, W, 3) of pairs and groups over thresholds, (threshold, pairs, groups) each, and the chosen one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    thresholds, pairs, groups = zip(*points, strict=True)
    axes.plot(thresholds, pairs, "o-", label="pairs", color="#4269d0")
    axes.plot(thresholds, groups, "s-", label="groups", color="#ff725c")
    axes.axvline(chosen, color="#9498a0", linestyle="--", label=f"threshold {chosen:.4f}")
    axes.set(xlabel="similarity of at least", yscale="symlog")
    axes.set_ylim(0, 3 * max(1, *pairs))
    axes.legend(frameon=False)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3]
    return pixels.copy()


def _height(line: Line) -> int:
    return 2 * TEXT + TILE + 2 * GAP


def _draw_line(sheet: Any, draw: Any, subject: Subject, line: Line, top: int) -> None:
    from PIL import Image

    rows = line.rows[:MOST_IN_LINE]
    more = f"  (and {len(line.rows) - len(rows)} more)" if len(line.rows) > len(rows) else ""
    _write(draw, (GAP, top), f"{line.title}{more}")
    for column, (pixels, caption) in enumerate(zip(subject.square(rows, subject.image_size), line.captions)):
        left = GAP + column * (TILE + GAP)
        tile = Image.fromarray(_visible(pixels)).convert("RGB")
        smooth = Image.Resampling.NEAREST if subject.image_size < TILE else Image.Resampling.LANCZOS
        sheet.paste(tile.resize((TILE, TILE), smooth), (left, top + TEXT + 2))
        _write(draw, (left, top + TEXT + TILE + 3), caption[:LETTERS])


def _write(draw: Any, place: tuple[int, int], text: str) -> None:
    from PIL import ImageFont

    draw.text(place, plain(text), fill=INK, font=ImageFont.load_default(size=11))


def _visible(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey (H, W) or colour (H, W, 3); of other numbers of channels the first ones."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
