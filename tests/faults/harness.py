"""Whole runs with a fault at one file operation, finished runs with a damaged file, and what is left of them.

Faults: every operation on a file of the run folder is found by a run that logs them; each is then made to fail in a run
of its own: killed in the middle of it, or with an error of the system. What must come out: one line and no traceback,
nothing damaged, and the same command then ends with the very bits of a run that nothing happened to.

Damages: every file that a finished run has is changed in several ways. `verify` has to find it. `query`, `report` and
`index` have to answer to the letter what they answer about the undamaged run, or refuse in one line. `verify --repair
--yes` then has to make the run what it was, to the bit; only of files that nobody but the user can restore may it say
so instead.

Every command runs without Ray (see zygote.py): the stages that are Ray's are the same code, in one process.
"""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
KILL = 0
ERRORS = {"kill": KILL, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EROFS": errno.EROFS, "EDQUOT": errno.EDQUOT}
OPERATIONS = {"O": "open", "W": "write", "S": "fsync", "R": "rename"}
SECONDS = 120.0  # after which a command hangs
# What a run leaves that must be the same to the bit, whatever happened to it; evaluation.json by its figures.
BITS = ("encoder.safetensors", "search.safetensors", "finetuned/encoder.safetensors", "index/*/g*/index.faiss")
BITS += ("embeddings/**/*.parquet",)


@dataclass(frozen=True)
class Fault:
    """The `nth` operation `op` on a file whose path in the run folder begins with `part` fails in a way."""

    op: str
    part: str
    nth: int
    error: str

    @property
    def name(self) -> str:
        return f"{self.error} at {OPERATIONS[self.op]} {self.nth} of {self.part}"


@dataclass(frozen=True)
class Damage:
    """A file of a finished run is changed: a way of HARM, or an edit of JSON drawn by a seed."""

    path: str
    way: str

    @property
    def name(self) -> str:
        return f"{self.way} {self.path}"


@dataclass(frozen=True)
class Outcome:
    """What came of a fault: `result` is whole, refused, repaired, wrong, hang or traceback; why it is not right."""

    result: str
    why: str = ""


class Zygote:
    """The process that runs commands with faults: see zygote.py."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told, self.answered = folder, folder / "told.txt", folder / "answer.txt"
        library = folder / "shim.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "shim.c"), "-ldl"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
        environment["RAYSSL_CACHE"] = str(folder / "cache")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment, cwd=folder, start_new_session=True,  # Ctrl-C is the harness's to answer
        )  # fmt: skip

    def ask(self, argv: list[str], fault: list[Any] | None = None, **more: Any) -> int | None:
        """The exit code of a command; None where it hangs. See `text` and `answer` for what it says."""
        self.answered.write_text("")
        asked = {"argv": argv, "fault": fault, "log": None, "seconds": SECONDS, **more}
        asked |= {"told": str(self.told), "answer": str(self.answered)}
        send, receive = _pipes(self.process)
        send.write(json.dumps(asked) + "\n")
        send.flush()
        code: int | None = json.loads(receive.readline())
        return code

    def text(self) -> str:
        """What the last command told, on both streams."""
        return self.answer() + self.told.read_text(errors="replace")

    def answer(self) -> str:
        """What the last command wrote to its stdout."""
        return self.answered.read_text(errors="replace")

    def close(self) -> None:
        """End it."""
        send, _ = _pipes(self.process)
        send.close()
        self.process.wait(20)


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


class Faults:
    """Runs of a few images: one undisturbed, then one for each fault; copies of it, one for each damage."""

    def __init__(self, zygote: Zygote) -> None:
        self.zygote, self.folder = zygote, zygote.folder
        self.run, self.whole, self.log = (self.folder / name for name in ("run", "whole", "operations.txt"))
        self.images = make_images(self.folder / "images")
        self.argv = command(self.images, self.run)
        self.kept: dict[str, str] = {}
        self.answers: dict[str, str] = {}
        self.operations: Counter[tuple[str, str]] = Counter()

    def undisturbed(self) -> None:
        """Run once to know what is done to which file, and keep what came out and what readers answer."""
        self.warm()
        shutil.rmtree(self.run, ignore_errors=True)
        self.ended_well(self.argv, [str(self.run), "?", "", 0, 0], log=str(self.log))
        self.operations = Counter((op, without_chance(path)) for op, path in self.logged() if op in OPERATIONS)
        shutil.rmtree(self.whole, ignore_errors=True)
        shutil.copytree(self.run, self.whole)
        self.kept = bits(self.run)
        for argv in self.readers():
            self.ended_well(argv)
            self.answers[argv[0]] = self.answer_to(argv)

    def warm(self) -> None:
        """Run every command once where nothing is kept, so that what it imports and computes once is there."""
        place = self.folder / "warm"
        shutil.rmtree(place, ignore_errors=True)
        repair = ["verify", str(place), "--repair"]
        for argv in (command(self.images, place), repair, *self.readers(place)):
            self.ended_well(argv, warm=True)

    def ended_well(self, argv: list[str], fault: list[Any] | None = None, **more: Any) -> None:
        """Run a command that nothing happens to."""
        self.log.unlink(missing_ok=True)
        if self.zygote.ask(argv, fault, **more) != 0:
            raise RuntimeError(f"{argv}: {self.zygote.text()}")

    def logged(self) -> list[tuple[str, str]]:
        """What the last command that was told to log did to which file."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(line[0], line[2:]) for line in lines]

    def faults(self) -> Iterator[Fault]:
        """The first, a middle and the last operation of every kind on every file, in every way."""
        for (op, part), count in self.operations.items():
            for nth in sorted({1, (count + 1) // 2, count}):
                for error in ERRORS:
                    yield Fault(op, part, nth, error)

    def tried(self, fault: Fault) -> Outcome:
        """Start again with the fault, look at what is left, and give the same command again."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        armed = [str(self.run), fault.op, fault.part, fault.nth, ERRORS[fault.error]]
        code = self.zygote.ask(self.argv, armed, log=str(self.log))
        if (wrong := self.wrong_end(fault, code)) is not None:
            return wrong
        if (self.run / "manifest.json").exists():
            seen = self.zygote.ask(["verify", str(self.run)])
            if seen != 0:
                return Outcome("wrong", f"verify ends with {seen}: {last_line(self.zygote.text())}")
        again = self.zygote.ask(self.argv)
        if again != 0:
            return Outcome("wrong", f"the same command ends with {again}: {last_line(self.zygote.text())}")
        return self.compared("whole" if code == 0 else "repaired")

    def damages(self, edits: int) -> Iterator[Damage]:
        """Every file in every way, and `edits` edits of every JSON file."""
        for file in sorted(path for path in self.whole.rglob("*") if path.is_file() and path.name not in OWN):
            path = str(file.relative_to(self.whole))
            for way in HARM:
                yield Damage(path, way)
            if file.suffix == ".json":
                for seed in range(edits):
                    yield Damage(path, f"edit {seed}")

    def suffered(self, damage: Damage) -> Outcome:
        """Damage copies of the finished run: verify and read one, repair another with `verify --repair --yes`.

        Repaired: `verify --deep` says that all is whole, and BITS are again what they were. Dropped: likewise, without
        the file, which is of PASSING. Refused: a file of IRREPLACEABLE, which the repair said in a line.
        """
        if not self.start_damaged(damage):
            return Outcome("whole", "the same bytes")
        code = self.zygote.ask(["verify", str(self.run)])
        if (wrong := self.not_a_line(["verify"], code)) is not None:
            return wrong
        if code == 0:
            return Outcome("wrong", f"verify sees nothing: {last_line(self.zygote.text())}")
        for argv in self.readers():
            self.start_damaged(damage)
            if (wrong := self.read_wrongly(argv)) is not None:
                return wrong
        self.start_damaged(damage)
        return self.mended(damage)

    def read_wrongly(self, argv: list[str]) -> Outcome | None:
        """What is wrong about a reader: it may refuse in a line, or answer as it does about the undamaged run."""
        code = self.zygote.ask(argv)
        if (wrong := self.not_a_line(argv, code)) is not None:
            return wrong
        if code == 0 and self.answer_to(argv) != self.answers[argv[0]]:
            return Outcome("wrong", f"{argv[0]} answers something else")
        return None

    def mended(self, damage: Damage) -> Outcome:
        """What comes of `verify --repair --yes`, and whether the run is then what it was."""
        repair = ["verify", str(self.run), "--repair", "--yes"]
        code = self.zygote.ask(repair)
        if (wrong := self.not_a_line(repair, code)) is not None:
            return wrong
        if code != 0:
            told = last_line(self.zygote.text())
            alone = damage.path in IRREPLACEABLE and str(self.run / damage.path) in told
            return Outcome("refused" if alone else "wrong", f"not repaired: {told}")
        if self.zygote.ask(["verify", str(self.run), "--deep"]) != 0:
            return Outcome("wrong", f"repaired, and then: {last_line(self.zygote.text())}")
        query = self.readers()[0]
        if self.zygote.ask(query) != 0 or self.answer_to(query) != self.answers["query"]:
            return Outcome("wrong", f"repaired, and query differs: {last_line(self.zygote.text())}")
        gone = sorted(str(path.relative_to(self.whole)) for path in self.whole.rglob("*") if self.is_gone(path))
        if any(not path.startswith(PASSING) for path in gone):
            return Outcome("wrong", f"repaired, and gone: {', '.join(gone)}")
        return self.compared("dropped" if gone else "repaired")

    def is_gone(self, path: Path) -> bool:
        """Whether a file of the finished run is not there any more."""
        return path.is_file() and path.name not in OWN and not (self.run / path.relative_to(self.whole)).exists()

    def not_a_line(self, argv: list[str], code: int | None) -> Outcome | None:
        """What is wrong about how a command about a damaged run ended: well, or with 2 or 3 and a line."""
        told = self.zygote.text()
        if code is None or is_traceback(told):
            return Outcome("hang" if code is None else "traceback", f"{argv[0]}: {last_line(told)}")
        if code not in (0, 2, 3) or (code != 0 and not last_line(told).startswith("rayssl: ")):
            return Outcome("wrong", f"{argv[0]} ends with {code}: {last_line(told)}")
        return None

    def readers(self, run: Path | None = None) -> list[list[str]]:
        """Commands that read a finished run."""
        image = str(next(iter(sorted((self.images / "test").rglob("*.png")))))
        place = str(run or self.run)
        return [["query", place, image, "-k", "3", "--json"], ["report", place], ["index", place]]

    def answer_to(self, argv: list[str]) -> str:
        """What a reader that has ended well answers, on its stdout or in a file."""
        if argv[0] == "query":
            return self.zygote.answer()
        if argv[0] == "report":
            return facts_of_report((self.run / "report.html").read_text())
        return json.dumps({str(path): digest(path) for path in sorted(self.run.glob("index/*/g*/index.faiss"))})

    def start_damaged(self, damage: Damage) -> bool:
        """The finished run in the place where it was made, with a damage; whether that changed anything."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.whole, self.run)
        file = self.run / damage.path
        before = file.read_bytes()
        harm(file, damage.way)
        return not file.is_file() or file.read_bytes() != before

    def wrong_end(self, fault: Fault, code: int | None) -> Outcome | None:
        """What is wrong about how a command with a fault ended."""
        told = self.zygote.text()
        if code is None:
            return Outcome("hang")
        if is_traceback(told):
            return Outcome("traceback", last_line(told))
        if all(op != STRUCK for op, _ in self.logged()):
            return Outcome("wrong", "this operation was not done: nothing was tried")
        if code not in ((-signal.SIGKILL,) if fault.error == "kill" else (0, 1)):
            return Outcome("wrong", f"ends with {code}: {last_line(told)}")
        return None

    def compared(self, result: str) -> Outcome:
        """The result, or what differs from the undisturbed run."""
        found = bits(self.run)
        differing = sorted(name for name in {*found, *self.kept} if found.get(name) != self.kept.get(name))
        left = sorted(str(path.relative_to(self.run)) for path in self.run.rglob(".*") if path.name not in OWN)
        if differing or left:
            return Outcome("wrong", f"differ: {', '.join(differing)}; left over: {', '.join(left)}")
        return Outcome(result)


def harm(file: Path, way: str) -> None:
    """Change a file in a way."""
    content = file.read_bytes()
    if way == "delete":
        file.unlink()
    elif way == "replace by a folder":
        file.unlink()
        file.mkdir()
    elif way.startswith("edit "):
        values = json.loads(content)
        edit(values, random.Random(f"{file.name} {way}"))
        file.write_text(json.dumps(values))
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :] if content else b""
        file.write_bytes({"flip": flipped, "cut": content[:middle], "empty": b"", "zero": bytes(len(content))}[way])


def edit(values: Any, draw: random.Random) -> None:
    """Change one value of nested JSON, or take it out."""
    places = list(_places(values))
    holder, key = draw.choice(places)
    others = [None, "x", "../../victim", -1, 5, 10**400, float("nan"), float("inf"), [], [1, 2], {}, True, "\x1b[2J"]
    if draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = draw.choice([other for other in others if other != holder[key]])


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in nested JSON: what holds it, and its key."""
    keys = values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    for key in keys:
        yield values, key
        yield from _places(values[key])


HARM = ("flip", "cut", "empty", "delete", "zero", "replace by a folder")
OWN = {".lock"}
STRUCK = "!"
ROW, SIZE, SECONDS_TAKEN = (
    re.compile(r"<tr>.*?</tr>", re.S),
    re.compile(r"<td>[\d,.]+ [kMG]?B</td>"),
    re.compile(r"[\d.]+ s\b"),
)
IRREPLACEABLE = {"config.json", "manifest.json"}
PASSING = ("checkpoints/step-", "metrics.jsonl")  # what nothing makes again and a finished run can do without


def command(images: Path, run: Path) -> list[str]:
    """A whole run in seconds."""
    settings = {
        "data.path": images, "data.image-size": 16, "encoder.name": "cnn-small", "train.batch-size": 12,
        "train.steps": 4, "train.threads": 1, "train.precision": "fp32", "train.checkpoint-epochs": 1,
        "wandb": "disabled", "finetune.draws": 1, "finetune.epochs": 1, "probe.epochs": 2, "out": run,
    }  # fmt: skip
    return ["run", "simclr-folder", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


def make_images(folder: Path) -> Path:
    """48 images of noise around one of three colours."""
    rng = np.random.default_rng(0)
    for number in range(48):
        place = folder / ("train" if number < 36 else "test") / "rgb"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 160, (16, 16, 3))
        pixels[:, :, number % 3] += 60
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def bits(run: Path) -> dict[str, str]:
    """Digests of what must be the same."""
    files = {path for pattern in BITS for path in run.glob(pattern) if path.is_file()}
    found = {str(path.relative_to(run)): digest(path) for path in files}
    flat = json.loads((run / "evaluation.json").read_text())["flat"] if (run / "evaluation.json").exists() else {}
    return {**found, "flat": json.dumps(flat, sort_keys=True)}


def digest(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def facts_of_report(page: str) -> str:
    """A report without what another run of the same has too: the times taken, sizes of files, the order of records."""
    page = SECONDS_TAKEN.sub("", page)
    rows = sorted(row for row in ROW.findall(page) if not SIZE.search(row))
    return "\n".join([ROW.sub("", page), *rows])


def is_traceback(told: str) -> bool:
    """Whether a command told a fault of its own."""
    return "Traceback" in told or "this is a bug in rayssl" in told


def without_chance(path: str) -> str:
    """A path up to the letters of a temporary name that chance has drawn."""
    return re.sub(r"(?<=\.)[a-z0-9_]{8}\.unfinished$", "", path) if path.endswith(".unfinished") else cut(path)


def cut(path: str) -> str:
    """safetensors' own temporary names."""
    return re.sub(r"/\.tmp\w{6}$", "/.tmp", path)


def last_line(text: str) -> str:
    """The last line of a text that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")[:300]


@contextmanager
def prepared(folder: Path) -> Iterator[Faults]:
    """Everything that is needed for faults, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    zygote = Zygote(folder)
    try:
        faults = Faults(zygote)
        faults.undisturbed()
        yield faults
    finally:
        zygote.close()
