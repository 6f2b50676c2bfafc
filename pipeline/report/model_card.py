"""The model card of an exported encoder, as Markdown: what it is, what it is worth and whose it is.

All text from outside is escaped here, for Markdown that may hold HTML.
"""

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rayssl.pipeline.base.terminal import plain

OF_THE_ENCODER = ("knn/", "knn-whitened/", "probe/top1", "retrieval/", "cluster/", "health/")
BESIDE = {"untrained": "random-init", "raw pixels": "raw-pixels"}  # what stands beside a figure, of these baselines

_CARD = """\
# {title}

An image encoder: from images (B, {channels}, {size}, {size}) in [0, 1] to features (B, {dim}).

- network: {name}
- trained by: {method}
- images: {data}
- licence: {licence}
- files: {files}
- features of noise differ from the encoder's by at most {difference:.1e}

## Load it

```python
{code}
```

Resize the shorter side of an image to {size} pixels, cut out the centre square, and divide its values by 255.

## Figures

{figures}
"""


def model_card(
    encoder: Mapping[str, Any], data: Mapping[str, Any], records: Iterable[Mapping[str, Any]], how: Mapping[str, Any]
) -> str:
    """The text of README.md.

    encoder: encoder.json; data: what the manifest tells of the run's images; records: of evaluation.json, none where
    the run is not evaluated; how: title, code, files and difference of the export.
    """
    method = (encoder.get("extra") or {}).get("method")
    counts = ", ".join(f"{data[split]:,} for {words}" for split, words in _SPLITS.items() if data.get(split))
    return _CARD.format(
        title=_text(how["title"]),
        channels=encoder["channels"],
        size=encoder["image_size"],
        dim=encoder["dim"],
        name=_text(encoder["name"]),
        method=_text(method or "nobody here: the weights are as they came"),
        data=f"{_text(data['name'])}: {counts}",
        licence=_text(encoder.get("licence") or "not stated"),
        files=", ".join(f"`{name}`" for name in how["files"]),
        difference=how["difference"],
        code=how["code"].rstrip(),
        figures=_figures(list(records)),
    )


_SPLITS = {"train": "training", "val": "validation", "test": "testing"}


def _figures(records: list[Mapping[str, Any]]) -> str:
    values = {one["metric"]: one["value"] for one in records}
    shown = [one for one in records if one["metric"].startswith(OF_THE_ENCODER)]
    if not shown:
        return "None: the run has not been evaluated."
    rows = [
        "| figure | value | 95 % interval | " + " | ".join(BESIDE) + " | how it was measured |",
        "|---|---|---|" + "---|" * len(BESIDE) + "---|",
    ]
    for one in shown:
        beside = [_number(values.get(f"baseline/{name}/{one['metric']}")) for name in BESIDE.values()]
        low, high = one.get("interval") or (None, None)
        interval = "" if low is None else f"{_number(low)} … {_number(high)}"
        cells = [_text(one["metric"]), _number(one["value"]), interval, *beside, _text(one.get("protocol", ""))]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _text(value: object) -> str:
    """One line in which nothing is markup."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(plain(" ".join(str(value).split())), quote=False))
