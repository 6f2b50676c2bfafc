"""rayssl weights: pretrained weights on this machine; rayssl weights NAME: fetch some."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from rayssl.jobs.cli import parse
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.terminal import plain, say

if TYPE_CHECKING:
    from rayssl.pipeline.models.pretrained import Available

SUMMARY = (
    "Pretrained weights on this machine, and what to pass to use them: in torchvision's and timm's caches and in "
    "installed packages. With NAME, a torchvision classifier or timm/NAME, and perhaps the name of its WEIGHTS: fetch "
    "them, after saying size and licence. Nothing else downloads weights."
)


def main(argv: list[str]) -> int:
    """List what is here, or fetch what is named."""
    name = click.Argument(["name"], required=False, metavar="[NAME]")
    weights = click.Argument(["weights"], required=False, default="DEFAULT", metavar="[WEIGHTS]")
    parsed = parse("weights", SUMMARY, argv, [name, weights], flags=(), only=())
    asked = parsed.values["name"]
    if asked is not None:
        return _fetch(asked, parsed.values["weights"], as_json=parsed.values["json"])
    from rayssl.pipeline.models.pretrained import available

    found = available()
    if parsed.values["json"]:
        print(json.dumps({"weights": [_plain(one) for one in found]}))
        return 0
    for line in _table(found):
        say(line)
    return 0


def _fetch(name: str, weights: str, *, as_json: bool) -> int:
    from rayssl.pipeline.base.progress import format_bytes
    from rayssl.pipeline.models.fetch import fetch, find_remote

    remote = find_remote(name, weights)
    size = format_bytes(remote.bytes) if remote.bytes is not None else "of unknown size"
    say(f"{remote.name} {remote.weights}: {size}, licence {remote.licence}, from {remote.place}", file=sys.stderr)
    path = fetch(remote)
    say(f"{'already at' if remote.path else 'fetched to'} {path}", file=sys.stderr)
    use = f"--encoder.name {remote.name} --encoder.weights {remote.weights}"
    print(json.dumps({"path": str(path), "use": use}) if as_json else plain(use))
    return 0


def _table(found: "list[Available]") -> list[str]:
    from rayssl.pipeline.base.progress import format_bytes

    if not found:
        return [
            "no pretrained weights on this machine",
            "rayssl weights resnet50 (or timm/NAME) fetches some; a file goes to --encoder.weights as it is",
        ]
    lines = []
    for one in found:
        lines.append(f"--encoder.name {one.name} --encoder.weights {one.weights}")
        lines.append(f"    {format_bytes(one.bytes)}, {one.source}: {one.path}")
        lines.append(f"    licence: {one.licence}")
    return lines


def _plain(one: "Available") -> dict[str, Any]:
    fields = ("name", "weights", "source", "path", "bytes", "licence")
    return {key: str(value) if key == "path" else value for key, value in ((k, getattr(one, k)) for k in fields)}


if __name__ == "__main__":
    sys.exit(run_verb("weights", sys.argv[1:]))
