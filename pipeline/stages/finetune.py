"""Fine-tuning: the encoder and a linear head trained on few labels, over several draws of these."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.device import to_float
from rayssl.pipeline.base.documents import load
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.schemas import Draws
from rayssl.pipeline.base.seals import damaged_of, fits
from rayssl.pipeline.config import TrainConfig
from rayssl.pipeline.methods.classifier import Classifier, ClassifierConfig, draw_labelled, predict
from rayssl.pipeline.models.export import export_encoder, load_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.identity import read_manifest as read_export_manifest
from rayssl.pipeline.run.build import loader_processes, new_encoder, new_optimizer, schedule_of, to_device, traits_of
from rayssl.pipeline.run.context import Stopped, Work
from rayssl.pipeline.run.folder import stage_key
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.search.described import test_images
from rayssl.pipeline.stages.done import already_done, is_whole, key_of, stage
from rayssl.pipeline.stages.features import BASELINE
from rayssl.pipeline.stages.labels import require_labels
from rayssl.pipeline.stages.records import new_record, record
from rayssl.pipeline.training.batches import Order, Views, load_batches
from rayssl.pipeline.training.loop import Hooks, Loop
from rayssl.pipeline.training.step import Step


def run_finetune(work: Work) -> None:
    """Train the encoder and a linear head on few labels; mean and standard deviation over draws of the labels."""
    settings = work.config.finetune
    key = key_of("finetune", work.run, work.config, work.dataset)
    if already_done(work, "finetune", key):
        return
    require_labels(work.dataset, "finetune")
    with stage(work, "finetune", key):
        record_finetuning(work, "", finetune_draws(work, scratch=False))
        if settings.scratch:
            record_finetuning(work, f"baseline/{BASELINE}/", finetune_draws(work, scratch=True))


def record_finetuning(work: Work, prefix: str, accuracies: list[float]) -> None:
    """Mean and standard deviation over the draws of the labelled images."""
    settings = work.config.finetune
    amount = f"{100 * settings.label_fraction:g}% of the labels, at least one a class"
    name = f"finetune@{100 * settings.label_fraction:g}%"
    if settings.labels_per_class is not None:
        amount, name = f"{settings.labels_per_class} labels a class", f"finetune@{settings.labels_per_class}-a-class"
    mean, spread = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
    interval = [mean - spread, mean + spread] if spread is not None else None
    protocol = (
        f"whole network{' without pre-training' if prefix else ''}, {amount} ({settings.draws} stratified draws: mean, "
        f"± one standard deviation over draws), {settings.epochs} epochs of SGD, last epoch"
    )
    tested = len(test_images(work).labelled()[0])
    record(work, [new_record(work, f"{prefix}{name}/top1", mean, protocol, tested, interval)])


def finetune_draws(work: Work, *, scratch: bool) -> list[float]:
    """Test accuracies of all draws; those that were finished before, of this or another amount, are not done again."""
    path = work.run / "checkpoints" / "finetune.json"
    settings = replace(work.config.finetune, scratch=scratch)
    key = stage_key(dataclasses.asdict(settings), encoder_hash(work.run), work.dataset.fingerprint)
    accuracies = collectives.broadcast_object(finished_draws(path).get(key, []) if work.is_main else [])
    if accuracies and not scratch and not collectives.broadcast_object(work.is_main and keeps_draws_of(work.run, key)):
        accuracies[0] = finetune_draw(work, 0, key, scratch=False)  # finetuned/ is another amount's
    for draw in range(len(accuracies), settings.draws):
        accuracies.append(finetune_draw(work, draw, key, scratch=scratch))
        if work.is_main:
            write_json(path, {**finished_draws(path), key: accuracies})
    return accuracies


def keeps_draws_of(run: Path, key: str) -> bool:
    """Whether finetuned/ is whole and of the draws with this key."""
    whole = not damaged_of(run, "finetuned/") and is_whole(lambda: load_encoder(run / "finetuned"))
    return whole and draws_in(run / "finetuned") == key


def draws_in(folder: Path) -> Any:
    """The key of the draws that a fine-tuned encoder is of."""
    return read_export_manifest(folder).get("extra", {}).get("draws")


def finished_draws(path: Path) -> dict[str, list[float]]:
    """Accuracies of the draws that were finished, by a hash of what they depend on."""
    if fits(path) is False:  # changed, or gone: they are done again
        return {}
    try:
        found: dict[str, list[float]] = load(path, Draws, "")
    except UserError:
        return {}
    return found


def finetune_draw(work: Work, draw: int, key: str, *, scratch: bool) -> float:
    """Test accuracy after fine-tuning on one draw of labelled images; the first draw's encoder is kept in finetuned/.

    `key` tells these draws from others; `scratch`: the same network as it was initialised, which is not kept.
    """
    settings, seed = work.config.finetune, work.config.train.seed
    rows, labels = work.dataset.train.labelled()
    chosen = draw_labelled(
        labels,
        fraction=settings.label_fraction,
        per_class=settings.labels_per_class,
        seed=seed,
        draw=draw,
    )
    images = work.dataset.train.select(rows[chosen])
    world = collectives.world_size()
    batch = min(settings.batch_size, len(images)) // world * world
    if batch == 0:
        raise UserError(f"--cluster.workers is {world}: there are only {len(images)} labelled images to fine-tune on")
    traits = traits_of(work.config, work.dataset)
    encoder = new_encoder(work.config, weights=False) if scratch else load_encoder(work.run)
    torch.manual_seed(seed + draw)
    classifier = Classifier(ClassifierConfig(len(work.dataset.class_names or ())), encoder, traits)
    to_device(classifier, work)
    order = Order(len(images), batch, seed + draw)
    steps = settings.epochs * order.steps_per_epoch
    rates = TrainConfig(
        learning_rate=settings.learning_rate, batch_size=batch, weight_decay=settings.weight_decay, nesterov=True
    )
    views = Views(
        images, order, Classifier.default_views(traits), traits.image_size, seed + draw, collectives.rank(), world
    )
    name = f"finetune{'-scratch' if scratch else ''}/{draw}"
    log = MetricsLog(work.run)
    if work.is_main:
        log.cut_back(name, 0)
    hooks = Hooks(
        log=lambda rows: log.append(rows) if work.is_main else None,
        progress=lambda row: work.reporter.progress({"run": work.run.name, **row}),
        should_stop=work.reporter.should_stop,
    )
    step = Step(classifier, new_optimizer(classifier, rates), work.device, work.precision, seed + draw, steps)
    loop = Loop(step, name, order.steps_per_epoch, schedule_of(rates, steps, order.steps_per_epoch), hooks)
    done = loop.run(load_batches(views, 0, steps, loader_processes(work.config, work.device)), 0, steps)
    if done < steps:
        raise Stopped(done, steps)
    if work.is_main and draw == 0 and not scratch:
        facts = {"stage": "finetune", "encoder": encoder_hash(work.run), "draws": key}
        export_encoder(classifier.encoder, work.run / "finetuned", facts)
    return test_accuracy(work, classifier)


def test_accuracy(work: Work, classifier: Classifier) -> float:
    """Share of the labelled test images that the classifier gets right."""
    test = test_images(work)
    rows, labels = test.labelled()
    correct = 0
    for start in range(0, len(rows), 256):
        pixels = torch.from_numpy(test.square(rows[start : start + 256], work.dataset.image_size))
        found = predict(classifier, to_float(pixels, work.device, work.precision))
        correct += int((found == labels[start : start + 256]).sum())
    return correct / len(rows)
