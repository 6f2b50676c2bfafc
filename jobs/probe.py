"""rayssl probe RUN: linear probes on every stage of the encoder."""

import json
import sys

from jobs.cli import command_line, parse, run_argument, run_folder
from jobs.main import run_verb
from jobs.start import plan_on_run

GROUPS = ("probe.", "cluster.")


def main(argv: list[str]) -> int:
    """Parse, run the stage, print its figures."""
    parsed = parse(
        "probe",
        "Linear probes on every stage of the encoder, beside a random encoder and raw pixels.",
        argv,
        [run_argument()],
        flags=("--cluster.workers", "--cluster.address"),
    )
    run = run_folder(parsed)
    from pipeline.evaluate import read_evaluation
    from pipeline.launch import proceed
    from pipeline.progress import Display

    with Display() as display:
        proceed(plan_on_run(run, parsed, ("probe",), GROUPS, command_line()), display)
    flat = {name: value for name, value in read_evaluation(run)["flat"].items() if "probe/" in name}
    for name, value in flat.items():
        display.console.print(f"{name:<45} {value:.4f}", soft_wrap=True)
    if parsed.values["json"]:
        print(json.dumps({"run": str(run), "flat": flat}))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("probe", sys.argv[1:]))
