"""Jobs on a Ray cluster: pack the code, submit it, follow the log to the job's end.

A job is `python -m rayssl.jobs.VERB …` in a copy of the code. It is never retried and it ends with its cluster, but the
run folder outlives both: the same submission again goes on where the folder stops.
"""

import asyncio
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import rayssl
from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.base.files import delete, listed
from rayssl.pipeline.run.software import COMMIT, describe_software

CODE = Path(rayssl.__file__).resolve().parents[1]  # the folder that holds the package
PACKAGES = ("rayssl/pipeline", "rayssl/jobs", "rayssl")  # the first two may be links, as in a clone
FILES = ("pyproject.toml",)
CODE_SUFFIXES = frozenset({".py", ".typed", ".html", ".css", ".js", ".txt"})

NEW_RUN_VERBS = frozenset({"run", "pretrain", "tune"})  # take a recipe and write a run folder: --out
NO_JOB = frozenset(
    {"__init__", "main", "submit", "cli", "curation", "decoding", "start"}
)  # modules of jobs/ that are no verb of a job
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})

REACH_SECONDS = 5.0  # for the first answer of the job server
STOP_SECONDS = 60  # between SIGTERM and SIGKILL: time to write a checkpoint. Ray's own default is 3
POLL_SECONDS = 0.5
RECONNECTS = 10  # in a row without a new character of the log
RECONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class Submission:
    """A submitted job as last seen: `status` is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    address: str
    id: str
    status: str
    exit_code: int  # 0: succeeded, or not followed; 1: anything else


def submit(
    address: str,
    argv: list[str],
    *,
    follow: bool = True,
    allow_no_token: bool = False,
    confirm_stop: Callable[[], bool],
    echo: Callable[[str], None],
) -> int:
    """Submit `argv` (a verb and its arguments) as a job and follow it; see `submit_job`. Returns the exit code."""
    submission = submit_job(
        address, argv, follow=follow, allow_no_token=allow_no_token, confirm_stop=confirm_stop, echo=echo
    )
    return submission.exit_code


def submit_job(
    address: str,
    argv: Sequence[str],
    *,
    follow: bool,
    allow_no_token: bool = False,
    confirm_stop: Callable[[], bool],
    echo: Callable[[str], None],
) -> Submission:
    """Submit a verb as a job to the job server at `address` (the URL of the dashboard).

    Lines for people, the job's log among them, go to `echo`. Ctrl-C while following asks `confirm_stop` whether
    the job stops too. Raises UserError for an unknown command, a run folder that is not an absolute path, a server
    that cannot be reached or refuses, a run whose job has not ended, and a server that asks nobody for a token unless
    `allow_no_token`.
    """
    address = _checked_address(address)
    run = _checked_run_folder(argv)
    client, asks_for_token = _connect(address)
    if not asks_for_token:
        _mind_no_token(address, allow_no_token, echo)
    job = _start(client, address, argv, run)
    echo(f"submitted {job}; the log: {_ray_job('logs --follow', address, job)}")
    if not follow:
        return Submission(address, job, _status(client, job), exit_code=0)
    try:
        status = _follow(client, address, job, confirm_stop, echo)
        echo(_ending(client, job, status))
    except _connection_errors():
        raise UserError(
            f"lost {address}: {job} may still run there; its log: {_ray_job('logs --follow', address, job)}"
        ) from None
    return Submission(address, job, status, exit_code=0 if status == "SUCCEEDED" else 1)


def package_code(folder: Path) -> Path:
    """Copy the code in `folder`, and nothing else, into a new temporary folder; the caller removes it.

    Only code files of the packages and pyproject.toml: no data, runs, hidden files or links, wherever they lie.
    """
    staging = Path(tempfile.mkdtemp(prefix="rayssl-code-"))
    found = {
        f"{package}/{path}": root / path
        for package in PACKAGES
        for root in [(folder / package).resolve()]
        for path in _code_in(root)
    }
    for relative, source in {**found, **{name: folder / name for name in FILES if (folder / name).is_file()}}.items():
        (staging / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, staging / relative)
    return staging


def _code_in(root: Path) -> Iterator[Path]:
    """Paths of code files below a package's folder; nothing hidden, nothing linked."""
    for path in listed(root, below=True):
        relative = path.relative_to(root)
        hidden = any(part.startswith((".", "__pycache__")) for part in relative.parts)
        linked = any((root / part).is_symlink() for part in (relative, *relative.parents) if part.name)
        if path.suffix in CODE_SUFFIXES and path.is_file() and not hidden and not linked:
            yield relative


