"""Splits that a column of parquet files, or a field beside the images of shards, tells."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rayssl.pipeline.data.layout import split_words
from rayssl.pipeline.data.listing import NONE, OUTSIDE, TRAIN, settle_splits
from rayssl.pipeline.data.reading import WORDS, Note, Reading

SPLIT = "split"
_FIELD = f"'{SPLIT}'"
_FLAG = "--data.splits"


@dataclass(frozen=True)
class Splits:
    """The splits of N images."""

    of_images: list[str]  # N
    by_column: bool  # not by the names of files
    notes: tuple[Note, ...] = ()


def told_splits(said: Sequence[object], of_files: list[str], reading: Reading, where: str = _FIELD) -> Splits:
    """By the names of files where these tell splits, else by what is `said` of every image, if that is split words.

    `where` it is said: a field, or the folders of shards.
    """
    counts = Counter(value for value in said if isinstance(value, str) and value)
    words = {value: split for value in counts if (split := split_words([value]).get(value)) is not None}
    if len(words) < len(counts) or TRAIN not in words.values() or len(set(words.values())) < 2:
        notes = (Note(f"{where} ({_listed(counts)}) is not used", guess=True, flag=_FLAG),) if words else ()
        return Splits(of_files, False, notes if where == _FIELD else ())
    listed = _listed(counts)
    if reading.splits == "none" or reading.splits not in WORDS or set(of_files) != {NONE}:
        return Splits(of_files, False, (Note(f"{where} ({listed}) is not used", flag=_FLAG),))
    of_images = [words.get(value, OUTSIDE) if isinstance(value, str) else OUTSIDE for value in said]
    return Splits(settle_splits(of_images), True, (Note(f"splits: {where}, {listed}", flag=_FLAG),))


def _listed(counts: Counter[str], most: int = 5) -> str:
    told = ", ".join(f"{value[:50]} ({n:,})" for value, n in sorted(counts.items())[:most])
    return told + (f" and {len(counts) - most:,} more" if len(counts) > most else "")
