"""Another machine of the same network, here a second network namespace, reaches nothing of a run's Ray."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

HERE, THERE = "10.203.77.1", "10.203.77.2"
# Two workers that are joined by torch, as for a run; it ends when its stdin does.
PROGRAM = """
import json, os, sys
from rayssl.pipeline.cluster import train
from rayssl.pipeline.cluster.closed import lets_anybody_in
from rayssl.pipeline.cluster.rendezvous import FileRendezvous
from rayssl.pipeline.cluster.train import Resources, connected, quiet_ray, scaling
from rayssl.pipeline.cluster.ray_private import lean_trainer

def work(settings):
    import time, torch, torch.distributed as dist
    from pathlib import Path
    total = torch.ones(1)
    dist.all_reduce(total)
    Path(settings["folder"], f"joined-{dist.get_rank()}").write_text(str(int(total)))
    while not Path(settings["folder"], "end").exists():
        time.sleep(0.1)

folder = sys.argv[1]
resources = Resources(2, 0, 1, None, 0)
quiet_ray(None)
with connected(resources, print) as own:
    import ray
    from ray.train import RunConfig
    import threading, time
    from pathlib import Path
    trainer = lean_trainer(own)(
        work, train_loop_config={"folder": folder}, torch_config=FileRendezvous(), scaling_config=scaling(resources),
        run_config=RunConfig(name="x", storage_path=folder + "/ray"),
    )
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    while not all(Path(folder, f"joined-{rank}").exists() for rank in range(2)) and thread.is_alive():
        time.sleep(0.1)
    gcs = ray.get_runtime_context().gcs_address
    print(json.dumps({"gcs": gcs, "open": lets_anybody_in(gcs), "token": os.environ["RAY_AUTH_TOKEN"]}), flush=True)
    sys.stdin.read()
    Path(folder, "end").touch()
    thread.join()
"""


@dataclass(frozen=True)
class Network:
    """Two namespaces that reach each other over addresses HERE and THERE."""

    here: str
    there: str

    def run(self, namespace: str, *command: str) -> str:
        """What a command prints in a namespace."""
        return subprocess.run(
            ["ip", "netns", "exec", namespace, *command], check=True, capture_output=True, text=True, timeout=60
        ).stdout


@pytest.fixture
def network() -> Iterator[Network]:
    """Two namespaces; skipped where they cannot be had."""
    if shutil.which("ip") is None or shutil.which("ss") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root, `ip` and `ss`")
    names = [f"rayssl-{os.getpid()}-{side}" for side in "ab"]
    try:
        with namespaces(names):
            yield Network(*names)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")


@contextmanager
def namespaces(names: list[str]) -> Iterator[None]:
    """Namespaces joined by a cable, removed afterwards."""
    here, there = names
    cables = [f"rs{os.getpid()}{side}" for side in "ab"]
    made = f"""netns add {here}; netns add {there}
        link add {cables[0]} netns {here} type veth peer name {cables[1]} netns {there}
        -n {here} addr add {HERE}/24 dev {cables[0]}; -n {there} addr add {THERE}/24 dev {cables[1]}
        -n {here} link set {cables[0]} up; -n {there} link set {cables[1]} up
        -n {here} link set lo up; -n {there} link set lo up
        -n {here} route add default via {THERE}"""  # by which Ray tells the address that others reach
    try:
        for line in made.replace("\n", ";").split(";"):
            subprocess.run(["ip", *line.split()], check=True, capture_output=True, text=True)
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def reached(network: Network, ports: list[int]) -> list[int]:
    """Which ports of the one side the other side can connect to."""
    program = (
        "import json, socket, sys\n"
        f"print(json.dumps([p for p in json.loads(sys.argv[1]) if socket.socket().connect_ex(('{HERE}', p)) == 0]))"
    )
    found: list[int] = json.loads(network.run(network.there, sys.executable, "-c", program, json.dumps(ports)))
    return found


def listening(network: Network) -> dict[int, str]:
    """The address by the port of everything that listens on the one side."""
    lines = network.run(network.here, "ss", "-ltnH").splitlines()
    places = [line.split()[3].rpartition(":") for line in lines]
    return {int(port): address.strip("[]").removeprefix("::ffff:") for address, _, port in places}


@pytest.fixture
def open_port(network: Network) -> Iterator[int]:
    """A port of the one side that is open to all: what the test would see of an open door."""
    program = (
        "import socket, sys\ns = socket.create_server(('', 0))\nprint(s.getsockname()[1], flush=True)\nsys.stdin.read()"
    )
    command = ["ip", "netns", "exec", network.here, sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.communicate()


def secrets_in(folder: Path, token: str) -> list[Path]:
    """Files below a folder that hold the token."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if token.encode() in path.read_bytes()]


def test_the_other_side_reaches_nothing(network: Network, open_port: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    temporary = Path("/tmp", f"rs{os.getpid()}")  # short: sockets have at most 107 characters
    temporary.mkdir()
    command = ["ip", "netns", "exec", network.here, sys.executable, "-c", PROGRAM, str(tmp_path)]
    environment |= {
        "RAY_worker_niceness": "0",
        "RAY_TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    driver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert driver.stdout is not None
        told = next(json.loads(line) for line in driver.stdout if line.startswith("{"))
        found = listening(network)
        assert found.pop(open_port) == "0.0.0.0"
        assert len(found) >= 8  # GCS, raylet, object manager, agents, workers
        assert int(told["gcs"].rpartition(":")[2]) in found
        assert set(found.values()) <= {"127.0.0.1", "::1"}, found
        assert reached(network, [*found, open_port]) == [open_port]
        assert told["open"] is False  # nor does another user of this machine get in without the token
        assert told["token"] not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        assert [(tmp_path / f"joined-{rank}").read_text() for rank in range(2)] == ["2", "2"]
        driver.communicate()
        assert secrets_in(temporary, told["token"]) + secrets_in(tmp_path, told["token"]) == []
    finally:
        if driver.poll() is None:
            driver.communicate()
        shutil.rmtree(temporary)
