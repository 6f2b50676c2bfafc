"""Who may ask: Host, Origin, token, sizes. Each rule, and what it would let through."""

import asyncio
import base64
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from rayssl.pipeline.service import guard
from rayssl.pipeline.service.guard import Names, is_loopback
from rayssl.pipeline.service.metrics import Metrics

TOKEN = "a-token-of-the-tests"
ROUTES = ("/", "/docs", "/openapi.json", "/metrics", "/ready", "/api/runs", "/api/runs/simclr-folder")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:9", "LOCALHOST", "[::1]:8000", "127.3.2.1"])
def test_this_machine_is_called_by_its_own_names(client: TestClient, host: str) -> None:
    assert client.get("/api/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.7", "localhost.evil.example:8000", "", "a@localhost:b[",
             "::1"]
)  # fmt: skip
@pytest.mark.parametrize("route", ["/", "/health", "/api/runs", "/nowhere"])
def test_a_rebound_name_gets_nothing(client: TestClient, host: str, route: str) -> None:
    assert client.get(route, headers={"host": host}).status_code == 421


def test_two_host_headers_are_refused(client: TestClient) -> None:
    answer = client.get("/api/runs", headers=[("host", "127.0.0.1"), ("host", "evil.example")])
    assert answer.status_code == 421


@given(st.text(alphabet="abc.-", min_size=1, max_size=20))
def test_outside_of_loopback_addresses_are_names_and_words_are_not(name: str) -> None:
    names = Names("0.0.0.0", ["box.lan"])
    assert names.has("192.168.1.4:8000")
    assert names.has("Box.LAN:8000")
    assert not names.has(name) or name.rstrip(".") in ("box.lan", "localhost")


@pytest.mark.parametrize(("host", "closed"), [("127.0.0.1", True), ("::1", True), ("localhost", True),
                                              ("0.0.0.0", False), ("::", False), ("192.168.0.1", False),
                                              ("box", False)])  # fmt: skip
def test_what_is_loopback(host: str, closed: bool) -> None:
    assert is_loopback(host) is closed


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9", "http://[", "https://localhost"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_another_page_gets_nothing(client: TestClient, origin: str, method: str) -> None:
    answer = client.request(method, "/api/runs", headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_page_itself_may_ask(client: TestClient, api: str) -> None:
    headers = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert client.post(f"{api}/search", json={"like": ["5"]}, headers=headers).status_code == 400


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_page_may_link_to_the_page_and_show_no_image(client: TestClient, site: str) -> None:
    followed = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=followed).status_code == 200
    assert client.get("/api/runs", headers=followed).status_code == 403
    assert client.get("/", headers={**followed, "sec-fetch-mode": "no-cors"}).status_code == 403
    assert client.post("/login", headers=followed).status_code == 403


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_is_told_without_the_token(guarded: TestClient, route: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong-token-wrong-token"}, {"cookie": f"rayssl-8000={TOKEN}"},
                    {"authorization": f"Basic {base64.b64encode(TOKEN.encode()).decode()}"},
                    {"authorization": b"Bearer \xff"}):  # fmt: skip
        answer = guarded.get(f"{route}?token={TOKEN}", headers=headers, follow_redirects=False)
        assert answer.status_code in (303, 401)
        assert b"simclr" not in answer.content


def test_the_token_opens(guarded: TestClient) -> None:
    assert guarded.get("/health").status_code == 200
    assert guarded.get("/api/runs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_login_page_sets_a_cookie_without_the_token(guarded: TestClient) -> None:
    assert guarded.get("/").url.path == "/login"
    wrong = guarded.post("/login", data={"token": "something else"})
    assert (wrong.status_code, guarded.cookies.get("rayssl-8000")) == (401, None)
    answer = guarded.post("/login", data={"token": TOKEN}, follow_redirects=False)
    assert answer.headers["location"] == "/"
    told = answer.headers["set-cookie"].lower()
    assert "httponly" in told
    assert "samesite=strict" in told
    assert TOKEN not in told
    assert guarded.get("/api/runs").status_code == 200


@pytest.mark.parametrize("route", [*ROUTES, "/nowhere", "/static/app.css", "/login"])
def test_every_answer_is_closed_in(client: TestClient, route: str) -> None:
    headers = client.get(route, follow_redirects=False).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


@pytest.mark.parametrize("route", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/"])
def test_static_files_are_those_of_the_page(client: TestClient, route: str) -> None:
    assert client.get(route).status_code in (404, 405)


def test_bytes_are_counted_not_believed(client: TestClient, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_IMAGE_BYTES", 1000)
    monkeypatch.setattr(guard, "MOST_JSON_BYTES", 100)
    chunks = (bytes(300) for _ in range(4))  # no Content-Length
    assert client.post(f"{api}/search/image", content=chunks).status_code == 413
    assert client.post(f"{api}/search", json={"like": ["5"] * 100}).status_code == 413
    assert client.post(f"{api}/search/image", content=bytes(900)).status_code == 400


def test_all_bodies_together_are_bounded_and_given_back(
    client: TestClient, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MOST_HELD_BYTES", 1000)
    for _ in range(3):
        answer = client.post(f"{api}/search/image", content=bytes(2000))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.post(f"{api}/search/image", content=bytes(900)).status_code == 400


def test_a_request_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_SECONDS", 0.01)
    app = FastAPI()

    @app.get("/slow")
    async def slow() -> None:
        await asyncio.Event().wait()

    app.add_middleware(guard.Guard, names=Names("127.0.0.1"), door=None, metrics=Metrics())
    answer = TestClient(app, base_url="http://127.0.0.1").get("/slow")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_fault_tells_nothing_of_itself(client: TestClient, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr("rayssl.pipeline.service.searches.told", fails)
    ids = [one["id"] for one in client.post(f"{api}/search", json={"vector": [1.0] * 3}).json().get("neighbors", [])]
    assert ids == []
    answer = client.get(f"{api}/items/{_first_id(client, api)}")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def _first_id(client: TestClient, api: str) -> str:
    from rayssl.pipeline.service.opened import Runs

    runs: Runs = client.app.state.runs  # type: ignore[attr-defined]
    return str(runs["simclr-folder"].opened.items.ids[0])
