"""Is every file of a run folder whole, and does it belong to the others? And what makes the missing whole."""

import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import config as configuration
from pipeline.checkpoint import checkpoint_fault, list_checkpoints
from pipeline.embeddings import load_embeddings, read_facts
from pipeline.errors import UserError
from pipeline.export import encoder_hash, load_encoder
from pipeline.files import UNFINISHED, is_locked
from pipeline.index import check_embeddings, check_matches, load_index
from pipeline.records import VERBS, read_evaluation, told_of
from pipeline.runfolder import MetricsLog, data_name, read_manifest, read_race
from pipeline.seals import audit, fits, forget_folder, is_unfinished, note, store_of
from pipeline.search.apply import check_own_encoder
from pipeline.search.store import FILE, FOLDER, TENSORS, has_search, read_candidates, read_search, search_hash
from pipeline.trained import read_decoder
from pipeline.tune.ledger import load_trials
from pipeline.tune.search import load_search


@dataclass(frozen=True)
class Finding:
    """One file or folder; `fault` is None when it is whole, or not finished, of which `told` may say more."""

    path: Path
    fault: str | None
    unfinished: bool = False
    told: str | None = None


def verify(folder: Path, *, deep: bool = False) -> Iterator[Finding]:
    """Check every file of a run, a race or a search for augmentations; each is told once.

    `deep` reads every file, whatever is remembered of it.
    """
    told: dict[Path, Finding] = {}
    for finding in _findings(folder, deep):
        before = told.get(finding.path)
        if before is None or _weight(finding) > _weight(before):
            told[finding.path] = finding
    yield from told.values()


def _weight(finding: Finding) -> int:
    return 2 if finding.fault is not None else int(finding.unfinished)


def is_older(folder: Path) -> bool:
    """Whether a folder was written before finished files were noted: a change of some of them cannot be seen."""
    return store_of(folder) is None and (folder / "manifest.json").is_file()


def left_over(folder: Path) -> list[Path]:
    """What a killed writer left: files that never got their name."""
    found = {path for path in folder.rglob(f".*{UNFINISHED}") if is_locked(path) is False}
    found |= {path for path in folder.rglob(".*.*") if path.is_file() and _is_temporary(path)}
    found |= set(folder.glob("checkpoints/.writing-*"))
    found |= {path for ending in ("new", "old") for path in folder.glob(f"population/*.{ending}")}
    return sorted(found)


def started_by(folder: Path) -> str:
    """The command that started a run or a search, as it is told there; to be shown, never to be run."""
    return next(iter(_started_by(folder)), "")


def repairs(folder: Path, findings: list[Finding]) -> list[str]:
    """The commands that make whole what is damaged or gone, each once, in the order of the stages."""
    names = [one.path.relative_to(folder).as_posix() for one in findings if one.fault is not None]
    wanted = {command for name in names for command in _commands(folder, name)}
    order = ["restore", "run", "finetune", "probe", "embed", "index", "evaluate", "reconstruct", "report"]
    return sorted(wanted, key=lambda text: next((i for i, verb in enumerate(order) if f" {verb} " in text), 0))


def clear(folder: Path, findings: list[Finding]) -> list[Path]:
    """Remove what was left over, and checkpoints and logs that nothing makes whole; returns what is gone now."""
    gone = left_over(folder)
    for path in gone:
        _remove(path)
    for one in findings:
        name = one.path.relative_to(folder).as_posix()
        if one.fault is None or not name.startswith(("checkpoints/step-", "metrics.jsonl")):
            continue
        place = folder / "/".join(name.split("/")[:2])
        if name == "metrics.jsonl":
            _remove(place)
            note(place)  # that it is not there
        else:
            forget_folder(place)
            shutil.rmtree(place, ignore_errors=True)
        gone.append(place)
    return list(dict.fromkeys(gone))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _findings(folder: Path, deep: bool) -> Iterator[Finding]:
    if (folder / "race.json").exists():
        yield from _race(folder, deep)
    elif (folder / "trials").exists() or (folder / "best.json").exists():
        yield from _tuning(folder, deep)
    else:
        yield from _run(folder, deep)


