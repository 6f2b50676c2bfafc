"""A recipe has values for a CPU and for a GPU: where training runs decides, once, whatever parses the command line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_run import quiet

from rayssl.jobs.cli import RUN_FLAGS, parse
from rayssl.jobs.start import plan_of
from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.cluster import train
from rayssl.pipeline.config import Config, for_device, override
from rayssl.pipeline.launch import runs
from rayssl.pipeline.launch.plan import Plan, prepare_shown
from rayssl.pipeline.recipes import RECIPES, build_recipe
from rayssl.pipeline.run import machine
from rayssl.pipeline.run.identity import flatten
from rayssl.pipeline.run.machine import this_machine
from rayssl.pipeline.run.plan import Machine
from rayssl.pipeline.stages.start import Prepared

SMALL = ["--train.threads", "1", "--wandb", "disabled"]
ON_GPU = {  # what each recipe has for a GPU and for a CPU, in part
    "simclr-cifar10": ({"encoder.name": "resnet18", "train.epochs": 200, "train.optimizer": "sgd"},
                       {"encoder.name": "resnet-tiny", "train.epochs": 11, "train.optimizer": "muon"}),
    "rotnet-folder": ({"encoder.name": "resnet50", "data.image_size": 224},
                      {"encoder.name": "resnet-tiny", "data.image_size": 96}),
}  # fmt: skip


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Say whether this machine has a GPU, as far as a run that starts here asks."""
    return lambda there: monkeypatch.setattr(machine, "has_gpu", lambda: there)


class Listening(Display):
    """Keeps the messages."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.lines: list[str] = []

    def __call__(self, row: dict[str, Any]) -> None:
        self.lines.append(str(row.get("message")))


def parsed(recipe: str, images: Path, out: Path, *flags: str) -> Plan:
    """The plan of `rayssl pretrain RECIPE …`."""
    import click

    argv = [recipe, "--data.path", str(images), "--out", str(out), *SMALL, *flags]
    return plan_of(parse("pretrain", "", argv, [click.Argument(["recipe"])], RUN_FLAGS), ("pretrain",), "")


def values_of(config: Config, paths: dict[str, Any]) -> dict[str, Any]:
    flat = flatten(configuration.to_dict(config))
    return {path: flat[path] for path in paths}


def announced(plan: Plan) -> tuple[Prepared, str]:
    """The run as it is prepared on this machine, and what is said of its sizes."""
    display = Listening()
    prepared = prepare_shown(plan.configs[0], plan.folders[0], "", display)
    return prepared, "".join(line for line in display.lines if "sizes  " in line)


@pytest.mark.parametrize("recipe", ON_GPU)
def test_the_machine_that_trains_decides_and_not_the_one_that_parses(
    recipe: str, images: Path, tmp_path: Path, gpu: Callable[[bool], None]
) -> None:
    on_gpu, on_cpu = ON_GPU[recipe]
    gpu(False)
    plan = parsed(recipe, images, tmp_path / "gpu")
    gpu(True)
    prepared, told = announced(plan)
    saved = configuration.load(tmp_path / "gpu" / "config.json")
    assert values_of(saved, on_gpu) == on_gpu
    assert saved.on_gpu == {}
    assert prepared.machine.device == "cuda"
    assert "for a GPU, where training runs" in told
    assert f"encoder.name {on_gpu['encoder.name']}" in told
    # The same plan where there is none; and a run that is there goes on as it was begun.
    gpu(False)
    other, told = announced(Plan(plan.configs, [tmp_path / "cpu"], plan.stages, tmp_path, ""))
    assert values_of(other.config, on_cpu) == on_cpu
    assert "for a CPU, where training runs" in told
    again, told = announced(plan)
    assert again.config == saved
    assert told == ""


def test_what_is_given_wins_on_every_machine(images: Path, tmp_path: Path, gpu: Callable[[bool], None]) -> None:
    flags = ("--encoder.name", "cnn-small", "--train.epochs", "3", "--train.batch-size", "8")
    plan = parsed("simclr-cifar10", images, tmp_path / "run", *flags)
    gpu(True)
    prepared, told = announced(plan)
    expected = {"encoder.name": "cnn-small", "train.epochs": 3, "train.batch_size": 8, "train.learning_rate": 0.12}
    assert values_of(prepared.config, expected) == expected
    assert "encoder.name" not in told
    assert "train.epochs" not in told
    assert "train.learning_rate 0.12" in told


def test_workers_that_get_no_gpu_have_the_sizes_for_a_cpu(gpu: Callable[[bool], None]) -> None:
    gpu(True)
    config = build_recipe("simclr-cifar10")
    assert this_machine(config).device == "cuda"
    assert this_machine(override(config, {"cluster.gpu_per_worker": 0})).device == "cpu"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_only_values_that_differ(name: str) -> None:
    recipe = build_recipe(name)
    cpu, cuda = (flatten(configuration.to_dict(for_device(recipe, device))) for device in ("cpu", "cuda"))
    assert {path: cuda[path] for path in cuda if cuda[path] != cpu[path]} == recipe.on_gpu


def test_another_network_does_not_take_the_width_for_a_gpu_or_a_cpu() -> None:
    recipe = build_recipe("distill-folder")
    for device in ("cpu", "cuda"):
        assert for_device(override(recipe, {"encoder.name": "resnet18"}), device).encoder.width is None
        assert for_device(override(recipe, {"encoder.width": 3}), device).encoder.width == 3


def test_a_cluster_is_asked_what_its_workers_have(
    images: Path, tmp_path: Path, gpu: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a head without a GPU: the workers' four GPUs decide, and their cores are what is planned for."""
    import ray

    @contextmanager
    def connected(resources: train.Resources, show: Any) -> Iterator[bool]:
        yield False

    asked: list[Prepared] = []
    gpu(False)
    monkeypatch.setattr(train, "connected", connected)
    monkeypatch.setattr(train, "quiet_ray", lambda address: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 32.0, "GPU": 4.0})
    monkeypatch.setattr(runs, "check_resources", lambda config: None)
    monkeypatch.setattr(runs, "run_stages", lambda prepared, plan, display: asked.extend(prepared))
    flags = ("--cluster.address", "head:6379", "--cluster.workers", "2")
    runs.start(parsed("rotnet-folder", images, tmp_path / "run", *flags), quiet())
    assert asked[0].machine == Machine("cuda", 32, 2)
    assert configuration.load(tmp_path / "run" / "config.json").encoder.name == "resnet50"
    runs.start(parsed("rotnet-folder", images, tmp_path / "no", *flags, "--cluster.gpu-per-worker", "0"), quiet())
    assert asked[1].config.encoder.name == "resnet-tiny"
