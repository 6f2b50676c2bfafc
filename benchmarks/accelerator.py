"""A GPU against the CPU, how fast it trains, and what it learns in minutes: for a GPU that is lent for minutes.

    export PYTHONPATH=.
    python3 benchmarks/accelerator.py --out OUT --parts check,throughput --data.path CIFAR10
    python3 benchmarks/accelerator.py --out OUT --parts speedrun --data.path CIFAR10 --speedrun "essl compile=yes"
    python3 benchmarks/accelerator.py --out OUT --parts speedrun --data.path CIFAR10 --speedrun "lightly compile=yes"
    python3 benchmarks/accelerator.py --out OUT --device cpu --tiny

It ends by itself in time for `--minutes` (9). OUT/accelerator.json is all that it keeps, but for `--checkpoints`: the
same command again goes on with what is not there yet, and tries again what failed. Ends with 1 where a check or
anything else failed.

Parts are lists of items, each with its own entry in that file; `--only TEXT` takes those with TEXT in `PART: NAME`,
and several of them those of the first, then of the second.
  check       the device against the CPU: views, random bits, NT-Xent, gradients of every method, features; a run that
              was interrupted against one that was not; images on the device against images that are sent
  throughput  the training loop with every recipe as it is on a GPU: source images a second, time by phase and kernel,
              FLOPs as a share of what a large bf16 matrix product reaches, memory. "plain" leaves torch's settings,
              "eager" allows TF32 and lets cuDNN choose by trying, "compiled" compiles the encoder's network as well,
              with torch's own CUDA graphs ("graphs") or with the whole step as one ("recorded").
              A phase's `device` lies between events on the device, its `host` is the time to issue it: where host is
              not below device, the processor is the limit
  speedrun    trains on CIFAR-10 and rates by kNN on test images, with this project's k and T, with lightly's, and with
              ten votes that count alike; of the features, and of whitened ones

A speedrun is `METHOD name=value …`: epochs or minutes, or both for the fewer (without either, `--training-minutes`, 7),
batch, lr (for a batch of 256), decay, warmup, temperature, optimizer, views, small (share of small views), seed,
encoder, compile=yes, or any path of the config. The rate goes to zero over as many steps as the time holds, by the
speed that is measured first; measuring, compiling and decoding come before the time that counts. All images are trained
on, except with held_out=0.1, which rates by those instead: choose settings so, since test images must decide nothing.
With `--checkpoints FOLDER` another call goes on with it, where that folder is still there; without, epochs that do not
fit into what is left of a call are refused, and minutes are cut. `lightly` is SimCLR as lightly's CIFAR-10 benchmark
has it for 200 epochs, except that the head's last layer has no BatchNorm, and biases and BatchNorm no decay. With k =
200, T = 0.1, 84.7 % are published for it. 90 % by either protocol after less than 10 minutes of training is open.

CIFAR10 is a folder with train.parquet and test.parquet. Python 3.11 or later is needed with torch, torchvision, numpy,
scipy, scikit-learn, opencv, pyarrow, safetensors, fsspec and rich. Carry the wheels of what is missing of pydantic,
pydantic-core, annotated-types, typing-inspection and typing-extensions; and those of albumentations, albucore,
stringzilla and simsimd, if that backend is to be measured as well. Ray, wandb and faiss are not needed: neighbours are
found by torch where faiss is missing.
"""

import argparse
import gc
import json
import math
import os
import shlex
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS needs to repeat itself, bit for bit
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

if missing := [
    name
    for name in ("annotated_types", "cv2", "pyarrow", "pydantic", "rich", "safetensors", "sklearn", "torch")
    if find_spec(name) is None
]:
    sys.exit(f"missing: {', '.join(missing)}; see the list at the top of {__file__}")

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rayssl.pipeline import config as configuration
from rayssl.pipeline import recipes
from rayssl.pipeline.augment.batched_backend import apply_table
from rayssl.pipeline.augment.defaults import finetune_view, rotnet_views, simclr_views
from rayssl.pipeline.augment.spec import (
    OPERATIONS,
    ColorJitter,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Solarize,
    Spec,
)
from rayssl.pipeline.base import randomness, randomness_torch
from rayssl.pipeline.base.device import autocast, resolve_precision
from rayssl.pipeline.base.digests import digest
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.base.vectors import knn_classify, normalise
from rayssl.pipeline.data import Dataset, Images, open_dataset
from rayssl.pipeline.evaluation import metrics
from rayssl.pipeline.features.extract import embed_images
from rayssl.pipeline.features.whitening import fit_whitening
from rayssl.pipeline.methods import METHODS, load_method
from rayssl.pipeline.methods.base import Batch, Method
from rayssl.pipeline.methods.losses import nt_xent
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.run.build import (
    batches_of,
    new_method,
    new_optimizer,
    required_method,
    schedule_of,
    step_of,
    views_of,
)
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.run.plan import Machine
from rayssl.pipeline.run.resolve import resolve
from rayssl.pipeline.run.software import describe_software
from rayssl.pipeline.training.batches import load_batches
from rayssl.pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from rayssl.pipeline.training.cuda_graph import can_be_recorded
from rayssl.pipeline.training.loop import Hooks, Loop, set_learning_rate
from rayssl.pipeline.training.step import to_batch

PARTS = ("check", "throughput", "speedrun")
OPTIONAL = ("albumentations", "faiss", "ray", "wandb")
GEMM = "matrix product"
EPOCH_IMAGES = 50_000  # CIFAR-10
MEASURED_SECONDS, WARM_LOGS = 3.0, 3
KERNELS = 30  # that are named
PHASES = ("augment", "forward", "backward", "optimizer")
SHOWN = ("ok", "error", "out_of_memory", "flops_per_second", "images_per_second", "milliseconds_by_phase",
         "share_of_matrix_product", "knn", "training_seconds", "epochs", "seconds")  # fmt: skip
FOR_SETUP = 32.0  # seconds that a speedrun takes beside training
FOR_RATING = 12.0
SHOW_SECONDS, SAVE_SECONDS = 20.0, 120.0
PROTOCOLS = {  # k and T: this project's, lightly's, and that of the open challenge, where all votes count alike
    "k = 20, T = 0.07": (20, 0.07),
    "k = 200, T = 0.1": (200, 0.1),
    "k = 10, unweighted": (10, 1e6),
}

# side in pixels, channels, and the sides that images have where they differ
SHAPES: dict[str, tuple[int, int, tuple[int, int]]] = {
    "digits": (8, 1, (8, 8)),
    "mnist": (28, 1, (28, 28)),
    "cifar10": (32, 3, (32, 32)),
    "folder": (224, 3, (256, 341)),
}

