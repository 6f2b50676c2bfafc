"""Methods of another package with a step, a start, view sizes and a kept encoder of their own."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_methods
from safetensors.torch import load_file
from small_run import StopAt, pretrain, quiet
from torch import Tensor, nn
from torch.nn.functional import softplus

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.device import autocast
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config, method_config, method_name
from rayssl.pipeline.generate.decoder import load_trained, open_trained
from rayssl.pipeline.generate.reconstruct import likelihood_of
from rayssl.pipeline.generate.sample import draw
from rayssl.pipeline.launch.plan import prepare_shown
from rayssl.pipeline.methods import load_method
from rayssl.pipeline.methods.base import HasLikelihood, InitializesFromData, Method, Reconstructs, Samples, Traits
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.models.trainable import parameter_groups
from rayssl.pipeline.run.build import new_method
from rayssl.pipeline.run.context import Stopped
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.training import loop
from rayssl.pipeline.training.batches import RawBatch
from rayssl.pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from rayssl.pipeline.training.loop import Hooks, Loop
from rayssl.pipeline.training.optimizers import JointOptimizer, build_optimizer
from rayssl.pipeline.training.step import Step, to_batch

CPU = torch.device("cpu")
TRAITS = Traits(image_size=8, channels=3, mirror=True)
Prepare = Callable[..., Path]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to the last bit is promised for one kind of processor."""
    monkeypatch.setattr("rayssl.pipeline.run.context.choose_device", lambda: CPU)


@pytest.fixture
def poll_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_methods.installed(tmp_path, monkeypatch)


@pytest.fixture
def folder_of(tiny_config: Callable[..., Config], tmp_path: Path) -> Prepare:
    """A run folder of six steps of a toy."""

    def make(run: str, method: str, **changes: Any) -> Path:
        config = tiny_config(changes={"train.steps": 6, "train.checkpoint_epochs": 1, **changes})
        config = replace(config, method=method_config(method))
        return prepare_shown(config, tmp_path / run, "rayssl pretrain", quiet()).run

    return make


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in MetricsLog(run).rows() if row["stage"] == "pretrain"]


def build(name: str, encoder: str = "cnn-small") -> Any:
    torch.manual_seed(0)
    return load_method(name)(method_config(name), build_encoder(encoder, channels=3, image_size=8), TRAITS).train()


def raw_batch_at(step: int) -> RawBatch:
    pixels = np.random.default_rng(step).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return RawBatch([torch.from_numpy(pixels)], torch.arange(1, 7) + 10 * step, None, step, step)


def run_loop(
    method: Method[Any], optimizer: torch.optim.Optimizer, start: int, stop: int, precision: str = "fp32"
) -> None:
    step = Step(method, optimizer, CPU, precision, seed=3, planned=6)
    toys = Loop(step, "toy", 5, lambda step: 0.01 * (step + 1), Hooks())
    toys.run(map(raw_batch_at, count(start)), start, stop)


def joint(method: toy_methods.Adversarial) -> JointOptimizer:
    def default(module: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer("sgd", parameter_groups(module, 0.1), learning_rate=1.0)

    return JointOptimizer(method.optimizers(default))


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_a_method_of_another_package_is_found_and_stands_in_the_config() -> None:
    assert load_method("toy-gan") is toy_methods.Adversarial
    config = Config(method=method_config("toy-gan", noise=3))
    values = json.loads(json.dumps(configuration.to_dict(config)))
    assert values["method"] == {"name": "toy-gan", "noise": 3}
    assert configuration.from_dict(values) == config
    with pytest.raises(UserError, match=r"unknown method 'toy-gam' .did you mean 'toy-gan'"):
        load_method("toy-gam")


def test_a_config_that_inherits_from_anothers_has_a_name_of_its_own() -> None:
    config = Config(method=method_config("toy-crops"))
    assert isinstance(config.method, load_method("byol").Config)
    assert method_name(config) == "toy-crops"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_optimisers_take_turns_as_in_a_loop_written_out(precision: str) -> None:
    method, plain = build("toy-gan"), build("toy-gan")
    run_loop(method, joint(method), 0, 3, precision)
    critic = [*plain.encoder.parameters(), *plain.head.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in critic if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in critic if p.ndim == 1], "weight_decay": 0.0},
    ]
    first = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    second = torch.optim.Adam(plain.generator.parameters(), betas=(0.5, 0.999))
    for step in range(3):
        for group in (*first.param_groups, *second.param_groups):
            group["lr"] = 0.01 * (step + 1)
        batch = to_batch(raw_batch_at(step), CPU, "fp32", 3)
        with autocast(CPU, precision):
            real = plain.head(plain.encoder(batch.views[0]))
            made = plain.generate([batch.seed, batch.epoch, batch.ids])
            loss = softplus(-real).mean() + softplus(plain.head(plain.encoder(made.detach()))).mean()
        first.zero_grad()
        loss.backward()
        first.step()
        with autocast(CPU, precision):
            fooled = softplus(-plain.head(plain.encoder(made))).mean()
        second.zero_grad()
        fooled.backward()
        second.step()
    for (name, found), (_, expected) in zip(method.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def test_several_optimisers_are_saved_and_restored_as_one(tmp_path: Path) -> None:
    straight, stopped, resumed = build("toy-gan"), build("toy-gan"), build("toy-gan")
    run_loop(straight, joint(straight), 0, 4)
    before, after = joint(stopped), joint(resumed)
    run_loop(stopped, before, 0, 2)
    save_checkpoint(tmp_path, step=2, model=stopped, optimizer=before, keep=1, facts=None)
    assert load_checkpoint(tmp_path, model=resumed, optimizer=after) == (2, None)
    run_loop(resumed, after, 2, 4)
    assert same_weights(resumed, straight)
    saved = load_file(tmp_path / "step-000000002" / "optimizer.safetensors")
    assert {name.split(".")[1] for name in saved} == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}


