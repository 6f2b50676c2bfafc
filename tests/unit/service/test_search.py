"""What is found by HTTP is what `OpenIndex` finds, and nothing else."""

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.search.map import Map
from rayssl.pipeline.service.maps import points
from rayssl.pipeline.service.opened import View
from rayssl.pipeline.service.searches import LIKE, UNLIKE, nearest

Items = list[dict[str, Any]]


def ids(answer: Any) -> list[str]:
    return [one["id"] for one in answer.json()["neighbors"]]


def test_an_upload_finds_what_the_index_finds(client: TestClient, view: View, api: str, images: Path) -> None:
    file = images / "red" / "3.png"
    expected = view.opened.search(file.read_bytes(), k=5)[0]["neighbors"]
    answer = client.post(f"{api}/search/image?k=5", content=file.read_bytes())
    assert answer.status_code == 200
    found = answer.json()["neighbors"]
    assert [one["id"] for one in found] == [one["id_str"] for one in expected]
    assert [one["path"] for one in found] == [one["path"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-6)


def test_the_vector_of_an_upload_asks_for_it_again(client: TestClient, api: str, images: Path) -> None:
    first = client.post(f"{api}/search/image", content=(images / "blue" / "1.png").read_bytes())
    again = client.post(f"{api}/search", json={"vector": first.json()["vector"]})
    assert ids(again) == ids(first)


def test_an_image_does_not_find_itself(client: TestClient, view: View, api: str, items: Items) -> None:
    asked = items[7]["id"]
    answer = client.post(f"{api}/search", json={"like": [asked], "k": len(items)})
    assert sorted(ids(answer)) == sorted(one["id"] for one in items if one["id"] != asked)
    vector = view.stored(np.array([int(asked)]))
    scores, _ = view.opened.index.search(vector, 2)
    assert answer.json()["neighbors"][0]["score"] == pytest.approx(float(scores[0, 1]), abs=1e-6)


def test_ids_are_text_and_exact(client: TestClient, api: str, items: Items) -> None:
    wide = next(one["id"] for one in items if float(int(one["id"])) != int(one["id"]))  # no double holds it
    assert client.get(f"{api}/items/{wide}").json()["id"] == wide


def test_like_these_but_not_like_those(client: TestClient, view: View, api: str, items: Items) -> None:
    like, unlike = [items[0]["id"], items[1]["id"]], [items[40]["id"]]
    answer = client.post(f"{api}/search", json={"like": like, "unlike": unlike, "k": 50})
    vectors = {one["id"]: view.stored(np.array([int(one["id"])]))[0] for one in items}
    query = LIKE * (vectors[like[0]] + vectors[like[1]]) / 2 - UNLIKE * vectors[unlike[0]]
    score = {one: float(vectors[one] @ normalise(query[None])[0]) for one in vectors if one not in [*like, *unlike]}
    found = answer.json()["neighbors"]
    assert [one["score"] for one in found] == pytest.approx(sorted(score.values(), reverse=True)[:50], abs=1e-5)
    assert {one["id"] for one in found} <= set(score)


def test_filters_keep_the_order_and_look_as_far_as_needed(
    client: TestClient, view: View, api: str, items: Items
) -> None:
    asked, k = items[3]["id"], 6
    everything = client.post(f"{api}/search", json={"like": [asked], "k": len(items)}).json()["neighbors"]
    for wanted in [{"labels": ["red"]}, {"splits": ["test"]}, {"labels": ["red", "blue"], "splits": ["train"]}]:
        answer = client.post(f"{api}/search", json={"like": [asked], "k": k, **wanted})
        fitting = [
            one["id"]
            for one in everything
            if one["label"] in wanted.get("labels", ["red", "green", "blue"])
            and one["split"] in wanted.get("splits", ["train", "val", "test"])
        ]
        assert ids(answer) == fitting[:k]
    assert ids(client.post(f"{api}/search", json={"like": [asked], "labels": ["purple"]})) == []


def test_splits_are_those_of_the_run(client: TestClient, api: str, items: Items) -> None:
    told = client.get(api).json()
    assert told["splits"] == {"train": 43, "val": 5, "test": 12}
    assert told["labels"] == [{"name": name, "images": 20} for name in ("blue", "green", "red")]
    assert sum(one["split"] == "val" for one in items) == 5


def test_stored_vectors_are_those_of_the_embeddings(view: View, items: Items) -> None:
    some = np.array([int(one["id"]) for one in items[5:9]])
    known, vectors = view.stored._embeddings
    assert view.stored(some) == pytest.approx(vectors[np.searchsorted(known, some)], abs=1e-6)


def test_fewer_are_found_where_an_index_holds_fewer(view: View) -> None:
    vector = np.ones(view.opened.dim, dtype=np.float32)
    assert len(nearest(view, vector, 1000)) == len(view.opened)


@pytest.mark.parametrize(
    ("question", "status", "told"),
    [
        ({}, 400, "name at least one image"),
        ({"like": ["5"]}, 400, "no image of the id 5"),
        ({"like": ["-5"]}, 422, "like.0"),
        ({"like": ["9" * 19]}, 404, "no image of that id"),
        ({"like": ["٣"]}, 422, "like.0"),
        ({"vector": [1.0]}, 400, "it has 1 numbers"),
        ({"vector": [], "like": []}, 400, "it has 0 numbers"),
        ({"vector": ["a"]}, 422, "vector.0"),
        ({"like": ["5"], "vector": [1.0]}, 400, "give one of them"),
        ({"like": ["5"], "k": 0}, 422, "k: "),
        ({"like": ["5"], "k": 10**9}, 422, "k: "),
        ({"like": ["5"] * 257}, 422, "like: "),
        ({"like": ["5"], "url": "http://example.org/a.png"}, 422, "url: "),
        ({"like": ["5"], "path": "/etc/passwd"}, 422, "path: "),
    ],
)
def test_wrong_questions_are_told(client: TestClient, api: str, question: Any, status: int, told: str) -> None:
    answer = client.post(f"{api}/search", json=question)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert told in answer.json()["error"]


def test_images_that_cancel_each_other_out(client: TestClient, view: View, api: str) -> None:
    zero, huge = [0.0] * view.opened.dim, [1e300] * view.opened.dim
    assert client.post(f"{api}/search", json={"vector": zero}).status_code == 400
    assert client.post(f"{api}/search", json={"vector": huge}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n" + bytes(40), b"%!PS-Adobe"],
    ids=["empty", "text", "svg", "broken png", "postscript"],
)
def test_what_is_no_image_is_told(client: TestClient, api: str, body: bytes) -> None:
    answer = client.post(f"{api}/search/image", content=body)
    assert answer.status_code == 400
    assert len(answer.json()["error"].splitlines()) == 1


def test_one_that_is_cut_off_is_told_beside_others_that_are_answered(
    client: TestClient, api: str, images: Path
) -> None:
    whole = (images / "red" / "0.png").read_bytes()
    assert client.post(f"{api}/search/image", content=whole[: len(whole) // 2]).status_code == 400
    assert client.post(f"{api}/search/image", content=whole).status_code == 200


def encoded(mode: str, size: tuple[int, int], kind: str) -> bytes:
    content = io.BytesIO()
    Image.new(mode, size).save(content, kind)
    return content.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_any_mode_are_answered(client: TestClient, api: str, mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    assert client.post(f"{api}/search/image", content=encoded(mode, (40, 30), kind)).status_code == 200


def test_a_bomb_is_refused_before_it_is_decoded(client: TestClient, api: str) -> None:
    bomb = encoded("1", (20_000, 20_000), "PNG")
    assert len(bomb) < 100_000
    answer = client.post(f"{api}/search/image", content=bomb)
    assert (answer.status_code, "20000 × 20000" in answer.json()["error"]) == (413, True)


def test_the_list_has_every_image_once(client: TestClient, api: str, items: Items) -> None:
    found = [one["id"] for start in range(0, 80, 25) for one in client.get(f"{api}/items?k=25&start={start}").json()]
    assert sorted(found) == sorted(one["id"] for one in items)
    assert len(set(found)) == len(found)
    red = client.get(f"{api}/items?k=100&label=red&split=train").json()
    assert {(one["label"], one["split"]) for one in red} == {("red", "train")}
    assert len(red) == sum(one["label"] == "red" and one["split"] == "train" for one in items)
    wanted = [items[4]["id"], items[2]["id"]]
    answer = client.get(f"{api}/items", params={"id": wanted})
    assert [one["id"] for one in answer.json()] == wanted
    assert client.get(f"{api}/items?id=5").status_code == 404


def test_the_map_has_every_image_with_its_label_and_split(
    client: TestClient, view: View, api: str, items: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = view.opened.items.ids
    places = np.linspace(-1, 1, 2 * len(ids), dtype=np.float32).reshape(-1, 2)
    monkeypatch.setattr("rayssl.pipeline.service.maps.read_map", lambda _: Map(ids, places))
    made = threading.Event()
    monkeypatch.setattr("rayssl.pipeline.service.maps.points", lambda *given: points(*given) if made.wait() else None)
    waiting = client.get(f"{api}/map")
    assert (waiting.status_code, waiting.headers["retry-after"]) == (503, "2")
    made.set()
    while (answer := client.get(f"{api}/map")).status_code == 503:
        pass
    told = answer.json()
    found = {
        one: (x, y, told["labels"][label], told["splits"][split])
        for one, x, y, label, split in zip(*(told[name] for name in ("ids", "x", "y", "label", "split")), strict=True)
    }
    for row, one in enumerate(items):
        x, y, label, split = found[one["id"]]
        assert (label, split) == (one["label"], one["split"])
        assert (x, y) == pytest.approx(places[row].tolist(), abs=1e-4)
