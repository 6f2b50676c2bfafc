"""Whole runs with a fault at one file operation, finished runs with a damaged file, and what is left of them.

Faults: every operation on a file of the run folder is found by a run that logs them; each is then made to fail in a run
of its own: killed in the middle of it, or with an error of the system. What must come out: one line and no traceback,
nothing damaged, and the same command then ends with the very bits of a run that nothing happened to.

Damages: every file that a finished run has is changed in several ways. `verify` has to find it; what reads it says so
in one line or does not need it.
"""

import errno
import hashlib
import json
import os
import random
import re
import shutil
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
BITS = ("encoder.safetensors", "search.safetensors", "finetuned/encoder.safetensors", "index/*/index.faiss")
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
        self.folder, self.told = folder, folder / "told.txt"
        library = folder / "shim.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "shim.c"), "-ldl"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
        environment["RAYSSL_CACHE"] = str(folder / "cache")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment, cwd=folder,
        )  # fmt: skip

    def ask(self, argv: list[str], fault: list[Any] | None = None, **more: Any) -> int | None:
        """The exit code of a command; None where it hangs. What it tells is in `self.text()`."""
        asked = {"argv": argv, "fault": fault, "log": None, "told": str(self.told), "seconds": SECONDS, **more}
        send, receive = _pipes(self.process)
        send.write(json.dumps(asked) + "\n")
        send.flush()
        code: int | None = json.loads(receive.readline())
        return code

    def text(self) -> str:
        """What the last command told."""
        return self.told.read_text(errors="replace")

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
        self.run = self.folder / "run"
        self.argv = command(make_images(self.folder / "images"), self.run)
        self.whole = self.folder / "whole"
        self.kept, self.log = {}, self.folder / "operations.txt"
        self.operations: Counter[tuple[str, str]] = Counter()

    def undisturbed(self) -> None:
        """Run once to know what is imported, once to know what is done to which file, and keep what came out."""
        imported = self.folder / "imported.json"
        if self.zygote.ask(self.argv, **{"import": str(imported)}) != 0:
            raise RuntimeError(self.zygote.text())
        shutil.rmtree(self.run)
        self.log.unlink(missing_ok=True)
        if self.zygote.ask(self.argv, [str(self.run), "?", "", 0, 0], log=str(self.log)) != 0:
            raise RuntimeError(self.zygote.text())
        self.kept = bits(self.run)
        shutil.rmtree(self.whole, ignore_errors=True)
        shutil.copytree(self.run, self.whole)
        lines = [line.split(" ", 1) for line in self.log.read_text().splitlines()]
        self.operations = Counter((op, without_chance(path)) for op, path in lines if op in OPERATIONS)

    def faults(self) -> Iterator[Fault]:
        """The first, a middle and the last operation of every kind on every file, in every way."""
        for (op, part), count in self.operations.items():
            for nth in sorted({1, (count + 1) // 2, count}):
                for error in ERRORS:
                    yield Fault(op, part, nth, error)

    def tried(self, fault: Fault) -> Outcome:
        """Start anew with the fault, look at what is left, and give the same command again."""
        shutil.rmtree(self.run, ignore_errors=True)
        code = self.zygote.ask(self.argv, [str(self.run), fault.op, fault.part, fault.nth, ERRORS[fault.error]])
        told = self.zygote.text()
        if (wrong := self.wrong_end(fault, code, told)) is not None:
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
        """Damage a copy of the finished run, verify it, read it in all ways, repair it."""
        self.start_whole()
        file = self.run / damage.path
        before = file.read_bytes()
        harm(file, damage.way)
        if file.is_file() and file.read_bytes() == before:
            return Outcome("whole", "the same bytes")
        found = self.zygote.ask(["verify", str(self.run)])
        told = self.zygote.text()
        if found is None or "Traceback" in told or "a fault of rayssl itself" in told:
            return Outcome("hang" if found is None else "traceback", f"verify: {last_line(told)}")
        if found == 0:
            return Outcome("wrong", f"verify sees nothing: {last_line(told)}")
        for argv in self.readers():
            code = self.zygote.ask(argv)
            told = self.zygote.text()
            if code is None or "Traceback" in told or "a fault of rayssl itself" in told:
                return Outcome("hang" if code is None else "traceback", f"{argv[0]}: {last_line(told)}")
            if code not in (0, 2, 3):
                return Outcome("wrong", f"{argv[0]} ends with {code}: {last_line(told)}")
        return Outcome("refused")

    def readers(self) -> list[list[str]]:
        """Commands that read a finished run."""
        image = str(next((self.folder / "images" / "test").rglob("*.png")))
        return [["query", str(self.run), image, "-k", "3"], ["report", str(self.run)], ["index", str(self.run)]]

    def start_whole(self) -> None:
        """The finished run in the place where it was made."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.whole, self.run)

    def wrong_end(self, fault: Fault, code: int | None, told: str) -> Outcome | None:
        """What is wrong about how a command with a fault ended."""
        if code is None:
            return Outcome("hang")
        if "Traceback" in told or "a fault of rayssl itself" in told:
            return Outcome("traceback", last_line(told))
        if fault.error == "kill":
            return None if code in (0, -9) else Outcome("wrong", f"ends with {code}")
        if code not in (0, 1):
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
    files = {path for pattern in BITS for path in run.glob(pattern)}
    found = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    flat = json.loads((run / "evaluation.json").read_text())["flat"] if (run / "evaluation.json").exists() else {}
    return {**found, "flat": json.dumps(flat, sort_keys=True)}


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
