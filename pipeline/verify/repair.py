"""What makes the damaged and missing files of a folder whole: which command, told or run.

Only commands of ours on folders that were named are ever run. A text that stands in a folder, such as the command that
started it, is told and never run: it may come from elsewhere.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import delete, listed
from rayssl.pipeline.base.seals import OTHERS, forget_folder, note
from rayssl.pipeline.evaluation.records import VERBS, read_evaluation
from rayssl.pipeline.models import onnx_file
from rayssl.pipeline.run.folder import data_name, read_manifest
from rayssl.pipeline.search.embeddings import files_of, read_facts
from rayssl.pipeline.search.graph import FILE as GRAPH_FILE
from rayssl.pipeline.search.graph import LAST_FILE
from rayssl.pipeline.search.store import FILE, TENSORS
from rayssl.pipeline.tune.search import load_search

ORDER = ("finetune", "probe", "embed", "index", "evaluate", "reconstruct", "report")
QUERIES = (onnx_file.FILE, onnx_file.MANIFEST)
IRREPLACEABLE = ("config.json", "manifest.json", "race.json", "search.json")
CURATION = ("duplicates", "outliers", "mislabelled", "cluster")  # verbs, and the folders that they write
GRAPHS = (GRAPH_FILE, LAST_FILE)
AGAIN = "again"  # what pre-training leaves, from the checkpoint that is there
STARTED = (
    "figures", "encoder.json", "encoder.safetensors", "encoder_module.py", "MODEL_CARD.md", "decoder.json",
    "decoder.safetensors", "best.json", "trials", "trials.parquet", "tune-report.html",
)  # fmt: skip


@dataclass(frozen=True)
class Repair:
    """What makes files of a folder whole; `verb` is empty where only the person who started it all can."""

    folder: Path
    verb: str
    told: str


def repairs_of(folder: Path, names: Iterable[str]) -> list[Repair]:
    """What makes files whole, by their paths in a run or search: each once, in the order of the stages."""
    wanted = dict.fromkeys(repair for name in names for repair in _repairs(folder, name))
    return sorted(wanted, key=lambda one: ORDER.index(one.verb) if one.verb in ORDER else -1)


def told_repair(folder: Path, path: Path) -> str:
    """What to do about one file of a run or search."""
    name, place = path.relative_to(folder).as_posix(), shlex.quote(str(folder))
    if name.startswith("checkpoints/step-"):
        return f"`rayssl verify {place} --repair --yes` removes it, and the one before is taken where training goes on"
    if name == "metrics.jsonl":
        return f"its curves are lost: restore it, or `rayssl verify {place} --repair --yes` goes on without them"
    if found := _repairs(folder, name):
        return f"{' and '.join(f'`{one.told}`' for one in found)} makes it again"
    return "restore it, or start again in a new --out"


def clear(folder: Path, names: Iterable[str]) -> list[Path]:
    """Remove damaged files that nothing makes whole and that stand in the way; returns what is gone now."""
    gone = []
    for name in names:
        place = folder / name
        if name.startswith("checkpoints/step-"):
            place = folder / "/".join(name.split("/")[:2])
            forget_folder(place)
            delete(place)
        elif name in ("metrics.jsonl", OTHERS) or (name == "evaluation.json" and not _is_readable(folder)):
            delete(place)
            note(place)  # that it is not there
        elif not place.exists() and not _repairs(folder, name) and name not in IRREPLACEABLE:
            note(place)
            continue
        elif _stands_in_the_way(place) and _repairs(folder, name):
            place.rmdir()
        else:
            continue
        gone.append(place)
    return list(dict.fromkeys(gone))


def _stands_in_the_way(place: Path) -> bool:
    """Whether there is an empty folder, which no file can be renamed to; one that holds something is the user's."""
    return place.is_dir() and not place.is_symlink() and not listed(place)


def _is_readable(run: Path) -> bool:
    try:
        read_evaluation(run)
    except UserError:
        return False
    return True


def _repairs(folder: Path, name: str) -> list[Repair]:
    first, _, rest = name.partition("/")
    if name == "evaluation.json":
        return [_command(folder, verb) for verb in _verbs_of_figures(folder)]
    if first == "embeddings":
        return [_embedding(folder, rest.split("/")[0])]
    if first == "index" and Path(name).name in GRAPHS:
        return [_graph(folder, name)]
    if first in ("index", "search", FILE, TENSORS, *QUERIES) and not _is_search(folder):
        return [_command(folder, "index")]
    if first == "finetuned" or name == "checkpoints/finetune.json":
        return [_command(folder, "finetune")]
    if first in ("reconstruct", "interpolate", "anomalies", *CURATION):
        return [_command(folder, first)]
    if name in ("report.html", "comparison.json"):
        return [_report(folder)]
    return _started(folder) if first in STARTED else []


def _report(folder: Path) -> Repair:
    """Of a race, whose name stands for its winner, the page over all of it is told and not run."""
    if not (folder / "race.json").exists():
        return _command(folder, "report")
    runs = [path.parent for path in listed(folder, "*/manifest.json")]
    return Repair(folder, "", f"rayssl report {shlex.join(map(str, runs))} --out {shlex.quote(str(folder))}")


def _is_search(folder: Path) -> bool:
    """Whether it is what `rayssl tune` wrote, whose search.json is another one."""
    return (folder / "trials").exists()


def _command(folder: Path, verb: str) -> Repair:
    return Repair(folder, verb, f"rayssl {verb} {shlex.quote(str(folder))}")


def _embedding(run: Path, data: str) -> Repair:
    """Of other images than the run's own the place is told, out of the folder, and so the command is not run."""
    own = _command(run, "embed")
    try:
        if data == data_name(run):
            return own
        found = [read_facts(path) for path in files_of(run / "embeddings" / data)]
    except UserError:
        found = []
    place = shlex.quote(found[0]["data_path"]) if found else "PLACE"
    return Repair(run, "", f"{own.told} --data.path {place}")


def _graph(run: Path, name: str) -> Repair:
    """A graph of neighbours is made again by what needs it; of other images than the run's own that is told."""
    _, data, file = name.split("/")
    found = _command(run, "outliers" if file == LAST_FILE else "duplicates")
    try:
        return found if data == data_name(run) else Repair(run, "", f"{found.told} --data {shlex.quote(data)}")
    except UserError:
        return found


def _verbs_of_figures(run: Path) -> list[str]:
    """The stages that a run has had, and that wrote figures."""
    try:
        stages = read_manifest(run)["stages"]
    except UserError:
        return ["evaluate"]
    return [*(verb for verb in dict.fromkeys(VERBS.values()) if verb in stages), "evaluate"]


def _started(folder: Path) -> list[Repair]:
    """The command that started a run or a search, to be told; a run's own checkpoint has what pre-training left."""
    is_search = _is_search(folder)
    try:
        command = load_search(folder).get("command") if is_search else read_manifest(folder).get("command")
    except UserError:
        return []
    told = command if isinstance(command, str) and command else ""
    if not told:
        return []
    return [Repair(folder, AGAIN if not is_search and _has_checkpoint(folder) else "", told)]


def _has_checkpoint(run: Path) -> bool:
    """Else what made the files again would be training from the first step."""
    from rayssl.pipeline.training.checkpoint import list_checkpoints

    return bool(list_checkpoints(run / "checkpoints"))