def _race(folder: Path, deep: bool) -> Iterator[Finding]:
    yield _try(folder / "race.json", lambda: read_race(folder))
    yield from _noted(folder, deep)
    for run in sorted(path.parent for path in folder.glob("*/config.json")):
        yield from _run(run, deep)


def _tuning(folder: Path, deep: bool) -> Iterator[Finding]:
    yield _try(folder / "search.json", lambda: load_search(folder))
    yield from _noted(folder, deep)
    yield _try(folder / "trials", lambda: load_trials(folder))


def _run(run: Path, deep: bool) -> Iterator[Finding]:
    """The files that are there, in the order in which stages write them, then all that were noted."""
    yield _try(run / "config.json", lambda: configuration.load(run / "config.json"))
    yield _try(run / "manifest.json", lambda: read_manifest(run))
    yield from _noted(run, deep)
    # What belongs together is judged when all of it is there; each file by itself has been compared already.
    unfinished = is_unfinished(run)
    for finding in _together(run):
        early = finding.fault is not None and unfinished
        yield Finding(finding.path, None, unfinished=True, told=finding.fault) if early else finding


def _together(run: Path) -> Iterator[Finding]:
    yield _try(run / "metrics.jsonl", lambda: [None for _ in MetricsLog(run).rows()])
    for checkpoint in list_checkpoints(run / "checkpoints"):
        yield Finding(checkpoint, checkpoint_fault(checkpoint))
    if (run / "encoder.json").exists() or (run / "encoder.safetensors").exists():
        yield _try(run / "encoder.safetensors", lambda: load_encoder(run))
    if (run / "decoder.json").exists() or (run / "decoder.safetensors").exists():
        yield _try(run / "decoder.safetensors", lambda: read_decoder(run))
    if has_search(run) or (run / TENSORS).exists():
        yield _or_stale(_try(run / FILE, lambda: _check_search(run)))
    for folder in sorted(path.parent for path in run.glob("finetuned/encoder.json")):
        yield _try(folder / "encoder.safetensors", lambda folder=folder: load_encoder(folder))  # type: ignore[misc]
    for folder in sorted(path.parent for path in run.glob(f"{FOLDER}/*/encoder.json")):
        yield _try(folder / "encoder.safetensors", lambda folder=folder: load_encoder(folder))  # type: ignore[misc]
    for path in sorted(run.glob("embeddings/**/*.parquet")):
        if not path.name.startswith("."):
            yield _or_stale(_try(path, lambda path=path: _check_embeddings(run, path)))  # type: ignore[misc]
    for folder in sorted(path.parent for path in run.glob("index/*/manifest.json")):
        yield _or_stale(_try(folder / "index.faiss", lambda folder=folder: _check_index(run, folder)))  # type: ignore[misc]
    if (run / "evaluation.json").exists():
        yield _or_stale(_try(run / "evaluation.json", lambda: _check_evaluation(run)))


def _or_stale(finding: Finding) -> Finding:
    """A file that is as it was written, and that what was written later does not fit, is not finished."""
    if finding.fault is None or fits(finding.path) is not True:
        return finding
    return Finding(finding.path, None, unfinished=True, told=finding.fault)


def _noted(folder: Path, deep: bool) -> Iterator[Finding]:
    for one in audit(folder, deep=deep):
        fault = None
        if one.fault is not None:
            name = one.path.relative_to(folder).as_posix()
            fault = f"{one.path} is damaged ({one.fault}): {_told_repair(folder, name)}"
        yield Finding(one.path, fault, one.unfinished)


def _try(path: Path, check: Callable[[], object]) -> Finding:
    try:
        check()
    except UserError as error:
        return Finding(path, str(error))
    except OSError as error:
        return Finding(path, f"{path} cannot be read: {error.strerror}")
    return Finding(path, None)


def _check_search(run: Path) -> None:
    check_own_encoder(run, read_search(run))
    read_candidates(run)


