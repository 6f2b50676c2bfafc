"""Small pieces of HTML. All text from outside is escaped here."""

import html
from collections.abc import Iterable, Sequence


def escape(value: object) -> str:
    """Text for HTML, quotes included."""
    return html.escape(str(value))


def paragraph(text: str, kind: str = "") -> str:
    """Escaped text as a paragraph."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def bullets(texts: Iterable[str], kind: str = "") -> str:
    """Escaped texts as a list; empty without texts."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul{_class(kind)}>{items}</ul>" if items else ""


def grid(blocks: Sequence[str], kind: str = "") -> str:
    """Blocks of HTML side by side as far as the page is wide."""
    return f'<div class="grid {kind}">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def data_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of ready HTML cells, the first of a row its heading; scrolls sideways on a narrow screen."""
    header = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def bar(label: str, value: float, text: str, colour: str, half_width: float = 0.0, mark: float | None = None) -> str:
    """A horizontal bar of a share in [0, 1], with a whisker of ± half_width and a mark at another share."""
    low, high = max(value - half_width, 0.0), min(value + half_width, 1.0)
    whisker = f'<b style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></b>' if half_width else ""
    tick = f'<u style="left:{100 * mark:.2f}%"></u>' if mark is not None else ""
    fill = f'<i style="width:{100 * min(max(value, 0.0), 1.0):.2f}%;background:{colour}"></i>'
    return (
        f'<div class="bar"><span>{escape(label)}</span><span class="track">{fill}{whisker}{tick}</span>'
        f"<span>{escape(text)}</span></div>"
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
