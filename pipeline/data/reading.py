"""How images are read: what the user says of it, and what was concluded where nothing is said."""

from dataclasses import dataclass
from typing import Literal

Splits = str  # auto, none, folder, or a CSV
Labels = str  # auto, folder, none, or a CSV
Key = Literal["first", "last"]

AUTO = "auto"
WORDS = (AUTO, "folder", "none")  # of splits and labels; anything else is a CSV


@dataclass(frozen=True)
class Reading:
    """What the user says of how a data set is to be read; "auto" and None: concluded from what is there."""

    splits: Splits = AUTO  # which images are for training, validation and testing
    labels: Labels = AUTO
    key: Key = "first"  # in tar shards: which dot of a name ends the key of a sample
    image_column: str | None = None  # of parquet files
    label_column: str | None = None
    range: str = AUTO  # LOW,HIGH: values that become black and white, of more than 8 bits; type: by each image's type
    background: str = AUTO  # what shows through transparent pixels


@dataclass(frozen=True)
class Note:
    """A conclusion about a data set, for people."""

    text: str
    guess: bool = False  # it may be wrong
    flag: str = ""  # the option that sets it, e.g. --data.splits