SHORT = {
    "epochs": "train.epochs", "minutes": "train.minutes", "batch": "train.batch_size", "lr": "train.learning_rate",
    "decay": "train.weight_decay", "warmup": "train.warmup_epochs", "temperature": "method.temperature",
    "optimizer": "train.optimizer", "views": "method.views", "small": "train.small_views",
    "seed": "train.seed", "encoder": "encoder.name",
}  # fmt: skip

LIGHTLY_VIEW = Spec(
    (
        RandomResizedCrop(scale=(0.08, 1.0)),
        HorizontalFlip(p=0.5),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        Grayscale(p=0.2),
    )
)
LIGHTLY: dict[str, Any] = {
    "train.epochs": 200, "train.batch_size": 512, "train.learning_rate": 0.12, "train.weight_decay": 5e-4,
    "method.temperature": 0.5, "method.projector_hidden": 512, "augment.views": [LIGHTLY_VIEW.to_dict()] * 2,
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What every item may need."""

    device: torch.device
    tiny: bool
    data: str | None
    deadline: float  # of time.monotonic()
    speedruns: tuple[str, ...]
    training_minutes: float
    checkpoints: Path | None  # of speedruns; None: each is done within one call
    results: dict[str, Any]

    @property
    def left(self) -> float:
        """Seconds until this call should end."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Item:
    """One measurement with a name of its own, and the seconds that it may take on a large GPU."""

    part: str
    name: str
    seconds: float
    measure: Callable[[], dict[str, Any]]


def main() -> int:
    """Parse, go through the items until the time is over, keep every result."""
    options = parse()
    path = options.out / "accelerator.json"
    results = json.loads(path.read_text()) if path.exists() else {"benchmark": "accelerator"}
    if results.setdefault("tiny", options.tiny) != options.tiny:
        raise SystemExit(f"{path} was written {'without' if options.tiny else 'with'} --tiny: give another --out")
    results.setdefault("calls", []).append(describe(options))
    bench = Bench(
        options.device,
        options.tiny,
        options.data,
        time.monotonic() + 60 * options.minutes,
        tuple(options.speedrun) or ("simclr compile=yes",),
        options.training_minutes,
        options.checkpoints,
        results,
    )
    if find_spec("faiss") is None:
        sys.modules["faiss"] = neighbours_by_torch(options.device)
    items = [item for part in options.parts.split(",") for item in ITEMS[part](bench)]
    if options.only:
        items = [item for text in options.only for item in items if text in f"{item.part}: {item.name}"]
    failed, waiting = go_through(items, bench, lambda: write_json(path, plain(results)))
    write_json(path, plain(results))
    print(f"failed: {', '.join(failed) or 'nothing'}")
    print(f"left for another call: {', '.join(waiting) or 'nothing'}")
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument(
        "--only", action="append", default=[], help="items with this in `PART: NAME`; several: in the order given"
    )
    parser.add_argument("--data.path", dest="data", help="CIFAR-10 with labels, as `rayssl run` takes it")
    parser.add_argument("--speedrun", action="append", default=[], help="one of them; may be given several times")
    parser.add_argument("--training-minutes", type=float, default=7.0)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--checkpoints", type=Path, help="a folder by which another call goes on with a speedrun")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda", 0))
    parser.add_argument("--commit", help="where there is no git to tell it")
    parser.add_argument("--tiny", action="store_true", help="small sizes: whether everything runs, not how fast")
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"unknown parts {', '.join(unknown)}: known are {', '.join(PARTS)}")
    for text in options.speedrun:
        if told := fault_of_speedrun(text):
            parser.exit(2, f"--speedrun '{text}': {told}\n")
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU: --device cpu --tiny only tries whether everything runs")
    return options


def fault_of_speedrun(text: str) -> str | None:
    """What is wrong with the text of a speedrun; None for one that can be done."""
    if odd := [word for word in shlex.split(text)[1:] if "=" not in word]:
        return f"'{odd[0]}' is no name=value"
    recipe, changes, _ = read_speedrun(text, 1.0)
    try:
        configuration.override(recipes.build_recipe(recipe), changes)
    except UserError as error:
        return str(error)
    return None


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """The machine and what is on it."""
    software, paths = describe_software(), (options.out, Path(options.data or options.out), options.checkpoints)
    words = [Path(word).name if Path(word) in paths else word for word in sys.argv[1:]]
    return {
        "command": shlex.join(["python", "benchmarks/accelerator.py", *words]),
        **software,
        "commit": options.commit or software["commit"],
        "started": time.strftime("%FT%T%z"),
        "device": device_name(options.device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "missing": [name for name in OPTIONAL if find_spec(name) is None],
    }


def device_name(device: torch.device) -> str:
    """The card's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def go_through(items: list[Item], bench: Bench, save: Callable[[], None]) -> tuple[list[str], list[str]]:
    """Measure what is not done yet and fits into the time left; the names of what failed, and of what is left."""
    failed, waiting = [], []
    for item in items:
        kept = bench.results.setdefault(item.part, {})
        name = f"{item.part}: {item.name}"
        if item.name in kept and not has_failed(kept[item.name]):
            continue
        if not bench.tiny and bench.left < item.seconds:
            waiting.append(name)
            continue
        began = time.monotonic()
        result = attempt(item)
        result.update(seconds=time.monotonic() - began, device=device_name(bench.device))
        if "unfinished" in result:
            waiting.append(f"{name} ({result['unfinished']})")
            kept.pop(item.name, None)  # a failure before
        else:
            kept[item.name] = plain(result)
            print(f"[{bench.left:4.0f} s left] {name}: {json.dumps(brief(kept[item.name]))}", flush=True)
        save()
        if has_failed(result):
            failed.append(name)
        if not cleaned(bench.device):
            print("the device does not answer any more: the rest is for another call", flush=True)
            break
    return failed, waiting


def has_failed(result: dict[str, Any]) -> bool:
    """Whether there was an error, or a bound was not met."""
    return "error" in result or result.get("ok") is False


def attempt(item: Item) -> dict[str, Any]:
    """The item's result, or why there is none."""
    try:
        return item.measure()
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}


def cleaned(device: torch.device) -> bool:
    """Leave nothing of an item behind; False where an error has made the device useless for this process."""
    try:
        set_speed(False)
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        synchronize(device)
    except RuntimeError:
        return False
    return True


