"""Our SimCLR beside that of other libraries: the same encoder, images, batch size, cores and time.

    python benchmarks/peers.py --data.path FOLDER --seconds 120,600 --repeats 3

FOLDER has train.parquet and test.parquet of CIFAR-10. Each competitor pre-trains in processes of its own, one after
the other in an order drawn by the seed:
  ours                this project's command, as it comes: its first steps see smaller views
  ours-full-views     the same with views of full size in every step, as the others have them
  lightly-guide       lightly as its guide and its CIFAR-10 benchmark have it
  lightly-best        lightly's parts with every setting at its fastest on this machine, found by trying
  stable-pretraining  as its CIFAR-10 tutorial has it, in an environment of its own
  solo-learn          as its script for CIFAR has it, in an environment of its own
Each measures its own speed first, turns the seconds into a number of steps and plans its cosine over them. One
stopwatch outside reads how many steps are logged when: images per second are source images, each seen in two views, by
wall clock, with loading, logging and checkpoints. One evaluator rates all encoders: kNN, all training images for all
test images. Images are decoded before the training starts, for all.
"""

import argparse
import io
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from rayssl.pipeline.base.cache_folder import cache_dir
from rayssl.pipeline.base.device import choose_device, resolve_precision, to_float
from rayssl.pipeline.base.files import sha256, write_json
from rayssl.pipeline.base.vectors import knn_classify
from rayssl.pipeline.evaluation.metrics import interval_of_proportion
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.run.software import describe_software

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(__file__).resolve().parent / "peers"
REFERENCE = "lightly-guide"
PINNED = ("stable-pretraining", "solo-learn")  # each with a list of packages in benchmarks/peers
IMAGE_SIZE, CLASSES = 32, 10
K, TEMPERATURE = 20, 0.07
WARMUP_SECONDS = 10.0
POLL_SECONDS = 0.05
WINDOW_SECONDS = 5.0  # the speed is the median over windows of this length
UNSTEADY = 0.1  # first share of the training time, left out of that median
SEARCH_ROUNDS = 2  # for the fastest settings
IDLE, SETTLE_SECONDS = 0.1, 30.0  # a turn begins when so little of the cores is in use, or after so long
CORES = len(os.sched_getaffinity(0))

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Competitor:
    """What to run, and in which Python."""

    name: str
    script: str = ""  # empty: our own command
    python: Path = Path(sys.executable)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """One training of one competitor."""

    competitor: Competitor
    seconds: float
    repeat: int
    seed: int


class Failed(Exception):  # noqa: N818
    """A competitor cannot be installed or did not run to its end."""


