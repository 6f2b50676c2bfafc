"""rayssl submit ADDRESS -- VERB …: run a verb as a job on a Ray cluster and follow its log."""

import argparse
import json
import sys
from typing import NoReturn

import click

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import plain
from rayssl.pipeline.cluster.submit import submit_job

USAGE = "rayssl submit ADDRESS [--no-follow] [--allow-no-token] [--json] -- VERB ..."


def main(argv: list[str]) -> int:
    """Submit, follow, and end with 0 where the job succeeded and 1 where it did not; raises UserError."""
    before, after = _split(argv)
    options = _parser().parse_args(before)
    submission = submit_job(
        options.address,
        after,
        follow=options.follow,
        allow_no_token=options.allow_no_token,
        confirm_stop=_confirm_stop,
        echo=_to_stderr,
    )
    if options.json:
        print(json.dumps({"address": submission.address, "job": submission.id, "status": submission.status}))
    return submission.exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: {USAGE}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rayssl submit", usage=USAGE, description=__doc__, allow_abbrev=False)
    parser.add_argument("address", metavar="ADDRESS", help="URL of the dashboard, such as http://127.0.0.1:8265")
    parser.add_argument(
        "--no-follow", dest="follow", action="store_false", help="submit and return; the job goes on alone"
    )
    parser.add_argument(
        "--allow-no-token",
        action="store_true",
        help="submit to a cluster that asks nobody for a token: whoever reaches it runs code there",
    )
    parser.add_argument("--json", action="store_true", help="the job's id and status as the last line of stdout")
    return parser


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """What belongs to submit and what belongs to the verb."""
    if "--" in argv:
        place = argv.index("--")
        return argv[:place], argv[place + 1 :]
    if {"-h", "--help"} & set(argv):
        return argv, []
    raise UserError(f"no -- between ADDRESS and VERB: {USAGE}")


def _confirm_stop() -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return click.confirm("stop the job too?", default=False, err=True)
    except click.Abort:
        return False


def _to_stderr(line: str) -> None:
    """A line for people; the tabs of a job's log stay."""
    print("\t".join(map(plain, line.split("\t"))), file=sys.stderr, flush=True)


def _command() -> int:
    try:
        return main(sys.argv[1:])
    except UserError as error:
        _to_stderr(f"rayssl submit: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(_command())
