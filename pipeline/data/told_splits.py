"""Splits that a column of parquet files, or a field beside the images of shards, tells."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.layout import split_words
from pipeline.data.listing import NONE, OUTSIDE, TRAIN, settle_splits
from pipeline.data.reading import WORDS, Note, Reading

SPLIT = "split"
_FLAG = "--data.splits"


@dataclass(frozen=True)
class Splits:
    """The splits of N images."""

    of_images: list[str]  # N
    by_column: bool  # not by the names of files
    notes: tuple[Note, ...] = ()


def told_splits(said: Sequence[object], of_files: list[str], reading: Reading, where: str = f"'{SPLIT}'") -> Splits:
    """By the names of files where these tell splits, else by what is `said` of every image, if that is split words.

    `where` it is said: a field, or the folders of shards.
    """
    counts = Counter(value for value in said if isinstance(value, str) and value)
    words = {value: split for value in counts if (split := split_words([value]).get(value)) is not None}
    if len(words) < len(counts) or TRAIN not in words.values() or len(set(words.values())) < 2:
        return Splits(of_files, False)
    listed = ", ".join(f"{value} ({n:,})" for value, n in sorted(counts.items()))
    if reading.splits == "none" or reading.splits not in WORDS or set(of_files) != {NONE}:
        return Splits(of_files, False, (Note(f"{where} ({listed}) is not used", flag=_FLAG),))
    of_images = [words.get(value, OUTSIDE) if isinstance(value, str) else OUTSIDE for value in said]
    return Splits(settle_splits(of_images), True, (Note(f"splits: {where}, {listed}", flag=_FLAG),))