def main() -> int:
    """Parse, prepare, let them take turns, write the result, print a table."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        result = measure(options, Path(folder))
    write_json(options.out, result)
    print_table(result["summary"], result["left_out"])
    disturbed = sum(run["busy_before"] > IDLE for run in result["runs"])
    if disturbed:
        print(f"other work kept the cores busy before {disturbed} of {len(result['runs'])} runs: not a quiet machine")
    return 0 if not {"ours", REFERENCE} & result["left_out"].keys() else 1


def parse() -> argparse.Namespace:
    """The options; unknown ones are refused, as there is no telling which competitor they are for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--data.limit", dest="limit", type=int, help="only so many images of each split")
    parser.add_argument("--encoder", default="resnet-tiny", choices=("resnet-tiny", "resnet18"))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seconds", help="of training, one or several [120; with --speed-only 30]")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--competitors", default=",".join(COMPETITORS))
    parser.add_argument("--speed-only", action="store_true", help="no kNN")
    parser.add_argument("--warmup-seconds", type=float, default=WARMUP_SECONDS, help="to measure a competitor's speed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "peers.json")
    options = parser.parse_args()
    options.seconds = [float(word) for word in (options.seconds or ("30" if options.speed_only else "120")).split(",")]
    options.competitors = options.competitors.split(",")
    if unknown := set(options.competitors) - COMPETITORS.keys():
        parser.error(f"--competitors {', '.join(sorted(unknown))}: known are {', '.join(COMPETITORS)}")
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is written down."""
    bench = Bench.open(options, folder)
    began = time.monotonic()
    competitors, left_out, tries = line_up(bench)
    runs = []
    for turn in plan(competitors, options):
        if turn.competitor.name in left_out:
            continue
        try:
            runs.append(bench.take(turn))
        except Failed as failure:
            left_out[turn.competitor.name] = str(failure)
    return {
        "benchmark": "peers",
        "command": shlex.join(["python", "benchmarks/peers.py", *public(sys.argv[1:], options.data)]),
        **describe_software(),
        "processor": processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": CORES,
        "encoder": options.encoder,
        "batch_size": options.batch_size,
        "images": {"name": options.data.resolve().name, "train": len(bench.train[0]), "test": len(bench.test[0])},
        "competitors": {name: COMPETITORS[name].__doc__ for name in options.competitors},
        "protocol": protocol(),
        "summary": summarise(runs),
        "untrained": None if options.speed_only else bench.untrained(),
        "runs": runs,
        "tries": tries,
        "left_out": left_out,
        "seconds": round(time.monotonic() - began, 1),
    }


def protocol() -> dict[str, str]:
    """What the figures mean."""
    return {
        "images_per_s": f"source images a second of wall-clock time, two views each; median over windows of "
        f"{WINDOW_SECONDS:g} s, without the first {UNSTEADY:.0%} of the training time",
        "images_per_s_overall": "the same from the first logged step to the last",
        "training_s": "by the stopwatch, for all steps; start, speed measurement and compilation are not in it",
        "data_wait": "share of the training time that the loop waits for its batches",
        "knn": f"k nearest neighbours by cosine, k = {K}, weights exp(s/T) with T = {TEMPERATURE:g}; votes of all "
        "training images for all test images; frozen encoder in single precision, images in [0, 1] normalised as in "
        "its training; Wilson interval",
        "images": "all see the same training images, none held out",
        "threads": f"OMP_NUM_THREADS={CORES} for all; OMP_WAIT_POLICY is left to each",
        "busy_before": "share of all cores that other work had in use just before a run: on a quiet machine about 0",
    }


# Who takes part


def ours() -> Competitor:
    """This project's command with the recipe simclr-cifar10, as users run it."""
    return Competitor("ours")


def ours_full_views() -> Competitor:
    """The same recipe with views of full size throughout: what a step costs, like for like."""
    return Competitor("ours-full-views", settings={"train.small-views": 0})


def lightly_guide() -> Competitor:
    """lightly as documented: PIL images, its SimCLRTransform, single precision, a plain loop."""
    settings = {
        "transform": "simclr", "processes": documented_processes(), "threads": CORES, "precision": "fp32",
        "channels_last": False, "one_pass": False, "compile": False,
    }  # fmt: skip
    return Competitor("lightly-guide", "train_lightly.py", settings=settings)


def lightly_best() -> Competitor:
    """The same recipe with lightly's loss and head, and every setting at its fastest; the search starts here."""
    settings = {
        "transform": "pil", "processes": documented_processes(), "threads": CORES,
        "precision": resolve_precision("auto", choose_device()), "channels_last": True, "one_pass": False,
        "compile": False,
    }  # fmt: skip
    environment = {"OMP_WAIT_POLICY": "PASSIVE"}
    return Competitor("lightly-best", "train_lightly.py", settings=settings, environment=environment)


def stable_pretraining() -> Competitor:
    """stable-pretraining's CIFAR-10 tutorial; mixed precision where there is a GPU, as in its benchmark."""
    precision = "16-mixed" if torch.cuda.is_available() else "32-true"
    return pinned("stable-pretraining", "train_stable_pretraining.py", precision)


def solo_learn() -> Competitor:
    """solo-learn's script for CIFAR on our torch; mixed precision where there is a GPU, as the script has it."""
    return pinned("solo-learn", "train_solo_learn.py", "16" if torch.cuda.is_available() else "32")


def pinned(name: str, script: str, precision: str) -> Competitor:
    """A competitor with an environment of its own."""
    settings = {"processes": documented_processes(), "precision": precision}
    return Competitor(name, script, environment_of(name), settings)


def documented_processes() -> int:
    """Guides have up to 8 loader processes; more of them than cores would only be in each other's way."""
    return min(8, CORES)


COMPETITORS: dict[str, Callable[[], Competitor]] = {
    "ours": ours,
    "ours-full-views": ours_full_views,
    "lightly-guide": lightly_guide,
    "lightly-best": lightly_best,
    "stable-pretraining": stable_pretraining,
    "solo-learn": solo_learn,
}


def line_up(bench: "Bench") -> tuple[list[Competitor], dict[str, str], list[dict[str, Any]]]:
    """The competitors, who is left out and why, and what was tried to find the fastest settings."""
    found: list[Competitor] = []
    left_out: dict[str, str] = {}
    tries: list[dict[str, Any]] = []
    for name in bench.options.competitors:
        try:
            competitor = COMPETITORS[name]()
            if name == "lightly-best":
                competitor, tries = fastest(bench, competitor)
            found.append(competitor)
        except Failed as failure:
            left_out[name] = str(failure)
    return found, left_out, tries


def axes() -> list[tuple[str, list[Any]]]:
    """What is tried for lightly-best, one thing after the other."""
    fewer = max(1, CORES // 2)
    return [
        ("transform", ["pil", "pil-v2", "tensor-v2", "simclr"]),
        ("processes", sorted({fewer, documented_processes()}, reverse=True)),
        ("threads", [CORES, fewer]),
        ("OMP_WAIT_POLICY", ["PASSIVE", None]),
        ("one_pass", [False, True]),
        ("compile", [False, True]),
    ]


def fastest(bench: "Bench", start: Competitor) -> tuple[Competitor, list[dict[str, Any]]]:
    """Change one setting after the other and keep what is faster.

    More than once over all of them: what was disturbed in one round, or pays only with another setting, has its chance.
    """
    best, tries = start, []
    for _ in range(SEARCH_ROUNDS):
        tries.append(bench.attempt(best))
        record = tries[-1]["images_per_s"]
        if record is None:
            raise Failed(tries[-1]["error"])
        for name, value in ((name, value) for name, values in axes() for value in values):
            candidate = changed(best, name, value)
            if candidate == best:
                continue
            tries.append(bench.attempt(candidate))
            speed = tries[-1]["images_per_s"]
            if speed is not None and speed > record:
                best, record = candidate, speed
    return best, tries


def changed(competitor: Competitor, name: str, value: Any) -> Competitor:
    """With one setting changed; names in capitals are environment variables, None: not set."""
    settings, environment = dict(competitor.settings), dict(competitor.environment)
    if not name.isupper():
        settings[name] = value
    elif value is None:
        environment.pop(name, None)
    else:
        environment[name] = value
    return Competitor(competitor.name, competitor.script, competitor.python, settings, environment)


def plan(competitors: list[Competitor], options: argparse.Namespace) -> Iterator[Turn]:
    """Turns; within a repeat the order is drawn."""
    for repeat in range(options.repeats):
        for seconds in options.seconds:
            order = list(competitors)
            random.Random(f"{options.seed}/{repeat}/{seconds}").shuffle(order)
            for competitor in order:
                yield Turn(competitor, seconds, repeat, options.seed + repeat)


def environment_of(name: str) -> Path:
    """The Python of a competitor's environment, made once: its own packages, and behind them ours, with torch.

    Raises Failed where the packages cannot be had.
    """
    pins, packages = SCRIPTS / f"{name}.txt", next(path for path in sys.path if path.endswith("site-packages"))
    folder = cache_dir() / "peers" / f"{name}-{sha256(pins)[:12]}"
    python = folder / "bin" / "python"
    behind = next(iter(folder.glob("lib/python*/site-packages/ours.pth")), None)
    if behind is not None and behind.read_text() == packages:
        return python
    say(f"{name}: making its environment in {folder}")
    installer = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    maker = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)]
    for call in (maker, [*installer, "-r", str(pins)]):
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"cannot be installed: {last_line(done.stderr)}")
    # Written last: pip must not see our packages, and an environment without it is made anew.
    next(folder.glob("lib/python*/site-packages")).joinpath("ours.pth").write_text(packages)
    return python


