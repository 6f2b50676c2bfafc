"""Starting Ray on this machine, with Ray's own start replaced."""

import os
import socket
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.cluster import closed, train
from rayssl.pipeline.cluster.ray_private import lean_trainer
from rayssl.pipeline.cluster.rendezvous import FileRendezvous

SLOW = Exception("The current node timed out during startup. This could happen because …")


def ray_that_fails(monkeypatch: pytest.MonkeyPatch, failures: list[Exception]) -> list[str]:
    calls: list[str] = []

    def init(*args, **settings):
        calls.append("init")
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: calls.append("shutdown"))
    return calls


def test_a_slow_start_is_tried_again(monkeypatch):
    calls = ray_that_fails(monkeypatch, [SLOW])
    train.start_here({})
    assert calls == ["init", "shutdown", "init"]


def test_a_start_that_stays_slow_ends_in_one_line(monkeypatch):
    ray_that_fails(monkeypatch, [SLOW, SLOW])
    with pytest.raises(RuntimeError, match="too busy; try again"):
        train.start_here({})


def test_other_failures_are_not_tried_again(monkeypatch):
    calls = ray_that_fails(monkeypatch, [ConnectionError("no")])
    with pytest.raises(ConnectionError):
        train.start_here({})
    assert calls == ["init"]


def test_a_temporary_folder_too_long_for_sockets_is_not_rays(monkeypatch):
    monkeypatch.setattr(train, "check_ray_folder", lambda: None)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    longest = 107 - len(f"/ray/session_2026-11-27_17-38-39_674536_{os.getpid()}/sockets/plasma_store")
    for length, folder in ((longest, None), (longest + 1, "/tmp")):
        monkeypatch.setenv("TMPDIR", "/" + (length - 1) * "x")
        train.choose_ray_folder()
        assert os.environ.get("RAY_TMPDIR") == folder
    monkeypatch.setenv("RAY_TMPDIR", "/" + longest * "x")
    with pytest.raises(UserError, match=f"at most {longest} characters"):
        train.choose_ray_folder()


@pytest.fixture
def any_length(monkeypatch):
    """pytest's folders have names too long for sockets."""
    monkeypatch.setattr(train, "LONGEST_SOCKET", 1000)


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_that_ray_cannot_write_to_is_told_with_its_variable(name, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    train.choose_ray_folder()
    assert list((tmp_path / "ray").iterdir()) == []
    (tmp_path / "ray").rmdir()
    (tmp_path / "ray").write_text("another's")
    with pytest.raises(UserError, match=rf"^{name} is .*Ray cannot write to .*/ray \(.*\): set RAY_TMPDIR to a folder"):
        train.choose_ray_folder()


@pytest.mark.usefixtures("any_length")
def test_a_folder_that_belongs_to_somebody_else(monkeypatch, tmp_path):
    def refuse(**named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)  # as root nothing is forbidden
    with pytest.raises(UserError, match=r"Permission denied\): set RAY_TMPDIR"):
        train.choose_ray_folder()


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("4,2", 4), ("", None), ("many", None), (None, None)])
def test_threads_that_the_user_asks_for(value, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert train.threads_asked() == threads


@pytest.mark.parametrize("own_cluster", [True, False])
def test_ray_starts_no_process_for_what_there_is_not(own_cluster):
    from ray.train import ScalingConfig

    def helpers(trainer_class: type) -> set[str]:
        trainer = trainer_class(print, scaling_config=ScalingConfig(num_workers=1))
        return {type(helper).__name__ for helper in trainer._create_default_callbacks()}

    from ray.train.torch import TorchTrainer

    gone = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if own_cluster else set())
    assert helpers(TorchTrainer) - helpers(lean_trainer(own_cluster)) == gone


