"""What the folders of a set mean: which are splits, which are classes, and what was concluded of it.

docs/data.md has the rules as a table of layouts.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.labels import doubts, is_missing
from rayssl.pipeline.data.listing import NONE, OUTSIDE, TEST, TRAIN, VAL
from rayssl.pipeline.data.reading import AUTO, WORDS, Note, Reading

SPLIT_TOKENS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout"), TEST),
}
UNLABELLED = frozenset(["unlabeled", "unlabelled", "unsup", "unsupervised"])
# Words that say nothing of what is in a folder: beside one of these a split word is still one.
NEUTRAL = frozenset(
    """set sets data dataset images image imgs img photos photo pics pictures split folder dir part files all full final
    raw orig original new old processed cropped resized jpg jpeg png of the""".split()  # noqa: SIM905
)
DATES = re.compile(
    r"(19|20)\d\d"  # 2021
    r"|(19|20)\d\d[-_. ]?(0[1-9]|1[0-2])([-_. ]?([0-2]\d|3[01]))?([-_ T].*)?"  # 2021-05, 20210504, 2021-05-04 party
    r"|([0-2]?\d|3[01])[-_.](0?[1-9]|1[0-2])[-_.](19|20)?\d\d"  # 04.05.2021
    r"|(january|february|march|april|may|june|july|august|september|october|november|december"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)[-_ ]?((19|20)?\d\d)?",
    re.IGNORECASE,
)
PILES = re.compile(
    r"\d{3}[A-Z_]{3,5}\d*"  # a camera's own: 100CANON, 101_PANA
    r"|(batch|part|fold|split|subset|chunk|shard|folder|new folder|dir|session|upload|export|import|day|week|roll|dump"
    r"|disk|disc|cd)"
    r"[-_ (]*\d+\)?",
    re.IGNORECASE,
)
PICTURES = frozenset(["images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "input", "inputs", "rgb"])
MASKS = frozenset(
    ["masks", "mask", "labels", "annotations", "annotation", "gt", "groundtruth", "ground_truth", "segmentation",
     "segmentations", "segmentationclass", "segmentationobject", "trimaps", "depth", "target", "targets"]
)  # fmt: skip
HEX = re.compile(r"[0-9a-f]{2,3}", re.IGNORECASE)
MANY_HEX = 8  # so many folders that look like the first digits of a hash
FEW_AN_ITEM = 2  # images per folder, on average, up to which folders look like items


@dataclass
class Node:
    """A folder that holds images, itself or below."""

    path: str  # relative to the root of the set, "" for the root
    own: int = 0  # images directly in it
    below: dict[str, "Node"] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Images in it and below."""
        return self.own + sum(node.images for node in self.below.values())


@dataclass(frozen=True)
class Layout:
    """What every folder that holds images directly means."""

    split_of: dict[str, str]  # folder → split
    class_of: dict[str, str | None]  # folder → class; None: not labelled
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Part:
    """A folder whose sub-folders are classes, or one that is a class itself."""

    node: Node
    split: str
    name: str | None = None  # the class of all its images
    plain: bool = False  # its images have no labels, whatever lies below

    def class_of(self, folder: str) -> str | None:
        """The class of images that lie directly in a folder of this part; None in none of its sub-folders."""
        if self.plain:
            return None
        if self.name is not None:
            return _composed(self.name)
        below = folder[len(self.node.path) :].lstrip("/")
        return _composed(below.split("/")[0]) or None