# Turns


@dataclass(frozen=True)
class Bench:
    """The images, and what the turns have in common."""

    options: argparse.Namespace
    folder: Path
    data: Path  # what our own command reads
    train: tuple[Images, Labels]
    test: tuple[Images, Labels]

    @classmethod
    def open(cls, options: argparse.Namespace, folder: Path) -> "Bench":
        """Decode the images once, for the competitors and the evaluator alike."""
        data = options.data.resolve()
        if options.limit is not None:
            data = limited(data, folder / "data", options.limit)
        train, test = (read_images(data / f"{split}.parquet") for split in ("train", "test"))
        np.save(folder / "train.npy", train[0])
        np.save(folder / "train-labels.npy", train[1])
        return cls(options, folder, data, train, test)

    def take(self, turn: Turn) -> dict[str, Any]:
        """Train, and say how it went."""
        out = Path(tempfile.mkdtemp(prefix=f"{turn.competitor.name}-", dir=self.folder))
        busy = settle()
        say(f"{turn.competitor.name}: {turn.seconds:g} s, repeat {turn.repeat}; {busy:.0%} of the cores in use before")
        own = turn.competitor.script == ""
        run = out / "run" if own else out
        marks = timed(self.call(turn, out), self.environment(turn.competitor, out), out, run / "metrics.jsonl")
        facts = facts_of_ours(run) if own else json.loads((out / "result.json").read_text())
        figures = speed(marks, self.options.batch_size)
        if not self.options.speed_only:
            figures |= self.knn(encoder_of(run, self.options.encoder, facts))
        return {
            "competitor": turn.competitor.name,
            "budget_s": turn.seconds,
            "repeat": turn.repeat,
            "seed": turn.seed,
            "busy_before": round(busy, 3),
            **figures,
            **facts,
            "environment": turn.competitor.environment,
        }

    def attempt(self, competitor: Competitor) -> dict[str, Any]:
        """Only the speed of some settings, or why there is none."""
        out = Path(tempfile.mkdtemp(prefix="try-", dir=self.folder))
        settle()
        tried: dict[str, Any] = {**competitor.settings, **competitor.environment, "images_per_s": None}
        try:
            call = self.call(Turn(competitor, 0.0, 0, self.options.seed), out)
            timed(call, self.environment(competitor, out), out, out / "metrics.jsonl")
            rate = json.loads((out / "result.json").read_text())["steps_per_second_before"]
            tried["images_per_s"] = round(rate * self.options.batch_size, 1)
        except Failed as failure:
            tried["error"] = str(failure)
        say(f"{competitor.name} tried: {json.dumps(tried)}")
        return tried

    def call(self, turn: Turn, out: Path) -> list[str]:
        """The command of a turn."""
        options, competitor = self.options, turn.competitor
        if not competitor.script:
            words = {
                "data.path": self.data, "data.val-fraction": 1e-9, "encoder.name": options.encoder,
                "train.batch-size": options.batch_size, "train.minutes": turn.seconds / 60, "train.seed": turn.seed,
                "wandb": "disabled", "out": out / "run", **competitor.settings,
            }  # fmt: skip
            start = [sys.executable, "-m", "rayssl.jobs.main", "pretrain", "simclr-cifar10"]
        else:
            words = {
                "images": self.folder, "out": out, "encoder": options.encoder, "batch-size": options.batch_size,
                "seconds": turn.seconds, "warmup-seconds": options.warmup_seconds, "seed": turn.seed,
                "settings": json.dumps(competitor.settings),
            }  # fmt: skip
            start = [str(competitor.python), str(SCRIPTS / competitor.script)]
        return start + [word for name, value in words.items() for word in (f"--{name}", str(value))]

    def environment(self, competitor: Competitor, out: Path) -> dict[str, str]:
        """The same for all, but for what a competitor sets itself."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "KMP_"))}
        quiet = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "SPT_CACHE_DIR": str(out)}
        common = {"OMP_NUM_THREADS": str(CORES), "PYTHONPATH": str(ROOT), **quiet}
        return {**kept, **common, **competitor.environment}

    def knn(self, encoder: Encoder) -> dict[str, Any]:
        """Accuracy on the test images with its interval."""
        train, test = (features(encoder, images) for images in (self.train[0], self.test[0]))
        k = min(K, len(train))
        found = knn_classify(train, self.train[1], test, k, TEMPERATURE, CLASSES)
        hits, n = int((found == self.test[1]).sum()), len(test)
        return {"knn": round(hits / n, 4), "knn_interval": [round(x, 4) for x in interval_of_proportion(hits, n)]}

    def untrained(self) -> dict[str, Any]:
        """The same encoder before training, by the same evaluator."""
        torch.manual_seed(self.options.seed)
        return self.knn(build_encoder(self.options.encoder, channels=3, image_size=IMAGE_SIZE))


def settle() -> float:
    """Wait until what the last competitor left behind has ended; the share of the cores that is in use then."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (share := busy_share(1.0)) > IDLE and time.monotonic() < deadline:
        continue
    return share