def test_a_cluster_that_is_not_there_is_found_out_at_once(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(UserError, match=rf"--cluster\.address 127\.0\.0\.1:{port}: nothing answers there"):
            train.check_reachable(f"127.0.0.1:{port}")
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(UserError, match=rf"^RAY_ADDRESS 127\.0\.0\.1:{port}: nothing answers there"):
            train.check_reachable(None)
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{port}")
        with pytest.raises(UserError, match=rf"^RAY_ADDRESS ray://127\.0\.0\.1:{port}: nothing answers there"):
            train.check_reachable(None)
        free.listen()
        train.check_reachable(None)
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        train.check_reachable(None)
    with pytest.raises(UserError, match="nothing answers there"):
        train.check_reachable("a..b:6379")


@pytest.mark.parametrize("nowhere", ["", "local"])
def test_no_cluster_is_this_machine(nowhere, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", nowhere)
    assert train.cluster_address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert train.cluster_address("local") is None
    assert train.cluster_address(None) == "head:6379"


def test_no_cluster_on_this_machine_is_told_as_that(monkeypatch):
    def init(**settings):
        raise ConnectionError("Could not find any running Ray instance.\nsecond line")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with (
        pytest.raises(UserError, match=r"^RAY_ADDRESS auto: no Ray cluster runs on this machine \(Could not find"),
        train.connected(train.Resources(1, None, None, None, 0), print),
    ):
        pass


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "foo", "foo:bar", ":6379", "foo:70000"])
def test_what_is_no_address_of_a_cluster(address):
    with pytest.raises(UserError, match="give HOST:PORT of the head"):
        train.check_reachable(address)


def test_a_cluster_that_lets_nobody_in_is_told(monkeypatch):
    def init(**settings):
        raise ConnectionError("no token\nsecond line")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(train, "check_reachable", lambda address: None)
    with (
        pytest.raises(UserError, match=r"no Ray cluster lets us in \(no token\)"),
        train.connected(train.Resources(1, None, None, "head:6379", 0), print),
    ):
        pass


def test_a_ray_of_this_machine_starts_no_dashboard_and_no_helpers(monkeypatch):
    from ray._private.node import Node

    names = ("start_api_server", "start_monitor", "start_log_monitor")
    own = {name: getattr(Node, name) for name in names}
    during = {}
    monkeypatch.setattr("ray.init", lambda *_, **__: during.update({name: getattr(Node, name) for name in names}))
    train.start_here({})
    assert set(own.values()) & set(during.values()) == set()
    assert {name: getattr(Node, name) for name in names} == own


def test_a_ray_of_this_machine_is_closed_to_others_until_it_has_ended(monkeypatch):
    names = (closed.LOOPBACK_ONLY, closed.MODE, closed.TOKEN, closed.TOKEN_PATH, "RAY_ADDRESS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    seen = []

    def look(*_, **__):
        seen.append([os.environ.get(name) for name in names])

    monkeypatch.setattr("ray.init", look)
    monkeypatch.setattr("ray.shutdown", look)
    with train.connected(train.Resources(1, None, None, None, 0), print) as own_cluster:
        assert own_cluster
        look()
    look()
    *during, after = seen
    assert len(during) == 3
    for loopback_only, mode, token, *others in during:
        assert (loopback_only, mode, len(token), others) == ("0", "token", 64, [None, None])
    assert after == [None] * len(names)


@pytest.mark.parametrize(("own_cluster", "meeting"), [(True, FileRendezvous), (False, type(None))])
def test_the_workers_of_a_ray_of_this_machine_meet_by_a_file(own_cluster, meeting, monkeypatch, tmp_path):
    trainer = MagicMock()
    monkeypatch.setattr(train, "lean_trainer", lambda own: trainer)
    scale = SimpleNamespace(resources_per_worker={"CPU": 1}, use_gpu=False)
    train.fit([], tmp_path, scale, 0, own_cluster)
    assert type(trainer.call_args.kwargs["torch_config"]) is meeting
    trainer.return_value.fit.assert_called_once()


def test_a_cluster_without_a_token_is_told_loudly(monkeypatch):
    told = []
    monkeypatch.setattr(train, "check_reachable", lambda address: None)
    monkeypatch.setattr("ray.init", lambda **_: None)
    resources = train.Resources(1, None, None, "ray://head:10001", 0)
    for anybody, lines in ((True, 1), (False, 0)):
        told.clear()
        monkeypatch.setattr(train, "lets_anybody_in", lambda place, anybody=anybody: anybody)
        with train.connected(resources, told.append):
            pass
        assert len(told) == lines
    monkeypatch.setattr(train, "lets_anybody_in", lambda place: place == "ray://head:10001")
    with train.connected(resources, told.append):
        pass
    assert "--cluster.address ray://head:10001: this Ray cluster has no token" in told[0]["message"]
