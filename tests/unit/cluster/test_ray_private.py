"""Ray's private names that are used: where one is gone, pipeline/cluster/ray_private.py has to be mended."""

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

from rayssl.pipeline.cluster import ray_private

REMEDY = "Ray has changed: find what took its place and mend pipeline/cluster/ray_private.py"


def start_methods() -> Any:
    from ray._private.node import Node

    return [Node.start_api_server, Node.start_monitor, Node.start_log_monitor]


def default_callbacks() -> Any:
    from ray.train.torch import TorchTrainer

    return TorchTrainer._create_default_callbacks


def settings() -> Any:
    from ray import _raylet
    from ray._private import ray_constants

    return [
        _raylet.Config.initialize,
        _raylet.AuthenticationTokenLoader.instance().reset_cache,
        ray_constants.env_bool,
        ray_constants.IS_WINDOWS_OR_OSX,
        ray_constants.ENABLE_RAY_CLUSTER,
    ]


def session() -> Any:
    from ray._private import worker
    from ray._private.node import Node

    return [worker, inspect.getattr_static(worker, "_global_node"), Node.get_session_dir_path]


def process_group() -> Any:
    from ray.train.torch import config

    variables, join = config._set_torch_distributed_env_vars, config._setup_torch_process_group
    taken = {"backend", "world_rank", "world_size", "init_method", "timeout_s"}
    if missing := taken - set(inspect.signature(join).parameters):
        raise AttributeError(f"{join.__name__} takes no {', '.join(sorted(missing))}")
    return [variables, join]


@pytest.mark.parametrize("look", [start_methods, default_callbacks, process_group, settings, session])
def test_the_names_are_there(look: Callable[[], Any]) -> None:
    try:
        look()
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{error}: {REMEDY}")


def test_no_other_file_uses_private_names() -> None:
    """Of Ray's modules, or of what was imported from them."""
    folder = Path(ray_private.__file__).parent
    for path in folder.glob("*.py"):
        if path.name == "ray_private.py":
            continue
        tree = ast.parse(path.read_text())
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
        assert [name for name in modules if re.match(r"ray\b.*\._", name)] == [], path
        private = [
            f"{ast.unparse(node.value)}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr)
        ]
        assert [name for name in private if not name.startswith("self.")] == [], path


def test_the_loopback_variable_is_read() -> None:
    from ray._private import ray_constants

    assert ray_private.LOOPBACK_ONLY in inspect.getsource(ray_constants), REMEDY


def test_rungs_of_a_new_scheduler() -> None:
    scheduler = ASHAScheduler(metric="score", mode="max", max_t=9, grace_period=1, reduction_factor=3)
    assert {1, 3} <= {milestone for milestone, _ in ray_private.rungs_of(scheduler)}, REMEDY
    assert all(scores == {} for _, scores in ray_private.rungs_of(scheduler)), REMEDY


def test_a_result_is_added() -> None:
    rule = MedianStoppingRule(time_attr="training_iteration", metric="score", mode="max")
    ray_private.add_result(rule, "a", 2, {"score": 0.5})
    assert rule._results["a"] == [{"training_iteration": 2, "score": 0.5}], REMEDY
