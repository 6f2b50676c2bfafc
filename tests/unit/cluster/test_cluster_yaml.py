"""cluster.yaml, both of its forms, against Ray's own schema and against what it promises."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).resolve().parents[3] / "cluster.yaml"
AWS_ONLY = ("provider", "auth", "head_node_type", "available_node_types")


def aws() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return config


def on_premises() -> dict[str, Any]:
    """The commented form at the end of the file, put in place as the file says."""
    comment = FILE.read_text().split("\n# provider:\n")[1]
    text = "provider:\n" + "\n".join(line.removeprefix("# ") for line in comment.splitlines())
    return {key: value for key, value in aws().items() if key not in AWS_ONLY} | yaml.safe_load(text)


def starts(config: dict[str, Any]) -> list[str]:
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


@pytest.fixture(scope="module", params=[aws, on_premises])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each form as `ray up` would see it."""
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(request.param()))
    return prepared


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate_config(config)


def test_ray_would_refuse_a_misspelt_key() -> None:
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config(aws() | {"idle_timeout": 3}))


def test_every_node_starts_with_the_token(config: dict[str, Any]) -> None:
    assert len(starts(config)) == 2
    assert all("export" in command and "RAY_AUTH_MODE=token" in command for command in starts(config))
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in config["setup_commands"])
    assert "RAY_AUTH_TOKEN=" not in FILE.read_text()


def test_nothing_is_open_to_the_world(config: dict[str, Any]) -> None:
    text = yaml.dump(config)
    assert "0.0.0.0" not in text
    assert "::/0" not in text
    head = next(command for command in starts(config) if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in head


def test_no_node_gets_the_security_group_that_ray_would_make() -> None:
    nodes = aws()["available_node_types"].values()
    assert all(node["node_config"]["SecurityGroupIds"] == ["sg-FILL-IN"] for node in nodes)
    assert "security_group" not in aws()["provider"]


def test_head_does_no_work(config: dict[str, Any]) -> None:
    head = next(command for command in starts(config) if "--head" in command)
    assert "--num-cpus=0" in head
    assert aws()["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}


def test_gpu_workers_are_spot_and_come_and_go() -> None:
    types = aws()["available_node_types"]
    spot = {name for name, node in types.items() if "InstanceMarketOptions" in node["node_config"]}
    assert spot == {"gpu_spot"}
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert all(types[name]["min_workers"] == 0 < types[name]["max_workers"] for name in ("cpu", "gpu_spot"))
    assert aws()["idle_timeout_minutes"] > 0


def test_ray_is_the_version_of_the_project(config: dict[str, Any]) -> None:
    pinned = re.findall(r"ray\[[a-z,]+\]==[0-9.]+\*", " ".join(config["setup_commands"]))
    assert pinned == re.findall(r"ray\[[a-z,]+\]==[0-9.]+\*", (FILE.parent / "pyproject.toml").read_text())


def test_mounted_files_exist(config: dict[str, Any]) -> None:
    mounted = set(config["file_mounts"].values()) - {"~/.ray/auth_token"}
    assert mounted
    assert all((FILE.parent / path).exists() for path in mounted)


def test_every_value_of_an_account_says_so() -> None:
    text = FILE.read_text()
    assert len(re.findall(r"(?:ami|subnet|sg|fs)-FILL-IN", text)) == 10
    assert not re.search(r"\b(?:ami|subnet|sg|fs)-[0-9a-f]{8,}", text)
