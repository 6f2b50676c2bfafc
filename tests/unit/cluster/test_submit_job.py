"""Submitting jobs, against a fake job server: what is packed, what is refused, what a broken connection does."""

import http.server
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rayssl
import rayssl.jobs.submit
from rayssl.jobs.main import VERBS
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.cluster import submit

ADDRESS = "http://127.0.0.1:8265"


def never() -> bool:
    raise AssertionError("asked although nobody pressed Ctrl-C")


@dataclass
class FakeClient:
    """A job server that runs nothing: each connection to the log is one list of chunks, or an error after them."""

    jobs: list[Any] = field(default_factory=list)
    connections: list[list[Any]] = field(default_factory=lambda: [["done\n"]])
    statuses: list[str] = field(default_factory=lambda: ["SUCCEEDED"])
    exit_code: int | None = 0
    submitted: dict[str, Any] = field(default_factory=dict)
    packed: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    asks_for_token: bool = True

    def list_jobs(self) -> list[Any]:
        return self.jobs

    def submit_job(self, **values: Any) -> str:
        self.submitted = values
        folder = Path(values["runtime_env"]["working_dir"])
        self.packed = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        return str(values["submission_id"])

    def get_job_status(self, job: str) -> str:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(driver_exit_code=self.exit_code, message="the node died\nand more")

    def stop_job(self, job: str) -> bool:
        self.stopped.append(job)
        return True

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for chunk in self.connections.pop(0):
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk


def job(entrypoint: str, status: str = "RUNNING", name: str | None = "raysubmit_1") -> Any:
    return SimpleNamespace(entrypoint=entrypoint, status=status, submission_id=name)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeClient:
    """A fake server, and a small code folder with the verbs run, probe and recipes."""
    fake = FakeClient()
    monkeypatch.setattr(submit, "_connect", lambda address: (fake, fake.asks_for_token))
    monkeypatch.setattr(submit, "CODE", tmp_path / "code")
    monkeypatch.setattr(submit, "RECONNECT_SECONDS", 0)
    monkeypatch.setattr(submit, "POLL_SECONDS", 0)
    for name in ("main", "submit", "run", "probe", "recipes", "__init__"):
        (tmp_path / "code/rayssl/jobs").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"code/rayssl/jobs/{name}.py").write_text("")
    return fake


def send(
    argv: Sequence[str], *, follow: bool = True, confirm: Callable[[], bool] = never
) -> tuple[submit.Submission, list[str]]:
    lines: list[str] = []
    return submit.submit_job(ADDRESS, argv, follow=follow, confirm_stop=confirm, echo=lines.append), lines


@pytest.mark.parametrize("linked", [False, True])
def test_package_holds_the_code_and_nothing_else(tmp_path: Path, linked: bool) -> None:
    wanted = {
        "rayssl/pipeline/__init__.py",
        "rayssl/pipeline/data/x.py",
        "rayssl/pipeline/py.typed",
        "rayssl/pipeline/report/page.html",
    }
    wanted |= {"rayssl/jobs/run.py", "pyproject.toml", "rayssl/__init__.py"}
    other = {"README.md", ".git/config", ".venv/a.py", "runs/x/config.json", "cat.png", "rayssl/pipeline/data/cat.png"}
    other |= {
        "rayssl/pipeline/.ray/auth_token",
        "rayssl/pipeline/auth_token",
        "rayssl/pipeline/.secret.py",
        "rayssl/jobs/__pycache__/run.py",
    }
    other |= {
        "rayssl/pipeline/runs/x/config.json",
        "rayssl/pipeline/embeddings.parquet",
        "tests/test_x.py",
        "rayssl/jobs/key.pem",
    }
    folder = tmp_path / "project"
    for name in wanted | other:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    if linked:  # as in a clone
        for name in ("pipeline", "jobs"):
            (folder / "rayssl" / name).rename(folder / name)
            (folder / "rayssl" / name).symlink_to(f"../{name}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/private.py").write_text("")
    (folder / "rayssl/pipeline/linked").symlink_to(tmp_path / "elsewhere")
    (folder / "rayssl/pipeline/linked.py").symlink_to(tmp_path / "elsewhere/private.py")

    staging = submit.package_code(folder)

    packed = {str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file()}
    assert packed == wanted
    assert all((staging / name).read_text() == name for name in wanted)


