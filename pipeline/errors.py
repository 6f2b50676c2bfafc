"""The one exception that means "the user's input is wrong"."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input: one line that says what, its value and what would be right. Commands end with exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint " (did you mean 'x'?)" for a misspelt word, or an empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