def read_layout(root: str, folders: Mapping[str, int], reading: Reading) -> Layout:
    """Splits and classes of folders (path relative to the root → images directly in it).

    A folder is a split if all its siblings that hold images are named like splits (also as part of a name: train2017,
    training_set), or if it holds class folders and a sibling split does, too. One split word among plain class folders
    is a class. Raises UserError where two readings are sensible.
    """
    top, notes = _below_wrappers(_tree(folders))
    top, loose = _below_loose(top)
    notes += loose
    if (data := _named_data(top)) is not None:
        beside = top.images - data.images
        text = f"{data.path}/ is taken for the data, {beside:,} images beside it are left out"
        top, notes = data, [*notes, Note(text, guess=True, flag="--data.path")]
    top, copy = _without_copy(top) if reading.labels == AUTO else (top, None)
    if copy is not None:
        text = f"{copy.path}/ holds the folders beside it once more: its {copy.images:,} images are left out"
        notes = [*notes, Note(text, guess=True, flag="--data.labels")]
    top, plain = _without_unlabelled(top)
    parts, told = _parts(root, top, reading)
    parts = _inner_wrappers(parts)
    parts, within = _within_groups(root, parts, reading)
    split = any(part.split != NONE for part in parts)
    parts = [*(Part(node, TRAIN if split else NONE, plain=True) for node in plain), *parts]
    told += [Note(f"{node.path}/ holds {node.images:,} images for training, without labels") for node in plain]
    left = OUTSIDE if split or data is not None else NONE
    split_of, class_of = dict.fromkeys(folders, left), dict[str, str | None].fromkeys(folders)
    for folder in folders:
        part = next((part for part in parts if _inside(folder, part.node.path)), None)
        if copy is not None and _inside(folder, copy.path):
            split_of[folder] = OUTSIDE
        elif part is not None:
            split_of[folder], class_of[folder] = part.split, part.class_of(folder)
    class_of, unnamed = _without_missing(class_of, folders) if reading.labels == AUTO else (class_of, [])
    if serving := _validation_serves(split_of.values()):
        split_of = {folder: TEST if part == VAL else part for folder, part in split_of.items()}
    labelled, about = _labelled(root, parts, class_of, folders, reading)
    notes = [*notes, *told, *serving, *within, *about, *unnamed]
    return Layout(split_of, class_of if labelled else dict.fromkeys(folders), tuple(notes))


def split_words(names: Sequence[str]) -> dict[str, str]:
    """Name → split, of those siblings that are named like splits.

    Beside the split word a name has nothing, numbers and neutral words (training_set, val2017), or what the other
    splits have as well (cats-train, cats-test). test_tube is no split, nor is train_station beside it.
    """
    found, shared = _named_like_splits(names)
    return found | (shared[0] if len(shared) == 1 else {})


