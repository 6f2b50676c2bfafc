"""What a run is searched by: the candidates beside each other, in figures and in pictures."""

from collections.abc import Sequence
from typing import Any

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.report import galleries
from rayssl.pipeline.report.html import bar, bullets, escape, paragraph
from rayssl.pipeline.report.run_data import Material, NothingToShowError, each_run
from rayssl.pipeline.search.store import has_search, read_search

SHOWN = 12  # candidates with a bar


def search_section(materials: Sequence[Material]) -> str:
    """How the searched vectors were chosen, and what the best three find."""
    words = (
        "Chosen on validation images, before any test image was read. First column: a validation image; then the "
        "training images nearest to it by each candidate, so that eyes can decide: `rayssl index RUN --search.vectors "
        "NAME` searches by another one, `last` by the last stage."
    )
    return each_run(materials, _search, "broad") + paragraph(words, "quiet")


def _search(material: Material) -> str:
    folder = material.run.folder
    if not has_search(folder):
        raise NothingToShowError("the last stage is searched: nothing was chosen")
    facts = read_search(folder).facts
    return paragraph(_told(facts)) + _bars(material, facts) + _pictures(material, facts)


def _told(facts: dict[str, Any]) -> str:
    others = [name for name in facts.get("ties", []) if name != facts["name"]]
    ties = f" Not told apart from it: {', '.join(others)}; the cheapest was taken." if others else ""
    return f"Searched by {facts['told']}. {facts['criterion']}.{ties}"


def _bars(material: Material, facts: dict[str, Any]) -> str:
    ordered = sorted(facts["candidates"], key=lambda one: -one["score"])
    bars = []
    for one in ordered[:SHOWN]:
        estimate = material.run.estimate(f"choice/{one['name']}")
        half = (estimate.half_width if estimate is not None else None) or 0.0
        text = f"{100 * one['score']:.1f}" + (f" ± {100 * half:.1f}" if half else "") + f", {one['bytes']:,} bytes"
        colour = material.colour if one["name"] == facts["name"] else "#9498a0"
        bars.append(bar(one["name"], one["score"], text, colour, half))
    more = len(ordered) - len(bars)
    note = paragraph(f"and {more} more in search.json", "quiet") if more else ""
    return f'<div class="bars">{"".join(bars)}</div>{note}'


def _pictures(material: Material, facts: dict[str, Any]) -> str:
    shown: list[dict[str, Any]] = facts.get("shown", [])
    wanted = {one for each in shown for one in each["queries"]}
    wanted |= {one for each in shown for row in each["found"] for one in row}
    try:
        dataset = material.dataset
    except UserError as error:
        return bullets([str(error)], "quiet")
    tiles = galleries.tiles_by_id(dataset, wanted)
    known = {
        int(one): (path, None if part.labels is None or part.labels[row] < 0 else int(part.labels[row]))
        for part in (dataset.train, dataset.val)
        for row, (one, path) in enumerate(zip(part.ids, part.paths, strict=True))
        if int(one) in wanted
    }
    blocks = []
    for each in shown:
        rows = "".join(_row(query, found, tiles, known) for query, found in zip(each["queries"], each["found"]))
        blocks.append(f"<h4>{escape(each['name'])}</h4>{rows}")
    return f'<div class="grid">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def _row(query: int, found: list[int], tiles: dict[int, str], known: dict[int, tuple[str, int | None]]) -> str:
    own = known.get(query, ("", None))[1]
    cells = [_tile(tiles.get(query), known.get(query, ("", None))[0], "query")]
    for one in found:
        path, label = known.get(one, ("", None))
        cells.append(_tile(tiles.get(one), path, "" if own is None or label is None else _kind(own == label)))
    return f'<div class="tiles">{"".join(cells)}</div>'


def _kind(same: bool) -> str:
    return "right" if same else "wrong"


def _tile(address: str | None, hint: str, kind: str) -> str:
    image = f'<img src="{address}" alt="{escape(hint)}" title="{escape(hint)}">' if address else "<b>gone</b>"
    return f'<figure class="{kind}">{image}</figure>'
