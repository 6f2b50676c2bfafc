"""rayssl run [RECIPE]: the whole pipeline."""

import json
import sys

import click

from rayssl.jobs.cli import command_line, parse
from rayssl.jobs.main import leave, run_verb
from rayssl.jobs.race import race_options, refuse_race_options, run_race
from rayssl.jobs.start import concluded, plan_of, show_results, stop_early

SUMMARY = (
    "Pre-train, probe, fine-tune, embed, index, evaluate and report. Without RECIPE but with --data.path: a race on "
    "your own images, see rayssl race. With neither: SimCLR, RotNet and an autoencoder on handwritten digits "
    "among clutter, compared."
)


def main(argv: list[str]) -> int:
    """Parse, run, print where the results are."""
    recipe = click.Argument(["recipe"], required=False, metavar="[RECIPE]")
    parsed = parse("run", SUMMARY, argv, [recipe, *race_options()])
    if parsed.values["recipe"] is None and "data.path" in parsed.changes:
        return run_race(parsed)
    refuse_race_options(parsed)
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.launch.plan import ALL
    from rayssl.pipeline.launch.runs import start

    plan = plan_of(parsed, ALL, command_line())
    with Display() as display:
        start(plan, display)
    if stop_early():
        return 0
    show_results(plan, display.console)
    if parsed.values["json"]:
        from rayssl.pipeline.evaluation.doubts import warnings_of

        found = {"runs": [str(run) for run in plan.folders], "report": str(plan.out / "report.html")}
        warnings = {str(run): warnings_of(run) for run in plan.folders}
        print(json.dumps({**found, "data": concluded(plan.folders[0]), "warnings": warnings}))
    return 0


if __name__ == "__main__":
    leave(run_verb("run", sys.argv[1:]))