def _named_like_splits(names: Sequence[str]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Name → split: of names with nothing else in them, and per other words that names of several splits have."""
    found: dict[str, str] = {}
    others: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        words = _words(name)
        splits = {SPLIT_TOKENS[word] for word in words if word in SPLIT_TOKENS}
        if len(splits) != 1:
            continue
        rest = tuple(word for word in words if word not in SPLIT_TOKENS and word not in NEUTRAL and len(word) > 1)
        if rest:
            others.setdefault(rest, {})[name] = next(iter(splits))
        else:
            found[name] = next(iter(splits))
    return found, [kin for kin in others.values() if len(set(kin.values())) > 1]


def _asked_words(names: Sequence[str]) -> dict[str, str]:
    """Name → split as --data.splits folder has it: train_day and test_night too, where no plainer names tell."""
    words = split_words(names)
    return words if TRAIN in words.values() and len(set(words.values())) > 1 else words | _with_split_words(names)


def _with_split_words(names: Iterable[str]) -> dict[str, str]:
    """Name → split, of those with words of one split in them, whatever else."""
    found = {name: {SPLIT_TOKENS[word] for word in _words(name) if word in SPLIT_TOKENS} for name in names}
    return {name: next(iter(splits)) for name, splits in found.items() if len(splits) == 1}


def _check_words(where: str, names: Sequence[str], what: str) -> None:
    """Refuse train_day and test_night: splits, or classes as train_station and test_tube are."""
    words = _with_split_words(names)
    if len(words) == len(names) and len(set(words.values())) > 1:
        raise UserError(
            f"{where} has {what} named {_listed(words)}, with words of splits and others: give --data.splits folder "
            "where they are splits, or --data.splits none where they are not"
        )


def file_splits(root: str, paths: Sequence[str], reading: Reading) -> tuple[list[str], list[Note]]:
    """The splits of shards or parquet files, by their names (train-00000-of-00002) or else their folders.

    Raises UserError where a validation and a test part come without one for training.
    """
    if reading.splits == "none" or reading.splits not in WORDS:
        return [NONE] * len(paths), []
    by_name = [_stem(path) for path in paths]
    told = _asked_words if reading.splits == "folder" else split_words
    words = told(sorted(set(by_name)))
    if not words:
        _check_words(root, sorted(set(by_name)), "files")
        by_name = [path.rpartition("/")[0].rpartition("/")[2] for path in paths]
        words = told(sorted(set(by_name)))
    splits = [words.get(name, NONE) for name in by_name]
    kinds = {split for split in splits if split != NONE}
    if len(kinds) < 2:
        return _of_one_kind(root, paths, splits, reading)
    if TRAIN not in kinds:
        raise UserError(
            f"{root} has files for {_listed(words)}, and none for training: give --data.splits none to pool them"
        )
    notes = [Note(f"splits are the files named {_listed(words)}", flag="--data.splits")]
    if serving := _validation_serves(splits):
        splits, notes = [TEST if split == VAL else split for split in splits], [*notes, *serving]
    if NONE in splits:
        left = [path for path, split in zip(paths, splits) if split == NONE]
        notes.append(Note(f"{len(left):,} files in no split are left out ({_listed(left)})", flag="--data.splits"))
    return [OUTSIDE if split == NONE else split for split in splits], notes


def _of_one_kind(
    root: str, paths: Sequence[str], splits: Sequence[str], reading: Reading
) -> tuple[list[str], list[Note]]:
    """No file, or all of them, or some, are named like one and the same split: none tells them apart."""
    named = [path for path, split in zip(paths, splits) if split != NONE]
    if reading.splits == "folder":
        raise UserError(f"--data.splits folder: the files of {root} are not named like a train and a test part")
    if not named:
        return [NONE] * len(paths), []
    guess = len(named) < len(paths)
    return [NONE] * len(paths), [Note(f"all {len(paths):,} files are pooled", guess=guess, flag="--data.splits")]


def _stem(path: str) -> str:
    """The name of a shard without numbers and hashes: train-00000-of-00002-0a1b2c3d.parquet is train."""
    name = path.rpartition("/")[2].rpartition(".")[0]
    pieces = re.split(r"[-_.]", name)
    return "-".join(piece for piece in pieces if not re.fullmatch(r"[0-9]+|[0-9a-f]{6,}|of", piece)) or name


def _words(name: str) -> list[str]:
    """Lower-case words of a name: training_set, trainA and val2017 have two, one and a letter, one."""
    pieces = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+", unicodedata.normalize("NFC", name))
    return [word for piece in pieces for word in _apart(piece.lower())]


def _apart(word: str) -> list[str]:
    """trainset and testdata as two words."""
    for split in SPLIT_TOKENS:
        if word.startswith(split) and word[len(split) :] in NEUTRAL:
            return [split, word[len(split) :]]
    return [word]


def _tree(folders: Mapping[str, int]) -> Node:
    top = Node("")
    for path, images in folders.items():
        node = top
        for name in path.split("/") if path else []:
            node = node.below.setdefault(name, Node(f"{node.path}/{name}".lstrip("/")))
        node.own += images
    return top


def _below_wrappers(top: Node) -> tuple[Node, list[Note]]:
    """The first folder that holds more than one other folder."""
    notes = []
    while not top.own and len(top.below) == 1:
        ((name, top),) = top.below.items()
        if name in split_words([name]) and top.below:
            notes.append(Note(f"{top.path}/ is the only folder with images: they are pooled", flag="--data.splits"))
    return top, notes


def _below_loose(top: Node) -> tuple[Node, list[Note]]:
    """photos/ with class folders in it beside a logo.png: the folder, whose classes the loose images are not in."""
    if not top.own or len(top.below) != 1:
        return top, []
    inner, notes = _below_wrappers(next(iter(top.below.values())))
    if len(inner.below) < 2 or split_words(list(inner.below)):
        return top, []
    text = f"the folders in {inner.path}/ are looked at; {top.own:,} images beside it are used without a label"
    return inner, [*notes, Note(text, guess=True, flag="--data.path")]


def _named_data(top: Node) -> Node | None:
    """dataset/ with folders in it, beside examples/ without: the only folder whose name says that it is the data."""
    named = [node for name, node in top.below.items() if _words(name) and set(_words(name)) <= NEUTRAL]
    others = [node for node in top.below.values() if node not in named]
    alone = len(named) == 1 and len(named[0].below) > 1 and others and not any(node.below for node in others)
    return named[0] if alone else None


def _without_copy(top: Node) -> tuple[Node, Node | None]:
    """Without a folder that has all the folders beside it in it once more: x/a, x/b, x/x/a, x/x/b."""
    copies = [
        node for name, node in top.below.items()
        if len(top.below) > 2 and not node.own and not split_words([name])
        and set(node.below) == set(top.below) - {name}
    ]  # fmt: skip
    if len(copies) != 1:
        return top, None
    rest = {name: node for name, node in top.below.items() if node is not copies[0]}
    return Node(top.path, top.own, rest), copies[0]


def _without_unlabelled(top: Node) -> tuple[Node, list[Node]]:
    """The folders beside one that is called unlabeled or the like, and that one."""
    plain = [node for name, node in top.below.items() if UNLABELLED & set(_words(name)) and not split_words([name])]
    if not plain or len(plain) == len(top.below):
        return top, []
    rest = Node(top.path, top.own, {name: node for name, node in top.below.items() if node not in plain})
    return _below_wrappers(rest)[0], plain


def _parts(root: str, top: Node, reading: Reading) -> tuple[list[Part], list[Note]]:
    """The folders whose sub-folders are classes, with their splits."""
    words = split_words(list(top.below))
    if reading.splits == "none" or reading.splits not in WORDS:
        return _pooled(top, words, reading), []
    if reading.splits == "folder":
        return _named_parts(root, top, _asked_words(list(top.below)))
    if not words:
        _check_kin(root, top)
        _check_words(_at(root, top), list(top.below), "folders")
        return _parts_of_classes(root, top, reading)
    if len(words) == len(top.below):
        return _all_parts(root, top, words)
    return _some_parts(root, top, words)


def _check_kin(root: str, top: Node) -> None:
    """Refuse real_train, real_test, fake_train, fake_test: splits and classes in one name."""
    _, shared = _named_like_splits(list(top.below))
    kin = [name for names in shared for name in names if TRAIN in names.values()]
    if len(shared) > 1 and len(kin) == len(top.below):
        raise UserError(
            f"{_at(root, top)} has folders named {_listed(kin)}: give a CSV with the columns path and split, or "
            "--data.splits none where all are classes"
        )


def _pooled(top: Node, words: Mapping[str, str], reading: Reading) -> list[Part]:
    """No splits by folders: where all are named like some, classes are looked for below them."""
    if words and len(words) == len(top.below) and reading.labels != "folder":
        return [Part(node, NONE) for node in top.below.values()]
    return [Part(top, NONE)]


def _named_parts(root: str, top: Node, words: Mapping[str, str]) -> tuple[list[Part], list[Note]]:
    """As --data.splits folder asks for it."""
    if TRAIN not in words.values():
        raise UserError(
            f"--data.splits folder: none of the folders of {_at(root, top)} is named like one for training "
            f"({_listed(top.below)}): rename it to train, or give --data.splits auto, none or a CSV"
        )
    return [Part(top.below[name], split) for name, split in words.items()], _outside(top, words)


def _all_parts(root: str, top: Node, words: Mapping[str, str]) -> tuple[list[Part], list[Note]]:
    """Every folder is named like a split."""
    kinds = set(words.values())
    if top.own and TRAIN not in kinds:
        raise UserError(
            f"{_at(root, top)} has {top.own:,} images beside the folders {_listed(words)}: give --data.splits none to "
            f"pool them, --data.path '{_at(root, top)}/{next(iter(words))}' for those alone, or a CSV with the columns "
            "path and split"
        )
    if len(kinds) == 1:
        told = f"{_listed(words)} are one part: their images are pooled"
        return [Part(node, NONE) for node in top.below.values()], [Note(told, flag="--data.splits")]
    if TRAIN not in kinds:
        raise UserError(
            f"{_at(root, top)} has folders named {_listed(words)}, and none for training: give --data.splits none to "
            "pool them, or --data.splits none --data.labels folder where they are classes"
        )
    return [Part(top.below[name], split) for name, split in words.items()], _outside(top, words)


def _some_parts(root: str, top: Node, words: Mapping[str, str]) -> tuple[list[Part], list[Note]]:
    """Some folders are named like splits, others are not."""
    holding = {name: split for name, split in words.items() if top.below[name].below}
    others = [node for name, node in top.below.items() if name not in words]
    if len(set(holding.values())) > 1 and TRAIN in holding.values():
        return [Part(top.below[name], split) for name, split in words.items()], _outside(top, words)
    if len(words) == 1 and not holding and not any(node.below for node in others):
        name = next(iter(words))
        told = f"'{name}' is taken for a class, beside {_listed(node.path for node in others)}"
        return [Part(top, NONE)], [Note(told, guess=True, flag="--data.splits")]
    raise UserError(
        f"{_at(root, top)} has folders named {_listed(words)} beside {_listed(node.path for node in others)}: give "
        "--data.splits folder where the former are splits (others are left out), or --data.splits none where all are "
        "classes (--data.labels none: where they are neither)"
    )


def _parts_of_classes(root: str, top: Node, reading: Reading) -> tuple[list[Part], list[Note]]:
    """No folder is named like a split; every class may have its own: cat/train, cat/test, dog/train, dog/test."""
    inner = {name: split_words(list(node.below)) for name, node in top.below.items()}
    whole = [
        name for name, node in top.below.items()
        if not node.own and node.below and len(inner[name]) == len(node.below) and TRAIN in inner[name].values()
    ]  # fmt: skip
    some = [name for name, words in inner.items() if {TRAIN, TEST} <= set(words.values()) and name not in whole]
    kinds = {split for words in inner.values() for split in words.values()}
    if some:
        beside = [name for name in top.below[some[0]].below if name not in inner[some[0]]] or ["images in no folder"]
        raise UserError(
            f"{_at(root, top)}: '{some[0]}' holds {_listed(inner[some[0]])} beside {_listed(beside)}: give one folder "
            f"alone, e.g. --data.path '{_at(root, top.below[some[0]])}', --data.splits none to pool all, or a CSV with "
            "the columns path and split"
        )
    if not whole or len(kinds) < 2:
        return [Part(top, NONE)], []
    if len(whole) < len(top.below):
        lacking = next(name for name in top.below if name not in whole)
        raise UserError(
            f"{_at(root, top)}: '{whole[0]}' holds {_listed(top.below[whole[0]].below)} and '{lacking}' does not: give "
            "--data.splits none to pool them, or a CSV with the columns path and split"
        )
    shared = set.intersection(*(set(part.below) for name in whole for part in top.below[name].below.values()))
    if len(shared) > 1 and reading.labels == AUTO:
        own, with_them, first = _listed(inner[whole[0]]), _listed(sorted(shared)), _at(root, top.below[whole[0]])
        raise UserError(
            f"{_at(root, top)}: each of {_listed(whole)} has its own {own} with {with_them} in it: give one of them, "
            f"e.g. --data.path '{first}', or --data.labels folder where {_listed(whole)} are the classes"
        )
    parts = [
        Part(top.below[name].below[word], split, name) for name, words in inner.items() for word, split in words.items()
    ]
    notes = [Note(f"every class has its own {_listed(inner[whole[0]])}", flag="--data.splits")]
    return parts, [*notes, *_left_notes(top.own, ["beside the folders"])]


def _within_groups(root: str, parts: list[Part], reading: Reading) -> tuple[list[Part], list[Note]]:
    """2023/{cat,dog}, 2024/{cat,dog}: the same folders in every one of several.

    They are the classes where the outer ones look like dates or batches; else it may be either.
    """
    outer = {name: child for part in parts for name, child in part.node.below.items()}
    inner = {frozenset(child.below) for part in parts for child in part.node.below.values()}
    plain = all(part.name is None for part in parts)
    same = plain and len(outer) > 1 and len(inner) == 1 and len(next(iter(inner))) > 1
    if not same or reading.labels != AUTO:
        return parts, []
    names = sorted(next(iter(inner)))
    why = _no_classes({name: child.images for name, child in outer.items()})
    if why is None and _no_classes(_images_of(names, outer.values())) is not None:
        return parts, []  # dates or batches within classes
    if why is None:
        raise UserError(
            f"{root}: each of {_listed(outer)} holds {_listed(names)}: give --data.labels folder where the former are "
            "the classes, --data.labels FILE, a CSV with the columns path and label, where the latter are, or "
            "--data.labels none"
        )
    told = f"the {len(outer):,} folders ({_listed(outer)}) {why}: the folders that each of them holds are the classes"
    found = [Part(child, part.split) for part in parts for child in part.node.below.values()]
    beside = [Part(Node(part.node.path, part.node.own), part.split, plain=True) for part in parts if part.node.own]
    return [*found, *beside], [Note(told, guess=True, flag="--data.labels")]


def _images_of(names: Iterable[str], outer: Iterable[Node]) -> dict[str, int]:
    """Images of folders that lie in each of several."""
    outer = list(outer)
    return {name: sum(node.below[name].images for node in outer) for name in names}


def _inner_wrappers(parts: list[Part]) -> list[Part]:
    """A folder that holds all of a split is not a class: train/images/cat beside test/images/cat, train/train/cat."""
    if any(part.name is not None for part in parts):
        return parts
    while len(parts) > 1 and all(not part.node.own and len(part.node.below) == 1 for part in parts):
        if len({next(iter(part.node.below)) for part in parts}) > 1:
            break
        parts = [Part(next(iter(part.node.below.values())), part.split) for part in parts]
    return [_unwrapped(part, parts) for part in parts]


def _unwrapped(part: Part, parts: Sequence[Part]) -> Part:
    """Without a folder that all images of this split are in, and that is called like the split, or just "images"."""
    while part.split != NONE and not part.node.own and len(part.node.below) == 1:
        ((name, inner),) = part.node.below.items()
        says_nothing = bool(_words(name)) and set(_words(name)) <= NEUTRAL
        others = [other.node.below for other in parts if other.node.path != part.node.path]
        a_class = any(name in below and len(below) > 1 for below in others)
        again = name.casefold() == part.node.path.rpartition("/")[2].casefold()
        if not again and split_words([name]).get(name) != part.split and (a_class or not says_nothing):
            break
        part = Part(inner, part.split)
    return part


def _validation_serves(splits: Iterable[str]) -> list[Note]:
    """A word on the validation part's serving as test part where there is no other."""
    kinds = set(splits)
    if VAL not in kinds or TEST in kinds or TRAIN not in kinds:
        return []
    return [Note("there is no test part: the validation part serves as one", flag="--data.splits")]


def _outside(top: Node, words: Mapping[str, str]) -> list[Note]:
    """What is in no split."""
    images = top.own + sum(node.images for name, node in top.below.items() if name not in words)
    left = [*(name for name in top.below if name not in words), *(["beside the folders"] if top.own else [])]
    told = [f"{name}/ ({split})" if split not in name.lower() else f"{name}/" for name, split in words.items()]
    notes = [Note(f"splits are the folders {', '.join(told)}", flag="--data.splits")]
    return [*notes, *_left_notes(images, left)]


def _left_notes(images: int, where: Sequence[str]) -> list[Note]:
    text = f"{images:,} images in no split are left out ({_listed(where)})"
    return [Note(text, guess=True, flag="--data.splits")] if images else []


def _labelled(
    root: str, parts: Sequence[Part], class_of: Mapping[str, str | None], folders: Mapping[str, int], reading: Reading
) -> tuple[bool, list[Note]]:
    """Whether the folders' names are labels, and what is to be said of it."""
    if reading.labels == "none":
        return False, [Note("no labels, as asked")]
    counts: dict[str, int] = {}
    for folder, name in class_of.items():
        if name is not None:
            counts[name] = counts.get(name, 0) + folders[folder]
    if reading.labels == "folder":
        if len(counts) < 2:
            raise UserError(f"--data.labels folder: {root} has {len(counts)} class folders: at least 2 are needed")
        return True, [Note(f"{len(counts):,} classes are the names of folders, as asked")]
    if reading.labels != AUTO:  # a CSV, which may say nothing but groups
        return len(counts) > 1 and _no_classes(counts) is None, []
    if len(counts) < 2:
        return False, [Note("no labels: there are no two class folders", flag="--data.labels")]
    words = {name.lower(): name for name in counts}
    if words.keys() <= PICTURES | MASKS and words.keys() & PICTURES and words.keys() & MASKS:
        pictures = words[min(words.keys() & PICTURES)]
        raise UserError(
            f"{root} has {_listed(counts)}, which look like pictures and their masks: give the pictures alone, "
            f"e.g. --data.path '{root}/**/{pictures}/*', or --data.labels folder where they are classes"
        )
    if (why := _no_classes(counts)) is not None:
        told = f"the {len(counts):,} folders ({_listed(counts)}) {why}: not taken for classes"
        return False, [Note(told, guess=True, flag="--data.labels")]
    notes = [Note(f"{len(counts):,} classes are the names of folders", guess=True, flag="--data.labels")]
    notes += doubts(list(counts))
    deeper = {
        node.path[len(part.node.path) :].lstrip("/")
        for part in parts if part.name is None for child in part.node.below.values() for node in child.below.values()
    }  # fmt: skip
    if deeper:
        told = f"{len(deeper):,} folders below the class folders are parts of these classes, e.g. {min(deeper)}"
        notes.append(Note(told, guess=True, flag="--data.labels"))
    return True, notes


def _without_missing(
    class_of: Mapping[str, str | None], folders: Mapping[str, int]
) -> tuple[dict[str, str | None], list[Note]]:
    """Without classes whose names say that there is no label, as everywhere else: nan, NA, -1."""
    missing = sorted({name for name in class_of.values() if name is not None and is_missing(name)})
    if not missing:
        return dict(class_of), []
    images = sum(folders[folder] for folder, name in class_of.items() if name in missing)
    text = f"folders called {_listed(missing)} read as no label: {images:,} images"
    kept = {folder: None if name in missing else name for folder, name in class_of.items()}
    return kept, [Note(text, guess=True, flag="--data.labels")]


def _no_classes(counts: Mapping[str, int]) -> str | None:
    """Why names of folders are hardly those of classes."""
    names, images = list(counts), sum(counts.values())
    if all(DATES.fullmatch(name) for name in names):
        return "look like dates"
    if all(PILES.fullmatch(name) for name in names):
        return "look like batches"
    hexes = len(names) >= MANY_HEX and all(HEX.fullmatch(name) for name in names)
    if hexes and any(name.isdigit() for name in names) and not all(name.isdigit() for name in names):
        return "look like the beginnings of hashes"
    if len(names) > 10 and images < FEW_AN_ITEM * len(names):
        return f"hold {images / len(names):.1f} images each"
    return None


def alike(class_names: Iterable[str]) -> list[tuple[str, ...]]:
    """Classes whose names differ by case, accents, spaces or leading zeros only."""
    found: dict[str, list[str]] = {}
    for name in class_names:
        found.setdefault(_folded(name), []).append(name)
    return [tuple(names) for names in found.values() if len(names) > 1]


def _folded(name: str) -> str:
    seen = (c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c) and not _is_unseen(c))
    plain = "".join(seen).casefold()
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_-]+", " ", plain).strip())


def _is_unseen(character: str) -> bool:
    """Spaces without width, marks of the direction."""
    return unicodedata.category(character) == "Cf"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _inside(folder: str, path: str) -> bool:
    return not path or folder == path or folder.startswith(f"{path}/")


def _at(root: str, top: Node) -> str:
    return f"{root}/{top.path}".rstrip("/")


def _listed(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(name.rpartition("/")[2] for name in names[:most]) + more
