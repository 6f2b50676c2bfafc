"""Is every file of a run folder whole, and does it belong to the others?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import config as configuration
from pipeline.checkpoint import checkpoint_fault, list_checkpoints
from pipeline.embeddings import load_embeddings
from pipeline.errors import UserError
from pipeline.evaluate import read_evaluation
from pipeline.export import encoder_hash, load_encoder
from pipeline.index import check_matches, load_index
from pipeline.runfolder import read_manifest
from pipeline.search.apply import check_own_encoder
from pipeline.search.store import FILE, FOLDER, TENSORS, has_search, read_candidates, read_search, search_hash
from pipeline.trained import read_decoder


@dataclass(frozen=True)
class Finding:
    """One file or folder; `fault` is None when it is whole."""

    path: Path
    fault: str | None


def verify(run: Path) -> Iterator[Finding]:
    """Check the files that are there, in the order in which stages write them."""
    yield _try(run / "config.json", lambda: configuration.load(run / "config.json"))
    yield _try(run / "manifest.json", lambda: read_manifest(run))
    for checkpoint in list_checkpoints(run / "checkpoints"):
        yield Finding(checkpoint, checkpoint_fault(checkpoint))
    if (run / "encoder.json").exists() or (run / "encoder.safetensors").exists():
        yield _try(run / "encoder.safetensors", lambda: load_encoder(run))
    if (run / "decoder.json").exists() or (run / "decoder.safetensors").exists():
        yield _try(run / "decoder.safetensors", lambda: read_decoder(run))
    if has_search(run) or (run / TENSORS).exists():
        yield _try(run / FILE, lambda: _check_search(run))
    for folder in sorted(path.parent for path in run.glob(f"{FOLDER}/*/encoder.json")):
        yield _try(folder / "encoder.safetensors", lambda folder=folder: load_encoder(folder))  # type: ignore[misc]
    for path in sorted(run.glob("embeddings/**/*.parquet")):
        yield _try(path, lambda path=path: _check_embeddings(run, path))  # type: ignore[misc]
    for folder in sorted(path.parent for path in run.glob("index/*/manifest.json")):
        yield _try(folder / "index.faiss", lambda folder=folder: _check_index(run, folder))  # type: ignore[misc]
    if (run / "evaluation.json").exists():
        yield _try(run / "evaluation.json", lambda: read_evaluation(run))


def _try(path: Path, check: Callable[[], object]) -> Finding:
    try:
        check()
    except UserError as error:
        return Finding(path, str(error))
    return Finding(path, None)


def _check_search(run: Path) -> None:
    check_own_encoder(run, read_search(run))
    read_candidates(run)


def _check_embeddings(run: Path, path: Path) -> None:
    embeddings = load_embeddings(path)
    if "baseline" in path.parts:
        return
    expected = search_hash(run) if path.parent.name == FOLDER else encoder_hash(run)
    if embeddings.encoder_hash != expected:
        raise UserError(f"{path} is of another encoder: `rayssl embed {run}` makes it anew")


def _check_index(run: Path, folder: Path) -> None:
    _, manifest = load_index(folder)
    check_matches(manifest, search_hash(run) or encoder_hash(run), manifest["data_fingerprint"])
