"""Text that may come from elsewhere, made safe for a terminal or a log: it is seen, and steers nothing."""

import re
import sys
from typing import TextIO

# Controls (C0, DEL, C1), what breaks lines, what turns the direction of writing, halves of characters.
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def plain(text: object) -> str:
    """In one line, with escapes such as \\x1b in the place of what would steer a terminal or forge a line."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def say(text: object, file: TextIO | None = None) -> None:
    """Print one line for people."""
    print(plain(text), file=sys.stdout if file is None else file)


def plain_lines(text: str) -> str:
    """`plain` of every line of a text that has several."""
    return "\n".join(map(plain, text.split("\n")))
