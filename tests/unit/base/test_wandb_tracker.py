"""Whatever goes wrong with wandb, the run goes on."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from rayssl.pipeline.base import wandb_tracker
from rayssl.pipeline.base.wandb_tracker import Tracker, has_key, start_tracker

ROWS = [{"stage": "pretrain", "step": step, "train/loss": 1.0 / (step + 1)} for step in range(2)]


class FakeRun:
    """Keeps what it is sent; fails at `fails`."""

    def __init__(self, fails: str) -> None:
        self.fails, self.logged, self.ended = fails, [], False  # type: ignore[var-annotated]
        self.summary: dict[str, Any] = {}

    def log(self, values: dict[str, Any]) -> None:
        if self.fails == "log":
            raise ConnectionError("no network\nand a second line")
        self.logged.append(values)

    def finish(self) -> None:
        if self.fails == "finish":
            raise OSError("disk full")
        self.ended = True


class FakeWandb(types.ModuleType):
    """In the place of the package."""

    def __init__(self, fails: str = "") -> None:
        super().__init__("wandb")
        self.run, self.fails, self.asked = FakeRun(fails), fails, {}  # type: ignore[var-annotated]

    def Settings(self, **values: Any) -> dict[str, Any]:  # noqa: N802
        return values

    def init(self, **values: Any) -> FakeRun:
        if self.fails == "init":
            raise RuntimeError("not logged in\nand a second line")
        self.asked = values
        return self.run


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no-settings"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def put_in_place(monkeypatch: pytest.MonkeyPatch, fails: str = "") -> FakeWandb:
    fake = FakeWandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def start(mode: str, folder: Path, warnings: list[str]) -> Tracker:
    return start_tracker(mode, folder=folder, name="n", run_id="abc", config={"a": 1}, warn=warnings.append)


def use(tracker: Tracker) -> None:
    tracker.log(ROWS)
    tracker.log(ROWS)
    tracker.finish({"x": 1})
    tracker.finish({"x": 1})


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_failure_is_told_once_and_never_raised(fails: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_in_place(monkeypatch, fails)
    warnings: list[str] = []
    use(start("online", tmp_path, warnings))
    assert len(warnings) == 1
    assert "wandb" in warnings[0]
    assert "\n" not in warnings[0]
    assert "second line" not in warnings[0]


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    warnings: list[str] = []
    use(start("online", tmp_path, warnings))
    assert len(warnings) == 1


def test_rows_arrive_with_their_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = put_in_place(monkeypatch)
    warnings: list[str] = []
    tracker = start("offline", tmp_path, warnings)
    tracker.log(ROWS)
    tracker.finish({"knn/top1": 0.5})
    assert warnings == []
    assert fake.run.logged == [
        {"pretrain/train/loss": 1.0, "pretrain/step": 0},
        {"pretrain/train/loss": 0.5, "pretrain/step": 1},
    ]
    assert fake.run.summary == {"knn/top1": 0.5}
    assert fake.run.ended
    expected = {"mode": "offline", "id": "abc", "resume": "allow", "dir": str(tmp_path), "config": {"a": 1}}
    assert expected.items() <= fake.asked.items()


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, None),
        ("auto", {"WANDB_API_KEY": "x"}, "online"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "disabled"}, None),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "OFFLINE"}, "offline"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "no such mode"}, None),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_DISABLED": "true"}, None),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_DISABLED": "false"}, "online"),
        ("auto", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "offline"}, "online"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("offline", {"WANDB_DISABLED": "1"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "x"}, None),
        ("offline", {}, "offline"),
        ("online", {}, "online"),
    ],
)
def test_modes(
    mode: str, environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = put_in_place(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    start(mode, tmp_path, [])
    assert fake.asked.get("mode") == expected


@pytest.mark.parametrize(
    ("mode", "environment", "told"),
    [
        ("auto", {"WANDB_API_KEY": "x"}, "wandb: online, as there is a key; --wandb offline"),
        ("auto", {"WANDB_MODE": "offline"}, "wandb: offline, as WANDB_MODE=offline says; --wandb MODE overrules it"),
        ("online", {"WANDB_MODE": "offline"}, "wandb: online, as --wandb says, not offline as WANDB_MODE=offline"),
        ("auto", {}, None),
        ("offline", {"WANDB_MODE": "dryrun"}, None),  # both say the same
    ],
)
def test_which_setting_won_is_told(
    mode: str, environment: dict[str, str], told: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_in_place(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lines: list[str] = []
    start(mode, tmp_path, lines)
    assert [line[: len(told or "")] for line in lines] == ([] if told is None else [told])


@pytest.mark.parametrize("where", ["folder", "user"])
@pytest.mark.parametrize(("line", "expected"), [("mode = offline", "offline"), ("disabled = true", None)])
def test_what_wandb_offline_has_written_is_obeyed(
    where: str, line: str, expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = put_in_place(monkeypatch)
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "user"))
    path = tmp_path / ("wandb" if where == "folder" else "user") / "settings"
    path.parent.mkdir()
    path.write_text(f"[default]\n{line}\n")
    start("auto", tmp_path, [])
    assert fake.asked.get("mode") == expected
    path.write_bytes(b"\xff[no settings")
    start("auto", tmp_path, [])
    assert fake.asked["mode"] == "online"


def test_workers_of_another_machine_are_told_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_tracker.variables() == {}
    monkeypatch.setenv("WANDB_DISABLED", "true")
    given = wandb_tracker.variables()
    monkeypatch.delenv("WANDB_DISABLED")
    monkeypatch.setenv("WANDB_API_KEY", "the worker's")
    monkeypatch.setenv("WANDB_MODE", "")  # put back after the test
    wandb_tracker.obey(given)
    assert wandb_tracker.choose_mode("auto").name == "disabled"


def test_a_key_in_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert has_key()


@pytest.mark.parametrize(("host", "found"), [("wandb.example.org", True), ("example.org", False)])
def test_a_key_for_ones_own_server(host: str, found: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine {host} login user password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert has_key() == found
    monkeypatch.setenv("WANDB_BASE_URL", "http://[x")
    assert not has_key()
    (tmp_path / "netrc").write_bytes(b"\xff\xfe")
    assert not has_key()


def test_the_package_itself_takes_what_it_is_given(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from rayssl.pipeline.base.wandb_tracker import start_tracker;"
        "t = start_tracker('offline', folder=Path('.'), name='n', run_id='abc', config={}, warn=print);"
        "t.log([{'stage': 'pretrain', 'step': 0, 'train/loss': 1.0}]); t.finish({'knn/top1': 0.5})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == ""  # no warning
    [record] = tmp_path.glob("wandb/offline-run-*/run-abc.wandb")
    assert b"knn/top1" in record.read_bytes()