def _check_embeddings(run: Path, path: Path) -> None:
    whole = fits(path) is True  # its bytes are what was written: what it tells of itself is enough
    found = read_facts(path)["encoder_hash"] if whole else load_embeddings(path).encoder_hash
    if "baseline" in path.parts:
        return
    expected = search_hash(run) if path.parent.name == FOLDER else encoder_hash(run)
    if found != expected:
        raise UserError(f"{path} is of another encoder: `rayssl embed {run}` makes it anew")


def _check_index(run: Path, folder: Path) -> None:
    _, manifest = load_index(folder)
    check_matches(manifest, search_hash(run) or encoder_hash(run), manifest["data_fingerprint"])
    check_embeddings(manifest, run)


def _check_evaluation(run: Path) -> None:
    if told := told_of(run, read_evaluation(run)["set_aside"]):
        raise UserError(told)


def _is_temporary(path: Path) -> bool:
    """Whether a name is one of those that older versions wrote to until a file was whole: .NAME.RANDOM.SUFFIX."""
    name, dot, rest = path.name.removeprefix(".").rpartition(".")
    base, _, random = name.rpartition(".") if path.suffix else (name, "", rest)
    return bool(dot) and len(random) == 8 and base.endswith(path.suffix) and base != ""


def _told_repair(folder: Path, name: str) -> str:
    if name.startswith("checkpoints/step-"):
        return "`rayssl verify --repair --yes` removes it, and the one before is taken where training goes on"
    if name == "metrics.jsonl":
        return "its curves are lost: restore it, or `rayssl verify --repair --yes` goes on without them"
    if commands := _commands(folder, name):
        return f"{' and '.join(f'`{command}`' for command in commands)} makes it anew"
    return "restore it, or start again in a new --out"


def _commands(folder: Path, name: str) -> list[str]:
    """The commands that write a file anew; none where only the person who started it all can."""
    if not (folder / "manifest.json").exists() and (folder / "race.json").exists() and "/" in name:
        below, _, rest = name.partition("/")
        return _commands(folder / below, rest)
    run = shlex.quote(str(folder))
    first, _, rest = name.partition("/")
    if name == "evaluation.json":
        return [f"rayssl {verb} {run}" for verb in _verbs_of_figures(folder)]
    if first == "embeddings":
        return [f"rayssl embed {run}{_place(folder, rest.split('/')[0])}"]
    if first in ("index", "search", FILE, TENSORS):
        return [f"rayssl index {run}"]
    if first == "finetuned" or name == "checkpoints/finetune.json":
        return [f"rayssl finetune {run}"]
    if first in ("reconstruct", "interpolate", "anomalies"):
        return [f"rayssl {first} {run}"]
    if name in ("report.html", "comparison.json"):
        return [f"rayssl report {run}"]
    if first in ("figures", "encoder.json", "encoder.safetensors", "encoder_module.py", "MODEL_CARD.md", "decoder.json",
                 "decoder.safetensors", "best.json", "trials", "trials.parquet", "tune-report.html"):  # fmt: skip
        return _started_by(folder)
    return []


def _verbs_of_figures(run: Path) -> list[str]:
    """The stages that a run has had, and that wrote figures."""
    try:
        stages = read_manifest(run)["stages"]
    except UserError:
        return ["evaluate"]
    return [*(verb for verb in dict.fromkeys(VERBS.values()) if verb in stages), "evaluate"]


def _place(run: Path, data: str) -> str:
    """--data.path of other images than the run's own."""
    try:
        if data == data_name(run):
            return ""
        found = [read_facts(path) for path in sorted((run / "embeddings" / data).glob("t*.parquet"))]
    except UserError:
        return " --data.path PLACE"
    return f" --data.path {shlex.quote(found[0]['data_path'])}" if found else " --data.path PLACE"


def _started_by(folder: Path) -> list[str]:
    """The command that started a run or a search."""
    try:
        command = load_search(folder).get("command") if (folder / "trials").exists() else None
        command = command or read_manifest(folder).get("command")
    except UserError:
        return []
    return [command] if isinstance(command, str) and command else []