def _checked_address(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"ADDRESS is '{address}': give the URL of the dashboard, such as http://127.0.0.1:8265")
    return address.rstrip("/")


def _checked_run_folder(argv: Sequence[str]) -> str | None:
    """The run folder that the verb writes or reads, where it has one."""
    verbs = sorted({path.stem for path in listed(CODE / "rayssl/jobs", "*.py")} - NO_JOB)
    if not argv or argv[0] not in verbs:
        given = f"unknown command '{argv[0]}'{nearest(argv[0], verbs)}" if argv else "no command after --"
        raise UserError(f"{given}: a job runs one of {', '.join(verbs)}")
    run = _run_folder(argv)
    if run is None and argv[0] in NEW_RUN_VERBS:
        raise UserError(f"'{argv[0]}' has no --out: as a job it needs an absolute folder that all nodes share")
    if run is not None and not run.startswith("/") and "://" not in run:
        raise UserError(f"run folder '{run}' is relative: a job needs an absolute folder that all nodes share")
    return run


def _run_folder(argv: Sequence[str]) -> str | None:
    verb, *rest = argv
    out = None
    for option, value in zip(rest, [*rest[1:], ""]):
        if option == "--out":
            out = value
        elif option.startswith("--out="):
            out = option.removeprefix("--out=")
    if out is None and verb not in NEW_RUN_VERBS and rest and not rest[0].startswith("-"):
        out = rest[0]
    if not out:
        return None
    return out if "://" in out else str(PurePosixPath(out))


def _mind_no_token(address: str, allowed: bool, echo: Callable[[str], None]) -> None:
    """Refuse a cluster without a token, or say loudly what that means where it is allowed."""
    told = f"{address} asks for no token: whoever reaches this cluster runs code there as its user"
    if not allowed:
        raise UserError(f"{told}; start it with RAY_AUTH_MODE=token (docs/cluster.md), or give --allow-no-token")
    echo(f"warning: {told}")


