"""Pictures are of the run's own images only, and no byte of a file is passed on."""

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

from rayssl.pipeline.run.own_images import move_images
from rayssl.pipeline.search.query import open_index
from rayssl.pipeline.service.opened import View
from rayssl.pipeline.service.pictures import NoPictureError, Pictures

Items = list[dict[str, Any]]


def test_a_picture_shows_the_image(client: TestClient, api: str, items: Items, images: Path) -> None:
    for one in items[::20]:
        answer = client.get(f"{api}/items/{one['id']}/thumbnail")
        with Image.open(io.BytesIO(answer.content)) as shown, Image.open(images / one["path"]) as stored:
            assert np.array_equal(np.asarray(shown), np.asarray(stored))  # so small that it is lossless
        assert answer.headers["content-type"] == "image/png"


def test_browsers_keep_a_picture_of_this_version_only(client: TestClient, api: str, items: Items) -> None:
    url, version = f"{api}/items/{items[0]['id']}/thumbnail", client.get(api).json()["version"]
    assert "immutable" in client.get(f"{url}?version={version}").headers["cache-control"]
    assert client.get(f"{url}?version=other").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("id", ["1", "9" * 19, "0" * 19])
def test_no_other_image_is_shown(client: TestClient, api: str, id: str) -> None:
    assert client.get(f"{api}/items/{id}/image").status_code == 404


@pytest.mark.parametrize("id", ["..", "%2e%2e%2fsecret", "-1", "1.0", "0x1f", "9" * 40, "%00"])
def test_an_id_is_a_number(client: TestClient, api: str, id: str) -> None:
    assert client.get(f"{api}/items/{id}/image").status_code in (404, 422)


@pytest.fixture
def moved(finished_copy: Path, images: Path, tmp_path: Path) -> tuple[Pictures, Path, int]:
    """Pictures of a copy of the images, that folder, and the row of one of them: red/0.png."""
    folder = tmp_path / "copy" / "colours"
    shutil.copytree(images, folder)
    move_images(finished_copy, str(folder), lambda _: None)
    opened = open_index(finished_copy)
    row = next(row for row in range(60) if opened.items.path(row) == "red/0.png")
    return Pictures(opened), folder, row


def test_what_a_file_hides_is_not_shown(moved: tuple[Pictures, Path, int]) -> None:
    pictures, folder, row = moved
    hidden = PngImagePlugin.PngInfo()
    hidden.add_text("Comment", "where it was taken")
    Image.new("RGB", (16, 16)).save(folder / "red" / "0.png", pnginfo=hidden)
    with (folder / "red" / "0.png").open("ab") as file:
        file.write(b"<script>")
    content = pictures.large(row).content
    assert b"where it was taken" not in content
    assert b"<script>" not in content


@pytest.mark.parametrize("what", ["link", "folder above"])
def test_a_link_out_of_the_folder_is_not_followed(moved: tuple[Pictures, Path, int], what: str, tmp_path: Path) -> None:
    pictures, folder, row = moved
    elsewhere = tmp_path / "private"
    elsewhere.mkdir()
    Image.new("RGB", (16, 16)).save(elsewhere / "0.png")
    if what == "link":
        (folder / "red" / "0.png").unlink()
        os.symlink(elsewhere / "0.png", folder / "red" / "0.png")
    else:
        pictures.large(row)  # listed before
        shutil.rmtree(folder / "red")
        os.symlink(elsewhere, folder / "red")
    with pytest.raises(NoPictureError, match="outside"):
        pictures.large(row)


def test_what_is_gone_or_damaged_is_told_without_its_place(moved: tuple[Pictures, Path, int]) -> None:
    pictures, folder, row = moved
    (folder / "red" / "0.png").write_bytes(b"no image any more")
    with pytest.raises(NoPictureError) as told:
        pictures.large(row)
    assert str(folder) not in str(told.value)
    shutil.rmtree(folder)
    with pytest.raises(NoPictureError):
        pictures.large(row)


def test_large_images_are_made_small(moved: tuple[Pictures, Path, int]) -> None:
    pictures, folder, row = moved
    Image.new("RGB", (3000, 40), "red").save(folder / "red" / "0.png")
    with Image.open(io.BytesIO(pictures.thumbnail(row).content)) as shown:
        assert max(shown.size) <= 320
    Image.new("RGB", (2400, 2000), "red").save(folder / "red" / "0.png")
    picture = pictures.large(row)
    with Image.open(io.BytesIO(picture.content)) as shown:
        assert (min(shown.size), picture.kind) == (1024, "image/jpeg")


def test_splits_and_labels_match_together(view: View) -> None:
    mask = view.matching(["train"], ["red"])
    assert mask is not None
    expected = [
        split == "train" and view.opened.items.label(row) == "red" for row, split in enumerate(view.splits.tolist())
    ]
    assert mask.tolist() == expected
