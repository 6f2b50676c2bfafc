"""Every fault and every damage, one after the other; the same command goes on where it was stopped.

    python tests/faults/all.py --out runs/faults

Prints each that comes out wrong, hangs or shows a traceback, and in the end the table of docs/reliability.md.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from harness import OPERATIONS, Damage, Fault, Faults, prepared

RESULTS = ("whole", "repaired", "refused", "wrong", "hang", "traceback")
GOOD = RESULTS[:3]
KEPT = "outcomes.jsonl"


def main() -> int:
    """Try what has not been tried; exit code 1 where anything came out wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--only", choices=("faults", "damages"))
    parser.add_argument("--edits", type=int, default=20, help="of every JSON file")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    kept = out / KEPT
    done = {row["name"] for row in rows(kept)}
    with prepared(out / "work") as faults, kept.open("a") as file:
        for case in cases(faults, options.only, options.edits):
            if case.name in done:
                continue
            outcome = faults.tried(case) if isinstance(case, Fault) else faults.suffered(case)
            row = {"name": case.name, "kind": kind_of(case), "result": outcome.result, "why": outcome.why}
            file.write(json.dumps(row) + "\n")
            file.flush()
            if outcome.result not in GOOD:
                print(f"{outcome.result}: {case.name}: {outcome.why}", flush=True)
    print(table(rows(kept)))
    return int(any(row["result"] not in GOOD for row in rows(kept)))


def cases(faults: Faults, only: str | None, edits: int) -> Iterator[Fault | Damage]:
    """All of them, or those of one kind."""
    if only != "damages":
        yield from faults.faults()
    if only != "faults":
        yield from faults.damages(edits)


def kind_of(case: Fault | Damage) -> str:
    """The row of the table that a case belongs to."""
    if isinstance(case, Fault):
        return f"{'kill -9' if case.error == 'kill' else 'an error'} at {OPERATIONS[case.op]}"
    return f"a file: {'edited JSON' if case.way.startswith('edit') else case.way}"


def rows(path: Path) -> list[dict[str, str]]:
    """What was tried already."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(found: list[dict[str, str]]) -> str:
    """Markdown: a row for each kind."""
    counts = Counter((row["kind"], row["result"]) for row in found)
    lines = [f"| kind | tried | {' | '.join(RESULTS)} |", f"|---|{'---|' * (len(RESULTS) + 1)}"]
    for kind in sorted({row["kind"] for row in found}):
        numbers = [counts[kind, result] for result in RESULTS]
        lines.append(f"| {kind} | {sum(numbers):,} | {' | '.join(f'{number:,}' for number in numbers)} |")
    numbers = [sum(counts[kind, result] for kind in {row["kind"] for row in found}) for result in RESULTS]
    lines.append(f"| all | {sum(numbers):,} | {' | '.join(f'{number:,}' for number in numbers)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
