"""Digests of texts."""

import hashlib
import itertools
from collections.abc import Iterable


def digest(lines: Iterable[str]) -> str:
    """Hex digest of lines of text, in their order."""
    total = hashlib.sha256()
    remaining = iter(lines)
    while block := list(itertools.islice(remaining, 1000)):
        total.update(("\n".join(block) + "\n").encode("utf-8", "surrogateescape"))
    return total.hexdigest()
