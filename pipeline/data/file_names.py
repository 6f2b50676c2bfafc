"""Labels that file names seem to tell, cat.0.jpg or dog_001.jpg: offered, never assumed."""

import re
from collections import Counter
from collections.abc import Sequence

from pipeline.data.reading import Note

_NAMED = re.compile(r"([^\W\d_]+(?:[ _-][^\W\d_]+)*)[ ._-]*\(?\d+\)?")  # letters, then a number
# What cameras and programs call every image.
_SAYS_NOTHING = frozenset(
    """img image images dsc dscn dscf dcim pic picture photo scan screenshot frame file sample gopr gp pxl mvi vid mov p
    page fig figure crop tile patch slice test train val whatsapp untitled unnamed output result render""".split()  # noqa: SIM905
)
_FEWEST = 5  # images per class, on average
_SOME = 1000  # names that are looked at first
_SHARE = 0.95  # of the images whose names are so


def offered_by_names(keys: Sequence[str]) -> Note | None:
    """A note on what file names look like as labels, or None where they do not: a few words, each before numbers."""
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


def _word(key: str) -> str | None:
    match = _NAMED.fullmatch(key.rpartition("/")[2].rpartition(".")[0])
    return match[1].lower() if match else None
