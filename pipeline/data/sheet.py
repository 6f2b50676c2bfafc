"""A contact sheet: some images of every class in every split, for eyes to check what was concluded."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rayssl.pipeline.base.files import replacing
from rayssl.pipeline.data.dataset import Dataset, Images
from rayssl.pipeline.data.decode import to_square
from rayssl.pipeline.data.formats import marks
from rayssl.pipeline.data.shown import Pixels

SIDE, GAP, LINE = 96, 6, 16  # pixels
ACROSS = 4  # images of a class in a split
CLASSES = 12
PARTS = ("train", "validation", "test")


def write_sheet(dataset: Dataset, path: Path) -> None:
    """A PNG with a row per class (the first ones, and images without a label) and a block of columns per split."""
    parts = [part for part in (dataset.train, dataset.val, dataset.test) if part is not None]
    names = [*(dataset.class_names or ())[:CLASSES]]
    rows = [(name, i) for i, name in enumerate(names)]
    if any(part.labels is None or (part.labels < 0).any() for part in parts):
        rows.append(("no label", -1))
    block = ACROSS * (SIDE + GAP) + 2 * GAP
    sheet = Image.new("RGB", (block * len(parts), LINE + len(rows) * (SIDE + LINE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, (title, part) in enumerate(zip(PARTS, parts)):
        draw.text((column * block, 0), f"{title}: {len(part):,} images", fill="black", font=font)
        for row, (name, label) in enumerate(rows):
            top = LINE + row * (SIDE + LINE + GAP)
            found = of_class(part, label)
            draw.text((column * block, top), f"{name}: {len(found):,}"[:60], fill="black", font=font)
            for place, i in enumerate(found[:ACROSS].tolist()):
                left = column * block + place * (SIDE + GAP)
                sheet.paste(Image.fromarray(_shown(part[i])), (left, top + LINE))
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG", **marks("PNG"))


def of_class(part: Images, label: int) -> NDArray[np.int64]:
    """Positions of the images with a label; −1: of those without one."""
    labels = part.labels if part.labels is not None else np.full(len(part), -1)
    return np.flatnonzero(labels == label if label >= 0 else labels < 0)


def _shown(image: Pixels) -> Pixels:
    square = to_square(image, SIDE)
    return np.repeat(square[:, :, :1], 3, axis=2) if square.shape[2] != 3 else square
