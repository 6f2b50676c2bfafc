"""Pre-training: the method is trained, under watch or guard, and its encoder exported."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.device import plain_precision
from rayssl.pipeline.base.wandb_tracker import Tracker, start_tracker
from rayssl.pipeline.evaluation.doubts import doubts_of_training
from rayssl.pipeline.evaluation.measure import drop_stale_records
from rayssl.pipeline.generate.decoder import Trained, save_decoder
from rayssl.pipeline.generate.reconstruct import measure, reconstructs, save_pictures, summarise
from rayssl.pipeline.methods.base import Method
from rayssl.pipeline.models.export import export_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.trainable import without_adapters
from rayssl.pipeline.run.build import (
    batches_of,
    compile_or_capture,
    count_steps,
    is_guarded,
    new_encoder,
    new_method,
    new_optimizer,
    required_method,
    schedule_of,
    step_of,
)
from rayssl.pipeline.run.context import Stopped, Work
from rayssl.pipeline.run.data_paths import as_started
from rayssl.pipeline.run.folder import stage_key
from rayssl.pipeline.run.identity import check_steps, identity
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.stages.done import already_done, key_of, stage
from rayssl.pipeline.stages.records import record
from rayssl.pipeline.training.checkpoint import load_checkpoint, load_extra, save_checkpoint
from rayssl.pipeline.training.guard import Guard, draw_sample, look_size, validation_knn
from rayssl.pipeline.training.loop import Hooks, Loop, NotFinite
from rayssl.pipeline.training.watch import Watch

RECONSTRUCTED = 512  # validation images whose errors pre-training ends with; `rayssl reconstruct` takes all


def run_pretrain(work: Work) -> None:
    """Train the method and export its encoder; raises Stopped when asked to stop before the end.

    Nothing is `auto` any more in the run's config: see `rayssl.pipeline.run.auto`.
    """
    config = work.config
    per_epoch, steps = count_steps(config, len(work.dataset.train))
    key = key_of("pretrain", work.run, config, work.dataset)
    if already_done(work, "pretrain", key):
        return
    method = new_method(config, work)
    captured = compile_or_capture(method, config, work)
    optimizer = new_optimizer(method, config.train)
    with stage(work, "pretrain", key) as facts:
        start, saved = load_checkpoint(work.run / "checkpoints", model=method, optimizer=optimizer)
        check_steps(work.run, start, steps)
        guard = new_guard(work, method, steps, start, saved)
        watch = new_watch(work, method, steps, guard)
        with training_hooks(work, "pretrain", method, optimizer, start, per_epoch, guard, watch) as hooks:
            done = watched(guard, lambda: train_on(work, method, optimizer, hooks, start, captured=captured))
        if done < steps and (guard is None or guard.stopped is None):
            raise Stopped(done, steps)
        kept = done
        if guard is not None:
            guard.bring_back()
            work.reporter.message(f"{work.run}: {guard.summary()}")
            kept = guard.best_step
            facts.update(guard=guard.facts())
        encoder = without_adapters(method.kept())
        if work.is_main:
            facts_of = {"method": required_method(config), "step": kept}
            if told := export_encoder(encoder, work.run, facts_of, data=work.dataset.name):
                work.reporter.message(told)
            if method.exports_decoder:
                save_decoder(method, work.run)
            drop_stale_records(work.run, encoder_hash(work.run)[:12])
            facts.update(steps=done, precision=work.precision, device=str(work.device))
            tell_doubts(work, method, facts)
        collectives.barrier()
        if work.is_main and method.exports_decoder:
            show_reconstructions(work, method)


def tell_doubts(work: Work, method: Method[Any], facts: dict[str, Any]) -> None:
    """Say and keep what at the end of pre-training says that nothing was learned."""
    rows = [row for row in MetricsLog(work.run).rows() if row.get("stage") == "pretrain"]
    doubts = doubts_of_training(rows, method.chance(work.config.train.batch_size))
    facts.update(warnings=doubts)
    for text in doubts:
        work.reporter.message(f"{work.run}: warning: {text}")


# Pre-training


def train_on(
    work: Work,
    method: Method[Any],
    optimizer: torch.optim.Optimizer,
    hooks: Hooks,
    start: int,
    *,
    captured: bool,
) -> int:
    """Pre-training from `start` on; returns the steps done."""
    config = work.config
    per_epoch, steps = count_steps(config, len(work.dataset.train))
    step = step_of(work, config, method, optimizer, captured=captured)
    loop = Loop(step, "pretrain", per_epoch, schedule_of(config.train, steps, per_epoch), hooks)
    return loop.run(batches_of(work, work.dataset.train, config, start, steps), start, steps)


@contextmanager
def training_hooks(
    work: Work,
    name: str,
    method: Method[Any],
    optimizer: torch.optim.Optimizer,
    start: int,
    per_epoch: int,
    guard: Guard | None,
    watch: Watch,
) -> Iterator[Hooks]:
    """Log to metrics.jsonl and wandb, checkpoint by time and epoch, look as guard or watch do. Only rank 0 writes."""
    settings = work.config.train
    log = MetricsLog(work.run)
    tracker: Tracker | None = None
    last_time, last_step = time.monotonic(), start  # of the last checkpoint
    if work.is_main:
        log.cut_back(name, start)
        if guard is not None:
            log.cut_back("guard", start + 1 if start else 0)  # the state after `start` steps has been looked at
        if start:
            work.reporter.message(f"{work.run}: continues after step {start}")
        tracker = start_tracker(
            work.config.wandb,
            folder=work.run,
            name=work.run.name,
            run_id=stage_key(identity(as_started(work.run, work.config)), str(work.run.resolve()))[:12],
            config=configuration.to_dict(work.config),
            warn=work.reporter.message,
        )

    def log_rows(rows: list[dict[str, Any]]) -> None:
        if tracker is not None:
            log.append(rows)
            tracker.log(rows)

    def show(row: dict[str, Any]) -> None:
        if work.is_main:
            work.reporter.progress({"run": work.run.name, **row})

    def checkpoint(step: int) -> None:
        nonlocal last_time, last_step
        last_time, last_step = time.monotonic(), step
        check_finite(method, step)
        if work.is_main:
            folder, keep = work.run / "checkpoints", settings.keep_checkpoints
            extra, state = guard.state() if guard is not None else ({}, None)
            facts = (
                {"stage": name}
                if guard is None
                else {"stage": name, "guard": {"state": state, "size": guard.sample.size}}
            )
            save_checkpoint(folder, step=step, model=method, optimizer=optimizer, keep=keep, facts=facts, extra=extra)
        collectives.barrier()

    def due(step: int) -> bool:
        # Asked only now and then, so an epoch may have ended some steps ago.
        late = time.monotonic() - last_time > 60 * settings.checkpoint_minutes
        epochs = settings.checkpoint_epochs * per_epoch
        return work.is_main and (late or step // epochs > last_step // epochs)

    def tell(guard: Guard) -> None:
        log_rows([guard.row()])
        work.reporter.message(f"{work.run}: {guard.line()}")

    def watched_rows(rows: list[dict[str, Any]]) -> None:
        log_rows(rows)
        watch.see(rows)

    def glance(step: int) -> bool:
        watch.look(step)
        return False

    hooks = Hooks(watched_rows, show, checkpoint, due, work.reporter.should_stop, watch.look_due, glance)
    if guard is not None:

        def look(step: int) -> bool:
            ends = guard.look(step)
            tell(guard)
            return ends

        hooks = replace(hooks, look_due=guard.due, look=look)
        if not guard.has_begun:
            guard.begin(start)
            tell(guard)
    yield hooks
    if tracker is not None:
        tracker.finish({})


def check_finite(method: Method[Any], step: int) -> None:
    """Raises UserError where a weight is not finite: such a state must not replace a good checkpoint."""
    if all(bool(torch.isfinite(parameter).all()) for parameter in method.parameters()):
        return
    raise NotFinite(
        f"the weights are not finite after step {step}, though the loss was: the gradient grew out of bounds: lower "
        "--train.learning-rate, or limit the gradient with --train.clip-grad 1",
        step,
    )


def new_guard(work: Work, method: Method[Any], steps: int, start: int, saved: Any) -> Guard | None:
    """The guard over pre-training, where there is one: as it was after `start` steps, from a checkpoint's facts."""
    settings, data = work.config.train, work.dataset
    if not is_guarded(work.config):
        return None
    classes = 0 if data.some_classes else len(data.class_names or ())
    # Runs of older versions have no guard in their checkpoints; one that is made longer goes on looking at the same.
    before = saved.get("guard") if saved is not None else None
    size = before["size"] if before else look_size(steps, settings.batch_size * len(work.config.augment.views or ()))
    sample = draw_sample(data.train, data.val, classes, settings.seed, size)
    if sample is None:
        work.reporter.message(f"{work.run}: no validation images: nothing guards the weights it starts from")
        return None
    prefix = method.kept_prefix()
    guard = Guard(
        method,
        sample,
        steps=steps,
        keeps=lambda name: method.exports_decoder or name.startswith(prefix),
        device=work.device,
        precision=plain_precision(work.precision),
    )
    if before:
        guard.restore(load_extra(work.run / "checkpoints", start), before["state"])
    return guard