def busy_share(seconds: float) -> float:
    """Share of all cores in use, by whomever, for so long."""

    def counters() -> tuple[int, int]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]  # all, idle and waiting for a disk

    total, idle = counters()
    time.sleep(seconds)
    total_after, idle_after = counters()
    return 1 - (idle_after - idle) / max(total_after - total, 1)


def timed(call: list[str], environment: dict[str, str], out: Path, log: Path) -> list[tuple[float, int]]:
    """Run a command to its end; when how many steps were logged: (seconds, steps). Raises Failed."""
    counter, marks = StepCounter(log), []
    with (out / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            call, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=out, start_new_session=True
        )
        try:
            while process.poll() is None:
                if counter.read():
                    marks.append((time.perf_counter(), counter.steps))
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:  # this benchmark was stopped
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        output.seek(0)
        if process.returncode:
            raise Failed(f"ended with {process.returncode}: {last_line(output.read())}")
    return marks


class StepCounter:
    """Counts the steps of pre-training in a log that another process appends to."""

    def __init__(self, path: Path) -> None:
        self.path, self.position, self.steps = path, 0, 0

    def read(self) -> bool:
        """Whether there are new ones."""
        if not self.path.exists() or self.path.stat().st_size == self.position:
            return False
        with self.path.open("rb") as file:
            file.seek(self.position)
            lines = file.read()
        whole = lines.rfind(b"\n") + 1
        new = lines[:whole].count(b'"stage": "pretrain"')
        self.position, self.steps = self.position + whole, self.steps + new
        return new > 0


