"""What people do with the page: drop, look, click on, go back, filter, come again."""

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

AXE = Path(__file__).resolve().parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
DROP = """([bytes, name]) => {
    const content = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([content], name));
    for (const kind of ["dragenter", "dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(kind, {dataTransfer, bubbles: true, cancelable: true}));
}"""


def drop(page: "Page", content: bytes, name: str) -> None:
    page.evaluate(DROP, [base64.b64encode(content).decode(), name])


def title(page: "Page", text: str) -> None:
    page.locator("#title", has_text=text).wait_for()


def ids(page: "Page") -> list[str | None]:
    return [one.get_attribute("data-id") for one in page.locator("#results .open").all()]


@pytest.fixture
def dropped(page: "Page", images: Path) -> "Page":
    """The page after a red image was dropped on it."""
    drop(page, (images / "red" / "4.png").read_bytes(), "four.png")
    title(page, "24 images like four.png")
    return page


def test_drop_click_through_back_and_reload(dropped: "Page", site: str) -> None:
    first = dropped.locator("#results .open").first
    assert first.locator(".told span").text_content() == "1.000"
    first.locator("img.pixels").wait_for()  # it is there, and small
    found = ids(dropped)

    second = found[1]
    dropped.locator("#results .open").nth(1).click()
    title(dropped, "24 images like this one")
    assert f"like={second}" in dropped.url
    assert second not in ids(dropped)
    then = ids(dropped)

    dropped.reload()
    title(dropped, "24 images like this one")
    assert ids(dropped) == then

    dropped.go_back()
    title(dropped, "24 images like four.png")
    assert ids(dropped) == found
    dropped.reload()  # the vector is kept in the tab
    title(dropped, "24 images like four.png")
    assert ids(dropped) == found


def test_filters_are_in_the_url(dropped: "Page") -> None:
    dropped.get_by_role("button", name="test 12").click()
    title(dropped, "12 images like four.png")
    dropped.locator("#label").fill("red")
    dropped.locator("#label").press("Enter")
    dropped.wait_for_url(re.compile("label=red"))
    dropped.locator("#chosen-labels button").wait_for()
    title(dropped, "4 images like four.png")
    labels = dropped.locator("#results .told b").all_text_contents()
    assert labels
    assert set(labels) == {"red"}
    assert "split=test" in dropped.url


def test_more_and_less_like_this(dropped: "Page") -> None:
    found = ids(dropped)
    for name, place in (("More", 0), ("Less", 5)):
        card = dropped.locator("#results li").nth(place)
        card.hover()
        card.get_by_role("button", name=re.compile(f"^{name} like")).click()
        dropped.wait_for_load_state("networkidle")
        if place == 0:
            title(dropped, "images like this one")
            found = ids(dropped)
    dropped.locator("#query figure.unlike").wait_for()
    assert f"like={found[5]}" not in dropped.url.replace("unlike", "")
    assert f"unlike={found[5]}" in dropped.url


def test_what_is_no_image_is_told(page: "Page") -> None:
    drop(page, b"no image at all", "notes.txt")
    page.locator("#problem", has_text="not an image").wait_for()
    assert page.locator("#results li").count() == 0
    page.go_back()
    title(page, "Some images to begin with")


def test_by_keyboard(page: "Page") -> None:
    page.locator("#results .open").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    focused = page.evaluate("document.activeElement.dataset.id")
    assert focused == ids(page)[1]
    page.keyboard.press("Enter")
    title(page, "images like this one")
    assert f"like={focused}" in page.url


def test_runs_are_switched(page: "Page") -> None:
    page.locator("#run").select_option("other")
    page.wait_for_url(re.compile("run=other"))
    page.locator("#results li").first.wait_for()
    assert page.locator("#run").input_value() == "other"


def test_tags_are_given_kept_and_exported(page: "Page") -> None:
    page.locator("#tag").fill("round")
    page.locator("#tag").press("Enter")
    card = page.locator("#results li").nth(2)
    card.hover()
    card.get_by_role("button", name=re.compile("^Tag .* as round")).click()
    card.locator(".tag", has_text="round").wait_for()
    page.reload()
    page.locator("#results li").nth(2).locator(".tag", has_text="round").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Export as CSV").click()
    assert re.fullmatch(r"path,label\n\w+/\d+\.png,round\n", Path(download.value.path()).read_text())


def test_names_from_elsewhere_are_text(page: "Page", site: str) -> None:
    page.goto(f"{site}/?run=simclr-folder&label=<img src=x onerror=alert(1)>&split=<b>")
    title(page, "Some images")
    assert page.locator("#chosen-labels button").text_content() == "<img src=x onerror=alert(1)> ×"
    assert page.locator("#chosen-labels img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(dropped: "Page", scheme: str) -> None:
    dropped.emulate_media(color_scheme=scheme)
    dropped.set_viewport_size({"width": 360, "height": 740})
    assert dropped.evaluate("document.documentElement.scrollWidth") <= 360
    ground = dropped.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground)[:3])) < 128) == (scheme == "dark")


def test_the_map_shows_opens_and_chooses(page: "Page") -> None:
    page.get_by_role("button", name="Map", exact=True).click()
    page.locator("#map[data-drawn]").wait_for()
    assert "view=map" in page.url
    box = page.locator("iframe").bounding_box()
    assert box is not None
    page.get_by_role("button", name="Lasso").click()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.05)]
    page.mouse.move(box["x"] + 0.02 * box["width"], box["y"] + 0.02 * box["height"])
    page.mouse.down()
    for x, y in corners:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
    page.mouse.up()
    title(page, "24 of 60 images in the lasso")
    page.get_by_role("button", name="Lasso").click()
    page.get_by_role("button", name="split", exact=True).click()
    assert page.locator("#legend li").all_text_contents() == ["train", "val", "test"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_of_access(dropped: "Page", scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm ci in web/")
    dropped.emulate_media(color_scheme=scheme)
    dropped.evaluate(AXE.read_text())
    found = dropped.evaluate("axe.run().then(({violations}) => violations)")
    serious = [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []
