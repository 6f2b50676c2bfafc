"""What `auto` becomes, and what is refused before anything is computed."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import Config, TrainConfig, load
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.run import auto
from rayssl.pipeline.run.build import restrict
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.stages.start import Prepared


@pytest.mark.parametrize(("device", "usual"), [("cpu", "albumentations"), ("cuda", "batched")])
@pytest.mark.parametrize("quicker", ["albumentations", "batched"])
def test_the_device_chooses_the_backend_and_a_clock_only_if_asked(
    device: str, usual: str, quicker: str, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "seconds_a_view", lambda work, name: 1e-6 if name == quicker else 2e-6)
    for asked, expected in (("auto", usual), ("fastest", quicker)):
        config = tiny_config(changes={"augment.backend": asked})
        work = cast(Any, SimpleNamespace(config=config, device=torch.device(device)))
        assert auto.choose_backend(work)[0] == expected


def test_a_pipeline_of_ones_own_has_one_backend(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(changes={"augment.backend": "fastest"})
    views = [{"transform": {"__class_fullname__": "Compose", "transforms": []}}]
    monkeypatch.setattr(auto, "view_from_dict", lambda view: object())
    config = replace(config, augment=replace(config.augment, views=views))
    work = cast(Any, SimpleNamespace(config=config, device=torch.device("cuda")))
    assert auto.choose_backend(work) == ("albumentations", "the views are a pipeline of your own")


def test_a_network_without_stages_takes_no_layer_decay() -> None:
    encoder = build_encoder("linear", channels=1, image_size=8, latent_dim=4)
    encoder.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    restrict(encoder, TrainConfig())
    with pytest.raises(UserError, match=r"--train.layer-decay 0.5: linear has no stages: use 1"):
        restrict(encoder, TrainConfig(layer_decay=0.5))


@pytest.mark.parametrize("share", [0.0, 0.75])
def test_a_step_takes_the_mean_of_small_views_and_full_ones(
    share: float, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "measure_speed", lambda work, small, timed: {0.0: 1.0, 1.0: 4.0}[small])
    config = tiny_config()
    config = replace(config, train=replace(config.train, small_views=share))
    assert auto.seconds_a_step(cast(Any, SimpleNamespace(config=config))) == share / 4 + (1 - share)


def test_what_the_precision_became_is_written_down(prepared: Callable[..., Prepared]) -> None:
    run = prepared("run", changes={"train.precision": "auto"}).run
    work = auto.decide_and_keep(Work.open(run, Silent()))
    assert work.precision == work.config.train.precision == load(run / "config.json").train.precision != "auto"