def _connect(address: str) -> tuple[Any, bool]:
    """The client of a job server that answers, and whether it asks for a token, which Ray itself finds."""
    import requests  # type: ignore[import-untyped, unused-ignore]
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    try:
        # Ray's client waits without a limit, so a dead address is found out first.
        without_token = requests.get(f"{address}/api/version", timeout=REACH_SECONDS)
        with _without_environment("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            return JobSubmissionClient(address), without_token.status_code in (401, 403)
    except AuthenticationError:
        raise UserError(_token_hint(address)) from None
    except (requests.exceptions.HTTPError, requests.exceptions.JSONDecodeError, RuntimeError, KeyError):
        raise UserError(f"{address} answers, but not as Ray's job server: give the dashboard's URL") from None
    except (requests.exceptions.RequestException, ConnectionError):
        raise UserError(f"cannot reach {address}: is the cluster up, and its dashboard forwarded here?") from None


@contextmanager
def _without_environment(*names: str) -> Iterator[None]:
    """Ray lets these variables win over the address that the user has just given."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _token_hint(address: str) -> str:
    return (
        f"{address} refuses: set RAY_AUTH_MODE=token and put the cluster's token into ~/.ray/auth_token "
        "(or name its file in RAY_AUTH_TOKEN_PATH)"
    )


def _start(client: Any, address: str, argv: Sequence[str], run: str | None) -> str:
    jobs = [job for job in client.list_jobs() if job.submission_id]
    _refuse_second_writer(jobs, address, run)
    staging = package_code(CODE)
    try:
        return str(
            client.submit_job(
                entrypoint=shlex.join(["python", "-m", f"rayssl.jobs.{argv[0]}", *argv[1:]]),
                submission_id=_next_id([job.submission_id for job in jobs], run, argv[0]),
                runtime_env={
                    "working_dir": str(staging),
                    "env_vars": {
                        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
                        COMMIT: describe_software()["commit"] or "",
                    },
                },
            )
        )
    except RuntimeError as error:
        raise UserError(f"{address} refuses the job: {_first_line(str(error))}") from None
    finally:
        delete(staging)


def _refuse_second_writer(jobs: Sequence[Any], address: str, run: str | None) -> None:
    for job in jobs:
        if run is not None and str(job.status) not in ENDED and _run_of_entrypoint(job.entrypoint) == run:
            raise UserError(
                f"{run} is written by job {job.submission_id}, which has not ended: follow it with "
                f"'{_ray_job('logs --follow', address, job.submission_id)}' or stop it with "
                f"'{_ray_job('stop', address, job.submission_id)}'"
            )


def _run_of_entrypoint(entrypoint: str) -> str | None:
    """The run folder of a job however it was submitted: read from its command line."""
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        return None
    verbs = [place for place, word in enumerate(words) if place and words[place - 1] == "-m"]
    if not verbs or not (verb := re.fullmatch(r"(?:rayssl\.)?jobs\.(\w+)", words[verbs[0]])):
        return None
    return _run_folder([verb[1], *words[verbs[0] + 1 :]])


def _next_id(taken: Sequence[str], run: str | None, verb: str) -> str:
    name = PurePosixPath(run).name if run else verb
    prefix = "rayssl-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60] or verb)
    numbers = [int(match[1]) for one in taken if (match := re.fullmatch(rf"{re.escape(prefix)}-(\d+)", one))]
    return f"{prefix}-{max(numbers, default=0) + 1}"


def _follow(client: Any, address: str, job: str, confirm_stop: Callable[[], bool], echo: Callable[[str], None]) -> str:
    try:
        return _follow_log(client, job, echo)
    except KeyboardInterrupt:
        return _interrupted(client, address, job, confirm_stop, echo)


def _follow_log(client: Any, job: str, echo: Callable[[str], None]) -> str:
    """Echo the log until the job has ended, over as many connections as it takes; returns the last status."""
    log = _Log(echo)
    failures = 0
    while True:
        before = log.seen
        try:
            asyncio.run(log.read(client.tail_job_logs(job)))
            status = _status(client, job)
            if status in ENDED:
                log.finish()
                return status
        except _connection_errors():  # the connection broke, not the job
            failures = 1 if log.seen > before else failures + 1
            if failures > RECONNECTS:
                raise
        time.sleep(RECONNECT_SECONDS)


def _connection_errors() -> tuple[type[Exception], ...]:
    """What Ray's client raises where its server is gone: RuntimeError for an answer other than 200."""
    import aiohttp
    import requests  # type: ignore[import-untyped, unused-ignore]

    return RuntimeError, aiohttp.ClientError, requests.exceptions.RequestException


class _Log:
    """Echoes whole lines, each once, although every new connection sends the log from its beginning."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self.echo = echo
        self.seen = 0  # characters
        self.rest = ""  # of a line that has not ended

    async def read(self, chunks: Any) -> None:
        position = 0
        async for chunk in chunks:
            fresh = chunk[max(0, self.seen - position) :]
            position += len(chunk)
            self.seen = max(self.seen, position)
            *lines, self.rest = (self.rest + fresh).split("\n")
            for line in lines:
                self.echo(line)

    def finish(self) -> None:
        if self.rest:
            self.echo(self.rest)


def _interrupted(
    client: Any, address: str, job: str, confirm_stop: Callable[[], bool], echo: Callable[[str], None]
) -> str:
    try:
        if confirm_stop():
            echo(f"stopping {job}: it has {STOP_SECONDS} s to write a checkpoint")
            client.stop_job(job)
            return _wait_for_end(client, job)
    except KeyboardInterrupt:
        pass  # a second Ctrl-C: no more waiting
    echo(f"{job} goes on without you; stop it with: {_ray_job('stop', address, job)}")
    return _status(client, job)


def _wait_for_end(client: Any, job: str) -> str:
    deadline = time.monotonic() + STOP_SECONDS + 10
    while (status := _status(client, job)) not in ENDED and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return status


def _ending(client: Any, job: str, status: str) -> str:
    if status != "FAILED":
        return f"{job}: {status.lower()}"
    info = client.get_job_info(job)
    if info.driver_exit_code is None:  # it never ran, or died with its node: the log does not say why
        return f"{job}: failed: {_first_line(info.message or 'no reason given')}"
    return f"{job}: failed with exit code {info.driver_exit_code}"


def _status(client: Any, job: str) -> str:
    return str(client.get_job_status(job))


def _ray_job(command: str, address: str, job: str) -> str:
    verb, *flags = command.split()
    return shlex.join(["ray", "job", verb, "--address", address, *flags, job])


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
