"""What was concluded about a data set, in words and as JSON: said before anything is trained."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.data.dataset import Dataset
from rayssl.pipeline.data.layout import alike
from rayssl.pipeline.data.reading import AUTO, Note
from rayssl.pipeline.data.shown import TYPE

SHOWN = 10  # class names
REASONS = 6  # of what was left out


def facts(dataset: Dataset) -> dict[str, Any]:
    """Plain JSON values: kind, images by split, classes, pixels, what was left out, and the notes."""
    return {
        "path": dataset.path,
        "kind": dataset.kind,
        "images": {name: len(part) for name, part in _parts(dataset)},
        "classes": {"count": len(dataset.class_names or ()), "first": list((dataset.class_names or ())[:SHOWN])},
        "labelled": dataset.count_labelled()[0],
        "image_size": dataset.image_size,
        "stored_sizes": [list(size) for size in dataset.stored_sizes],
        "channels": dataset.channels,
        "range": dataset.range,
        "values": _values(dataset),
        "background": dataset.background,
        "left_out": dict(left_out(dataset)),
        "notes": [{"text": note.text, "guess": note.guess, "flag": note.flag} for note in dataset.notes],
    }


def lines(dataset: Dataset) -> list[str]:
    """The same for people, a title and a text per line."""
    counts = ", ".join(f"{len(part):,} {name}" for name, part in _parts(dataset))
    labelled, images = dataset.count_labelled()
    some = f", {labelled:,} of {images:,} images labelled" if 0 < labelled < images else ""
    told = [
        ("data", f"{dataset.kind or 'images'}: {dataset.path}"),
        ("images", f"{counts}; {_stored(dataset)}seen at {dataset.image_size} px, {_seen_as(dataset)}"),
        ("classes", f"{_classes(dataset.class_names)}{some}"),
    ]
    if out := left_out(dataset):
        told.append(("left out", "; ".join(f"{count:,} {what}" for what, count in out)))
    told += [("guess" if note.guess else "found", text_of(note)) for note in dataset.notes]
    return [f"  {title:<8} {text}" for title, text in told]


def text_of(note: Note) -> str:
    """A note, with the option that sets it."""
    return f"{note.text} ({note.flag} sets it)" if note.flag else note.text


def colours(channels: int) -> str:
    """Channels in words."""
    return {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")


def left_out(dataset: Dataset) -> list[tuple[str, int]]:
    """(what and why, how many): files that are no images of the set, and images that cannot be used."""
    reasons = Counter(reason for _, reason in dataset.unreadable).most_common()
    shown = [(f"images: {reason}", count) for reason, count in reasons[:REASONS]]
    if more := sum(count for _, count in reasons[REASONS:]):
        shown.append(("images for other reasons", more))
    return [*dataset.passed_over, *shown]


def class_notes(
    class_names: Sequence[str] | None, train: NDArray[np.int64] | None, test: NDArray[np.int64] | None
) -> list[Note]:
    """Classes whose names look alike, and those of test images that training has none of; labels are (N,), −1 none."""
    if class_names is None:
        return []
    notes = []
    if same := alike(class_names):
        told = "; ".join(" and ".join(f"'{name}'" for name in names) for names in same[:3])
        more = f" and {len(same) - 3} more" if len(same) > 3 else ""
        text = f"classes that differ by case, accents, spaces or zeros only are kept apart: {told}{more}"
        notes.append(Note(text, guess=True, flag="--data.labels"))
    if train is not None and test is not None:
        known, asked = set(train[train >= 0].tolist()), set(test[test >= 0].tolist())
        if unseen := sorted(asked - known):
            names = ", ".join(f"'{class_names[i]}'" for i in unseen[:3])
            count = int(np.isin(test, unseen).sum())
            text = f"{count:,} test images are of {len(unseen):,} classes that training does not have ({names}"
            notes.append(Note(f"{text}{', …' if len(unseen) > 3 else ''}): they cannot be found by their class"))
    return notes


def _parts(dataset: Dataset) -> list[tuple[str, Any]]:
    parts = [("train", dataset.train), ("validation", dataset.val), ("test", dataset.test)]
    return [(name, part) for name, part in parts if part is not None]


def _stored(dataset: Dataset) -> str:
    sizes = [f"{height} × {width}" for height, width in dict.fromkeys(dataset.stored_sizes)]
    return f"{' to '.join(sizes)} px high and wide, " if sizes else ""


def _seen_as(dataset: Dataset) -> str:
    return f"{colours(dataset.channels)}, values {_values(dataset)}"


def _values(dataset: Dataset) -> str:
    """The values that become black and white; of 8 bits there is nothing to be said."""
    if dataset.range == TYPE:
        return "by each image's type"
    return "0 to 255" if dataset.range == AUTO else dataset.range.replace(",", " to ")


def _classes(names: Sequence[str] | None) -> str:
    if not names:
        return "no labels"
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{len(names):,}: {', '.join(names[:SHOWN])}{more}"