def test_every_kind_of_package_data_is_packed() -> None:
    project = tomllib.loads((submit.CODE / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["rayssl.pipeline"]
    assert {Path(f"x{Path(pattern).name}").suffix for pattern in patterns} <= submit.CODE_SUFFIXES


def test_the_packed_code_runs_on_its_own() -> None:
    staging = submit.package_code(submit.CODE)
    program = "import rayssl.jobs.submit, rayssl.pipeline.config; print(rayssl.pipeline.config.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=staging, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(staging / "rayssl/pipeline/config.py")


def test_job_is_the_module_with_quoted_arguments(client: FakeClient) -> None:
    done, lines = send(["run", "simclr", "--out", "/shared/my cats", "--data.path", "/d/$HOME;ls"])
    assert client.submitted["entrypoint"] == (
        "python -m rayssl.jobs.run simclr --out '/shared/my cats' --data.path '/d/$HOME;ls'"
    )
    assert done == submit.Submission(ADDRESS, "rayssl-my-cats-1", "SUCCEEDED", 0)
    assert client.packed == [
        f"rayssl/jobs/{name}.py" for name in ("__init__", "main", "probe", "recipes", "run", "submit")
    ]
    assert not Path(client.submitted["runtime_env"]["working_dir"]).exists()
    assert "done" in lines
    assert lines[-1] == "rayssl-my-cats-1: succeeded"


def test_environment_of_the_user_is_not_sent(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-token")
    send(["recipes"])
    assert "secret" not in json.dumps(client.submitted)
    assert set(client.submitted["runtime_env"]["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S", "RAYSSL_COMMIT"}


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ([], "rayssl-cats-1"),
        (["rayssl-cats-1", "rayssl-cats-10", "rayssl-cats-2"], "rayssl-cats-11"),
        (["rayssl-cats-extra-7", "xrayssl-cats-5", "raysubmit_9"], "rayssl-cats-1"),
    ],
)
def test_ids_count_up(client: FakeClient, taken: list[str], expected: str) -> None:
    client.jobs = [job("python x.py", "FAILED", name) for name in taken] + [job("", "RUNNING", None)]
    assert send(["run", "simclr", "--out=/shared/cats/"])[0].id == expected


@pytest.mark.parametrize(
    "entrypoint",
    [
        "python -m rayssl.jobs.run simclr --out /shared/cats",
        "python -m rayssl.jobs.run simclr --out=/shared//cats/ --train.epochs 3",
        "python3 -u -m rayssl.jobs.probe /shared/cats",
    ],
)
def test_second_job_of_a_run_is_refused_however_the_first_came(client: FakeClient, entrypoint: str) -> None:
    client.jobs = [job(entrypoint)]
    with pytest.raises(
        UserError, match=r"raysubmit_1, which has not ended.*ray job stop --address http://127"
    ) as error:
        send(["run", "simclr", "--out", "/shared/cats"])
    assert "\n" not in str(error.value)
    assert client.submitted == {}


@pytest.mark.parametrize(
    ("entrypoint", "status"),
    [
        ("python -m rayssl.jobs.run simclr --out /shared/cats", "STOPPED"),
        ("python -m rayssl.jobs.run simclr --out /shared/cats", "FAILED"),
        ("python -m rayssl.jobs.run simclr --out /other/cats", "RUNNING"),
        ("python train.py --out /shared/cats", "RUNNING"),
        ("echo 'unbalanced", "RUNNING"),
    ],
)
def test_other_jobs_are_no_obstacle(client: FakeClient, entrypoint: str, status: str) -> None:
    client.jobs = [job(entrypoint, status)]
    assert send(["run", "simclr", "--out", "/shared/cats"])[0].exit_code == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no command after --"),
        (["prob", "/shared/cats"], r"unknown command 'prob' \(did you mean 'probe'\?\)"),
        (["submit", ADDRESS], "unknown command 'submit'"),
        (["../run"], "unknown command '../run'"),
        (["run", "simclr"], "has no --out"),
        (["run", "simclr", "--out"], "has no --out"),
        (["run", "simclr", "--out", "runs/cats"], "'runs/cats' is relative"),
        (["probe", "runs/cats"], "'runs/cats' is relative"),
    ],
)
def test_wrong_arguments(client: FakeClient, argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        send(argv)
    assert client.submitted == {}


def test_every_command_but_submit_can_be_a_job(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "CODE", Path(rayssl.__file__).parents[1])
    with pytest.raises(UserError) as error:
        send(["prob"])
    offered = str(error.value).rpartition("a job runs one of ")[2].split(", ")
    assert set(offered) == set(VERBS) - {"submit"}


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "http://", "os://x"])
def test_wrong_address(address: str) -> None:
    with pytest.raises(UserError, match=r"URL of the dashboard, such as http://127.0.0.1:8265"):
        submit.submit(address, ["run"], confirm_stop=never, echo=print)


def test_unreachable_address_is_one_line() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UserError, match=f"^cannot reach {address}: .*$"):
            submit._connect(address)


