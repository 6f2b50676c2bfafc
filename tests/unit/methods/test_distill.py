"""Distillation: targets, loss, where the teacher is and where it is not, runs that go on to the bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from small_run import StopAt, pretrain

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import load, method_config, override
from rayssl.pipeline.methods.base import Batch, Before, Traits
from rayssl.pipeline.methods.distill import Distill, DistillConfig, targets_of
from rayssl.pipeline.models import teachers
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.export import export_encoder, load_encoder
from rayssl.pipeline.models.pretrained import FILE, Available
from rayssl.pipeline.models.teachers import build_teacher, choose_teacher
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.context import Stopped
from rayssl.pipeline.stages.start import Prepared
from rayssl.pipeline.training import loop
from rayssl.pipeline.training.checkpoint import find_checkpoint

TRAITS = Traits(image_size=16, channels=3, mirror=True)
IDS = np.array([50, 7, 31, 2, 90, 64])
Floats = NDArray[np.float32]
Prepare = Callable[..., Prepared]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal bits are promised for one kind of processor; what lies on this machine plays no part."""
    for module in ("run.context", "stages.embed"):
        monkeypatch.setattr(f"rayssl.pipeline.{module}.choose_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(teachers, "available", list)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A folder with a small network's encoder, as a run leaves it."""
    torch.manual_seed(5)
    encoder = build_encoder("cnn-small", channels=3, image_size=16)
    encoder.origins = ({"role": "start", "name": "somebody's", "weights": "w", "sha256": "0", "licence": "CC-BY"},)
    export_encoder(encoder, tmp_path / "teacher")
    return tmp_path / "teacher"


def seen(width: int = 5, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((len(IDS), width)).astype(np.float32)


def build(features: Floats, ids: NDArray[np.int64] = IDS, **values: Any) -> Distill:
    torch.manual_seed(0)
    config = DistillConfig(teacher="hog", **{"dim": 3, **values})
    method = Distill(config, build_encoder("cnn-small", channels=3, image_size=16), TRAITS)
    method.prepare(Before(ids, lambda source: features))
    return method


def batch_of(ids: NDArray[np.int64]) -> Batch:
    views = [torch.rand(len(ids), 3, 16, 16, generator=torch.Generator().manual_seed(3))]
    return Batch(views, torch.from_numpy(ids), None, seed=0, epoch=0, step=0)


# Targets


def plain_targets(features: Floats, dim: int, shrinkage: float) -> NDArray[np.float64]:
    """By a singular value decomposition, one direction after the other."""
    centred = features.astype(np.float64) - features.mean(axis=0)
    _, values, right = np.linalg.svd(centred, full_matrices=False)
    variances = values**2 / len(features)
    columns = []
    for variance, direction in list(zip(variances, right, strict=True))[:dim]:
        columns.append(centred @ direction / np.sqrt(variance + shrinkage * variances.sum() / features.shape[1]))
    found = np.stack(columns, axis=1)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


@pytest.mark.parametrize("shrinkage", [0.01, 1.0])
def test_targets_are_whitened_principal_directions(shrinkage: float) -> None:
    features = (3 + np.random.default_rng(0).standard_normal((40, 6)) * np.arange(1, 7)).astype(np.float32)
    found, expected = targets_of(features, 4, shrinkage), plain_targets(features, 4, shrinkage)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)  # a direction's sign is anybody's
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


def test_targets_of_a_narrow_teacher_end_in_zeros() -> None:
    found = targets_of(seen(width=2), 4, 1.0)
    assert found.shape == (len(IDS), 4)
    assert not found[:, 2:].any()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_teacher_that_sees_no_difference_gives_finite_targets() -> None:
    assert np.isfinite(targets_of(np.ones((4, 3), np.float32), 2, 1.0)).all()


def test_targets_follow_the_ids_whatever_their_order() -> None:
    features, other = seen(), np.array([3, 0, 5, 1, 4, 2])
    method, shuffled = build(features), build(features[other], IDS[other])
    asked = torch.tensor([2, 90, 50, 2])
    rows = [list(IDS).index(int(one)) for one in asked]
    torch.testing.assert_close(method.targets_for(asked), torch.from_numpy(targets_of(features, 3, 1.0)[rows]))
    torch.testing.assert_close(shuffled.targets_for(asked), method.targets_for(asked), atol=1e-5, rtol=0)


# Loss


def test_the_loss_is_one_minus_the_cosine_to_the_teacher() -> None:
    method, batch = build(seen()), batch_of(IDS[[4, 1, 0]])
    output = method(batch)
    predicted = method.projector(method.encoder(batch.views[0])).detach().double().numpy()
    targets = targets_of(seen(), 3, 1.0)[[4, 1, 0]].astype(np.float64)
    cosines = [float(p @ t) / np.linalg.norm(p) / np.linalg.norm(t) for p, t in zip(predicted, targets, strict=True)]
    assert output.loss.item() == pytest.approx(1 - np.mean(cosines), abs=1e-5)
    assert output.logs["train/teacher_similarity"].item() == pytest.approx(np.mean(cosines), abs=1e-5)
    assert output.features.shape == (3, method.encoder.dim)
    assert not output.features.requires_grad


def test_gradients_reach_every_parameter() -> None:
    method = build(seen())
    method(batch_of(IDS)).loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_the_teacher_is_no_part_of_the_method() -> None:
    method = build(seen())
    parts = {name.split(".")[0] for name in method.state_dict()}
    assert parts == {"encoder", "projector"}
    assert method.double().targets.dtype == torch.float64  # but its targets go where the method goes


def test_views_show_most_of_an_image_and_are_mirrored_only_where_that_means_the_same() -> None:
    names = [operation.name for operation in Distill.default_views(TRAITS)[0].operations]
    assert names == ["random_resized_crop", "horizontal_flip", "color_jitter"]
    upright = Distill.default_views(Traits(16, 3, mirror=False, crop=0.5))[0].operations
    assert [operation.name for operation in upright] == ["random_resized_crop", "color_jitter"]
    assert upright[0].to_dict()["scale"] == [0.5, 1.0]


# Teachers


def known(name: str, weights: str, size: int) -> Available:
    return Available(name, weights, FILE, Path(weights), size, "")


def test_the_teacher_is_the_largest_that_a_cpu_has_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = [known("resnet18", "a", 45_000_000), known("resnet50", "b", 98_000_000), known("vit_l_16", "c", 10**9)]
    monkeypatch.setattr(teachers, "available", lambda: found)
    assert choose_teacher() == ("resnet50", "b")
    assert choose_teacher("resnet18") == ("resnet18", "a")
    assert choose_teacher("resnet34") == ("resnet34", "DEFAULT")
    monkeypatch.setattr(teachers, "available", lambda: found[2:])
    assert choose_teacher() == ("vit_l_16", "c")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(teachers, "available", lambda: found)
    assert choose_teacher() == ("vit_l_16", "c")


def test_a_run_that_goes_on_keeps_its_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "available", lambda: [known("resnet50", "new", 1)])
    before = DistillConfig(teacher="resnet18", teacher_weights="old")
    assert Distill.settle(DistillConfig(), before) == before
    assert Distill.settle(DistillConfig(teacher="resnet50"), before).teacher_weights == "new"
    assert Distill.settle(DistillConfig(teacher="hog"), before) == DistillConfig(teacher="hog")


