"""Many clients at once: is every answer of `rayssl serve` right or an orderly 503, and is memory bounded?

    python benchmarks/serve_load.py RUN --clients 400 --seconds 60

Each client uploads images of the run's own data, one request after the other, and compares what is found with what
`rayssl.open_index(RUN)` finds. Counts and the server's peak of memory go to benchmarks/results/serve_load.json; nothing
is said of speed.
"""

import argparse
import collections
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from runs import facts

import rayssl
from rayssl.pipeline.service.opened import view_of

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "serve_load.json"
IMAGES, K = 16, 5
TIE = 1e-4  # scores this close may change places: another batch rounds in another way


def main() -> None:
    """Serve, ask, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--clients", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    asked = expected(given.run)
    command = [sys.executable, "-m", "rayssl.jobs.serve", given.run, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        url = f"{told['url']}/api/runs/{told['runs'][0]}/search/image?k={K}"
        wait_until(f"{told['url']}/ready")
        before = memory(server.pid, "VmRSS")
        counts = load(url, asked, given.clients, given.seconds)
        result = {
            **facts("serve_load", given.run),
            "clients": given.clients,
            "seconds": given.seconds,
            "answers": dict(counts),
            "mib_before": before,
            "mib_peak": memory(server.pid, "VmHWM"),
        }
        server.terminate()
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sys.exit(bool(set(counts) - {"right", "503 with Retry-After"}))


def expected(run: str) -> list[tuple[bytes, list[tuple[str, float]]]]:
    """Some images and what they find."""
    opened = rayssl.open_index(run)
    pictures = view_of(opened).pictures
    images = [pictures.large(row).content for row in range(IMAGES)]
    found = opened.search(images, k=K)
    return [
        (image, [(one["id_str"], one["score"]) for one in answer["neighbors"]])
        for image, answer in zip(images, found, strict=True)
    ]


def load(url: str, asked: list[tuple[bytes, list[tuple[str, float]]]], clients: int, seconds: float) -> Any:
    """How often each kind of answer came."""
    counts: collections.Counter[str] = collections.Counter()
    lock, end = threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        while time.monotonic() < end:
            image, right = asked[number % len(asked)]
            kind = ask(url, image, right)
            with lock:
                counts[kind] += 1
            number += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def ask(url: str, image: bytes, right: list[tuple[str, float]]) -> str:
    """What kind of answer one image gets."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, image), timeout=120) as answer:
            found = [(one["id"], one["score"]) for one in json.load(answer)["neighbors"]]
    except urllib.error.HTTPError as error:
        return "503 with Retry-After" if error.code == 503 and "Retry-After" in error.headers else f"{error.code}"
    except OSError as error:
        return type(error).__name__
    scores = dict(right)
    same = len(found) == len(right) and all(
        abs(score - other) < TIE and abs(scores.get(one, score) - score) < TIE
        for (one, score), (_, other) in zip(found, right, strict=True)
    )
    return "right" if same and found[0][0] == right[0][0] else "wrong"


def wait_until(url: str) -> None:
    """Until it is answered."""
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{url} is not answered")


def memory(pid: int, what: str) -> int:
    """MiB of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) // 1024


if __name__ == "__main__":
    main()