def speed(marks: list[tuple[float, int]], batch: int) -> dict[str, Any]:
    """Images a second, by the times at which steps were logged."""
    if len(marks) < 2:
        raise Failed("logged its steps less than twice: give it more --seconds")
    at, steps = np.array([mark[0] for mark in marks]), np.array([mark[1] for mark in marks])
    overall = (steps[-1] - steps[0]) / (at[-1] - at[0])
    first = at[0] + UNSTEADY * (at[-1] - at[0])
    windows = max(1, round((at[-1] - first) / WINDOW_SECONDS))
    edges = np.linspace(first, at[-1], windows + 1)
    rates = np.diff(np.interp(edges, at, steps)) / np.diff(edges)
    return {
        "images_per_s": round(float(np.median(rates)) * batch, 1),
        "images_per_s_overall": round(float(overall) * batch, 1),
        "images_seen": int(steps[-1]) * batch,
        "training_s": round(float(steps[-1] / overall), 1),
    }


def facts_of_ours(run: Path) -> dict[str, Any]:
    """From the run folder what the competitors' scripts write to their result.json."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    config = json.loads((run / "config.json").read_text())
    encoder = json.loads((run / "encoder.json").read_text())
    config["data"]["path"] = Path(config["data"]["path"]).name
    steps = config["train"]["steps"]
    return {
        "steps_per_second_before": steps / (60 * config["train"]["minutes"]),
        "settings": {key: config[key] for key in ("method", "train", "data", "encoder", "augment", "cluster")},
        "mean": encoder["mean"],
        "std": encoder["std"],
        "versions": json.loads((run / "manifest.json").read_text())["versions"],
        "steps": steps,
        "data_wait": statistics.mean(row["perf/data_wait"] for row in rows if "perf/data_wait" in row),
    }


# The evaluator


def encoder_of(folder: Path, name: str, facts: dict[str, Any]) -> Encoder:
    """A competitor's backbone with the normalisation that it was trained with."""
    encoder = build_encoder(name, channels=3, image_size=IMAGE_SIZE, mean=facts["mean"], std=facts["std"])
    encoder.net.load_state_dict(load_file(folder / "encoder.safetensors"), strict=True)
    return encoder


