"""Every fault and every damage, one after the other; the same command goes on where it was stopped.

    python tests/faults/all.py --out runs/faults

Prints each that comes out wrong, hangs or shows a traceback, and in the end, or after Ctrl-C, the table of
docs/reliability.md. What came of a case is kept in outcomes.jsonl: remove it to try all again.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import OPERATIONS, Damage, Fault, Faults, prepared

RESULTS = ("whole", "repaired", "dropped", "refused", "wrong", "hang", "traceback")
GOOD = RESULTS[:4]
KEPT = "outcomes.jsonl"


def main() -> int:
    """Try what has not been tried; exit code 1 where anything came out wrong, or is left to be tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--only", choices=("faults", "damages"))
    parser.add_argument("--edits", type=int, default=20, help="of every JSON file")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    kept = out / KEPT
    with prepared(out / "work") as faults:
        wanted = {case.name: case for case in cases(faults, options.only, options.edits)}
        try:
            try_those_left(faults, wanted, kept)
        except KeyboardInterrupt:
            print("stopped: the same command goes on")
    found = [row for row in rows(kept) if row["name"] in wanted]
    print(f"{len(found):,} of {len(wanted):,} cases tried\n\n{table(found, list(wanted.values()))}")
    return int(len(found) < len(wanted) or any(row["result"] not in GOOD for row in found))


def try_those_left(faults: Faults, wanted: dict[str, Fault | Damage], kept: Path) -> None:
    """Try every case that has not been tried, and note what came of it."""
    done = {row["name"] for row in rows(kept)}
    with kept.open("a") as file:
        for name, case in wanted.items():
            if name in done:
                continue
            outcome = faults.tried(case) if isinstance(case, Fault) else faults.suffered(case)
            row = {"name": name, "kind": kind_of(case), "result": outcome.result, "why": outcome.why}
            file.write(json.dumps(row) + "\n")
            file.flush()
            if outcome.result not in GOOD:
                print(f"{outcome.result}: {name}: {outcome.why}", flush=True)


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


def table(found: list[dict[str, str]], wanted: Sequence[Fault | Damage]) -> str:
    """Markdown: a row for each kind, with how many of its cases were tried."""
    counts = Counter((row["kind"], row["result"]) for row in found)
    there = Counter(kind_of(case) for case in wanted)
    lines = [f"| kind | tried | of | {' | '.join(RESULTS)} |", f"|---|{'---|' * (len(RESULTS) + 2)}"]
    for name, kinds in [*((kind, [kind]) for kind in sorted(there)), ("all", list(there))]:
        numbers = [sum(counts[kind, result] for kind in kinds) for result in RESULTS]
        cells = [sum(numbers), sum(there[kind] for kind in kinds), *numbers]
        lines.append(f"| {name} | {' | '.join(f'{number:,}' for number in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
