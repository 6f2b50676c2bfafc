"""Which runs are served, and that a new index takes the place of the old one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.search.ingest import add_images, remove_images
from rayssl.pipeline.search.query import open_index
from rayssl.pipeline.service.opened import Served, offered, open_runs, runs_in
from rayssl.pipeline.service.searches import nearest
from rayssl.pipeline.stages.index import run_index


def test_a_folder_of_runs_is_its_runs(finished: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(finished, tmp_path / "suite" / name)
    (tmp_path / "suite" / "notes").mkdir()
    assert list(open_runs([tmp_path / "suite"]).by_name) == ["one", "two"]
    assert runs_in(tmp_path / "suite" / "two") == [tmp_path / "suite" / "two"]
    assert offered(tmp_path / "suite") == [tmp_path / "suite" / "one", tmp_path / "suite" / "two"]


def test_runs_of_one_name_are_told_apart_and_one_twice_is_one(finished: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(finished, tmp_path / name / "run")
    runs = open_runs([tmp_path / "a" / "run", tmp_path / "b", tmp_path / "a"])
    assert list(runs.by_name) == ["a-run", "b-run"]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_run_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        open_runs([tmp_path / name])


def test_a_new_index_is_opened_and_a_damaged_one_is_not(
    finished_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = Served("run", finished_copy, None)
    first = served.view
    served.refresh()
    assert served.view is first
    shutil.rmtree(finished_copy / "index")
    served.refresh()
    assert served.view is first
    assert "cannot be opened" in capsys.readouterr().err
    run_index(finished_copy)
    served.refresh()
    assert served.view is not first
    assert len(served.view.opened) == len(first.opened)


def test_what_is_added_is_served_with_its_picture_and_what_is_removed_is_not(
    finished_copy: Path, tmp_path: Path
) -> None:
    served = Served("run", finished_copy, None)
    first = served.view
    Image.new("RGB", (20, 30), "orange").save(tmp_path / "new.png")
    (new,) = add_images(open_index(finished_copy), [tmp_path / "new.png"]).added
    served.refresh()
    view = served.view
    assert view.version != first.version
    assert view.split_counts == {**first.split_counts, "added": 1}
    (best,) = nearest(view, view.stored(np.array([new]))[0], 1)
    assert (best["id"], best["split"]) == (str(new), "added")
    assert view.pictures.thumbnail(int(view.opened.items.rows(np.array(new)))).kind == "image/png"
    among = view.matching(["added"], [])
    assert [one["id"] for one in nearest(view, view.stored(np.array([new]))[0], 9, among=among)] == [str(new)]
    remove_images(open_index(finished_copy), [str(new)])
    served.refresh()
    assert served.view.split_counts == first.split_counts
