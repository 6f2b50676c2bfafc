"""Labels in tar shards: what the files beside the images say, put together over all shards by what it means."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

from rayssl.pipeline.base.digests import digest
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.labels import (
    Labels,
    NoClassError,
    is_number,
    label_of,
    like_ids,
    missing_note,
    number_labels,
    without_labels,
)
from rayssl.pipeline.data.reading import WORDS, Note, Reading

LABEL_FILES = ("cls", "json")
FLAG = "--data.label-column"

# A label is taken from the first of these that there is; ".cls" is the file, the others are keys of the JSON.
_FIELDS = (".cls", "label", "cls", "class", "class_name", "category", "target", "labels")
_OLD = _FIELDS[:3]  # all that were looked at before
_LARGEST = 1 << 24  # bytes of a file with a label that are read

Said = dict[str, Any]  # by field


@dataclass(frozen=True)
class Sample:
    """What the files beside one image say."""

    shard: str  # path
    said: Said


def said_by(suffix: str, file: IO[bytes] | None) -> Said:
    """The fields of a .cls or .json file; none where it cannot be read. A .cls that is no UTF-8 stays bytes."""
    text = b"" if file is None else file.read(_LARGEST)
    if suffix == "cls":
        try:
            return {".cls": text.decode("utf-8-sig").strip()}
        except UnicodeDecodeError:
            return {".cls": text}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # ValueError also of a number of thousands of digits
        return {}
    return values if isinstance(values, dict) else {}


def read_labels(samples: Sequence[Sample], reading: Reading) -> tuple[Labels, str]:
    """The labels of all images, and the field they were taken from first ("" where there are none)."""
    asked = reading.label_column if reading.labels in WORDS else None  # else it is the table's
    order = _order(samples) if asked is None else _asked(samples, asked)
    if not order:
        return Labels(None, None), ""
    picked = [_first(sample, order) for sample in samples]
    try:
        found = [label_of(value) for _, value in picked]
    except NoClassError as error:
        if asked is not None:
            raise UserError(f"{FLAG} {asked}: it holds {error}, whole numbers or texts are needed") from None
        return without_labels(f"{_said(order[0])} holds {error}"), ""
    _check_alike(samples, picked, found)
    labels = number_labels(found)
    if (told := like_ids(labels, _said(order[0]))) is not None:
        if asked is None:
            return without_labels(f"{told}, like an id"), ""
        labels = replace(labels, notes=(*labels.notes, Note(f"{told}: they may be ids", flag=FLAG)))
    odd = missing_note([value for _, value in picked], _said(order[0]))
    return replace(labels, notes=(*labels.notes, *odd, *_choice_note(order, asked))), order[0]


def with_field(identity: str, field: str) -> str:
    """The identity of a data set, told apart where its labels are from a field that was not looked at before."""
    return identity if not field or field in _OLD else digest([identity, "label field", field])


def _order(samples: Iterable[Sample]) -> list[str]:
    """Fields with labels, those of all shards first: shards made at different times may have others besides."""
    by_shard: dict[str, set[str]] = {}
    for sample in samples:
        fields = by_shard.setdefault(sample.shard, set())
        fields |= {field for field in _FIELDS if sample.said.get(field) is not None}
    present = set().union(*by_shard.values())
    common = set.intersection(*(fields for fields in by_shard.values() if fields)) if present else set()
    return sorted(present, key=lambda field: (field not in common, _FIELDS.index(field)))


def _asked(samples: Iterable[Sample], asked: str) -> list[str]:
    wanted = [".cls", "cls"] if asked in ("cls", ".cls") else [asked]
    present = {field for sample in samples for field in sample.said}
    order = [field for field in wanted if field in present]
    if not order:
        known = ", ".join(sorted(present)) or "no .cls and no .json files"
        raise UserError(f"{FLAG} {asked}: beside the images of the shards there is no such field, only {known}")
    return order


def _first(sample: Sample, order: list[str]) -> tuple[str, Any]:
    return next(
        ((field, sample.said[field]) for field in order if sample.said.get(field) not in (None, "")), ("", None)
    )


def _check_alike(samples: Sequence[Sample], picked: Sequence[tuple[str, Any]], found: Sequence[str | None]) -> None:
    """Refuse numbers in one place and names in another: which number is which name, nobody says."""
    kinds: dict[tuple[str, str], set[bool]] = {}
    for sample, (field, _), label in zip(samples, picked, found):
        if label is not None:
            kinds.setdefault((sample.shard, field), set()).add(is_number(label))
    numbers = next((place for place, kind in kinds.items() if kind == {True}), None)
    names = next((place for place, kind in kinds.items() if kind == {False}), None)
    if numbers is not None and names is not None:
        raise UserError(
            f"{numbers[0]} has numbers in {_said(numbers[1])} and {names[0]} has names in {_said(names[1])}: "
            f"write the same in both, or choose with {FLAG}"
        )


def _choice_note(order: list[str], asked: str | None) -> tuple[Note, ...]:
    if asked is not None:
        return (Note(f"labels: {_said(order[0])}, as asked"),)
    others = ", ".join(map(_said, order[1:]))
    beside = f"; there is {others} as well" if others else ""
    return (Note(f"labels: {_said(order[0])}{beside}", guess=bool(others), flag=FLAG),)


def _said(field: str) -> str:
    return ".cls" if field == ".cls" else f"'{field}' of the .json"
