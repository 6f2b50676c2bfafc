"""What a label is, and what stands for none: one rule for parquet files, tar shards and tables."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.data.listing import number_classes
from rayssl.pipeline.data.reading import Note

LABELS, LABEL_COLUMN = "--data.labels", "--data.label-column"
LONGEST = 1000  # characters of a label; more than that is a text about an image

# What pandas reads as missing in a CSV, and the −1 of data sets that hide some labels. "none", "na" and "unknown" in
# small letters are classes: a part without a defect is of the class "none".
_MISSING = frozenset((
    "", "-1", "-1.0", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
))  # fmt: skip
_WHOLE = re.compile(r"(-?[0-9]+)(\.0+)?")
_FRACTION = re.compile(r"-?[0-9]*([.,][0-9]+)?(e[-+]?[0-9]+)?", re.IGNORECASE)
_LIST = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
_LOOKS_MISSING = frozenset(("none", "na", "?", "-", "unknown", "unlabelled", "unlabeled", "missing"))
HALF = re.compile("[\ud800-\udfff]")  # of a pair that stands for one character
_SOME = 2  # classes of either kind, numbers and names
_FEW = 10  # classes; so many may have one image each


class NoClassError(ValueError):
    """A value that cannot be a class: what it is."""


@dataclass(frozen=True)
class Labels:
    """Labels of N images. Both None where there are no labels."""

    numbers: NDArray[np.int64] | None  # (N,); -1 for an image without a label
    class_names: tuple[str, ...] | None
    notes: tuple[Note, ...] = ()


def label_of(value: object) -> str | None:
    """The class that a value stands for, as text; None where it stands for no label.

    No label: null, NaN, −1, an empty text, and the texts that pandas takes for missing ("NA", "N/A", "nan", "NaN",
    "null", "NULL", "None", "<NA>" …). Whole numbers are classes whatever their size, also as floats (7.0 is 7);
    texts are compared without spaces around them and in one Unicode form. Raises NoClassError for everything else:
    fractions, lists, bytes, texts of more than 1,000 characters.
    """
    text = _text(value)
    if not text.isascii() and HALF.search(text):
        raise NoClassError("a text with half of a character, which no file can hold")
    if len(text) > LONGEST:
        raise NoClassError(f"a text of {len(text):,} characters")
    return None if is_missing(text) else text


def is_missing(text: str) -> bool:
    """Whether a text stands for no label."""
    return text in _MISSING


def number_labels(found: Sequence[str | None]) -> Labels:
    """Labels numbered in the order of their classes: only classes that occur, whole numbers in their order."""
    known = {label for label in found if label is not None}
    if not known:
        return Labels(None, None)
    whole = {label: match for label in known if (match := _WHOLE.fullmatch(label))}
    if len(whole) == len(known):  # 7.0: a program made fractions of whole numbers because one of them was missing
        found = [None if label is None else whole[label][1] for label in found]
    numbers, names = number_classes(list(found))
    return Labels(numbers, names, (*doubts(names), *_fractions_note(names), *_several_note(names), *_mixed_note(names)))


def doubts(names: Sequence[str]) -> tuple[Note, ...]:
    """A note on classes whose names look as if they stood for no label."""
    return tuple(
        Note(f"'{name}' is taken for a class; leave the label empty where there is none", guess=True, flag=LABELS)
        for name in names
        if name.lower() in _LOOKS_MISSING or re.fullmatch("-[0-9]+", name)
    )


def _fractions_note(names: Sequence[str]) -> tuple[Note, ...]:
    if not all(_FRACTION.fullmatch(name) for name in names) or not any(_is_split_number(name) for name in names):
        return ()
    example = next(name for name in names if _is_split_number(name))
    return (Note(f"labels are fractions such as {example}: each value is taken for a class", guess=True, flag=LABELS),)


def _mixed_note(names: Sequence[str]) -> tuple[Note, ...]:
    """Numbers beside words: which number is which word, nobody says. Letters beside digits are of one kind."""
    numbers = [name for name in names if is_number(name)]
    words = [name for name in names if len(name) > 1 and not is_number(name)]
    if min(len(numbers), len(words)) < _SOME:
        return ()
    text = (
        f"labels are numbers ({', '.join(numbers[:2])} …) and names ({', '.join(words[:2])} …): each is taken for a "
        "class of its own"
    )
    return (Note(text, guess=True, flag=LABELS),)


def _is_split_number(name: str) -> bool:
    return "." in name or "," in name


def _is_list(name: str) -> bool:
    """Whether it is like a|b or a;b."""
    parts = re.split("[|;]", name)
    return len(parts) > 1 and all(part.strip() for part in parts)


def _several_note(names: Sequence[str]) -> tuple[Note, ...]:
    several = [name for name in names if _LIST.fullmatch(name) or _is_list(name)]
    if not several:
        return ()
    text = f"labels such as '{several[0][:50]}' may name several classes: each such text is taken for one class"
    return (Note(text, guess=True, flag=LABELS),)


def is_number(label: str) -> bool:
    """Whether a label is a whole number."""
    return _WHOLE.fullmatch(label) is not None


def like_ids(labels: Labels, what: str) -> str | None:
    """In words that labels tell images apart instead of putting them together: fewer than two images a class."""
    if labels.numbers is None:
        return None
    known = labels.numbers[labels.numbers >= 0]
    classes = len(np.unique(known))
    return f"{what} has {classes:,} values on {len(known):,} images" if classes > max(_FEW, len(known) / 2) else None


def without_labels(why: str) -> Labels:
    """No labels, though there is a column or field that is named so."""
    return Labels(None, None, (Note(f"no labels: {why}", guess=True, flag=LABEL_COLUMN),))


def missing_note(values: Sequence[object], where: str) -> tuple[Note, ...]:
    """A note on values other than null and empty that were read as no label, with how many of each there are."""
    spelt: Counter[str] = Counter()
    for value, n in Counter(value for value in values if value is not None and value == value).items():
        spelt[_text(value)] += n
    told = {text: n for text, n in spelt.items() if text and is_missing(text)}
    if not told:
        return ()
    listed = ", ".join(f"'{text}' ({n:,})" for text, n in sorted(told.items()))
    return (Note(f"{where}: {listed} read as no label", guess=True, flag=LABELS),)


def notes_beside(notes: Sequence[Note]) -> tuple[Note, ...]:
    """Notes without what was concluded of labels: a table says what they are."""
    return tuple(note for note in notes if note.flag not in (LABELS, LABEL_COLUMN))


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip()
    if isinstance(value, bool | int | np.integer | np.bool_):
        return str(value)
    if isinstance(value, float | Decimal | np.floating):
        return _whole(value)
    raise NoClassError(_KINDS.get(type(value), f"a {type(value).__name__}"))


def _whole(value: float | Decimal | np.floating[Any]) -> str:
    if math.isnan(value):
        return ""
    if not math.isfinite(value) or value != int(value):
        raise NoClassError(f"the fraction {value}")
    return str(int(value))


_KINDS: dict[type, str] = {list: "a list", dict: "a structure", bytes: "bytes"}
