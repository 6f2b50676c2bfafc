"""What tells an encoder from others, torch-free."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def hash_of_encoder(facts: Mapping[str, Any]) -> str:
    """Hex digest of what decides an encoder's features, out of its encoder.json."""
    parts = {key: facts[key] for key in ("sha256", "name", "stem", "channels", "image_size", "mean", "std")}
    if facts.get("epsilon") is not None:
        parts["epsilon"] = facts["epsilon"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
