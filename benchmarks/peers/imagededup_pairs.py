"""The pairs that imagededup finds in a folder by its hashes: `PYTHON imagededup_pairs.py FOLDER OUT.json`.

It runs in an environment that needs `imagededup` alone. Its CNN method fetches weights when it is made, so it is left
out where they cannot be had; the reason is kept.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from imagededup import methods

HASHES = ("PHash", "DHash", "AHash", "WHash")
LIMITS = {"default": 10, "strict": 4}  # of the Hamming distance of 64 bits; 10 is what imagededup takes


def main() -> int:
    """Every method at every limit."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    found: dict[str, Any] = {}
    for name in HASHES:
        began = time.perf_counter()
        method = getattr(methods, name)(verbose=False)
        encodings = method.encode_images(image_dir=folder, recursive=True, num_enc_workers=1)
        encoded = time.perf_counter() - began
        for limit, distance in LIMITS.items():
            began = time.perf_counter()
            matches = method.find_duplicates(
                encoding_map=encodings, max_distance_threshold=distance, num_dist_workers=1
            )
            pairs = sorted({tuple(sorted((one, other))) for one, others in matches.items() for other in others})
            seconds = encoded + time.perf_counter() - began
            found[f"{name}, distance {distance} ({limit})"] = {"pairs": pairs, "seconds": round(seconds, 1)}
    try:
        began = time.perf_counter()
        matches = methods.CNN(verbose=False).find_duplicates(image_dir=folder, recursive=True, num_enc_workers=0)
        pairs = sorted({tuple(sorted((one, other))) for one, others in matches.items() for other in others})
        found["CNN, cosine 0.9 (default)"] = {"pairs": pairs, "seconds": round(time.perf_counter() - began, 1)}
    except Exception as error:  # of the network, mostly
        found["CNN, cosine 0.9 (default)"] = {"left_out": f"{type(error).__name__}: {str(error)[:200]}"}
    out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