def new_watch(work: Work, method: Method[Any], steps: int, guard: Guard | None) -> Watch:
    """The watch over pre-training; where a guard looks at validation kNN, the watch does not."""
    settings, data = work.config.train, work.dataset
    classes = 0 if data.some_classes or guard is not None else len(data.class_names or ())
    size = look_size(steps, settings.batch_size * len(work.config.augment.views or ()))
    sample = draw_sample(data.train, data.val, classes, settings.seed, size)

    def hits() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert sample is not None
        devices = [work.device] if work.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # which making a network seeds
            untrained = new_encoder(work.config, weights=False).to(work.device)
        precision = plain_precision(work.precision)
        now, before = (
            validation_knn(encoder, sample, device=work.device, precision=precision)
            for encoder in (method.kept(), untrained)
        )
        return now, before

    measured = hits if sample is not None and sample.measure == "knn" else None
    return Watch(steps, method.chance(settings.batch_size), measured, work.reporter.message)


def watched(guard: Guard | None, go_on: Callable[[], int]) -> int:
    """Train, unless the guard has ended it before; returns the steps done.

    Where there is a guard a loss that is no number is an end, too: there is a better state to keep.
    """
    if guard is None:
        return go_on()
    if guard.stopped is not None:
        return guard.stopped
    try:
        return go_on()
    except NotFinite as error:
        guard.stop(error.step, "the loss was no number any more")
        return error.step


def show_reconstructions(work: Work, method: Method[Any]) -> None:
    """figures/reconstructions.png, and the errors of the first validation images; of a PixelCNN their likelihood."""
    trained = Trained(
        work.run,
        work.config,
        work.dataset,
        method.eval(),
        work.device,
        plain_precision(work.precision),
        own_encoder=True,
    )
    images = trained.held_out.select(np.arange(min(len(trained.held_out), RECONSTRUCTED)))
    if reconstructs(trained):
        save_pictures(trained, images, work.run / "figures" / "reconstructions.png")
    figures = measure(trained, images, 0, lambda done, total: None)
    record(work, [summarise(trained, name, values, 0) for name, values in figures.items()])
