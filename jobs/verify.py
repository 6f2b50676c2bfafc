"""rayssl verify RUN: check every file of a run folder."""

import json
import sys
from pathlib import Path

from jobs.cli import parse, run_argument
from jobs.main import run_verb
from pipeline.errors import UserError
from pipeline.terminal import say


def main(argv: list[str]) -> int:
    """A line for each file; exit code 2 where one is damaged."""
    parsed = parse(
        "verify", "Check every file of a run folder against its hash.", argv, [run_argument()], flags=(), only=()
    )
    run = Path(parsed.values["run"])
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist: give the --out folder of a run")
    from pipeline.runfolder import winner_of
    from pipeline.verify import verify

    run = winner_of(run)
    findings = list(verify(run))
    for finding in findings:
        say(f"{'whole' if finding.fault is None else 'DAMAGED'}  {finding.path}", file=sys.stderr)
    if parsed.values["json"]:
        print(json.dumps([{"path": str(f.path), "fault": f.fault} for f in findings]))
    faults = [finding for finding in findings if finding.fault is not None]
    if faults:
        raise UserError(f"{len(faults)} of {len(findings)} files of {run} are damaged: {faults[0].fault}")
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("verify", sys.argv[1:]))
