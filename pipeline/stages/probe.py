"""The linear probe: every stage of the encoder, of an untrained one, and baselines."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.evaluation.baselines import VERSIONS, Pictures, probe_baseline
from rayssl.pipeline.evaluation.measure import Record, write_evaluation
from rayssl.pipeline.evaluation.metrics import interval_of_proportion
from rayssl.pipeline.evaluation.probe import ProbeResult, probe
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.search.described import test_images
from rayssl.pipeline.stages.done import already_done, key_of, stage
from rayssl.pipeline.stages.features import counting, encoders_to_compare, features_of, split_of
from rayssl.pipeline.stages.labels import require_labels
from rayssl.pipeline.stages.records import new_record, record


def run_probe(work: Work) -> None:
    """Linear probes on every stage of the encoder, of a randomly initialised one, and on baselines without any."""
    key = key_of("probe", work.run, work.config, work.dataset)
    if already_done(work, "probe", key):
        return
    require_labels(work.dataset, "probe")
    with stage(work, "probe", key):
        for prefix, encoder in encoders_to_compare(work):
            sets = [features_of(work, encoder, prefix, split) for split in ("train", "val", "test")]
            probe_stages(work, prefix, {name: [s[name] for s in sets] for name in sets[0]})
        if work.is_main:
            probe_baselines(work)


def probe_stages(work: Work, prefix: str, stages: dict[str, list[NDArray[np.float32]]]) -> None:
    """Probe every stage; the one that is best on validation images is the result."""
    if not work.is_main:
        return
    results: dict[str, ProbeResult] = {}
    for name, vectors in stages.items():
        row = {"run": work.run.name, "stage": f"{prefix}probe", "done": len(results), "total": len(stages)}
        work.reporter.progress(row)
        results[name] = fit_probe(work, vectors)
    best = max(reversed(results), key=lambda name: results[name].val_accuracy)  # the deeper one where they tie
    cells = f"maps pooled to {work.config.probe.pool} × {work.config.probe.pool}"
    records = [
        probe_record(work, f"{prefix}probe/{name}/top1", f"{name} ({cells})", result)
        for name, result in results.items()
    ]
    chosen = f"{best}, chosen on the validation split ({cells})"
    record(work, [*records, probe_record(work, f"{prefix}probe/top1", chosen, results[best])])


def probe_baselines(work: Work) -> None:
    """Probe what needs no encoder, on rank 0."""
    settings = {**dataclasses.asdict(work.config.probe), "seed": work.config.train.seed, "device": work.device.type}
    pictures = Pictures(work.dataset, work.at_size, lambda name: counting(work, f"baseline/{name}"))
    records = []
    for name in VERSIONS:
        work.reporter.progress({"run": work.run.name, "stage": f"baseline/{name}/probe"})
        result = probe_baseline(name, pictures, lambda vectors: fit_probe(work, vectors), settings)
        records.append(probe_record(work, f"baseline/{name}/probe/top1", name.replace("-", " "), result))
    before = tuple(f"baseline/{name}/probe/" for name in VERSIONS)
    write_evaluation(work.run, records, keep=lambda record: not record["metric"].startswith(before))


def fit_probe(work: Work, vectors: list[NDArray[np.float32]]) -> ProbeResult:
    """A probe on features (N, D) of the images of train, val and test."""
    settings = work.config.probe
    known = [split_of(work, name).labelled() for name in ("train", "val", "test")]
    return probe(
        *((part[rows], labels) for part, (rows, labels) in zip(vectors, known)),
        classes=len(work.dataset.class_names or ()),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rates=settings.learning_rates,
        weight_decays=settings.weight_decays,
        seed=work.config.train.seed,
        device=work.device,
    )


def probe_record(work: Work, metric: str, where: str, result: ProbeResult) -> Record:
    """Test accuracy of one probe with its 95 % interval."""
    n = len(test_images(work).labelled()[0])
    settings = work.config.probe
    protocol = (
        f"linear probe on frozen features of {where}, "
        f"{settings.epochs} epochs of SGD, last epoch; learning rate {result.learning_rate:g} and weight decay "
        f"{result.weight_decay:g} chosen on the validation split (accuracy there {result.val_accuracy:.4f})"
    )
    return new_record(
        work, metric, result.test_accuracy, protocol, n, list(interval_of_proportion(result.test_correct, n))
    )
