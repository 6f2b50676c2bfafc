"""What the stages hand from one to another: the right images, and nothing of a network that is no more."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.evaluation.measure import read_evaluation, write_evaluation
from rayssl.pipeline.features.whitening import fit_whitening
from rayssl.pipeline.methods.base import Method
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.search import build
from rayssl.pipeline.search.build import whitening_of
from rayssl.pipeline.stages.pretrain import run_pretrain
from rayssl.pipeline.stages.records import new_record
from rayssl.pipeline.stages.start import Prepared
from rayssl.pipeline.training.checkpoint import find_checkpoint

Prepare = Callable[..., Prepared]


def test_an_index_is_whitened_by_training_embeddings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    splits = {name: SimpleNamespace(vectors=rng.normal(size=(30, 4)).astype("float32")) for name in ("test", "train")}
    monkeypatch.setattr(build, "data_name", lambda run: "photos")
    monkeypatch.setattr(build, "load_splits", lambda run, name: splits)
    expected = fit_whitening(normalise(splits["train"].vectors))
    found = whitening_of(Path("run"))
    np.testing.assert_array_equal(found(splits["test"].vectors), expected(splits["test"].vectors))


def test_figures_of_the_encoder_before_are_gone_when_it_has_been_trained_on(prepared: Prepare) -> None:
    work = Work.open(prepared("run", "rotnet", {"train.epochs": 1}).run, Silent())
    run_pretrain(work)
    before = encoder_hash(work.run)[:12]
    write_evaluation(work.run, [new_record(work, "probe/top1", 0.5, "of the first epoch", 12, None)])
    assert read_evaluation(work.run)["records"][0]["checkpoint"] == before
    longer = Work.open(prepared("run", "rotnet", {"train.epochs": 2}).run, Silent())
    run_pretrain(longer)
    assert encoder_hash(longer.run)[:12] != before
    written = read_evaluation(longer.run)
    assert (written["records"], written["set_aside"]) == ([], [])  # gone from the file, not only set aside


def test_weights_that_are_not_finite_become_no_checkpoint(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step may ruin the weights after a loss that was a number; nothing looks at a loss again then."""
    ruin_after(monkeypatch, step=4)
    run = prepared("run", "rotnet", {"train.epochs": 1}).run  # five steps
    with pytest.raises(UserError, match=r"weights are not finite after step 5.*--train\.learning-rate"):
        run_pretrain(Work.open(run, Silent()))
    assert find_checkpoint(run / "checkpoints") is None
    assert not (run / "encoder.safetensors").exists()


def ruin_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A weight of every method is infinite after this step."""

    def ruin(self: Method[Any], done: int, total: int) -> None:
        if done == step:
            with torch.no_grad():
                next(self.parameters()).fill_(torch.inf)

    monkeypatch.setattr(Method, "after_step", ruin)