def test_a_cluster_without_a_token_is_refused(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.asks_for_token = False
    with pytest.raises(UserError, match=r"asks for no token: .* RAY_AUTH_MODE=token .*or give --allow-no-token$"):
        rayssl.jobs.submit.main([ADDRESS, "--", "probe", "/shared/cats"])
    assert client.submitted == {}
    assert rayssl.jobs.submit.main([ADDRESS, "--allow-no-token", "--", "probe", "/shared/cats"]) == 0
    assert f"warning: {ADDRESS} asks for no token" in capsys.readouterr().err
    assert client.submitted["entrypoint"] == "python -m rayssl.jobs.probe /shared/cats"


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Answers as Ray's, to whom brings a token or, where it asks for none, to everybody."""

    asks = True

    def do_GET(self) -> None:
        let_in = not self.asks or "Authorization" in self.headers
        self.send_response(200 if let_in else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"}).encode())

    def log_message(self, *words: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("asks", [True, False])
def test_whether_a_cluster_asks_for_a_token(asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dashboard, "asks", asks)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: address)
        assert submit._connect(address) == (address, asks)
        server.shutdown()


def test_address_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:1")
    with submit._without_environment("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        assert "RAY_ADDRESS" not in os.environ
    assert os.environ["RAY_ADDRESS"] == "http://elsewhere:1"
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


def test_failed_job_is_exit_code_1(client: FakeClient) -> None:
    client.statuses, client.exit_code = ["FAILED"], 2
    done, lines = send(["recipes"])
    assert (done.exit_code, lines[-1]) == (1, "rayssl-recipes-1: failed with exit code 2")


def test_job_that_never_ran_says_why(client: FakeClient) -> None:
    client.statuses, client.exit_code = ["FAILED"], None
    assert send(["recipes"])[1][-1] == "rayssl-recipes-1: failed: the node died"


def test_no_follow_returns_at_once(client: FakeClient) -> None:
    client.connections, client.statuses = [], ["PENDING"]
    done, lines = send(["recipes"], follow=False)
    assert (done.status, done.exit_code) == ("PENDING", 0)
    assert lines == [f"submitted rayssl-recipes-1; the log: ray job logs --address {ADDRESS} --follow rayssl-recipes-1"]


def test_log_over_broken_connections_shows_every_line_once(client: FakeClient) -> None:
    client.connections = [
        ["one\ntw", RuntimeError("connection closed")],
        [RuntimeError("refused")],
        ["one\n", "two\nthr"],
        ["one\ntwo\nthree\n", "four"],
    ]
    client.statuses = ["RUNNING", "SUCCEEDED"]
    done, lines = send(["recipes"])
    assert lines[1:-1] == ["one", "two", "three", "four"]
    assert done.exit_code == 0


def test_server_that_stays_away_is_named(client: FakeClient) -> None:
    client.connections = [[RuntimeError("gone")] for _ in range(submit.RECONNECTS + 1)]
    with pytest.raises(UserError, match=f"lost {ADDRESS}: rayssl-recipes-1 may still run"):
        send(["recipes"])
    assert client.connections == []


def test_interrupt_and_yes_stops_the_job(client: FakeClient) -> None:
    client.connections, client.statuses = [["one\n", KeyboardInterrupt()]], ["RUNNING", "RUNNING", "STOPPED"]
    done, lines = send(["recipes"], confirm=lambda: True)
    assert client.stopped == ["rayssl-recipes-1"]
    assert (done.status, done.exit_code, lines[-1]) == ("STOPPED", 1, "rayssl-recipes-1: stopped")


def interrupt_again() -> bool:
    raise KeyboardInterrupt


@pytest.mark.parametrize("confirm", [lambda: False, interrupt_again])
def test_interrupt_and_no_leaves_the_job_running(client: FakeClient, confirm: Callable[[], bool]) -> None:
    client.connections, client.statuses = [[KeyboardInterrupt()]], ["RUNNING"]
    done, lines = send(["recipes"], confirm=confirm)
    assert client.stopped == []
    assert (done.status, done.exit_code) == ("RUNNING", 1)
    assert f"ray job stop --address {ADDRESS} rayssl-recipes-1" in lines[-2]


def test_a_jobs_log_steers_no_terminal_and_keeps_its_tabs(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client.connections = [["\x1b[2Jloss\t0.5\u202e\rforged\n"]]
    assert rayssl.jobs.submit.main([ADDRESS, "--", "probe", "/shared/cats"]) == 0
    assert "\\x1b[2Jloss\t0.5\\u202e\\rforged\n" in capsys.readouterr().err


def test_command_prints_people_to_stderr_and_json_to_stdout(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rayssl.jobs.submit.main([ADDRESS, "--json", "--", "probe", "/shared/cats", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"address": ADDRESS, "job": "rayssl-cats-1", "status": "SUCCEEDED"}
    assert "done\n" in err
    assert client.submitted["entrypoint"] == "python -m rayssl.jobs.probe /shared/cats --json"


@pytest.mark.parametrize("argv", [[ADDRESS, "recipes"], ["--", "recipes"], [ADDRESS, "--wait", "--", "recipes"], []])
def test_misused_command_is_one_line(argv: list[str]) -> None:
    with pytest.raises(UserError, match=r"rayssl submit ADDRESS") as error:
        rayssl.jobs.submit.main(argv)
    assert "\n" not in str(error.value)


def test_help_imports_neither_torch_nor_ray() -> None:
    program = (
        "import sys, rayssl.jobs.submit\ntry: rayssl.jobs.submit.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(' '.join({'torch', 'ray', 'aiohttp'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=submit.CODE, check=True, capture_output=True)