def features(encoder: Encoder, images: Images) -> NDArray[np.float32]:
    """(N, D) in single precision, evaluation mode."""
    device = choose_device()
    encoder = encoder.to(device).eval()
    with torch.inference_mode():
        parts = [encoder(to_float(torch.from_numpy(part), device, "fp32")).cpu() for part in batches(images)]
    return torch.cat(parts).numpy()


def batches(images: Images, size: int = 500) -> Iterator[Images]:
    """Consecutive parts."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


def read_images(path: Path) -> tuple[Images, Labels]:
    """(N, 32, 32, 3) and (N,) of a parquet file with the hub's image schema."""
    table = pq.read_table(path, columns=["image", "label"])
    encoded = table.column("image").combine_chunks().field("bytes").to_pylist()
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]
    return np.stack(pixels), table.column("label").to_numpy().astype(np.int64)


def limited(data: Path, folder: Path, limit: int) -> Path:
    """The first images of both splits in a folder of their own."""
    folder.mkdir()
    for split in ("train", "test"):
        pq.write_table(pq.read_table(data / f"{split}.parquet").slice(0, limit), folder / f"{split}.parquet")
    return folder


# Results


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the repeats of every competitor and budget, beside those of lightly-guide."""
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["budget_s"], run["competitor"]), []).append(run)
    rows = [summary(name, budget, members) for (budget, name), members in sorted(groups.items())]
    for row in rows:
        reference = next((r for r in rows if (r["competitor"], r["budget_s"]) == (REFERENCE, row["budget_s"])), None)
        if reference is not None:
            row["speed_ratio"] = round(row["images_per_s"] / reference["images_per_s"], 2)
            row["overall_speed_ratio"] = round(row["images_per_s_overall"] / reference["images_per_s_overall"], 2)
            if "knn" in row:
                row["knn_difference"] = round(row["knn"] - reference["knn"], 4)
    return rows


def summary(name: str, budget: float, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means, and the deviation over repeats where there are several."""
    row: dict[str, Any] = {"competitor": name, "budget_s": budget, "runs": len(runs)}
    for key, digits in (
        ("images_per_s", 1), ("images_per_s_overall", 1), ("images_seen", 0), ("training_s", 1), ("data_wait", 3),
        ("knn", 4),
    ):  # fmt: skip
        values = [run[key] for run in runs if key in run]
        if values:
            row[key] = round(statistics.mean(values), digits)
        if len(values) > 1:
            row[f"{key}_std"] = round(statistics.stdev(values), digits + 1)
    return row


def print_table(rows: list[dict[str, Any]], left_out: dict[str, str]) -> None:
    """A line a competitor and budget."""
    print(f"{'competitor':<20}{'budget':>8}{'trained':>9}{'images/s':>10}{'ratio':>7}{'seen':>11}{'wait':>7}{'kNN':>8}")
    for row in rows:
        knn = f"{row['knn']:.4f}" if "knn" in row else "–"
        ratio = f"{row['speed_ratio']:.2f}" if "speed_ratio" in row else "–"
        print(
            f"{row['competitor']:<20}{row['budget_s']:>6g} s{row['training_s']:>7.1f} s{row['images_per_s']:>10,.0f}"
            f"{ratio:>7}{row['images_seen']:>11,.0f}{row['data_wait']:>7.1%}{knn:>8}"
        )
    for name, reason in left_out.items():
        print(f"{name:<20}left out: {reason}")


def processor() -> str:
    """The name that the system has for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def public(words: list[str], data: Path) -> list[str]:
    """The command's words, with only the name of the folder of images: the rest is this machine's own business."""
    return [word.replace(str(data), data.resolve().name) for word in words]


def last_line(text: str) -> str:
    """The last one that says something, or what the output began with."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "nothing was said"


def say(text: str) -> None:
    """A line for people."""
    print(f"[{time.strftime('%T')}] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
