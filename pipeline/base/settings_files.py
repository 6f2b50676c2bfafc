"""Files of settings that a user gives, in JSON or YAML: augmentations and search spaces.

They may come from anywhere. What is read is plain: texts, numbers, true, false, null, lists and objects with texts as
keys, of bounded size and depth, and each problem is one line. Nothing in a file is executed.
"""

import json
import math
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.documents import DamagedError, open_regular
from rayssl.pipeline.base.errors import UserError

LARGEST = 4 * 1024**2  # bytes of a file; an augmentation takes thousands
LARGEST_YAML = 256 * 1024  # the same; it is read slowly
MOST_VALUES = 100_000  # in a file, with what YAML's aliases repeat
DEEPEST = 100  # lists and objects in each other
MOST_BITS = 64  # of a whole number
LONGEST_NUMBER = 100  # letters with colons, in YAML: 1:59:59 is one to the base 60
SHOWN = 80  # letters of a value in a message
YAML = (".yaml", ".yml")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_given(path: Path) -> Any:
    """What a file of JSON, or of YAML where its name ends so, holds. Raises UserError, whose text lacks the path."""
    in_yaml = path.suffix.lower() in YAML
    text = _text(path, LARGEST_YAML if in_yaml else LARGEST)
    try:
        return _plain(_from_yaml(text) if in_yaml else _from_json(text))
    except RecursionError:
        raise UserError(f"nested more than {DEEPEST} deep: lists and objects can be at most so deep") from None


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    return cut(repr(value))


def cut(text: str, longest: int = SHOWN) -> str:
    """A text for a message, cut where it is long."""
    return text if len(text) <= longest else f"{text[:longest]} …"


def _text(path: Path, most: int) -> str:
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except DamagedError as error:
        raise UserError(f"{error}: give a JSON or YAML file") from None
    except OSError as error:
        raise UserError(f"{(error.strerror or 'not readable').lower()}: give a JSON or YAML file") from None
    except ValueError:
        raise UserError("no name of a file: give a JSON or YAML file") from None
    if len(content) > most:
        raise UserError(f"larger than {_size(most)}: give a JSON or YAML file of settings")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError("not text (UTF-8): give a JSON or YAML file") from None


def _size(count: int) -> str:
    return f"{count // 1024**2} MB" if count >= 1024**2 else f"{count // 1024} KB"


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error}") from None
    except ValueError:  # a number of thousands of digits
        raise UserError("not JSON: a number is too long") from None


def _from_yaml(text: str) -> Any:
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _count(node)  # before YAML's merge keys multiply what is there
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())}") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:  # e.g. a date of the 13th month
        raise UserError(f"not YAML: {' '.join(str(error).split())[:200]}") from None


def _count(node: Any) -> None:
    """Bound the nodes of a YAML file, each counted as often as aliases repeat it, and the numbers' lengths."""
    stack, count = [(node, 1)], 0
    while stack:
        one, depth = stack.pop()
        count += 1
        inside = getattr(one, "value", None)
        if isinstance(inside, str) and _is_long(one.tag, inside):
            raise UserError(f"a number of {len(inside):,} digits and colons: it must be shorter")
        if isinstance(inside, list):
            _bound(depth, count + len(inside))
            for part in inside:
                stack += [(each, depth + 1) for each in (part if isinstance(part, tuple) else (part,))]


def _is_long(tag: str, text: str) -> bool:
    """Whether text is a number to the base 60 whose digits would take the square of their count to read."""
    return tag in _NUMBERS and ":" in text and len(text) > LONGEST_NUMBER


def _plain(value: Any) -> Any:
    """The value, where it holds nothing but what JSON has, in bounds."""
    stack, count = [(value, 1)], 0
    while stack:
        one, depth = stack.pop()
        count += 1
        if isinstance(one, dict):
            for key in one:
                if not isinstance(key, str):
                    raise UserError(f'the key {shown(key)} is no text: write it in quotes, as "{shown(key)}"')
            inside = list(one.values())
        elif isinstance(one, list):
            inside = one
        else:
            _check_plain(one)
            continue
        _bound(depth, count + len(inside))
        stack += [(each, depth + 1) for each in inside]
    return value


def _bound(depth: int, count: int) -> None:
    if depth > DEEPEST:
        raise UserError(f"nested more than {DEEPEST} deep: lists and objects can be at most so deep")
    if count > MOST_VALUES:
        raise UserError(f"more than {MOST_VALUES:,} values, with what aliases repeat: settings have fewer")


def _check_plain(value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise UserError(f"a whole number of about {int(value.bit_length() * math.log10(2))} digits: it must be shorter")
    if not isinstance(value, str | int | float | bool | None):
        kind = type(value).__name__
        raise UserError(f"{shown(value)} is a {kind}: write it in quotes, or as a number, a list or an object")