def test_a_run_folder_is_a_teacher(teacher: Path) -> None:
    encoder = build_teacher(None, str(teacher), channels=3, image_side=96)
    assert isinstance(encoder, Encoder)
    assert (encoder.name, encoder.image_size, encoder.training) == ("cnn-small", 16, False)


def test_a_teacher_that_cannot_be_had_is_one_line(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str | None, weights: str | None, channels: int = 3) -> str:
        with pytest.raises(UserError) as error:
            build_teacher(name, weights, channels=channels, image_side=16)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "the encoder of" in refused("resnet18", str(teacher))
    assert "takes 3 channels and these images have 1" in refused(None, str(teacher), channels=1)
    assert "leave it out" in refused("hog", "DEFAULT")
    assert "name the network too" in refused(None, "somewhere.pth")
    assert "resnet" in refused("resnet81", "DEFAULT")
    assert "--method.teacher-weights NONE" in refused("resnet18", "NONE")
    file = teacher / "encoder.safetensors"
    monkeypatch.setattr(teachers, "free_memory", lambda: 1000)
    assert "choose a smaller one" in refused("cnn-small", str(file))
    with pytest.raises(UserError, match="rayssl weights timm/"):
        choose_teacher()


# Runs


def test_a_run_goes_on_to_the_bit_and_keeps_no_teacher(prepared: Prepare, teacher: Path) -> None:
    changes: dict[str, Any] = {"method.teacher": None, "method.teacher_weights": str(teacher), "method.dim": 8}
    changes |= {"train.steps": 8, "encoder.name": "cnn-small"}
    whole, parts = (prepared(name, "distill", changes).run for name in ("whole", "parts"))
    pretrain(whole)
    with pytest.raises(Stopped):
        pretrain(parts, StopAt(3))
    pretrain(parts)
    found, expected = (load_file(run / "encoder.safetensors") for run in (parts, whole))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    checkpoint = find_checkpoint(whole / "checkpoints")
    assert checkpoint is not None
    assert {name.split(".")[0] for name in load_file(checkpoint / "model.safetensors")} == {"encoder", "projector"}
    student, taught = load_encoder(whole), json.loads((whole / "encoder.json").read_text())["origin"]
    assert student.name == "cnn-small"
    assert [(one["role"], one["licence"]) for one in taught] == [("teacher", "CC-BY")]


def test_the_teacher_is_written_into_the_config(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "available", lambda: [known("resnet18", "kept", 1)])
    any_teacher = {"method.teacher": None}
    run = prepared("run", "distill", any_teacher).run
    settled = load(run / "config.json").method
    assert (settled.teacher, settled.teacher_weights) == ("resnet18", "kept")
    monkeypatch.setattr(teachers, "available", lambda: [known("resnet50", "new", 1)])
    assert prepared("run", "distill", any_teacher).config.method == settled


@pytest.mark.parametrize("values", [{"dim": 0}, {"shrinkage": 0.0}, {"projector_layers": 1}, {"temperature": 1.0}])
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--method.{next(iter(values))}"):
        method_config("distill", **values)


def test_another_student_does_not_take_the_width_of_the_recipes_own() -> None:
    recipe = build_recipe("distill-folder")
    assert recipe.encoder.width == 2
    assert override(recipe, {"encoder.name": "resnet-tiny"}).encoder.width == 2
    assert override(recipe, {"encoder.name": "cnn-small"}).encoder.width is None
    assert override(recipe, {"encoder.width": 3, "encoder.name": "resnet18"}).encoder.width == 3
