"""What file names seem to tell, labels (cat.0.jpg), splits (train_1.png) or masks (1_mask.png): told, not assumed."""

import re
from collections import Counter
from collections.abc import Sequence

from rayssl.pipeline.data.layout import SPLIT_TOKENS
from rayssl.pipeline.data.listing import TRAIN
from rayssl.pipeline.data.reading import Note

_WORD = r"([^\W\d_]+(?:[ _-][^\W\d_]+)*)"
_NAMED = re.compile(rf"{_WORD}[ ._-]*\(?\d+\)?|\(?\d+\)?[ ._-]+{_WORD}")  # letters and a number, or the reverse
# What cameras and programs call every image.
_SAYS_NOTHING = frozenset(
    """img image images dsc dscn dscf dcim pic picture photo scan screenshot frame file sample gopr gp pxl mvi vid mov p
    page fig figure crop tile patch slice test train val whatsapp untitled unnamed output result render""".split()  # noqa: SIM905
)
_SPLIT = re.compile(rf"({'|'.join(sorted(SPLIT_TOKENS, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
_MASKS = ("mask", "seg", "segmentation", "gt", "label", "annotation")
_MASK = re.compile(rf"(.+)[ ._-](?:{'|'.join(_MASKS)})(?:[ ._-]?\d+)?", re.IGNORECASE)
_FEWEST = 5  # images per class, on average
_SOME = 1000  # names that are looked at first
_SHARE = 0.95  # of the images whose names are so


def offered_by_names(keys: Sequence[str]) -> Note | None:
    """A note on what file names look like as labels, or None where they do not: a few words, each beside numbers."""
    some = keys[:: 1 + len(keys) // _SOME]
    seen = [word for key in some if (word := _word(key)) is not None]
    if 2 * len(seen) < len(some) or len(set(seen)) < 2 or _SAYS_NOTHING & set(seen):  # not worth a look at all of them
        return None
    words = Counter(word for key in keys if (word := _word(key)) is not None)
    told = sum(words.values())
    if len(words) < 2 or told < _SHARE * len(keys) or told < _FEWEST * len(words) or _SAYS_NOTHING & words.keys():
        return None
    if min(words.values()) < 2:
        return None
    named = [f"{word} ({n:,})" for word, n in words.most_common(5)]
    more = f" and {len(words) - 5} more" if len(words) > 5 else ""
    text = (
        f"file names look like labels: {', '.join(named)}{more}; they are not used: "
        "write a CSV with the columns path and label where they are"
    )
    return Note(text, guess=True, flag="--data.labels")


def splits_in_names(keys: Sequence[str]) -> Note | None:
    """A note on images that are all named like splits, train_1.png and test_1.png."""
    words: Counter[str] = Counter()
    for key in keys:
        found = _SPLIT.match(key.rpartition("/")[2])
        if found is None:
            return None
        words[found[1].lower()] += 1
    if not {SPLIT_TOKENS[word] for word in words} > {TRAIN}:
        return None
    named = ", ".join(f"{word} ({n:,})" for word, n in sorted(words.items()))
    text = f"file names look like splits: {named}; they are not used: write a CSV with the columns path and split"
    return Note(text, guess=True, flag="--data.splits")


def masks_in_names(keys: Sequence[str]) -> Note | None:
    """A note on images that are named like the masks of others, 1_mask.png beside 1.png."""
    stems = [key.rpartition(".")[0] for key in keys]
    told = [i for i, stem in enumerate(stems) if stem.rstrip("0123456789 ._-").lower().endswith(_MASKS)]
    known = set(stems) if told else set()
    masks = [keys[i] for i in told if (found := _MASK.fullmatch(stems[i])) and found[1] in known]
    if not masks:
        return None
    text = f"{len(masks):,} images are named like masks of others, e.g. {masks[0]}: they are read like all images"
    return Note(text, guess=True, flag="--data.path")


def _word(key: str) -> str | None:
    match = _NAMED.fullmatch(key.rpartition("/")[2].rpartition(".")[0])
    return (match[1] or match[2]).lower() if match else None
