"""rayssl verify FOLDER: check every file of a run, a race or a search.

Exit codes: 0: whole, or not finished yet, which is told; 2: damaged.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rayssl.jobs.cli import parse, run_argument
from rayssl.jobs.main import run_verb
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import say

if TYPE_CHECKING:
    from rayssl.pipeline.verify import Finding

STOPPED = 128  # and above: exit codes of commands that a signal has ended
SUMMARY = (
    "Check every file of a run, a race or a search against its hash. A file is read in full once, then as long as its "
    "size, times and inode stay; --deep reads all. --repair removes what a killed process left and tells the commands "
    "that make the rest whole; with --yes it runs them."
)


def main(argv: list[str]) -> int:
    """A line for each file; exit code 2 where one is damaged."""
    options = [
        click.Option(["--deep"], is_flag=True, help="read every file, whatever is remembered of it"),
        click.Option(["--repair"], is_flag=True, help="remove what is left over, tell what makes the rest whole"),
        click.Option(["--yes"], is_flag=True, help="with --repair: run these commands"),
    ]
    parsed = parse("verify", SUMMARY, argv, [run_argument(), *options], flags=(), only=())
    folder, values = Path(parsed.values["run"]), parsed.values
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist: give the --out folder of a run")
    if values["yes"] and not values["repair"]:
        raise UserError("--yes goes with --repair: rayssl verify RUN --repair --yes")
    from rayssl.pipeline.verify import verify

    findings, failed = list(verify(folder, deep=values["deep"])), list[str]()
    if values["repair"]:
        failed = make_whole(folder, findings, run=values["yes"])
        findings = list(verify(folder))
    show(folder, findings)
    if values["json"]:
        print(json.dumps([{"path": str(f.path), "fault": f.fault, "unfinished": f.unfinished} for f in findings]))
    faults = [finding for finding in findings if finding.fault is not None]
    if faults:
        raise UserError(f"{len(faults)} of {len(findings)} files of {folder} are damaged: {faults[0].fault}")
    if failed:
        raise UserError(f"{folder} is not repaired: `{failed[0]}` failed, see its line above")
    return 0


def show(folder: Path, findings: "list[Finding]") -> None:
    """A line for each file, and for what is not to be judged."""
    from rayssl.pipeline.verify import is_older, left_over

    for one in findings:
        state = "DAMAGED" if one.fault is not None else "unfinished" if one.unfinished else "whole"
        say(f"{state}  {one.path}{f' ({one.told})' if one.told else ''}", file=sys.stderr)
    for path in left_over(folder):
        say(f"left over  {path}", file=sys.stderr)
    if any(one.unfinished for one in findings):
        say("unfinished: a command was stopped, or is at it: the same command goes on", file=sys.stderr)
    if is_older(folder):
        say(f"older  {folder} was written before files were noted: not every change can be seen", file=sys.stderr)


def make_whole(folder: Path, findings: "list[Finding]", *, run: bool) -> list[str]:
    """Remove what is left over, and tell or run what makes the rest whole; returns the commands that failed."""
    from rayssl.pipeline.base.files import delete
    from rayssl.pipeline.base.lease import writer_lock
    from rayssl.pipeline.verify import left_over, owner_of
    from rayssl.pipeline.verify.repair import AGAIN, clear, repairs_of

    damaged: dict[Path, list[str]] = {}
    for one in findings:
        if one.fault is not None:
            owner = owner_of(folder, one.path)
            damaged.setdefault(owner, []).append(one.path.relative_to(owner).as_posix())
    wanted = [one for owner, names in damaged.items() for one in repairs_of(owner, names)]
    with writer_lock(folder):
        gone = left_over(folder)
        for path in gone:
            delete(path)
        if run:
            gone += [path for owner, names in damaged.items() for path in clear(owner, names)]
    for path in gone:
        say(f"removed  {path}", file=sys.stderr)
    failed = []
    for repair in wanted:
        runs = run and repair.verb != ""
        say(f"{'runs' if runs else 'to do'}  {repair.told}", file=sys.stderr)
        if runs and repair.verb == AGAIN:
            train_again(repair.folder)
        elif runs and (code := run_verb(repair.verb, [str(repair.folder)])) != 0:
            if code >= STOPPED:
                raise SystemExit(code)
            failed.append(repair.told)
    return failed


def train_again(run: Path) -> None:
    """What pre-training leaves, from the run's own checkpoint."""
    from rayssl.pipeline.base.progress import Display
    from rayssl.pipeline.base.reporter import LocalReporter
    from rayssl.pipeline.stages.story import run_worker_stages

    if (run / "config.json").exists():
        with Display() as display:
            run_worker_stages(run, ["pretrain"], LocalReporter(display))


if __name__ == "__main__":
    sys.exit(run_verb("verify", sys.argv[1:]))
