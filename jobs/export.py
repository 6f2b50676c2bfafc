"""rayssl export RUN --format NAME --out DIR: the encoder for use elsewhere."""

import json
import sys
from pathlib import Path

import click

from rayssl.jobs.cli import parse, run_argument, run_folder
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.terminal import say

SUMMARY = (
    "A run's encoder for use elsewhere: weights that torchvision or timm load as they are, an ONNX file, or weights "
    "with the Python module that builds the network. Its features are compared with the run's own, and README.md "
    "beside the files says what it is, how good it is, whose it is and how to load it."
)
FORMATS = ("torchvision", "timm", "onnx", "safetensors")


def main(argv: list[str]) -> int:
    """Parse, export, print where the files are and how far their features are from the run's."""
    options = [
        click.Option(["--format", "name"], type=click.Choice(FORMATS), required=True, help="what shall load it"),
        click.Option(["--out"], metavar="DIR", required=True, help="a new folder to write to"),
    ]
    parsed = parse("export", SUMMARY, argv, [run_argument(), *options], flags=(), only=())
    run = run_folder(parsed)
    name, out = parsed.values["name"], Path(parsed.values["out"])
    from rayssl.pipeline.launch.export import CARD, export_run

    exported = export_run(run, name, out)
    files = [str(out / file) for file in (*exported.files, CARD)]
    for file in files:
        say(f"wrote    {file}", file=sys.stderr)
    say(f"parity   features of noise differ by at most {exported.difference:.1e} from the run's", file=sys.stderr)
    if parsed.values["json"]:
        print(json.dumps({"run": str(run), "format": name, "files": files, "difference": exported.difference}))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("export", sys.argv[1:]))
