"""The contact sheet shows images of every class in every split where their titles say so, and is no data itself."""

from pathlib import Path

import numpy as np
from PIL import Image

from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.data.formats import written_here
from rayssl.pipeline.data.sheet import ACROSS, GAP, LINE, SIDE, of_class, write_sheet

GREYS = {"dark": 40, "light": 200}


def write_greys(folder: Path) -> None:
    for split, count in (("train", 10), ("test", 2)):
        for name, grey in GREYS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                value = grey + i + 20 * (split == "test")
                Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(folder / split / name / f"{i}.png")


def test_a_sheet_has_a_row_for_each_class_and_a_block_for_each_split(tmp_path: Path) -> None:
    write_greys(tmp_path / "greys")
    dataset = open_dataset(tmp_path / "greys")
    assert dataset.test is not None
    write_sheet(dataset, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    block = ACROSS * (SIDE + GAP) + 2 * GAP
    assert sheet.shape == (LINE + 2 * (SIDE + LINE + GAP), 3 * block, 3)
    for column, part in enumerate((dataset.train, dataset.val, dataset.test)):
        for row in range(2):
            top = 2 * LINE + row * (SIDE + LINE + GAP)
            found = of_class(part, row)[:ACROSS]
            for place in range(ACROSS):
                left = column * block + place * (SIDE + GAP)
                grey = int(part[int(found[place])].max()) if place < len(found) else 255
                assert (sheet[top : top + SIDE, left : left + SIDE] == grey).all()


def test_images_without_a_label_have_their_own_row(tmp_path: Path) -> None:
    write_greys(tmp_path / "greys")
    dataset = open_dataset(tmp_path / "greys", labels="none")
    write_sheet(dataset, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").height == LINE + SIDE + LINE + GAP
    assert len(of_class(dataset.train, -1)) == len(dataset.train)


def test_a_sheet_beside_the_images_is_none_of_them(tmp_path: Path) -> None:
    write_greys(tmp_path / "greys")
    before = open_dataset(tmp_path / "greys")
    write_sheet(before, tmp_path / "greys" / "greys-sheet.png")
    assert written_here((tmp_path / "greys" / "greys-sheet.png").read_bytes())
    after = open_dataset(tmp_path / "greys")
    assert (after.fingerprint, after.train.paths) == (before.fingerprint, before.train.paths)
