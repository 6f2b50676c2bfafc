"""The page in a browser that is installed here, over the tiny run of the unit tests."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from unit.conftest import finished, images, tiny_config  # noqa: F401  fixtures

from rayssl.pipeline.service.app import create_app
from rayssl.pipeline.service.guard import Names
from rayssl.pipeline.service.opened import open_runs
from rayssl.pipeline.service.server import listening, server_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip


@pytest.fixture(scope="session")
def site(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    """Where the tiny run is served, twice: as simclr-folder and as other."""
    folder = tmp_path_factory.mktemp("served")
    for name in ("simclr-folder", "other"):
        shutil.copytree(finished, folder / name)
    with pytest.MonkeyPatch.context() as patch, listening("127.0.0.1", 0) as listener:
        patch.setenv("RAYSSL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        server = server_of(
            create_app(open_runs([folder / "simclr-folder", folder / "other"]), names=Names("127.0.0.1"))
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """One for all tests here. It ends with them, because an event loop of its runs in this process until then."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium is installed here")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(OPTIONS))
        yield browser
        browser.close()


@pytest.fixture
def faults() -> list[str]:
    """What the browser complained of, and whom it asked beside the server."""
    return []


@pytest.fixture
def page(browser: "Browser", site: str, faults: list[str]) -> "Iterator[Page]":
    """The page, opened; what goes wrong in it fails the test, but for answers that the test provokes."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda told: faults.append(told.text) if "Content Security Policy" in told.text else None)
    page.on("request", lambda asked: None if _is_own(asked.url, site) else faults.append(asked.url))
    page.goto(site)
    page.locator("#results li").first.wait_for()
    yield page
    context.close()
    assert faults == []


def _is_own(url: str, site: str) -> bool:
    return url.startswith((site, "data:", "blob:"))
