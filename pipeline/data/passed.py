"""Files below a data set's root that are none of its images: what this tool wrote, and what is told by a look."""

import json
import os
import re
from collections.abc import Callable, Iterable

from rayssl.pipeline.base.cache_folder import cache_dir
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import storage
from rayssl.pipeline.data.reading import Note
from rayssl.pipeline.data.storage import Files

# Files that mark a folder that this tool wrote: a run, a race, a search over augmentations.
RUN = frozenset(["config.json", "manifest.json"])
MARKS = (RUN, frozenset(["race.json"]), frozenset(["search.json", "trials.parquet"]))
OTHERS_JUNK = frozenset(["__MACOSX", "@eaDir", ".thumbnails", "$RECYCLE.BIN", "lost+found", "wandb"])
# Endings of what is certainly no image: everything else is looked at.
NO_IMAGES = frozenset(
    [
        "txt", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "toml", "md", "rst", "html", "htm", "css", "js",
        "pdf", "doc", "docx", "xls", "xlsx", "ppt", "pptx", "py", "ipynb", "sh", "bat", "m", "r", "c", "cpp", "h",
        "java", "log", "db", "sqlite", "ini", "cfg", "lock", "zip", "gz", "tgz", "bz2", "xz", "zst", "7z", "rar", "tar",
        "parquet", "arrow", "feather", "h5", "hdf5", "mat", "pkl", "pickle", "pt", "pth", "ckpt", "safetensors", "onnx",
        "npz", "bin", "mp4", "mov", "avi", "mkv", "webm", "mp3", "wav", "flac", "ogg", "exe", "dll", "so", "svg", "eps",
        "ps", "ai",
        # Raw files of cameras begin like a TIFF, and what a reader of TIFFs finds in them is a small preview.
        "nef", "nrw", "dng", "arw", "sr2", "srf", "cr2", "pef", "srw", "erf", "3fr", "dcr", "kdc", "iiq",
    ]
)  # fmt: skip


def left_out(root: str, files: Files) -> tuple[Files, list[Note]]:
    """The files without those in folders that this tool, or a file manager, wrote; and what is to be said of it."""
    folders = _marked(root, files.paths) | _cache_below(root, files.paths)
    holding = [path.rpartition("/")[0] for path in files.paths]
    above = {folder: _upwards(folder) for folder in set(holding)}  # few folders, many files
    junk = {one for up in above.values() for one in up if one.rpartition("/")[2] in OTHERS_JUNK}
    if not folders and not junk:
        return files, []
    out = {folder for folder, up in above.items() if any(one in folders or one in junk for one in up)}
    kept = [i for i, folder in enumerate(holding) if folder not in out]
    notes = [Note(f"{folder}/ was written by this tool: left out") for folder in sorted(folders)[:5]]
    if len(folders) > 5:
        notes.append(Note(f"{len(folders) - 5} more folders that this tool wrote are left out"))
    notes += [Note(f"{folder}/ holds a system's or another tool's files: left out") for folder in sorted(junk)[:5]]
    return files.take(kept), notes


def looked_at(root: str, files: Files, suffixes: tuple[str, ...]) -> Files:
    """The files with these endings, and those with an ending that says nothing whose first bytes are an image's."""
    from rayssl.pipeline.data.formats import looks_like_image

    rows = []
    for i, path in enumerate(files.paths):
        lower = path.lower()
        if lower.endswith(suffixes):
            rows.append(i)
        elif not _is_no_image(lower):
            rows += [i] * _starts_like_one(root, path, looks_like_image)
    return files if len(rows) == len(files) else files.take(rows)


def _marked(root: str, paths: Iterable[str]) -> set[str]:
    """Folders that hold what this tool writes; the root itself is none: it was asked for."""
    names: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name.endswith((".json", ".parquet")):
            names.setdefault(folder, set()).add(name)
    fitting = [folder for folder, found in names.items() if folder and any(mark <= found for mark in MARKS)]
    return {folder for folder in fitting if _is_ours(root, folder, names[folder])}


def _cache_below(root: str, paths: Iterable[str]) -> set[str]:
    """The folder of the cache, where that lies among the images and holds files."""
    if storage.is_url(root):
        return set()
    below = os.path.relpath(os.path.realpath(cache_dir()), os.path.realpath(root)).replace(os.sep, "/")
    return {below} if any(path.startswith(f"{below}/") for path in paths) else set()


def _is_ours(root: str, folder: str, names: set[str]) -> bool:
    """Whether a config.json is one of a run: others have files of this name, too."""
    if not names >= RUN:
        return True
    try:
        values = json.loads(storage.read(storage.join(root, f"{folder}/config.json"), 0, 1 << 20))
    except (OSError, ValueError, UserError, RecursionError):
        return False
    return isinstance(values, dict) and {"schema", "recipe", "encoder"} <= values.keys()


def _upwards(folder: str) -> list[str]:
    """A folder and every one that it lies in, below the root."""
    return [*(folder[: found.start()] for found in re.finditer("/", folder)), *([folder] if folder else [])]


def _is_no_image(path: str) -> bool:
    name, _, suffix = path.rpartition("/")[2].rpartition(".")
    return bool(name) and suffix in NO_IMAGES


def _starts_like_one(root: str, path: str, looks_like_image: Callable[[bytes], bool]) -> bool:
    """Whether the first bytes are an image's; behind a URL nothing is looked at."""
    if storage.is_url(root):
        return False
    try:
        return looks_like_image(storage.read(storage.join(root, path), 0, 32))
    except (OSError, UserError):
        return False