@pytest.mark.usefixtures("poll_every_step")
@pytest.mark.parametrize("name", ["toy-gan", "toy-flow", "toy-crops"])
def test_a_toy_that_was_stopped_goes_on_bit_for_bit(name: str, folder_of: Prepare) -> None:
    whole, stopped = folder_of("whole", name), folder_of("stopped", name)
    pretrain(whole)
    with pytest.raises(Stopped, match="stopped after step 3 of 6"):
        pretrain(stopped, StopAt(3))
    pretrain(stopped)
    assert [step for step, _ in losses(whole)] == list(range(6))
    assert losses(stopped) == losses(whole)
    assert (stopped / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()


def test_a_flow_starts_from_its_first_batch_and_only_there() -> None:
    method = build("toy-flow")
    assert isinstance(method, InitializesFromData)
    run_loop(method, torch.optim.SGD([method.shift], lr=0.0), 2, 3)  # a run that is continued
    assert not method.log_scale.any()
    run_loop(method, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0), 0, 2)
    z = method.normalise(to_batch(raw_batch_at(0), CPU, "fp32", 3).views[0])
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(z.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(dim=0), torch.ones(z.shape[1]), atol=1e-4, rtol=0)


def test_a_flow_has_a_likelihood_and_samples(folder_of: Prepare) -> None:
    run = folder_of("run", "toy-flow")
    pretrain(run)
    trained = open_trained(run)
    method = trained.method
    assert isinstance(method, HasLikelihood)
    assert isinstance(method, Samples)
    assert not isinstance(method, Reconstructs)
    x = torch.rand(2, 3, 16, 16)
    shift, scale = method.shift, method.log_scale.exp()  # type: ignore[union-attr, operator]
    expected = -torch.distributions.Normal(-shift, 1 / scale).log_prob(x.flatten(1)).sum(dim=1)
    found = likelihood_of(method, x, torch.tensor([1, 2]), None, 0, draws=0)
    torch.testing.assert_close(found["likelihood/nats"], expected)
    images, labels = draw(trained, 5, 0, lambda done, total: None)
    assert (images.shape, labels) == ((5, 3, 16, 16), None)
    records = json.loads((run / "evaluation.json").read_text())["records"]
    assert {"density of pixels in [0, 1], exact"} == {r["protocol"].split(", ", 1)[1][:34] for r in records}


def test_the_kept_encoder_is_what_is_exported(folder_of: Prepare) -> None:
    run = folder_of("run", "toy-crops")
    pretrain(run)
    exported = load_encoder(run).state_dict()
    state = load_file(run / "checkpoints" / "step-000000006" / "model.safetensors")
    for name, value in exported.items():
        assert torch.equal(value, state[f"target_encoder.{name}"]), name
    assert any(not torch.equal(value, state[f"encoder.{name}"]) for name, value in exported.items())


@pytest.mark.parametrize("backend", ["albumentations", "batched"])
def test_views_of_a_batch_differ_in_size(backend: str, folder_of: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    real = toy_methods.Crops.forward

    def forward(method: Any, batch: Any) -> Any:
        seen.append([view.shape[-1] for view in batch.views])
        return real(method, batch)

    monkeypatch.setattr(toy_methods.Crops, "forward", forward)
    pretrain(folder_of("run", "toy-crops", **{"augment.backend": backend, "train.small_views": 0.5}))
    assert seen == [[8, 8, 4]] * 3 + [[16, 16, 8]] * 3


def test_methods_of_one_view_size_refuse_others(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    views = tmp_path / "views.json"
    views.write_text(json.dumps({"views": [{"operations": []}, {"operations": [], "scale": 0.5}]}))
    with pytest.raises(UserError, match="sides of 8, 16 px by their scales: simclr takes views of one size"):
        prepare_shown(tiny_config(changes={"augment.spec": str(views)}), tmp_path / "run", "", quiet())
    views.write_text(json.dumps({"operations": [], "scale": 0.5}))
    config = tiny_config("autoencoder", {"augment.spec": str(views)})
    with pytest.raises(UserError, match=r"a view's scale of 0\.5: autoencoder takes views of one size only: use 1"):
        prepare_shown(config, tmp_path / "other", "", quiet())


def test_an_exported_decoder_fits_a_method_that_keeps_another_encoder(
    folder_of: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_methods.Crops, "exports_decoder", True)
    monkeypatch.setattr("rayssl.pipeline.stages.pretrain.show_reconstructions", lambda work, method: None)
    run = folder_of("run", "toy-crops")
    work = pretrain(run)
    found = load_trained(run, work.config, work.dataset)
    trained = new_method(work.config, work)
    load_checkpoint(run / "checkpoints", model=trained)
    x: Tensor = torch.rand(2, 3, 16, 16)
    for name in ("encoder", "target_encoder"):
        torch.testing.assert_close(getattr(found, name).eval()(x), getattr(trained, name).eval()(x))
