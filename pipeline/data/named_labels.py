"""Labels of several parquet files put together by what they mean, whatever number a class has in each."""

import unicodedata
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.columns import LABEL_FLAG, Part
from rayssl.pipeline.data.labels import Labels, is_number, number_labels
from rayssl.pipeline.data.listing import number_classes
from rayssl.pipeline.data.reading import Note

_NEVER = "\0"  # is in no name: tells two classes of one name apart


def by_names(parts: Sequence[Part], found: Sequence[list[str | None]], label: str) -> Labels:
    """One numbering for the labels of all files.

    The numbers of a file with class names stand for these. A class that is named is one even if no image is of it:
    named data sets keep their classes and their order. Without names the values that occur are the classes.
    """
    names = [_distinct(part.class_names(label)) for part in parts]
    lists = [own for own, labels in zip(names, found) if own is not None and any(labels)]
    if not lists:
        _check_alike(parts, found, label)
        return number_labels(list(chain.from_iterable(found)))
    _check_twice(parts, names, label)
    classes = list(dict.fromkeys(chain.from_iterable(lists)))
    # A text that is a name is no number, not even "7".
    texts = [set(classes) if part.holds_texts(label) else set[str]() for part in parts]
    notes = _unnamed_note(parts, names, [[*set(labels) - own] for labels, own in zip(found, texts)], label)
    meant = [
        [_meaning(value, its, lists[0] if own is None else own) for value in labels]
        for its, own, labels in zip(texts, names, found)
    ]
    others = {value for labels in meant for value in labels if value is not None} - set(classes)
    classes += number_classes([*others])[1]
    number: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    numbers = np.array([number.get(value, -1) for value in chain.from_iterable(meant)], dtype=np.int64)
    shown = tuple(name.split(_NEVER)[0] for name in classes)
    return Labels(numbers, shown, (*notes, *_outside_note(others, label), *_empty_note(numbers, shown)))


def _distinct(names: list[str] | None) -> list[str] | None:
    """The names, told apart where two classes have the same."""
    if names is None:
        return None
    names = [unicodedata.normalize("NFC", name).strip() for name in names]
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    return [name if first[name] == i else f"{name}{_NEVER}{i}" for i, name in enumerate(names)]


def _meaning(value: str | None, texts: set[str], names: list[str]) -> str | None:
    if value is None or value in texts or not is_number(value):
        return value
    number = int(value)
    if 0 <= number < len(names):
        return names[number]
    if value in names:
        raise UserError(
            f"label {value} is beyond the {len(names)} names of classes in the metadata, one of which is '{value}': "
            f"write the names into the column, or give {LABEL_FLAG}"
        )
    return value


def _check_alike(parts: Sequence[Part], found: Sequence[list[str | None]], label: str) -> None:
    """Refuse numbers in one file and names in another: which number is which name, nobody says."""
    kinds = [{is_number(value) for value in labels if value is not None} for labels in found]
    numbers = next((part for part, kind in zip(parts, kinds) if kind == {True}), None)
    texts = next((part for part, kind in zip(parts, kinds) if kind == {False}), None)
    if numbers is not None and texts is not None:
        raise UserError(
            f"column '{label}' holds numbers in {numbers.path} and names in {texts.path}: write the same in both"
        )


def _check_twice(parts: Sequence[Part], names: Sequence[list[str] | None], label: str) -> None:
    """Refuse different lists of names one of which has a name twice: which of the two a file means is unknown."""
    lists = [(part, own) for part, own in zip(parts, names) if own is not None]
    for part, own in lists:
        twice = next((name for name in own if _NEVER in name), None)
        other = next((other for other, its in lists if its != own), None)
        if twice is not None and other is not None:
            name = twice.split(_NEVER)[0]
            raise UserError(
                f"{part.path} and {other.path} number the classes of '{label}' differently, and two are called '{name}'"
            )


def _unnamed_note(
    parts: Sequence[Part], names: Sequence[list[str] | None], found: Sequence[list[str | None]], label: str
) -> tuple[Note, ...]:
    """Numbers of a file without names are taken for those of the other files, where these agree."""
    bare = [
        part
        for part, own, labels in zip(parts, names, found)
        if own is None and any(value is not None and is_number(value) for value in labels)
    ]
    if not bare:
        return ()
    lists = [(part, own) for part, own in zip(parts, names) if own is not None]
    first, expected = lists[0]
    for part, own in lists:
        if own != expected:
            raise UserError(
                f"{first.path} and {part.path} number the classes of '{label}' differently, "
                f"and {bare[0].path} does not say which of them its numbers are: write names into it"
            )
    text = f"{bare[0].relative} does not name its classes: its numbers are taken for those of {first.relative}"
    return (Note(text, guess=True, flag=LABEL_FLAG),)


def _outside_note(others: set[str], label: str) -> tuple[Note, ...]:
    numbers = sorted(filter(is_number, others), key=int)
    if not numbers:
        return ()
    told = ", ".join(numbers[:3]) + (" …" if len(numbers) > 3 else "")
    return (Note(f"labels {told} of column '{label}' have no name in the metadata", flag=LABEL_FLAG),)


def _empty_note(numbers: NDArray[np.int64], names: tuple[str, ...]) -> tuple[Note, ...]:
    occurring = len(np.unique(numbers[numbers >= 0]))
    if not occurring or occurring == len(names):
        return ()
    return (Note(f"{len(names) - occurring:,} of {len(names):,} classes that are named have no image"),)
