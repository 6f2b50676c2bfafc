"""Paths and labels by id, over several files."""

from pathlib import Path

import numpy as np
import pytest

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.search.embeddings import Embeddings, save_embeddings
from rayssl.pipeline.search.items import load_items


def save(folder: Path, split: str, ids: list[int], labels: list[int] | None, **changes: object) -> None:
    facts = {
        "class_names": ("cat", "dog"),
        "encoder_hash": "e",
        "data_fingerprint": "d",
        "data_path": "/pets",
        **changes,
    }
    embeddings = Embeddings(
        np.array(ids, dtype=np.int64), [f"{one}.png" for one in ids], None if labels is None else np.array(labels),
        np.ones((len(ids), 2), dtype=np.float32), split=split, **facts,  # type: ignore[arg-type]
    )  # fmt: skip
    save_embeddings(embeddings, folder / f"{split}.parquet")


def test_items_of_several_files_are_found_by_id(tmp_path: Path) -> None:
    save(tmp_path, "train", [7, 2**62, 3], [1, -1, 0])
    save(tmp_path, "test", [5], None)
    items = load_items(tmp_path, Path("run"))
    rows = items.rows(np.array([[3, 5], [2**62, 7]]))
    told = [(items.path(row), items.label(row)) for row in rows.ravel().tolist()]
    assert told == [("3.png", "cat"), ("5.png", None), (f"{2**62}.png", None), ("7.png", "dog")]
    assert items.rows(np.array([4, 2**62 + 1, -1])).tolist() == [-1, -1, -1]


def test_no_images_and_files_of_different_data(tmp_path: Path) -> None:
    save(tmp_path, "test", [], None)
    assert load_items(tmp_path, Path("run")).rows(np.array([1])).tolist() == [-1]
    save(tmp_path, "train", [1], None, data_fingerprint="another")
    with pytest.raises(UserError, match="differ in data_fingerprint: `rayssl embed run` writes them again"):
        load_items(tmp_path, Path("run"))
    with pytest.raises(UserError, match="holds no embeddings"):
        load_items(tmp_path / "elsewhere", Path("run"))
