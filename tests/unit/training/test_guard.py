"""What starts from given weights ends no worse than it began, and whoever looks changes nothing."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from small_run import pretrain
from torch import Tensor, nn

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import TrainConfig
from rayssl.pipeline.methods import METHODS
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.models.trainable import add_adapters, parameter_groups, rate_scales, stage_paths, without_adapters
from rayssl.pipeline.run.build import new_encoder, new_method, new_optimizer, restrict
from rayssl.pipeline.run.context import Stopped, Work
from rayssl.pipeline.run.folder import read_manifest
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.stages.start import Prepared
from rayssl.pipeline.training import guard as guards
from rayssl.pipeline.training import loop
from rayssl.pipeline.training.checkpoint import find_checkpoint
from rayssl.pipeline.training.guard import Guard, draw_sample, groups_of, look_size, paired_error, validation_knn, votes
from rayssl.pipeline.training.optimizers import build_optimizer, set_learning_rate

CPU = torch.device("cpu")
Prepare = Callable[..., Prepared]
LABELLED = {"data.val_fraction": 0.4, "train.guard": "yes", "train.steps": 20}
RUINOUS = 1e3  # a rate that destroys any network within a few steps


class Listener(Silent):
    """Keeps the messages; asks to stop at its n-th question."""

    def __init__(self, stop_at: int = 0) -> None:
        self.messages: list[str] = []
        self.left = stop_at

    def message(self, text: str) -> None:
        self.messages.append(text)

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal bits are promised for one kind of processor; twenty images will do for kNN here."""
    for module in ("run.context", "stages.embed"):
        monkeypatch.setattr(f"rayssl.pipeline.{module}.choose_device", lambda: CPU)
    monkeypatch.setattr(guards, "FEWEST", 10)
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)


def exported(run: Path) -> dict[str, Tensor]:
    return load_file(run / "encoder.safetensors")


def rows(run: Path, stage: str) -> list[dict[str, Any]]:
    return [row for row in MetricsLog(run).rows() if row["stage"] == stage]


def guard_facts(run: Path) -> dict[str, Any]:
    return read_manifest(run)["stages"]["pretrain"]["guard"]  # type: ignore[no-any-return]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def first_state(run: Path) -> dict[str, Tensor]:
    work = Work.open(run, Silent())
    return {name: value.float() for name, value in new_encoder(work.config).net.state_dict().items()}


# Whole runs


def falling(monkeypatch: pytest.MonkeyPatch, figures: list[float]) -> None:
    """Looks find these shares of hits, one after the other: of 100 images."""
    given = iter(figures)

    def hits(*_: Any) -> NDArray[np.float64]:
        return (np.arange(100) < 100 * next(given)).astype(np.float64)

    monkeypatch.setattr(guards, "knn_hits", hits)


def test_a_ruinous_rate_is_stopped_and_the_start_is_exported(prepared: Prepare) -> None:
    changes = {**LABELLED, "train.learning_rate": RUINOUS, "encoder.name": "resnet-tiny", "train.steps": 10}
    run = prepared("run", "simclr", changes).run
    listener = Listener()
    pretrain(run, listener)
    facts = guard_facts(run)
    assert facts["stopped"] is not None
    assert facts["stopped"] < 10
    assert facts["best_step"] == 0
    start = first_state(run)
    found = exported(run)
    assert all(torch.equal(value, start[name].to(value.dtype)) for name, value in found.items())
    assert json.loads((run / "encoder.json").read_text())["extra"]["step"] == 0
    assert any("training was stopped after step" in text for text in listener.messages)
    # It is done: neither the same command nor a longer one trains on.
    for steps in (10, 20):
        listener = Listener()
        prepared("run", "simclr", {**changes, "train.steps": steps})
        pretrain(run, listener)
        assert same(exported(run), found)
        told = [text for text in listener.messages if "training was stopped" in text]
        assert len(told) == (steps == 20)


