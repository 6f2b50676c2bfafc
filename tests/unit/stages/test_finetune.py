"""Few labels are drawn fairly, and the classifier is the encoder with a head."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.evaluation.measure import read_evaluation
from rayssl.pipeline.methods.base import Batch, Traits
from rayssl.pipeline.methods.classifier import Classifier, ClassifierConfig, draw_labelled, predict
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.models.export import export_encoder
from rayssl.pipeline.run.context import Stopped
from rayssl.pipeline.stages import finetune
from rayssl.pipeline.stages.finetune import finished_draws
from rayssl.pipeline.stages.story import run_worker_stages

LABELS: NDArray[np.int64] = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [400, 100, 40, 4]))


def counts(chosen: NDArray[np.int64]) -> list[int]:
    return list(np.bincount(LABELS[chosen], minlength=4).tolist())


def draw(fraction: float = 0.1, per_class: int | None = None, seed: int = 0, number: int = 0) -> NDArray[np.int64]:
    return draw_labelled(LABELS, fraction=fraction, per_class=per_class, seed=seed, draw=number)


def test_the_share_of_every_class_and_at_least_one() -> None:
    assert counts(draw(0.1)) == [40, 10, 4, 1]
    assert counts(draw(0.001)) == [1, 1, 1, 1]
    assert draw(1.0).tolist() == list(range(len(LABELS)))


def test_so_many_of_every_class() -> None:
    assert counts(draw(per_class=4)) == [4, 4, 4, 4]


def test_too_many_of_a_class() -> None:
    with pytest.raises(UserError, match=r"--finetune\.labels-per-class is 5: class 3 has only 4 training images"):
        draw(per_class=5)


def test_positions_are_unique_and_sorted() -> None:
    chosen = draw(0.5)
    assert chosen.dtype == np.int64
    assert (np.diff(chosen) > 0).all()


def test_draws_are_functions_of_the_seed() -> None:
    assert draw().tolist() == draw().tolist()
    assert draw(number=0).tolist() != draw(number=1).tolist()
    assert draw(seed=0).tolist() != draw(seed=1).tolist()


def test_draws_overlap_as_chance_has_it() -> None:
    # Two independent draws of 10 % of 400 share 4 on average; 100 pairs have a standard error of 0.18.
    shared = [len(set(draw(number=n).tolist()) & set(draw(number=n + 1).tolist())) for n in range(0, 200, 2)]
    assert 5 < np.mean(shared) - 0.25 < 6  # 4 + 1 + 0.4 of the first classes, and a quarter of the last


def new_classifier(classes: int = 3) -> Classifier:
    torch.manual_seed(0)
    encoder = build_encoder("cnn-small", channels=3, image_size=16)
    return Classifier(ClassifierConfig(classes), encoder, Traits(16, 3, True))


def new_batch() -> Batch:
    torch.manual_seed(1)
    return Batch([torch.rand(6, 3, 16, 16)], torch.arange(1, 7), torch.tensor([0, 1, 2, 0, 1, 2]), 0, 0, 0)


def test_the_first_loss_is_that_of_no_knowledge() -> None:
    output = new_classifier(3)(new_batch())
    assert output.loss.item() == pytest.approx(np.log(3), rel=1e-6)
    assert float(output.logs["train/accuracy"]) == pytest.approx(1 / 3)


def test_the_encoder_is_trained_too() -> None:
    classifier = new_classifier()
    torch.nn.init.normal_(classifier.head.weight)
    classifier(new_batch()).loss.backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None, name
    assert any(float(p.grad.abs().max()) > 0 for p in classifier.encoder.parameters() if p.grad is not None)


def test_predictions_are_the_heads_in_eval_mode() -> None:
    classifier = new_classifier()
    torch.nn.init.normal_(classifier.head.weight)
    pixels = new_batch().views[0]
    found = predict(classifier, pixels)
    assert not classifier.training
    with torch.no_grad():
        expected = classifier.head(classifier.encoder(pixels)).argmax(dim=1)
    assert found.tolist() == expected.tolist()
    assert np.array_equal(np.concatenate([predict(classifier, pixels[:2]), predict(classifier, pixels[2:])]), found)


def test_double_precision_stays_double() -> None:
    classifier, batch = new_classifier().double(), new_batch()
    torch.nn.init.normal_(classifier.head.weight)
    pixels = batch.views[0].double()
    assert classifier(replace(batch, views=[pixels])).loss.dtype == torch.float64
    assert predict(classifier, pixels).tolist() == predict(classifier.float(), pixels.float()).tolist()


def test_one_view_is_asked_for() -> None:
    assert len(Classifier.default_views(Traits(16, 3, True))) == 1


def test_draws_that_were_finished_before_a_stop_are_not_done_again(prepared, monkeypatch) -> None:
    run = prepared("stopped", "simclr", {"finetune.draws": 3}).run
    run_worker_stages(run, ["pretrain"], Silent())
    done = []

    def draw_once(work, draw, key, scratch):
        done.append(draw)
        export_encoder(build_encoder("cnn-small", channels=3, image_size=16), work.run / "finetuned", {"draws": key})
        if draw == 1 and done.count(1) == 1:
            raise Stopped(0, 1)
        return 0.1 * draw

    monkeypatch.setattr(finetune, "finetune_draw", draw_once)
    with pytest.raises(Stopped):
        run_worker_stages(run, ["finetune"], Silent())
    run_worker_stages(run, ["finetune"], Silent())
    assert done == [0, 1, 1, 2]
    assert read_evaluation(run)["flat"]["finetune@10%/top1"] == pytest.approx(0.1)
    (accuracies,) = finished_draws(run / "checkpoints" / "finetune.json").values()
    assert accuracies == pytest.approx([0.0, 0.1, 0.2])
    export_encoder(build_encoder("cnn-small", channels=3, image_size=16), run / "finetuned", {"draws": "others"})
    monkeypatch.setattr(finetune, "already_done", lambda *stage: False)
    run_worker_stages(run, ["finetune"], Silent())
    assert done == [0, 1, 1, 2, 0]  # the first draw's encoder is what finetuned/ holds
    (run / "checkpoints" / "finetune.json").write_text("[1]")
    assert finished_draws(run / "checkpoints" / "finetune.json") == {}
