"""Is every file of a run folder whole, and does it belong to the others?"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.atomic import UNFINISHED, is_locked
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.seals import OTHERS, audit, fits, forget_stamps, is_unfinished, running_stage, store_of
from rayssl.pipeline.evaluation.records import read_evaluation, told_of
from rayssl.pipeline.generate.decoder import read_decoder
from rayssl.pipeline.models import onnx_file
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.models.identity import encoder_hash
from rayssl.pipeline.models.onnx_file import can_run, has_onnx, load_onnx, read_described
from rayssl.pipeline.run.folder import is_unstarted, read_manifest, read_race
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.search.apply import check_own_encoder
from rayssl.pipeline.search.embeddings import files_of, load_embeddings, read_facts
from rayssl.pipeline.search.generations import CURRENT, MANIFEST, base_file
from rayssl.pipeline.search.graph import load_graph
from rayssl.pipeline.search.index import check_embeddings, check_matches, load_index
from rayssl.pipeline.search.onnx_networks import remedy
from rayssl.pipeline.search.store import FILE, FOLDER, TENSORS, has_search, read_candidates, read_search, search_hash
from rayssl.pipeline.training.checkpoint import checkpoint_fault, list_checkpoints
from rayssl.pipeline.tune.search import load_search
from rayssl.pipeline.tune.trials import load_trials
from rayssl.pipeline.verify.repair import told_repair


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
    kept = ("manifest.json",) if not _is_shared(folder) else ("race.json", "search.json")
    return store_of(folder) is None and any((folder / name).is_file() for name in kept)


def left_over(folder: Path) -> list[Path]:
    """What a killed writer left: files that never got their name."""
    found = {path for path in listed(folder, f".*{UNFINISHED}", below=True) if is_locked(path) is False}
    found |= {path for path in listed(folder, ".*.*", below=True) if path.is_file() and _is_temporary(path)}
    found |= set(listed(folder, "checkpoints/.writing-*"))
    found |= {path for ending in ("new", "old") for path in listed(folder, f"population/*.{ending}")}
    return sorted(found)


def runs_of(folder: Path) -> list[Path]:
    """The run folders of a race, also of candidates of which not much is left; of a run itself."""
    if not os.path.lexists(folder / "race.json"):
        return [folder]
    marks = ("config.json", "manifest.json", "encoder.json", "checkpoints")
    return sorted({path.parent for mark in marks for path in listed(folder, f"*/{mark}")})


def owner_of(folder: Path, path: Path) -> Path:
    """The run of a race that a file is of; else the folder itself."""
    return next((run for run in runs_of(folder) if path.is_relative_to(run)), folder)


def _is_shared(folder: Path) -> bool:
    """Whether a folder is a race or a search, whose files are noted in files.json."""
    return os.path.lexists(folder / "race.json") or _is_search(folder)


def _is_search(folder: Path) -> bool:
    inside = any(os.path.lexists(folder / name) for name in ("trials", "best.json", "search.json"))
    return inside and not any(os.path.lexists(folder / name) for name in ("manifest.json", "config.json"))


def _findings(folder: Path, deep: bool) -> Iterator[Finding]:
    if os.path.lexists(folder / "race.json"):
        yield from _race(folder, deep)
    elif _is_search(folder):
        yield from _tuning(folder, deep)
    elif is_unstarted(folder):
        yield Finding(folder, None, unfinished=True, told="nothing has been finished in it")
    else:
        yield from _run(folder, deep)


def _race(folder: Path, deep: bool) -> Iterator[Finding]:
    yield _try(folder / "race.json", lambda: read_race(folder))
    yield from _notes(folder)
    yield from _noted(folder, deep)
    for run in runs_of(folder):
        yield from _run(run, deep)
    yield _try(folder / "race.json", lambda: _check_winner(folder))


def _check_winner(folder: Path) -> None:
    winner = read_race(folder)["winner"]
    if winner is not None and folder / winner not in runs_of(folder):
        raise UserError(f"{folder / winner}, the winner of the race, is gone: restore it, or start the race again")


def _tuning(folder: Path, deep: bool) -> Iterator[Finding]:
    yield _try(folder / "search.json", lambda: load_search(folder))
    yield from _notes(folder)
    yield from _noted(folder, deep)
    yield _try(folder / "trials", lambda: load_trials(folder))


def _notes(folder: Path) -> Iterator[Finding]:
    """files.json, where it is there and is not what was written."""
    path = folder / OTHERS
    if os.path.lexists(path) and store_of(folder) != path:
        yield Finding(
            path, f"{path} is damaged: `rayssl verify {folder} --repair --yes` removes it, and goes by the rest"
        )


def _run(run: Path, deep: bool) -> Iterator[Finding]:
    """The files that are there, in the order in which stages write them, then all that were noted."""
    yield _try(run / "config.json", lambda: configuration.load(run / "config.json"))
    yield _try(run / "manifest.json", lambda: read_manifest(run))
    yield from _noted(run, deep)
    for checkpoint in list_checkpoints(run / "checkpoints"):
        yield Finding(checkpoint, checkpoint_fault(checkpoint))
    if running := running_stage(run):
        told = f"{running} has begun and has not ended"
        yield Finding(run / "manifest.json", None, unfinished=True, told=told)
    # What belongs together is judged when all of it is there; each file by itself has been compared already.
    unfinished = is_unfinished(run)
    for finding in _together(run):
        early = finding.fault is not None and unfinished
        yield Finding(finding.path, None, unfinished=True, told=finding.fault) if early else finding


def _together(run: Path) -> Iterator[Finding]:
    if fits(run / "metrics.jsonl") is not True:
        yield _try(run / "metrics.jsonl", lambda: [None for _ in MetricsLog(run).rows()])
    if (run / "encoder.json").exists() or (run / "encoder.safetensors").exists():
        yield _try(run / "encoder.safetensors", lambda: load_encoder(run))
    if (run / "decoder.json").exists() or (run / "decoder.safetensors").exists():
        yield _try(run / "decoder.safetensors", lambda: read_decoder(run))
    if has_search(run) or (run / TENSORS).exists():
        yield _or_stale(_try(run / FILE, lambda: _check_search(run)))
    for folder in [path.parent for path in listed(run, "finetuned/encoder.json")]:
        yield _try(folder / "encoder.safetensors", lambda folder=folder: load_encoder(folder))  # type: ignore[misc]
    for folder in [path.parent for path in listed(run, f"{FOLDER}/*/encoder.json")]:
        yield _try(folder / "encoder.safetensors", lambda folder=folder: load_encoder(folder))  # type: ignore[misc]
    for folder in [run, *(path for path in listed(run / FOLDER) if path.is_dir())]:
        if has_onnx(folder) or (folder / onnx_file.FILE).exists():
            yield _or_stale(_try(folder / onnx_file.FILE, lambda folder=folder: _check_onnx(run, folder)))  # type: ignore[misc]
    for folder in sorted({path.parent for path in listed(run, "embeddings/**/*.parquet")}):
        for path in files_of(folder):
            yield _or_stale(_try(path, lambda path=path: _check_embeddings(run, path)))  # type: ignore[misc]
    for folder in sorted({path.parent for name in (CURRENT, MANIFEST) for path in listed(run, f"index/*/{name}")}):
        yield _or_stale(_try(base_file(folder), lambda folder=folder: _check_index(run, folder)))  # type: ignore[misc]
    for path in listed(run, "index/*/graph*.parquet"):
        yield _or_stale(_try(path, lambda path=path: _check_graph(run, path)))  # type: ignore[misc]
    if (run / "evaluation.json").exists():
        yield _or_stale(_try(run / "evaluation.json", lambda: _check_evaluation(run)))


def _or_stale(finding: Finding) -> Finding:
    """A file that is as it was written, and that what was written later does not fit, is not finished."""
    if finding.fault is None or fits(finding.path) is not True:
        return finding
    return Finding(finding.path, None, unfinished=True, told=finding.fault)


def _noted(folder: Path, deep: bool) -> Iterator[Finding]:
    if deep:
        forget_stamps(folder)
    for one in audit(folder):
        fault = None
        if one.fault is not None:
            fault = f"{one.path} is damaged ({one.fault}): {told_repair(folder, one.path)}"
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


def _check_onnx(run: Path, folder: Path) -> None:
    """Whole, and of the encoder beside it; without ONNX Runtime what is in the file is not looked at."""
    if can_run():
        load_onnx(folder, remedy(run))
    if read_described(folder, remedy(run))["encoder"] != encoder_hash(folder):
        raise UserError(f"{folder / onnx_file.FILE} is of another encoder: {remedy(run)}")


def _check_embeddings(run: Path, path: Path) -> None:
    whole = fits(path) is True  # its bytes are what was written: what it tells of itself is enough
    found = read_facts(path)["encoder_hash"] if whole else load_embeddings(path).encoder_hash
    if "baseline" in path.parts:
        return
    expected = search_hash(run) if path.parent.name == FOLDER else encoder_hash(run)
    if found != expected:
        raise UserError(f"{path} is of another encoder: `rayssl embed {run}` makes it again")


def _check_index(run: Path, folder: Path) -> None:
    _, manifest = load_index(folder)
    check_matches(manifest, search_hash(run) or encoder_hash(run), manifest["data_fingerprint"])
    check_embeddings(manifest, run)


def _check_graph(run: Path, path: Path) -> None:
    _, facts = load_graph(path)
    check_embeddings(facts, run)


def _check_evaluation(run: Path) -> None:
    if told := told_of(run, read_evaluation(run)["set_aside"]):
        raise UserError(told)


def _is_temporary(path: Path) -> bool:
    """Whether a name is one of those that older versions wrote to until a file was whole: .NAME.RANDOM.SUFFIX."""
    name, dot, rest = path.name.removeprefix(".").rpartition(".")
    base, _, random = name.rpartition(".") if path.suffix else (name, "", rest)
    return bool(dot) and len(random) == 8 and base.endswith(path.suffix) and base != ""