def plain(value: Any) -> Any:
    """Six digits of every number, and JSON has no infinity."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def brief(result: dict[str, Any]) -> dict[str, Any]:
    """What is worth a line on the screen."""
    return {key: result[key] for key in SHOWN if key in result}


def set_speed(fast: bool, *, exact: bool = False) -> None:
    """Torch's settings: its defaults, or the fast ones, or fp32 that is fp32."""
    torch.set_float32_matmul_precision("high" if fast else "highest")
    torch.backends.cudnn.allow_tf32 = not exact
    torch.backends.cudnn.benchmark = fast


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def neighbours_by_torch(device: torch.device) -> types.ModuleType:
    """In the place of faiss: exact neighbours by inner product, in double precision."""

    def knn(queries: Any, references: Any, k: int, metric: int) -> tuple[Any, Any]:
        among = torch.from_numpy(references).to(device).double()
        found = [
            (torch.from_numpy(rows).to(device).double() @ among.T).topk(k)
            for rows in np.array_split(queries, -(-len(queries) // 1024))
        ]
        return tuple(torch.cat([one[part] for one in found]).cpu().numpy() for part in (0, 1))

    module = types.ModuleType("faiss")
    module.knn, module.METRIC_INNER_PRODUCT = knn, 0  # type: ignore[attr-defined]
    return module


# Images and runs


class Cut:
    """Images cut from one canvas of noise in patches, with sides from `low` to `high`."""

    def __init__(self, n: int, channels: int, low: int, high: int) -> None:
        self.channels, self.low, self.high = channels, low, high
        rng = np.random.default_rng(0)
        side = 2 * high
        patches = rng.integers(0, 256, (side // 4 + 1, side // 4 + 1, channels)).repeat(4, axis=0).repeat(4, axis=1)
        noise = rng.normal(0, 12, patches.shape)
        self.canvas = np.clip(patches + noise, 0, 255).astype(np.uint8)
        self.all = np.stack([self.read(row) for row in range(n)]) if low == high else None

    def read(self, row: int) -> Any:
        """(H, W, C) of one image."""
        top, left = row * 7919 % (self.high + 1), row * 104729 % (self.high + 1)
        width = self.low + row * 31 % (self.high - self.low + 1)
        return self.canvas[top : top + self.low, left : left + width].copy()

    def uniform(self) -> Any:
        """(N, H, W, C) where all have one size."""
        return self.all


def synthetic(kind: str, n: int, *, tests: int = 0, tiny: bool = False) -> Dataset:
    """`n` training images of the shape that the recipes on `kind` have, with labels."""
    size, channels, sides = SHAPES[kind]
    if tiny and kind == "folder":
        size, sides = 32, (36, 48)
    reader: Any = Cut(n + tests, channels, *sides)
    store: Any = None
    rows = np.arange(n + tests)
    labels = rows % (sides[1] + 1) % 10  # tell where the image was cut
    every = Images(rows + 1, [str(row) for row in rows], labels, reader, rows, store, rows)
    parts = (every.select(rows[:n]), every.select(rows[:0]), every.select(rows[n:]))
    return Dataset("synthetic", "synthetic", "", *parts, tuple("0123456789"), channels, size, ())


def new_work(recipe: str, dataset: Dataset, bench: Bench, changes: dict[str, Any], device: str | None = None) -> Work:
    """A recipe with some changes on a data set, as the stages have it, but without a run folder."""
    small = {"encoder.name": "resnet-tiny", "train.batch_size": 8} if bench.tiny else {}
    config = configuration.override(recipes.build_recipe(recipe), {**small, **changes})
    # As on a GPU, also where this is only tried.
    config = resolve(configuration.for_device(config, "cuda"), dataset, print, Machine("cuda", os.cpu_count() or 1))
    if config.augment.backend == "auto":
        config = replace(config, augment=replace(config.augment, backend="batched"))
    on = bench.device if device is None else torch.device(device)
    return Work(None, Silent(), config, dataset, on, resolve_precision(config.train.precision, on))


def recordable(work: Work) -> bool:
    """Whether the step can be one CUDA graph."""
    method = load_method(required_method(work.config))
    return can_be_recorded(method, work.config.train.optimizer, work.resident())


def run_steps(
    work: Work,
    method: Method[Any],
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Any],
    start: int,
    stop: int,
    *,
    rate: Callable[[int], float] = lambda step: 1e-6,
    log: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoint: Callable[[int], None] = lambda step: None,
    checkpoint_due: Callable[[int], bool] = lambda step: False,
    recorded: bool = False,
) -> int:
    """The training loop of the pipeline."""
    settings = work.config.train
    step = replace(step_of(work, work.config, method, optimizer, captured=recorded), planned=stop)
    hooks = Hooks(log, lambda row: None, checkpoint, checkpoint_due, should_stop)
    loop = Loop(step, "benchmark", max(1, len(work.dataset.train) // settings.batch_size), rate, hooks)
    return loop.run(batches, start, stop)


def steps_per_second(
    work: Work, method: Method[Any], optimizer: torch.optim.Optimizer, tiny: bool, recorded: bool = False
) -> float:
    """Speed of the training loop with its loader, at a learning rate that changes little.

    The loop waits for the device and logs twice a second: what comes before the third log is for warming up.
    """
    most = 3 if tiny else 1_000_000
    batches = batches_of(work, work.dataset.train, work.config, 0, most)
    logged: list[tuple[int, float]] = []

    def log(rows: list[dict[str, Any]]) -> None:
        logged.append((len(rows), time.monotonic()))

    def should_stop() -> bool:
        return len(logged) > WARM_LOGS and logged[-1][1] - logged[WARM_LOGS - 1][1] > MEASURED_SECONDS

    began = time.monotonic()
    try:
        done = run_steps(work, method, optimizer, batches, 0, most, log=log, should_stop=should_stop, recorded=recorded)
        if tiny:
            return done / (time.monotonic() - began)
        return sum(steps for steps, _ in logged[WARM_LOGS:]) / (logged[-1][1] - logged[WARM_LOGS - 1][1])
    finally:
        if isinstance(batches, types.GeneratorType):
            batches.close()


# Check


def check_items(bench: Bench) -> list[Item]:
    """Cheap ones first."""
    named: list[tuple[str, float, Callable[[], dict[str, Any]]]] = [
        ("random bits", 10, partial(check_randomness, bench)),
        ("NT-Xent", 15, partial(check_nt_xent, bench)),
        ("views", 20, partial(check_views, bench)),
        ("images on the device", 20, partial(check_resident, bench)),
        ("features", 40, partial(check_features, bench)),
    ]
    named += [(f"gradients, {method}", 30, partial(check_gradients, method, bench)) for method in METHODS]
    named += [
        (f"resume, {recipe}", 40, partial(check_resume, recipe, bench))
        for recipe in ("simclr-cifar10", "autoencoder-cifar10")
    ]
    named += [
        (f"recorded, {recipe}", 40, partial(check_recorded, recipe, bench))
        for recipe in ("simclr-cifar10", "essl-cifar10", "rotnet-cifar10")
    ]
    return [Item("check", *one) for one in named]


def check_randomness(bench: Bench) -> dict[str, Any]:
    """The same bits from numpy and on the device; normal draws differ by rounding."""
    ids, n = np.arange(1, 4097), 64
    key: list[Any] = [7, "augment", 3, ids, 1, "crop", 0]
    on_device = [torch.from_numpy(part).to(bench.device) if part is ids else part for part in key]
    bits = torch.from_numpy(randomness.hash_key(key).view(np.int64))
    uniform = torch.from_numpy(randomness.uniform(key, n))
    on_cpu = [torch.from_numpy(part) if part is ids else part for part in key]
    normal = randomness_torch.normal(on_cpu, n, dtype=torch.float64)
    same_bits = torch.equal(randomness_torch.hash_key(on_device).cpu(), bits)
    same_uniform = torch.equal(randomness_torch.uniform(on_device, n).cpu(), uniform)
    off = float((randomness_torch.normal(on_device, n).cpu() - normal).abs().max())
    return {
        "ok": same_bits and same_uniform and off < 1e-4,
        "same_bits": same_bits,
        "same_uniform": same_uniform,
        "normal_max": off,
    }


def check_nt_xent(bench: Bench) -> dict[str, Any]:
    """Loss and gradient against the CPU in double precision; more rows than one block of the loss has, too."""
    found = {}
    for rows, dim, temperature in ((128, 128, 0.5), (64 if bench.tiny else 1500, 64, 0.1)):
        views = torch.randn(2, rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        loss, gradient = loss_and_gradient(views, temperature)
        for dtype in (torch.float64, torch.float32):
            set_speed(False, exact=True)
            value, other = loss_and_gradient(views.to(bench.device, dtype), temperature)
            found[f"{rows} rows, T {temperature}, {dtype}"] = {
                "loss": abs(value - loss) / loss,
                "gradient": relative(other, gradient),
            }
    ok = all(max(one.values()) < (1e-10 if "64" in name[-9:] else 1e-4) for name, one in found.items())
    return {"ok": ok, **found}


def loss_and_gradient(views: Tensor, temperature: float) -> tuple[float, Tensor]:
    """NT-Xent of two views (2, B, D) and its gradient."""
    views = views.detach().requires_grad_()
    loss = nt_xent(views[0], views[1], temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    assert views.grad is not None
    return float(loss.detach()), views.grad.double().cpu()


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())


def check_views(bench: Bench) -> dict[str, Any]:
    """Views of the batched backend against the CPU's in 1 / 255, every operation applied to every image."""
    traits: dict[str, Any] = {"channels": 3, "mirror": True}
    count = 16 if bench.tiny else 256
    same, mixed = Cut(count, 3, 32, 32), Cut(count, 3, 24, 40)
    widths = [mixed.read(row).shape[1] for row in range(count)]
    canvas = np.stack([np.pad(mixed.read(row), ((0, 0), (0, 40 - widths[row]), (0, 0))) for row in range(count)])
    sizes = np.stack([np.full(count, 24), np.array(widths)], axis=1)
    # Solarize jumps at its threshold, so one rounding before it is seen.
    smooth = Spec(tuple(one(p=0.7) for one in OPERATIONS.values() if one is not Solarize))
    cases: dict[str, tuple[Spec, Any, Any]] = {
        name: (Spec((one(p=1.0),)), same.all, None) for name, one in OPERATIONS.items()
    }
    for side in (8, 32, 96):
        cases[f"SimCLR, {side} px"] = (simclr_views(image_size=side, **traits)[0], same.all, None)
    cases["RotNet"] = (rotnet_views(image_size=32, **traits)[0], same.all, None)
    cases["finetune"] = (finetune_view(image_size=32, **traits), same.all, None)
    cases["all but solarize, sizes differ"] = (smooth, canvas, sizes)
    found: dict[str, dict[str, float]] = {name: {} for name in cases}
    for name, (spec, images, true_sizes) in cases.items():
        table = spec.draw(seed=0, epoch=0, ids=np.arange(1, count + 1), view=0)
        pixels = torch.from_numpy(images)
        expected = apply_table(spec, table, pixels, 32, sizes=true_sizes)
        for label, fast in (("", False), ("_tf32", True)):
            set_speed(fast)
            views = apply_table(spec, table, pixels.to(bench.device), 32, sizes=true_sizes).cpu()
            apart = 255 * (views - expected).abs()
            found[name] |= {f"max{label}": float(apart.max()), f"mean{label}": float(apart.mean())}
    largest = {key: max(one[key] for one in found.values()) for key in found["RotNet"]}
    return {"ok": largest["max"] <= 1 and largest["mean"] <= 0.01, "largest": largest, "found": found}


def check_resident(bench: Bench) -> dict[str, Any]:
    """The same batches whether the device holds all images, or a thread or processes send them."""
    work = new_work("essl-cifar10", synthetic("cifar10", 2048), bench, {"train.batch_size": 64})
    views = views_of(work, work.dataset.train, work.config)
    views.on_device = True
    resident = torch.from_numpy(work.dataset.train.padded(np.arange(2048))[0]).to(work.device)
    expected = [to_batch(views[step], work.device, work.precision, 0, resident) for step in range(4)]
    views.on_device = False
    same = {}
    for processes in (0,) if bench.tiny else (0, 2):
        sent = [to_batch(raw, work.device, work.precision, 0) for raw in load_batches(views, 0, 4, processes)]
        same[f"{processes} processes"] = all(map(equal_batches, sent, expected))
    return {"ok": all(same.values()), **same}


def equal_batches(a: Batch, b: Batch) -> bool:
    """Whether two batches are the same to the last bit."""
    assert a.labels is not None
    assert b.labels is not None
    pairs = [*zip(a.views, b.views, strict=True), (a.ids, b.ids), (a.labels, b.labels)]
    return all(torch.equal(x, y) for x, y in pairs) and (a.epoch, a.step) == (b.epoch, b.step)


def check_features(bench: Bench) -> dict[str, Any]:
    """Features of encoders in evaluation mode against the CPU in double precision, also by the embedding loop."""
    names = ("resnet-tiny", "cnn-small") if bench.tiny else (
        "resnet-tiny", "cnn-small", "mlp", "resnet18", "resnet34", "resnet50", "mobilenet_v3_small", "vit_b_16"
    )  # fmt: skip
    images = synthetic("cifar10", 16 if bench.tiny else 600).train
    found = {}
    for name in names:
        torch.manual_seed(0)
        encoder = build_encoder(name, channels=3, image_size=32).eval()
        batch = torch.from_numpy(images.square(np.arange(16), 32)).permute(0, 3, 1, 2).double().div_(255)
        with torch.inference_mode():
            expected = encoder.double()(batch)
            encoder = encoder.float().to(bench.device, memory_format=torch.channels_last)
            set_speed(False, exact=True)
            on_device = encoder(batch.to(bench.device, torch.float32)).double().cpu()
        embedded, in_bf16 = (
            torch.from_numpy(embed_images(encoder, images, device=bench.device, precision=precision))
            for precision in ("fp32", "bf16")
        )
        found[name] = {
            "fp32": relative(on_device, expected),
            "embedded": relative(embedded[:16].double(), expected),
            "bf16": relative(in_bf16[:16].double(), expected),
            "bf16_finite": bool(in_bf16.isfinite().all()),
        }
    ok = all(max(one["fp32"], one["embedded"]) < 1e-4 and one["bf16_finite"] for one in found.values())
    return {"ok": ok, **found}


def check_gradients(method: str, bench: Bench) -> dict[str, Any]:
    """The gradient of one step with the same weights and views, against the CPU in double precision.

    The CPU in single precision stands beside it: one ReLU whose input rounds to the other side of zero is seen.
    """
    changes = {"train.batch_size": 8 if bench.tiny else 32}
    dataset = synthetic("cifar10", 64)
    on_cpu, work = (new_work(f"{method}-cifar10", dataset, bench, changes, device) for device in ("cpu", None))
    loss, expected = step_gradient(on_cpu, "fp64", exact=True)
    found: dict[str, Any] = {}
    for label, one, precision, exact in (
        ("cpu_fp32", on_cpu, "fp32", True),
        ("fp32", work, "fp32", True),
        ("tf32", work, "fp32", False),
        ("bf16", work, "bf16", False),
    ):
        value, gradient = step_gradient(one, precision, exact=exact)
        found[label] = {"loss": abs(value - loss) / loss, "gradient": relative(gradient, expected)}
        found[label]["finite"] = bool(gradient.isfinite().all())
    ok = found["fp32"]["loss"] < 1e-5 and found["fp32"]["gradient"] < 1e-2 and found["bf16"]["finite"]
    return {"ok": ok, **found}


def step_gradient(work: Work, precision: str, *, exact: bool) -> tuple[float, Tensor]:
    """Loss and gradient of the first step; the views are the CPU's."""
    work = replace(work, precision=precision)
    set_speed(not exact, exact=exact)
    torch.backends.cudnn.benchmark = False
    method = new_method(work.config, work).train()
    drawn = views_of(work, work.dataset.train, work.config)
    drawn.on_device = False
    batch = to_batch(drawn[0], torch.device("cpu"), "fp64", 0)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    views = [view.to(work.device, dtype, memory_format=torch.channels_last) for view in batch.views]
    with autocast(work.device, precision):
        output = method(replace(batch, views=views, ids=batch.ids.to(work.device), labels=None))
    output.loss.backward()  # type: ignore[no-untyped-call]
    gradients = [one.grad.double().flatten().cpu() for one in method.parameters() if one.grad is not None]
    return float(output.loss.detach()), torch.cat(gradients)


def check_resume(recipe: str, bench: Bench) -> dict[str, Any]:
    """Losses and weights of a run in one piece, twice, and of one with a checkpoint in the middle.

    Only with torch's deterministic algorithms must they be the same to the last bit.
    """
    steps = 4 if bench.tiny else 20
    work = new_work(recipe, synthetic("cifar10", 2048), bench, {"train.batch_size": 16 if bench.tiny else 128})
    found: dict[str, Any] = {}
    for label, deterministic in (("default", False), ("deterministic", True)):
        with repeatable(deterministic) as noted:
            whole = run_in_pieces(work, (0, steps))
            found[label] = {
                "again": compare_runs(run_in_pieces(work, (0, steps)), whole),
                "resumed": compare_runs(run_in_pieces(work, (0, steps // 2, steps)), whole),
                "warnings": sorted({str(one.message).splitlines()[0][:200] for one in noted}),
            }
    last = found["default"]["resumed"]["losses_apart"][-1]
    return {"ok": found["deterministic"]["resumed"]["identical"] and last < 0.05, **found}


def check_recorded(recipe: str, bench: Bench) -> dict[str, Any]:
    """Losses and weights of steps that are one CUDA graph: against steps piece by piece, again, and interrupted."""
    found = {}
    for optimizer in ("sgd", "muon"):
        work = new_work(
            recipe, synthetic("cifar10", 2048), bench,
            {"train.batch_size": 16 if bench.tiny else 128, "train.optimizer": optimizer, "train.learning_rate": 0.01},
        )  # fmt: skip
        bounds, recorded = (0, 4, 8) if bench.tiny else (0, 10, 20), recordable(work)
        pieces = run_in_pieces(work, (0, bounds[-1]))
        whole, again, resumed = (run_in_pieces(work, some, recorded) for some in ((0, bounds[-1]),) * 2 + (bounds,))
        found[optimizer] = {
            "piece_by_piece": compare_runs(whole, pieces),
            "again": compare_runs(again, whole),
            "resumed": compare_runs(resumed, whole),
        }
    apart = max(one["piece_by_piece"]["losses_apart"][-1] for one in found.values())
    same = all(one[name]["identical"] for one in found.values() for name in ("again", "resumed"))
    return {"ok": apart < 0.05 and same, "recorded": recorded, **found}


@contextmanager
def repeatable(deterministic: bool) -> Iterator[list[warnings.WarningMessage]]:
    """With torch's deterministic algorithms, as far as there are some; warnings are collected."""
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            yield noted
    finally:
        torch.use_deterministic_algorithms(False)


def run_in_pieces(work: Work, bounds: tuple[int, ...], recorded: bool = False) -> tuple[list[float], Tensor]:
    """Losses and last weights; between the pieces everything goes through a checkpoint."""
    losses: list[float] = []
    rate = schedule_of(work.config.train, bounds[-1], bounds[-1])
    with tempfile.TemporaryDirectory() as folder:
        for start, stop in pairwise(bounds):
            method = new_method(work.config, work)
            optimizer = new_optimizer(method, work.config.train)
            found, _ = load_checkpoint(Path(folder), model=method, optimizer=optimizer)
            assert found == start

            def save(step: int, method: Any = method, optimizer: Any = optimizer) -> None:
                save_checkpoint(Path(folder), step=step, model=method, optimizer=optimizer, keep=1, facts={})

            run_steps(
                work, method, optimizer, batches_of(work, work.dataset.train, work.config, start, stop), start, stop,
                rate=rate, log=lambda rows: losses.extend(row["train/loss"] for row in rows), checkpoint=save,
                recorded=recorded,
            )  # fmt: skip
    return losses, torch.cat([one.detach().double().flatten().cpu() for one in method.state_dict().values()])


def compare_runs(found: tuple[list[float], Tensor], expected: tuple[list[float], Tensor]) -> dict[str, Any]:
    """Whether all losses and weights are the same, and how far the losses and the last weights are apart."""
    apart = [abs(a - b) / abs(b) for a, b in zip(found[0], expected[0], strict=True)]
    same = max(apart) == 0 and torch.equal(found[1], expected[1])
    return {"identical": same, "losses_apart": [max(apart[: len(apart) // 2]), max(apart)],
            "weights_apart": relative(found[1], expected[1])}  # fmt: skip


# Throughput


def throughput_items(bench: Bench) -> list[Item]:
    """The reference rate, SimCLR on CIFAR-10 in every way, then the other recipes."""
    wanted: list[tuple[str, str, str, int | None]] = [
        ("simclr-cifar10", "batched", mode, None) for mode in ("eager", "compiled", "recorded", "plain")
    ]
    wanted += [(name, "batched", "eager", None) for name in recipes.RECIPES if name != "simclr-cifar10"]
    if not bench.tiny:
        wanted += [
            (name, "batched", mode, None)
            for name in ("essl-cifar10", "rotnet-cifar10", "simclr-folder")
            for mode in ("compiled", "recorded")
        ]
        for batch in (1024, 2048, 256):
            wanted += [("simclr-cifar10", "batched", mode, batch) for mode in ("eager", "recorded")]
        wanted += [("simclr-folder", "batched", "eager", batch) for batch in (512, 1024)]
    if find_spec("albumentations") is not None:
        every = ("simclr-cifar10", "simclr-folder") if bench.tiny else recipes.RECIPES
        wanted += [(name, "albumentations", "eager", None) for name in every]
    if bench.device.type == "cuda":
        wanted += [(name, "batched", "graphs", None) for name in ("simclr-cifar10", "essl-cifar10")]
    items = [Item("throughput", GEMM, 10, partial(measure_gemm, bench))]
    for one in wanted:
        recipe, backend, mode, size = one
        name = f"{recipe}, {backend}, {mode}, {f'batch {size}' if size else 'its batch'}"
        seconds = {"eager": 20.0, "plain": 20.0}.get(mode, 60.0)
        items.append(Item("throughput", name, seconds, partial(measure_training, *one, bench=bench)))
    return items


def measure_gemm(bench: Bench) -> dict[str, Any]:
    """FLOPs a second of a large bf16 matrix product of random numbers."""
    side = 256 if bench.tiny else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize(bench.device)
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    synchronize(bench.device)
    return {"side": side, "flops_per_second": 20 * 2 * side**3 / (time.perf_counter() - began)}


def measure_training(recipe: str, backend: str, mode: str, batch: int | None, *, bench: Bench) -> dict[str, Any]:
    """Speed of the training loop, where the time of a step goes, FLOPs and memory."""
    changes: dict[str, Any] = {"augment.backend": backend}
    if batch is not None:
        changes["train.batch_size"] = batch
    work = new_work(recipe, training_images(recipe, bench), bench, changes)
    set_speed(mode != "plain")
    method = new_method(work.config, work)
    optimizer = new_optimizer(method, work.config.train)
    set_learning_rate(optimizer, 1e-6)
    views = views_of(work, work.dataset.train, work.config)
    began = time.perf_counter()
    raws = [views[step] for step in range(2 if bench.tiny else 4)]
    drawn = (time.perf_counter() - began) / len(raws)
    flops = count_flops(work, method.train(), raws[0])
    compile_encoder(method, mode, bench.tiny)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    began = time.perf_counter()
    phase_seconds(work, method, optimizer, raws[:1] * 3)  # compiles, and tries cuDNN's algorithms
    first = time.perf_counter() - began
    recorded = mode == "recorded" and recordable(work)
    speed = steps_per_second(work, method, optimizer, bench.tiny, recorded)
    phases = None if recorded else phase_seconds(work, method, optimizer, raws * 5)
    kernels = busiest_kernels(work, method, optimizer, raws, recorded)
    size = work.config.train.batch_size
    return {
        "images_per_second": size * speed,
        "seconds_per_50k_images": EPOCH_IMAGES / (size * speed),
        "batch": size,
        "encoder": work.config.encoder.name,
        "precision": work.precision,
        "milliseconds_per_step": 1e3 / speed,
        "milliseconds_by_phase": phases,
        "milliseconds_to_load_a_batch": 1e3 * drawn,
        "kernels": kernels,
        "first_steps_seconds": first,
        "gflops_per_step": flops / 1e9,
        "share_of_matrix_product": share_of_gemm(flops * speed, bench),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if bench.device.type == "cuda" else None,
        "images": work.dataset.name,
    }


def training_images(recipe: str, bench: Bench) -> Dataset:
    """CIFAR-10 where it is given, else images of the recipe's shape."""
    kind = recipe.rpartition("-")[2]
    if kind == "cifar10" and bench.data is not None and not bench.tiny:
        return open_cifar10(bench.data, 0.0)
    return synthetic(kind, 32 if bench.tiny else 8192, tiny=bench.tiny)


@cache
def open_cifar10(path: str, held_out: float, limit: int | None = None) -> Dataset:
    """CIFAR-10, decoded once."""
    return open_dataset(path, val_fraction=held_out, limit=limit)


def compile_encoder(method: Method[Any], mode: str, tiny: bool) -> None:
    """Compile the encoder's network in place; every shape for itself, since E-SSL's turned images are smaller."""
    if mode not in ("compiled", "graphs", "recorded"):
        return
    settings: dict[str, Any] = {"mode": "reduce-overhead"} if mode == "graphs" else {}
    method.encoder.net.compile(dynamic=False, **({"backend": "eager"} if tiny else settings))


def count_flops(work: Work, method: nn.Module, raw: Any) -> int:
    """Of a step's forward and backward pass: convolutions and matrix products, a multiply-add counts two."""
    batch = to_batch(raw, work.device, work.precision, 0, work.resident())
    with FlopCounterMode(display=False) as counter, autocast(work.device, work.precision):
        loss = method(batch).loss
        with torch.autocast(work.device.type, enabled=False):
            loss.backward()
    method.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def share_of_gemm(rate: float, bench: Bench) -> float | None:
    """FLOPs a second as a share of the large matrix product's, where that was measured."""
    found = bench.results["throughput"].get(GEMM, {}).get("flops_per_second")
    return None if found is None else rate / found


def phase_seconds(
    work: Work, method: Method[Any], optimizer: torch.optim.Optimizer, raws: Iterable[Any]
) -> dict[str, dict[str, float]]:
    """Milliseconds by phase of steps without a loader, on the device and to issue it; the median step."""
    method.train()
    marks = []
    for raw in raws:
        marks.append([now(work.device)])
        batch = to_batch(raw, work.device, work.precision, 0, work.resident())
        marks[-1].append(now(work.device))
        with autocast(work.device, work.precision):
            loss = method(batch).loss
        marks[-1].append(now(work.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if work.config.train.clip_grad is not None:
            nn.utils.clip_grad_norm_(method.parameters(), work.config.train.clip_grad)
        marks[-1].append(now(work.device))
        optimizer.step()
        marks[-1].append(now(work.device))
    synchronize(work.device)
    rows = [[between(*pair) for pair in pairwise(step)] for step in marks]
    middle = np.median(np.array(rows), axis=0)
    return {name: dict(zip(("device", "host"), one.tolist())) for name, one in zip(PHASES, middle, strict=True)}


def busiest_kernels(
    work: Work, method: Method[Any], optimizer: torch.optim.Optimizer, raws: list[Any], recorded: bool
) -> dict[str, Any] | None:
    """What the device does in a step: milliseconds altogether, and of the kernels that take most, with their calls."""
    if work.device.type != "cuda":
        return None
    step = step_of(work, work.config, method, optimizer, captured=recorded)
    method.train()
    take_step = replace(step, seed=0).begin()
    for raw in (raws * 2)[:5]:
        take_step(raw, 1e-6)
    synchronize(work.device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for raw in raws:
            take_step(raw, 1e-6)
        synchronize(work.device)
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total)
    return {
        "milliseconds": sum(row.self_device_time_total for row in rows) / len(raws) / 1e3,
        "launched": sum(row.count for row in rows if row.self_device_time_total > 0) / len(raws),
        "by_kernel": [
            {"name": row.key[:120], "milliseconds": row.self_device_time_total / len(raws) / 1e3,
             "calls": row.count / len(raws)}
            for row in rows[:KERNELS]
        ],
    }  # fmt: skip


Moment = tuple[Any, float]


def now(device: torch.device) -> Moment:
    """This place in the device's queue, and the time on the host."""
    if device.type != "cuda":
        return None, time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event, time.perf_counter()


def between(a: Moment, b: Moment) -> tuple[float, float]:
    """Milliseconds on the device and on the host."""
    host = 1e3 * (b[1] - a[1])
    return host if a[0] is None else a[0].elapsed_time(b[0]), host


# Speedrun


def speedrun_items(bench: Bench) -> list[Item]:
    """As they were given."""
    items = []
    for text in bench.speedruns:
        _, changes, _ = read_speedrun(text, bench.training_minutes)
        minutes = changes.get("train.minutes")
        seconds = FOR_SETUP + (60 * float(minutes) if minutes and bench.checkpoints is None else 0)
        items.append(Item("speedrun", text, seconds, partial(measure_speedrun, text, bench)))
    return items


def read_speedrun(text: str, minutes: float) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Recipe, changes of its config, and what is not of the config."""
    method, *words = shlex.split(text)
    given = dict(word.split("=", 1) for word in words)
    own: dict[str, str] = {name: given.pop(name) for name in ("held_out", "compile") if name in given}
    changes = dict(LIGHTLY) if method == "lightly" else {}
    if "minutes" in given:
        changes.pop("train.epochs", None)  # lightly's 200
    changes |= {SHORT.get(name, name): value for name, value in given.items()}
    if not {"train.epochs", "train.minutes"} & changes.keys():
        changes["train.minutes"] = minutes
    return f"{'simclr' if method == 'lightly' else method}-cifar10", changes, own


def measure_speedrun(text: str, bench: Bench) -> dict[str, Any]:
    """Plan by the measured speed, train, rate by kNN."""
    recipe, changes, own = read_speedrun(text, bench.training_minutes)
    held_out = float(own.get("held_out", 0))
    began = time.monotonic()
    work = open_speedrun(recipe, changes, held_out, bench)
    set_speed(True)
    method = new_method(work.config, work)
    compiled = own.get("compile") == "yes"
    recorded = compiled and recordable(work)
    compile_encoder(method, "compiled" if compiled else "eager", bench.tiny)
    speed = calibrate(work, method, bench.tiny, recorded)  # compiles, so that no training time goes into it
    state = Training.begin(checkpoints_of(text, changes, bench), method, work)
    state.steps = state.steps or plan_steps(work, speed, bench, "train.epochs" in changes)
    print(f"[{bench.left:4.0f} s left] {state.steps - state.done} steps at {speed:.2f} a second", flush=True)
    work = replace(work, config=with_training(work.config, steps=state.steps))  # a share of which has small views
    synchronize(work.device)
    setup = time.monotonic() - began
    train_all(work, state, bench.deadline - FOR_RATING, recorded)
    if state.done < state.steps and bench.checkpoints is not None:
        return {"unfinished": f"step {state.done} of {state.steps}"}
    ended = time.monotonic()
    return {
        "knn": rate_encoder(work, method, "val" if held_out else "test"),
        "rated_on": "held-out training images" if held_out else "test images",
        "setup_seconds": setup,
        "rating_seconds": time.monotonic() - ended,
        "recorded": recorded,
        **describe_training(work, state),
    }


def open_speedrun(recipe: str, changes: dict[str, Any], held_out: float, bench: Bench) -> Work:
    """The images, and the recipe with its changes."""
    if bench.data is None:
        dataset = synthetic("cifar10", 256, tests=64)
        dataset = replace(dataset, val=dataset.train) if held_out else dataset
    else:
        dataset = open_cifar10(bench.data, held_out, 512 if bench.tiny else None)
    tiny = {"train.epochs": 2, "train.minutes": None, "train.batch_size": 64} if bench.tiny else {}
    work = new_work(recipe, dataset, bench, {**changes, **tiny})
    return replace(work, config=replace(work.config, data=replace(work.config.data, val_fraction=held_out)))


def describe_training(work: Work, state: "Training") -> dict[str, Any]:
    """Steps, times and losses, and what they were done with."""
    size, images = work.config.train.batch_size, len(work.dataset.train)
    config = configuration.to_dict(work.config)
    config["data"]["path"] = Path(work.dataset.path).name
    rows = np.linspace(0, len(state.losses) - 1, min(len(state.losses), 50)).astype(int)
    return {
        "devices": state.devices,
        "training_seconds": state.seconds,
        "steps": state.done,
        "planned_steps": state.steps,
        "epochs": state.done * size / images,
        "training_images": images,
        "images_per_second": state.done * size / state.seconds,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if work.device.type == "cuda" else None,
        "losses": [state.losses[row] for row in rows],
        "config": config,
    }


def checkpoints_of(text: str, changes: dict[str, Any], bench: Bench) -> Path | None:
    """The folder of a speedrun's checkpoints: another one for other settings or other images."""
    if bench.checkpoints is None:
        return None
    return bench.checkpoints / digest([text, json.dumps(changes), str(bench.data), str(bench.tiny)])


@dataclass
class Training:
    """A speedrun's training so far, in this call and in those before it.

    `seconds` are those of all steps that count, with checkpoints; not those that were lost when a call was killed.
    """

    folder: Path | None  # of its checkpoints
    method: Method[Any]
    optimizer: torch.optim.Optimizer
    done: int = 0
    steps: int = 0  # in all; 0: not planned yet
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)  # one a call

    @classmethod
    def begin(cls, folder: Path | None, method: Method[Any], work: Work) -> "Training":
        """From its newest checkpoint, where there is one."""
        found = cls(folder, method, new_optimizer(method, work.config.train))
        if folder is not None:
            found.done, facts = load_checkpoint(folder, model=method, optimizer=found.optimizer)
            if facts is not None:
                found.steps, found.seconds = facts["steps"], facts["seconds"]
                found.losses, found.devices = facts["losses"], facts["devices"]
        found.devices.append(device_name(work.device))
        return found

    def save(self, step: int, seconds: float) -> None:
        """What another call needs."""
        if self.folder is None:
            return
        facts = {"steps": self.steps, "seconds": seconds, "losses": self.losses, "devices": self.devices}
        save_checkpoint(self.folder, step=step, model=self.method, optimizer=self.optimizer, keep=1, facts=facts)


def calibrate(work: Work, method: Method[Any], tiny: bool, recorded: bool) -> float:
    """Steps a second; weights and statistics are then as before, and what was compiled stays so."""
    before = {name: value.clone() for name, value in method.state_dict().items()}
    optimizer = new_optimizer(method, work.config.train)
    share, seconds = work.config.train.small_views, 0.0
    for part, small in ((share, 1.0), (1 - share, 0.0)):
        if part > 0:
            alike = replace(work, config=with_training(work.config, steps=1_000_000, small_views=small))
            seconds += part / steps_per_second(alike, method, optimizer, tiny, recorded)
    method.load_state_dict(before)
    return 1 / seconds


def with_training(config: configuration.Config, **values: Any) -> configuration.Config:
    """A config with other settings of training."""
    return replace(config, train=replace(config.train, **values))


def plan_steps(work: Work, speed: float, bench: Bench, epochs_given: bool) -> int:
    """As many steps as the epochs say, or the minutes; where both are given, the fewer.

    Within one call no more minutes than are left of it; raises RuntimeError where the epochs need more.
    """
    settings = work.config.train
    left = math.inf if bench.checkpoints is not None else bench.left - FOR_RATING
    by_epochs = settings.epochs * (len(work.dataset.train) // settings.batch_size)
    if settings.minutes is None:
        if by_epochs / speed > left:
            needed = by_epochs / speed + FOR_RATING
            raise RuntimeError(
                f"{by_epochs} steps and kNN need {needed:.0f} s: {bench.left:.0f} s are left in this call"
            )
        return by_epochs
    by_time = max(1, round(min(60 * settings.minutes, left) * speed))
    return min(by_time, by_epochs) if epochs_given else by_time


def train_all(work: Work, state: Training, deadline: float, recorded: bool) -> None:
    """Do the steps that are left; not all of them where the deadline comes first."""
    settings = work.config.train
    before, began = state.seconds, time.monotonic()
    shown = saved = began

    def log(rows: list[dict[str, Any]]) -> None:
        nonlocal shown
        state.losses.extend(row["train/loss"] for row in rows)
        if time.monotonic() - shown > SHOW_SECONDS:
            shown = time.monotonic()
            told = f"step {len(state.losses)} of {state.steps}, loss {state.losses[-1]:.3f}"
            print(f"[{deadline - shown:4.0f} s left] {told}", flush=True)

    def save(step: int) -> None:
        nonlocal saved
        synchronize(work.device)
        state.save(step, before + time.monotonic() - began)
        saved = time.monotonic()

    state.done = run_steps(
        work,
        state.method,
        state.optimizer,
        batches_of(work, work.dataset.train, work.config, state.done, state.steps),
        state.done,
        state.steps,
        rate=schedule_of(settings, state.steps, len(work.dataset.train) // settings.batch_size),
        log=log,
        checkpoint=save,
        checkpoint_due=lambda step: time.monotonic() - saved > SAVE_SECONDS,
        should_stop=lambda: time.monotonic() > deadline,
        recorded=recorded,
    )
    synchronize(work.device)
    state.seconds = before + time.monotonic() - began


def rate_encoder(work: Work, method: Method[Any], split: str) -> dict[str, Any]:
    """kNN accuracy by all protocols, of the features and of whitened ones: votes of all training images."""
    references, queries = work.dataset.train, getattr(work.dataset, split)
    with torch.compiler.set_stance("force_eager"):  # compiling for other batches would take longer than embedding
        known, asked = (
            normalise(embed_images(method.encoder, images, device=work.device, precision=work.precision))
            for images in (references, queries)
        )
    assert references.labels is not None
    whiten = fit_whitening(known)
    found = {}
    for added, change in (("", lambda vectors: vectors), (", whitened", whiten)):
        vectors, others = change(known), change(asked)
        for name, (k, temperature) in PROTOCOLS.items():
            predicted = knn_classify(vectors, references.labels, others, min(k, len(known)), temperature, 10)
            hits, n = int((predicted == queries.labels).sum()), len(asked)
            interval = list(metrics.interval_of_proportion(hits, n))
            found[name + added] = {"accuracy": hits / n, "interval": interval, "n": n}
    return found


ITEMS: dict[str, Callable[[Bench], list[Item]]] = {
    "check": check_items,
    "throughput": throughput_items,
    "speedrun": speedrun_items,
}

if __name__ == "__main__":
    sys.exit(main())