def test_the_best_state_is_exported(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    falling(monkeypatch, [0.5, 0.7, *[0.6] * 9, 0.7, *[0.5] * 9])
    run = prepared("run", "simclr", LABELLED).run
    pretrain(run)
    assert guard_facts(run) == {"measure": "knn", "start": 0.5, "best": 0.7, "best_step": 1, "stopped": None}
    assert [row["guard/knn"] for row in rows(run, "guard")] == [0.5, 0.7, *[0.6] * 9, 0.7, *[0.5] * 9]
    assert [row["step"] for row in rows(run, "guard")] == list(range(21))
    falling(monkeypatch, [0.5])
    short = prepared("short", "simclr", {**LABELLED, "train.guard": "no"}).run
    with pytest.raises(Stopped):
        pretrain(short, Listener(stop_at=1))
    found = find_checkpoint(short / "checkpoints")
    assert found is not None
    after_one = load_file(found / "model.safetensors")
    assert all(torch.equal(value, after_one[f"encoder.net.{name}"]) for name, value in exported(run).items())


def test_a_little_better_by_chance_is_not_better(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    falling(monkeypatch, [0.5, *[0.51] * 20])  # one image of a hundred: a paired standard error is as much
    run = prepared("run", "simclr", LABELLED).run
    pretrain(run)
    assert guard_facts(run)["best_step"] == 0


def test_one_bad_look_ends_nothing(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    falling(monkeypatch, [0.5, *[0.2, 0.5] * 10])
    run = prepared("run", "simclr", LABELLED).run
    pretrain(run)
    assert guard_facts(run)["stopped"] is None
    assert len(rows(run, "pretrain")) == 20


@pytest.mark.parametrize("method", METHODS)
def test_looking_changes_no_bit_of_training(method: str, prepared: Prepare) -> None:
    found = {}
    for watch in ("yes", "no"):
        changes = {**LABELLED, "train.guard": watch, "train.learning_rate": 1e-3}
        run = prepared(watch, method, changes).run
        pretrain(run)
        checkpoint = find_checkpoint(run / "checkpoints")
        assert checkpoint is not None
        assert checkpoint.name == "step-000000020"
        losses = [row["train/loss"] for row in rows(run, "pretrain")]
        found[watch] = (load_file(checkpoint / "model.safetensors"), losses)
    assert found["yes"][1] == found["no"][1]
    assert same(found["yes"][0], found["no"][0])


@pytest.mark.parametrize("poll", [3, 8])
def test_a_run_that_was_stopped_decides_as_one_that_was_not(
    poll: int, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = [0.5, 0.5, 0.8, 0.6, 0.2, 0.5, 0.5, 0.2, 0.2, 0.9]
    falling(monkeypatch, figures)
    whole = prepared("whole", "rotnet", LABELLED).run
    pretrain(whole)
    assert guard_facts(whole)["stopped"] == 8
    falling(monkeypatch, figures)
    parts = prepared("parts", "rotnet", LABELLED).run
    if poll < 8:
        with pytest.raises(Stopped):
            pretrain(parts, Listener(stop_at=poll))
        assert not (parts / "encoder.safetensors").exists()
    pretrain(parts)
    assert guard_facts(parts) == guard_facts(whole)
    assert rows(parts, "guard") == rows(whole, "guard")
    assert same(exported(parts), exported(whole))


def test_without_labels_the_last_state_near_the_start_is_kept(
    prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train.guard": "yes", "train.steps": 20}  # five validation images: too few for kNN
    slow = prepared("slow", "simclr", {**changes, "train.learning_rate": 1e-6}).run
    pretrain(slow)
    assert guard_facts(slow)["measure"] == "agreement"
    assert (guard_facts(slow)["best_step"], guard_facts(slow)["stopped"]) == (20, None)
    assert next(row["guard/agreement"] for row in rows(slow, "guard")) == 1.0
    moved = iter([0, 0, 1, 2, 1, 2, 3])  # of five; the first two are the start's
    monkeypatch.setattr(guards, "votes", lambda *_: (np.arange(5) < next(moved)).astype(np.int64))
    fast = prepared("fast", "simclr", changes).run
    pretrain(fast)
    facts = guard_facts(fast)
    assert (facts["best_step"], facts["stopped"], facts["best"]) == (3, 5, 0.8)


def test_a_loss_that_is_no_number_is_an_end_like_any(prepared: Prepare) -> None:
    changes = {**LABELLED, "train.learning_rate": 1e30}
    with pytest.raises(UserError, match="the loss is"):
        pretrain(prepared("unwatched", "simclr", {**changes, "train.guard": "no"}).run)
    run = prepared("run", "simclr", changes).run
    pretrain(run)
    assert guard_facts(run)["best_step"] == 0
    assert load_encoder(run).dim


def test_a_decoder_stays_with_its_encoder(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayssl.pipeline.generate.decoder import open_trained

    falling(monkeypatch, [0.5, 0.9, *[0.5] * 19])
    run = prepared("run", "autoencoder", LABELLED).run
    pretrain(run)
    checkpoint = find_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    kept = {name.removeprefix("kept."): value for name, value in load_file(checkpoint / "extra.safetensors").items()}
    found = open_trained(run).method.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in found.items())


def test_it_watches_over_given_weights(prepared: Prepare) -> None:
    first = prepared("first", "simclr", {"train.steps": 1}).run
    pretrain(first)
    assert not rows(first, "guard")
    second = prepared("second", "simclr", {"train.steps": 1, "encoder.weights": str(first)}).run
    pretrain(second)
    assert [row["step"] for row in rows(second, "guard")] == [0, 1]
    third = prepared("third", "simclr", {"train.steps": 1, "encoder.weights": str(first), "train.guard": "no"}).run
    pretrain(third)
    assert not rows(third, "guard")


# Parts


def test_paired_errors() -> None:
    a, b = np.array([1.0, 0, 1, 1]), np.array([0.0, 0, 1, 1])
    assert paired_error(a, b) == pytest.approx(0.25)
    assert paired_error(a[:1], b[:1]) == 0.0


def test_neighbours_vote_for_groups() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(3, 8, dtype=np.float32)
    references, queries = (
        np.concatenate([centre + 0.1 * rng.standard_normal((count, 8)) for centre in centres]).astype(np.float32)
        for count in (20, 4)
    )
    groups = groups_of(references, 0)
    assert sorted(np.bincount(groups)) == [20, 20, 20]
    assert votes(queries, references, groups).tolist() == np.repeat(groups[::20], 4).tolist()
    turned = np.roll(queries, 1, axis=1)
    assert not (votes(turned, references, groups) == votes(queries, references, groups)).all()
    assert set(votes(queries * np.nan, references, groups)) == {-1}


def test_looks_cost_a_share_of_the_run() -> None:
    views, steps = 256, 10_000
    assert 20 * look_size(steps, views) == pytest.approx(0.15 * 3 * views * steps, rel=1e-3)
    assert look_size(10, 2) == 1024


def test_the_sample_is_bounded_and_labelled_where_it_can_be(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepared("run", "simclr", LABELLED).dataset
    classes = len(dataset.class_names or ())
    sample = draw_sample(dataset.train, dataset.val, classes, 0, 1024)
    assert sample is not None
    assert (sample.measure, len(sample.queries)) == ("knn", len(dataset.val))
    monkeypatch.setattr(guards, "QUERIES", 7)
    monkeypatch.setattr(guards, "REFERENCES", 11)
    few = draw_sample(dataset.train, dataset.val, 0, 0, 1024)
    assert few is not None
    assert (few.measure, len(few.queries), len(few.references)) == ("agreement", 7, 11)
    assert draw_sample(dataset.train, dataset.val.select([]), classes, 0, 1024) is None


def test_the_figure_is_that_of_the_evaluation(prepared: Prepare) -> None:
    from rayssl.pipeline.base.vectors import knn_classify
    from rayssl.pipeline.features.extract import embed_images

    work = Work.open(prepared("run", "simclr", LABELLED).run, Silent())
    encoder, data = new_encoder(work.config), work.dataset
    sample = draw_sample(data.train, data.val, len(data.class_names or ()), 0, 1024)
    assert sample is not None
    encoder.train()
    hits = validation_knn(encoder, sample, device=CPU, precision="fp32")
    assert encoder.net.training
    train, val = (embed_images(encoder, images, device=CPU, precision="fp32") for images in (data.train, data.val))
    assert data.train.labels is not None
    found = knn_classify(train, data.train.labels, val, 20, 0.07, 3)
    assert hits.tolist() == (found == data.val.labels).tolist()
    with torch.no_grad():
        next(encoder.parameters()).fill_(math.nan)
    assert not validation_knn(encoder, sample, device=CPU, precision="fp32").any()


# Rates, frozen stages, adapters


class Holder(nn.Module):
    """An encoder and a head, as methods have."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, 2)


@pytest.mark.parametrize(
    ("name", "size", "first", "last"),
    [
        ("resnet-tiny", 16, "conv1.weight", "layer3.0.conv2.weight"),
        ("mobilenet_v3_small", 32, "features.0.0.weight", "features.12.0.weight"),
        ("vit_b_32", 32, "class_token", "encoder.ln.weight"),
        ("regnet_x_400mf", 32, "stem.0.weight", "trunk_output.block4.block4-1.f.a.0.weight"),
    ],
)
def test_rates_fall_towards_the_input(name: str, size: int, first: str, last: str) -> None:
    encoder = build_encoder(name, channels=3, image_size=size)
    holder = Holder(encoder)
    scales = rate_scales(encoder, 0.5)
    parameters = dict(encoder.net.named_parameters())
    assert set(scales) == set(parameters.values())
    assert scales[parameters[first]] == 0.5 ** (len(stage_paths(encoder)) - 1)
    assert scales[parameters[last]] == 1.0
    numbers = [scales[parameter] for parameter in parameters.values()]
    assert numbers == sorted(numbers)
    groups = parameter_groups(holder, 0.1, scales)
    assert sum(len(group["params"]) for group in groups) == len(list(holder.parameters()))
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_learning_rate(optimizer, 0.1)
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rates[holder.head.weight] == 0.1
    assert rates[parameters[first]] == 0.1 * scales[parameters[first]]


def test_a_scaled_rate_is_a_scaled_step() -> None:
    encoder = build_encoder("cnn-small", channels=3, image_size=16)
    for name in ("sgd", "adamw", "lars", "muon"):
        holder = Holder(encoder)
        scales = dict.fromkeys(encoder.parameters(), 0.0)
        optimizer = build_optimizer(name, parameter_groups(holder, 0.1, scales), learning_rate=0.1)
        before = {key: value.clone() for key, value in holder.state_dict().items()}
        set_learning_rate(optimizer, 0.1)
        holder.head(encoder(torch.rand(4, 3, 16, 16))).square().sum().backward()
        optimizer.step()
        moved = [key for key, value in holder.named_parameters() if not torch.equal(value, before[key])]
        assert moved == ["head.weight", "head.bias"]


def test_frozen_stages_keep_bits_and_statistics(prepared: Prepare) -> None:
    changes = {"train.steps": 3, "train.freeze": 2, "encoder.name": "resnet-tiny", "train.layer_decay": 0.5}
    run = prepared("run", "simclr", changes).run
    start = first_state(run)
    pretrain(run)
    moved = {name.split(".")[0] for name, value in exported(run).items() if not torch.equal(value, start[name])}
    assert moved == {"layer3"}


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("resnet-tiny", TrainConfig(freeze=3), "--train.freeze 3: resnet-tiny has 3 stages"),
        ("linear", TrainConfig(freeze=1), "--train.freeze 1: linear has 1 stage"),
        ("resnet-tiny", TrainConfig(lora=4), "--train.lora 4: resnet-tiny has no linear layers"),
    ],
)
def test_what_has_no_such_parts_is_refused_in_one_line(name: str, settings: TrainConfig, told: str) -> None:
    with pytest.raises(UserError) as error:
        restrict(build_encoder(name, channels=3, image_size=16), settings)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_it_is_refused_before_anything_is_written(prepared: Prepare, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cnn-small has 3 stages"):
        prepared("run", "simclr", {"train.freeze": 3})
    assert not (tmp_path / "run").exists()


def test_without_peft_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"^--train.lora 2 needs peft: pip install 'rayssl\[lora\]'$"):
        add_adapters(build_encoder("resnet-tiny", channels=3, image_size=16), 2)


def test_adapters_are_part_of_the_weights_in_the_end(prepared: Prepare) -> None:
    changes = {
        "train.lora": 2, "encoder.name": "timm/test_vit", "data.image_size": 32, "train.steps": 2, "train.guard": "no",
        "train.optimizer": "adamw", "train.learning_rate": 1e-2,
    }  # fmt: skip
    whole = prepared("whole", "simclr", changes).run
    start = first_state(whole)
    pretrain(whole)
    found = exported(whole)
    assert found.keys() == start.keys()
    moved = {name for name, value in found.items() if not torch.equal(value, start[name])}
    assert moved
    assert all(name.startswith("blocks.") and name.endswith("weight") and "norm" not in name for name in moved)
    parts = prepared("parts", "simclr", changes).run
    with pytest.raises(Stopped):
        pretrain(parts, Listener(stop_at=1))
    pretrain(parts)
    assert same(exported(parts), found)


@pytest.mark.parametrize(
    ("name", "blocks", "layers"),
    # torchvision's attention multiplies by its layers' weights itself: only the others can have adapters
    [("timm/test_vit", 6, 4), ("vit_b_32", 12, 2)],
)
def test_merged_is_unmerged_but_for_rounding(name: str, blocks: int, layers: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, channels=3, image_size=32).eval()
    names = list(encoder.state_dict())
    x = torch.rand(2, 3, 32, 32)
    before = encoder(x)
    add_adapters(encoder, 3, freeze=blocks - 2)
    adapters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert len(adapters) == 2 * layers * 2  # two blocks; two matrices a layer
    torch.testing.assert_close(encoder(x), before)
    for parameter in adapters:
        nn.init.normal_(parameter, std=0.1)
    unmerged = encoder(x)
    assert not torch.allclose(unmerged, before, atol=1e-3)
    merged = without_adapters(encoder)
    assert list(merged.state_dict()) == names
    torch.testing.assert_close(merged(x), unmerged, rtol=1e-4, atol=1e-5)


def test_the_optimizer_holds_what_is_trained(prepared: Prepare) -> None:
    work = Work.open(prepared("run", "simclr", {"train.freeze": 1, "encoder.name": "resnet-tiny"}).run, Silent())
    method = new_method(work.config, work)
    held = [p for group in new_optimizer(method, work.config.train).param_groups for p in group["params"]]
    frozen = [p for p in method.parameters() if not any(p is other for other in held)]
    names = {name for name, p in method.named_parameters() if any(p is other for other in frozen)}
    assert {name.split(".")[2] for name in names} == {"conv1", "bn1", "layer1"}
    assert TrainConfig().layer_decay == 1.0


def test_a_guard_is_built_of_plain_values() -> None:
    assert "Config" not in Guard.__init__.__annotations__
