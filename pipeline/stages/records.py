"""Figures of a run as records."""

from rayssl.pipeline.evaluation.measure import Record, write_evaluation
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.run.context import Work

# Records and embeddings


def new_record(work: Work, metric: str, value: float, protocol: str, n: int, interval: list[float] | None) -> Record:
    """A record of this run; the checkpoint is told by the encoder's hash."""
    return {
        "metric": metric,
        "value": value,
        "protocol": protocol,
        "data": work.dataset.name,
        "split": "test",
        "checkpoint": encoder_hash(work.run)[:12],
        "seed": work.config.train.seed,
        "n": n,
        "interval": interval,
    }


def record(work: Work, records: list[Record]) -> None:
    """Add to evaluation.json, on rank 0."""
    if work.is_main:
        write_evaluation(work.run, records)
