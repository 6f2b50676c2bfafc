"""What tells an encoder from others, torch-free."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayssl.pipeline.base.documents import load
from rayssl.pipeline.base.schemas import EncoderFile
from rayssl.pipeline.base.seals import check

EXPORT_AGAIN = "export the encoder again: the command that started the run does it"


def hash_of_encoder(facts: Mapping[str, Any]) -> str:
    """Hex digest of what decides an encoder's features, out of its encoder.json."""
    parts = {key: facts[key] for key in ("sha256", "name", "stem", "channels", "image_size", "mean", "std")}
    if facts.get("epsilon") is not None:
        parts["epsilon"] = facts["epsilon"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def encoder_hash(folder: Path) -> str:
    """Hex digest of what decides an exported encoder's features: its weights, network and normalisation."""
    return hash_of_encoder(read_manifest(folder))


def read_manifest(folder: Path) -> dict[str, Any]:
    """encoder.json of a run folder; UserError if it is missing, damaged or of another schema."""
    path = folder / "encoder.json"
    missing = f"{folder} has no encoder.json; give the folder of a run that was pre-trained"
    manifest = load(path, EncoderFile, EXPORT_AGAIN, missing)
    check(path, EXPORT_AGAIN)
    return manifest
