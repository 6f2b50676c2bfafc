"""The story of a run, one function a stage: pretrain → probe → finetune → embed → search → index → evaluate → report.

Each reads the run folder, does one thing, writes the run folder and marks itself done there. With the same inputs
again it does nothing. Shapes: N images, D features.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import config as configuration
from pipeline.base import collectives
from pipeline.base.device import choose_device, plain_precision, resolve_precision, to_float
from pipeline.base.documents import load
from pipeline.base.errors import UserError
from pipeline.base.files import write_json
from pipeline.base.lease import writer_lock
from pipeline.base.reporter import Reporter
from pipeline.base.schemas import Draws
from pipeline.base.seals import damaged_of, digest, fits
from pipeline.base.vectors import normalise
from pipeline.base.wandb_tracker import Tracker, start_tracker
from pipeline.choose import choose_vectors, frozen_names, frozen_networks
from pipeline.config import Config, TrainConfig
from pipeline.data import Dataset, Images
from pipeline.evaluation.baselines import VERSIONS, Pictures, evaluate_baseline, probe_baseline
from pipeline.evaluation.doubts import doubts_of_figures, doubts_of_training
from pipeline.evaluation.measure import Record, drop_stale_records, evaluate_embeddings, is_evaluated, write_evaluation
from pipeline.evaluation.metrics import interval_of_proportion
from pipeline.evaluation.probe import ProbeResult, probe
from pipeline.evaluation.records import lost_of, read_evaluation, verb_of
from pipeline.features.extract import embed_images, stage_features
from pipeline.features.whitening import Whitening, fit_whitening
from pipeline.generate.decoder import Trained, read_decoder, save_decoder
from pipeline.generate.reconstruct import measure, reconstructs, save_pictures, summarise
from pipeline.methods import load_method
from pipeline.methods.base import Method
from pipeline.methods.classifier import Classifier, ClassifierConfig, draw_labelled, predict
from pipeline.models.encoder import Encoder
from pipeline.models.export import encoder_hash, export_encoder, load_encoder
from pipeline.models.trainable import without_adapters
from pipeline.models.weights import read_manifest as read_export_manifest
from pipeline.run.auto import fix_backend, fix_compile, fix_precision, fix_steps
from pipeline.run.build import (
    batches_of,
    compile_or_capture,
    count_steps,
    is_guarded,
    loader_processes,
    new_encoder,
    new_method,
    new_optimizer,
    required_method,
    schedule_of,
    to_device,
    traits_of,
)
from pipeline.run.context import Stopped, Work, read_at
from pipeline.run.data_paths import as_started
from pipeline.run.folder import begin_stage, data_name, mark_stage, stage_done, stage_key, update_manifest
from pipeline.run.identity import check_steps, identity
from pipeline.run.metrics_log import MetricsLog
from pipeline.run.own_images import open_own
from pipeline.search.apply import load_searcher
from pipeline.search.described import (
    check_search,
    describe_vectors,
    embeddings_folder,
    load_splits,
    load_splits_in,
    searched_splits,
    test_images,
)
from pipeline.search.embeddings import files_of, save_embeddings
from pipeline.search.store import FOLDER, has_search, read_candidates, read_search, search_hash
from pipeline.training.batches import Order, Views, load_batches
from pipeline.training.checkpoint import list_checkpoints, load_checkpoint, load_extra, save_checkpoint
from pipeline.training.guard import Guard, draw_sample, look_size, validation_knn
from pipeline.training.loop import Hooks, NotFinite, train
from pipeline.training.watch import Watch

BASELINE = "random-init"


SPLITS = ("train", "val", "test")


RECONSTRUCTED = 512  # held-out images whose errors pre-training ends with; `rayssl reconstruct` takes all


def run_pretrain(work: Work) -> None:
    """Train the method and export its encoder; raises Stopped when asked to stop before the end."""
    fix_precision(work)
    fix_backend(work)
    fix_compile(work)
    config = fix_steps(work)
    per_epoch, steps = count_steps(config, len(work.dataset.train))
    key = key_of("pretrain", work.run, config, work.dataset)
    if already_done(work, "pretrain", key):
        return
    method = new_method(config, work)
    recorded = compile_or_capture(method, config, work)
    optimizer = new_optimizer(method, config.train)
    with stage(work, "pretrain", key) as facts:
        start, saved = load_checkpoint(work.run / "checkpoints", model=method, optimizer=optimizer)
        check_steps(work.run, start, steps)
        guard = new_guard(work, method, steps, start, saved)
        watch = new_watch(work, method, steps, guard)
        with training_hooks(work, "pretrain", method, optimizer, start, per_epoch, guard, watch) as hooks:
            done = watched(guard, lambda: train_on(work, method, optimizer, hooks, start, recorded=recorded))
        if done < steps and (guard is None or guard.stopped is None):
            raise Stopped(done, steps)
        kept = done
        if guard is not None:
            guard.bring_back()
            work.reporter.message(f"{work.run}: {guard.summary()}")
            kept = guard.best_step
            facts.update(guard=guard.facts())
        method.encoder = without_adapters(method.encoder)
        if work.is_main:
            facts_of = {"method": required_method(config), "step": kept}
            if told := export_encoder(method.encoder, work.run, facts_of, data=work.dataset.name):
                work.reporter.message(told)
            if method.keeps_decoder:
                save_decoder(method, work.run)
            drop_stale_records(work.run, encoder_hash(work.run)[:12])
            facts.update(steps=done, precision=work.precision, device=str(work.device))
            tell_doubts(work, method, facts)
        collectives.barrier()
        if work.is_main and method.keeps_decoder:
            show_reconstructions(work, method)


def tell_doubts(work: Work, method: Method[Any], facts: dict[str, Any]) -> None:
    """Say and keep what at the end of pre-training says that nothing was learned."""
    rows = [row for row in MetricsLog(work.run).rows() if row.get("stage") == "pretrain"]
    doubts = doubts_of_training(rows, method.chance(work.config.train.batch_size))
    facts.update(warnings=doubts)
    for text in doubts:
        work.reporter.message(f"{work.run}: warning: {text}")


def run_probe(work: Work) -> None:
    """Linear probes on every stage of the encoder, of a randomly initialised one, and on baselines without any."""
    key = key_of("probe", work.run, work.config, work.dataset)
    if already_done(work, "probe", key):
        return
    require_labels(work.dataset, "probe")
    with stage(work, "probe", key):
        for prefix, encoder in encoders_to_compare(work):
            sets = [features_of(work, encoder, prefix, split) for split in ("train", "val", "test")]
            probe_stages(work, prefix, {name: [s[name] for s in sets] for name in sets[0]})
        if work.is_main:
            probe_baselines(work)


def run_finetune(work: Work) -> None:
    """Train the encoder and a linear head on few labels; mean and standard deviation over draws of the labels."""
    settings = work.config.finetune
    key = key_of("finetune", work.run, work.config, work.dataset)
    if already_done(work, "finetune", key):
        return
    require_labels(work.dataset, "finetune")
    with stage(work, "finetune", key):
        record_finetuning(work, "", finetune_draws(work, scratch=False))
        if settings.scratch:
            record_finetuning(work, f"baseline/{BASELINE}/", finetune_draws(work, scratch=True))


def record_finetuning(work: Work, prefix: str, accuracies: list[float]) -> None:
    """Mean and standard deviation over the draws of the labelled images."""
    settings = work.config.finetune
    amount = f"{100 * settings.label_fraction:g}% of the labels, at least one a class"
    name = f"finetune@{100 * settings.label_fraction:g}%"
    if settings.labels_per_class is not None:
        amount, name = f"{settings.labels_per_class} labels a class", f"finetune@{settings.labels_per_class}-a-class"
    mean, spread = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
    interval = [mean - spread, mean + spread] if spread is not None else None
    protocol = (
        f"whole network{' without pre-training' if prefix else ''}, {amount} ({settings.draws} stratified draws: mean, "
        f"± one standard deviation over draws), {settings.epochs} epochs of SGD, last epoch"
    )
    tested = len(test_images(work).labelled()[0])
    record(work, [new_record(work, f"{prefix}{name}/top1", mean, protocol, tested, interval)])


def run_embed(work: Work) -> None:
    """Embeddings of all images by the encoder and by a randomly initialised one."""
    key = key_of("embed", work.run, work.config, work.dataset)
    if already_done(work, "embed", key):
        return
    with stage(work, "embed", key):
        for prefix, encoder in encoders_to_compare(work):
            save_splits(work, encoder, prefix)
        work.features.clear()
        for given, encoder in frozen_networks(work):
            named = "" if given.name == work.config.encoder.name else f"-{given.label}"
            if named or work.config.encoder.weights is None:  # else it is there, at the run's own image size
                save_frozen(work, encoder.to(work.device), f"baseline/pretrained{named}/")


def save_splits(work: Work, encoder: Encoder, prefix: str) -> None:
    """Embed train (with what is held out of it) and test, and write them on rank 0."""
    folder = embeddings_folder(work.run, work.dataset.name, prefix)
    found = {split: embeddings_of(work, encoder, prefix, split) for split in ("train", "val", "test")}
    if work.is_main:
        write_splits(work, found, folder)


def write_splits(work: Work, found: dict[str, NDArray[np.float32]], folder: Path) -> None:
    """train.parquet, with what is held out of it, and test.parquet."""
    train = [work.dataset.train, work.dataset.val]
    vectors = np.concatenate([found["train"], found["val"]])
    save_embeddings(describe_vectors(work, train, vectors, "train"), folder / "train.parquet")
    save_embeddings(describe_vectors(work, [test_images(work)], found["test"], "test"), folder / "test.parquet")


def save_frozen(work: Work, encoder: Encoder, prefix: str) -> None:
    """The same of a pretrained network at its own image size, which is seen once and then kept by content."""
    compared = frozen_names(encoder)  # by the stage that follows, of train and val: seen in one pass
    found = {split: work.frozen(encoder, split, compared if split != "test" else ()) for split in SPLITS}
    if work.is_main:
        write_splits(work, found, embeddings_folder(work.run, work.dataset.name, prefix))


def run_search(work: Work) -> None:
    """Choose the vectors that are searched, on validation images, among everything at hand, and write them."""
    key = key_of("search", work.run, work.config, work.dataset)
    if already_done(work, "search", key):
        return
    with stage(work, "search", key) as facts:
        found = choose_vectors(work)
        if found is not None:
            facts.update(vectors=found.vectors.label, score=found.facts["score"])


def run_index(run: Path, warn: Callable[[str], None] = lambda text: None) -> None:
    """A FAISS index for each data set that the run has embeddings of, over all its images.

    Raises UserError for the run's own data set; of others that cannot be indexed it warns.
    """
    own = data_name(run)
    index_embeddings(run, own, warn)
    for path in sorted((run / "embeddings").glob("*/train.parquet")):
        name = path.parent.name
        try:
            if name != own:
                index_embeddings(run, name, warn)
        except UserError as error:
            warn(f"no index of {name}: {error}")


def index_embeddings(run: Path, name: str, warn: Callable[[str], None]) -> None:
    """The index of one data set."""
    from pipeline.search.index import build_index, load_index, measure_recall, recall_warning, save_index

    config = configuration.load(run / "config.json")
    splits = searched_splits(run, name)
    whiten = config.index.whiten and not has_search(run)  # else the vectors are whitened already, or not to be
    vectors = np.concatenate([split.vectors for split in splits.values()])
    ids = np.concatenate([split.ids for split in splits.values()])
    first = next(iter(splits.values()))
    stage_name = "index" if name == data_name(run) else f"index/{name}"
    contents = digests(run, name, FOLDER if has_search(run) else "")
    key = stage_key("index", dataclasses.asdict(config.index), whiten, first.encoder_hash, contents)
    if stage_done(run, stage_name, key) and is_whole(lambda: load_index(run / "index" / name)):
        return
    began = time.perf_counter()
    index = build_index(vectors, ids, config.index.factory, whitening_of(run) if whiten else None)
    recall = measure_recall(index, vectors, ids, k=min(10, len(ids)))
    if told := recall_warning(recall, config.index.factory, len(ids)):
        warn(f"{run / 'index' / name}: {told}")
    with writer_lock(run), at_work(run, stage_name):
        save_index(
            index,
            run / "index" / name,
            encoder_hash=first.encoder_hash,
            data_fingerprint=first.data_fingerprint,
            factory=config.index.factory,
            recall=recall,
            dim=vectors.shape[1],
            count=len(ids),
            whitened=whiten,
            embeddings=contents,
        )
        mark_stage(run, stage_name, key, time.perf_counter() - began, vectors=len(ids), recall=recall)


def digests(run: Path, name: str, part: str) -> dict[str, str]:
    """The sha256 of the embeddings that a stage reads, by path."""
    files = files_of(run / "embeddings" / name / part)
    return {str(file.relative_to(run)): digest(file) for file in files}


def whitening_of(run: Path) -> Whitening:
    """Fitted to the images that the run was trained on: all that it is asked of is whitened alike."""
    return fit_whitening(normalise(load_splits(run, data_name(run))["train"].vectors))


def run_evaluate(run: Path, dataset: Dataset | None = None) -> None:
    """kNN, k-means, retrieval and health of the embeddings, beside those of the baselines."""
    config, name = configuration.load(run / "config.json"), data_name(run)
    splits = load_splits(run, name)
    first = splits["train"]
    networks = sorted(path.parent for path in embeddings_folder(run, name, "baseline").glob("*/train.parquet"))
    own = [dataclasses.asdict(config.evaluate), VERSIONS]
    contents = [digests(run, name, part) for part in ("", FOLDER, *(f"baseline/{one.name}" for one in networks))]
    key = stage_key("evaluate", own, first.encoder_hash, search_hash(run), contents)
    if stage_done(run, "evaluate", key) and has_records(run, "health/"):
        return
    began = time.perf_counter()
    settings = dataclasses.asdict(config.evaluate)
    settings.update(seed=config.train.seed, checkpoint=first.encoder_hash[:12], all_classes=config.data.classes is None)
    records = evaluate_embeddings(splits["train"], splits["test"], **settings)
    for folder in networks:
        found = load_splits_in(folder)
        if found["train"].encoder_hash == first.encoder_hash:  # else left from before the run was trained on
            prefix = f"baseline/{folder.name}/"
            records += evaluate_embeddings(found["train"], found["test"], **settings, prefix=prefix)
    images = dataset if dataset is not None else open_own(run, config)
    pictures = Pictures(images, functools.cache(lambda size: read_at(size, config, images)))
    for plain in VERSIONS:
        records += evaluate_baseline(plain, pictures, splits, **settings)
    records += search_records(run, name, settings)
    with writer_lock(run), at_work(run, "evaluate"):
        write_evaluation(run, records, keep=lambda record: not is_evaluated(record, first.data))
        doubts = doubts_of_figures(read_evaluation(run)["flat"]) if config.method is not None else []
        mark_stage(run, "evaluate", key, time.perf_counter() - began, warnings=doubts)


def search_records(run: Path, name: str, settings: dict[str, Any]) -> list[Record]:
    """What the searched vectors find among test images, and what every candidate found among validation images."""
    if not has_search(run):
        return []
    splits, search = searched_splits(run, name), read_search(run)
    found = evaluate_embeddings(splits["train"], splits["test"], **settings, prefix="search/")
    kept = ("search/knn/", "search/retrieval/", "search/cluster/")
    records = [record for record in found if record["metric"].startswith(kept)]
    for one in read_candidates(run):
        n = len(one.correct)
        interval = list(interval_of_proportion(int(one.correct.sum()), n)) if n else None
        like: Record = {
            "metric": f"choice/{one.name}", "value": one.score, "protocol": search.facts["criterion"], "data": name,
            "split": "val", "checkpoint": settings["checkpoint"], "seed": settings["seed"], "n": n or search.facts["n"],
            "interval": interval,
        }  # fmt: skip
        records.append(like)
    return records


def run_report(runs: list[Path], out: Path) -> list[str]:
    """report.html over one run, or over several with comparison.json beside it; returns what is damaged."""
    from pipeline.report import write_comparison, write_report

    damaged = write_report(runs, out / "report.html")
    if len(runs) > 1:
        write_comparison(runs, out / "comparison.json")
    return damaged


def embed_other_data(run: Path, dataset: Dataset, reporter: Reporter) -> None:
    """Embeddings of another data set by a run's encoder, under embeddings/<its name>/."""
    config, device = configuration.load(run / "config.json"), choose_device()
    work = Work(run, reporter, config, dataset, device, resolve_precision(config.train.precision, device))
    encoder = load_encoder(run).to(device)
    if (dataset.channels, dataset.image_size) != (encoder.channels, encoder.image_size):
        raise UserError(
            f"{dataset.path} was read with {dataset.channels} channels of {dataset.image_size} px: the encoder of "
            f"{run} takes {encoder.channels} of {encoder.image_size}"
        )
    with writer_lock(run), at_work(run, f"embed/{dataset.name}"):
        save_splits(work, encoder, "")
        if has_search(run):
            search_other_data(work, encoder)
        update_manifest(run, {"running": None})


def search_other_data(work: Work, encoder: Encoder) -> None:
    """The searched vectors of another data set, by the function that was chosen for the run's own."""
    from pipeline.run.images import open_other

    dataset = work.dataset
    opened = {encoder.image_size: dataset}

    def read_for(size: int) -> Dataset:
        if size not in opened:
            opened[size] = open_other(work.config.data, dataset.path, image_size=size, channels=dataset.channels)
        return opened[size]

    searcher = load_searcher(work.run, dataset.channels, work.device, plain_precision(work.precision))
    folder = embeddings_folder(work.run, dataset.name, FOLDER)
    splits = {"train": [dataset.train, dataset.val], "test": [test_images(work)]}
    for split, images in splits.items():
        wanted = images[0].join(*images[1:])

        def images_at(size: int, ids: NDArray[np.int64] = wanted.ids) -> Images:
            found = read_for(size)
            return by_ids(found.train.join(found.val, found.test), ids)

        vectors = searcher(images_at, counting(work, f"search/{split}"))
        described = describe_vectors(work, images, vectors, split)
        save_embeddings(replace(described, encoder_hash=searcher.hash), folder / f"{split}.parquet")


def by_ids(images: Images, ids: NDArray[np.int64]) -> Images:
    """The images with these ids, in their order."""
    rows = {int(one): row for row, one in enumerate(images.ids)}
    return images.select([rows[int(one)] for one in ids])


WORKER_STAGES: dict[str, Callable[[Work], None]] = {
    "pretrain": run_pretrain,
    "probe": run_probe,
    "finetune": run_finetune,
    "embed": run_embed,
    "search": run_search,
}


def run_worker_stages(run: Path, names: list[str], reporter: Reporter) -> None:
    """The stages that need the encoder on a device, in order. Every worker calls it alike.

    Raises Stopped when asked to stop, UserError where the input is wrong.
    """
    with main_writes(run):
        work = Work.open(run, reporter)
        for name in names:
            WORKER_STAGES[name](work)


def key_of(name: str, run: Path, config: Config, dataset: Dataset) -> str:
    """A hash of all that a worker stage depends on: with the same key there is nothing to do."""
    if name == "pretrain":
        _, steps = count_steps(config, len(dataset.train))
        return stage_key(name, steps, identity(as_started(run, config)), dataset.fingerprint)
    own: Any = dataclasses.asdict(config).get(name)
    if name == "search":
        own = [own, config.evaluate.k, config.evaluate.temperature, config.data.val_fraction]
    if name == "probe":
        own = [own, VERSIONS]
    return stage_key(name, own, encoder_hash(run), dataset.fingerprint)


def is_done(run: Path, name: str, key: str) -> bool:
    """Whether a worker stage has ended with this key and what it wrote is still there and whole."""
    if not stage_done(run, name, key) or changed_since(run, name):
        return False
    if name == "pretrain":
        method = configuration.method_name(configuration.load(run / "config.json"))
        keeps = method is not None and load_method(method).keeps_decoder
        return is_whole(lambda: load_encoder(run)) and (not keeps or is_whole(lambda: read_decoder(run)))
    if name == "embed":
        return is_whole(lambda: load_splits(run, data_name(run)))
    if name == "search":
        return is_whole(lambda: check_search(run))
    return has_records(run, {"probe": "probe/", "finetune": "finetune@"}[name])


def changed_since(run: Path, name: str) -> bool:
    """Whether what a stage wrote is not as it was, where it can be made again without training anew."""
    data = data_name(run)
    own = {
        "pretrain": ("encoder", "MODEL_CARD.md", "decoder", "figures/"),
        "finetune": ("finetuned/", "checkpoints/finetune.json"),
        "embed": tuple(f"embeddings/{data}/{part}" for part in ("train", "test", "baseline/")),
        "search": ("search", f"embeddings/{data}/{FOLDER}/"),
    }.get(name)
    if own is None or (name == "pretrain" and not list_checkpoints(run / "checkpoints")):
        return False
    return bool(damaged_of(run, *own))


def is_whole(read: Callable[[], object]) -> bool:
    """Whether something can be read."""
    try:
        read()
    except UserError:
        return False
    return True


def has_records(run: Path, beginning: str) -> bool:
    """Whether evaluation.json has a figure whose name begins so, and all that its stage computes is true."""
    try:
        found = read_evaluation(run)
    except UserError:
        return False
    verb = verb_of(beginning)
    changed = verb == "evaluate" and fits(run / "evaluation.json") is False
    has = any(name.startswith(beginning) for name in found["flat"])
    return has and not changed and not lost_of(verb, found["set_aside"])


def already_done(work: Work, name: str, key: str) -> bool:
    """`is_done`, decided on rank 0: the manifest may change between one worker's look and another's."""
    return collectives.broadcast_object(is_done(work.run, name, key) if work.is_main else None) is True


def pending(run: Path, names: list[str], config: Config, dataset: Dataset) -> list[str]:
    """Which of the worker stages have something to do; what needs labels is left out where there are none."""
    if not has_labels(dataset):
        names = [name for name in names if name not in ("probe", "finetune")]
    if "pretrain" in names and not is_done(run, "pretrain", key_of("pretrain", run, config, dataset)):
        return names
    return [name for name in names if not is_done(run, name, key_of(name, run, config, dataset))]


@contextmanager
def main_writes(run: Path) -> Iterator[None]:
    """The run's lock on rank 0; the others wait until it is held."""
    if collectives.rank() == 0:
        with writer_lock(run):
            collectives.barrier()
            yield
    else:
        collectives.barrier()
        yield


@contextmanager
def stage(work: Work, name: str, key: str) -> Iterator[dict[str, Any]]:
    """Announce a stage, and mark it done with its time when it ends well."""
    began = time.perf_counter()
    facts: dict[str, Any] = {}
    work.reporter.progress({"run": work.run.name, "stage": name})
    with at_work(work.run, name) if work.is_main else nullcontext():
        yield facts
    if work.is_main:
        mark_stage(work.run, name, key, time.perf_counter() - began, **facts)
    collectives.barrier()


@contextmanager
def at_work(run: Path, name: str) -> Iterator[None]:
    """A stage that is told to be at work, and no longer where the input turns out to be wrong: nothing goes on then."""
    begin_stage(run, name)
    try:
        yield
    except UserError:
        update_manifest(run, {"running": None})
        raise


# Pre-training


def train_on(
    work: Work,
    method: Method[Any],
    optimizer: torch.optim.Optimizer,
    hooks: Hooks,
    start: int,
    *,
    recorded: bool,
) -> int:
    """Pre-training from `start` on; returns the steps done."""
    config = work.config
    per_epoch, steps = count_steps(config, len(work.dataset.train))
    return train(
        method,
        batches_of(work, work.dataset.train, config, start, steps),
        resident=work.resident(),
        recorded=recorded,
        optimizer=optimizer,
        learning_rate=schedule_of(config.train, steps, per_epoch),
        start=start,
        stop=steps,
        steps_per_epoch=per_epoch,
        seed=config.train.seed,
        device=work.device,
        precision=work.precision,
        clip_grad=config.train.clip_grad,
        stage="pretrain",
        hooks=hooks,
    )


@contextmanager
def training_hooks(
    work: Work,
    name: str,
    method: Method[Any],
    optimizer: torch.optim.Optimizer,
    start: int,
    per_epoch: int,
    guard: Guard | None,
    watch: Watch,
) -> Iterator[Hooks]:
    """Log to metrics.jsonl and wandb, checkpoint by time and epoch, look as guard or watch do. Only rank 0 writes."""
    settings = work.config.train
    log = MetricsLog(work.run)
    tracker: Tracker | None = None
    last_time, last_step = time.monotonic(), start  # of the last checkpoint
    if work.is_main:
        log.cut_back(name, start)
        if guard is not None:
            log.cut_back("guard", start + 1 if start else 0)  # the state after `start` steps has been looked at
        if start:
            work.reporter.message(f"{work.run}: continues after step {start}")
        tracker = start_tracker(
            work.config.wandb,
            folder=work.run,
            name=work.run.name,
            run_id=stage_key(identity(as_started(work.run, work.config)), str(work.run.resolve()))[:12],
            config=configuration.to_dict(work.config),
            warn=work.reporter.message,
        )

    def log_rows(rows: list[dict[str, Any]]) -> None:
        if tracker is not None:
            log.append(rows)
            tracker.log(rows)

    def show(row: dict[str, Any]) -> None:
        if work.is_main:
            work.reporter.progress({"run": work.run.name, **row})

    def checkpoint(step: int) -> None:
        nonlocal last_time, last_step
        last_time, last_step = time.monotonic(), step
        check_finite(method, step)
        if work.is_main:
            folder, keep = work.run / "checkpoints", settings.keep_checkpoints
            extra, state = guard.state() if guard is not None else ({}, None)
            facts = (
                {"stage": name}
                if guard is None
                else {"stage": name, "guard": {"state": state, "size": guard.sample.size}}
            )
            save_checkpoint(folder, step=step, model=method, optimizer=optimizer, keep=keep, facts=facts, extra=extra)
        collectives.barrier()

    def due(step: int) -> bool:
        # Asked only now and then, so an epoch may have ended some steps ago.
        late = time.monotonic() - last_time > 60 * settings.checkpoint_minutes
        epochs = settings.checkpoint_epochs * per_epoch
        return work.is_main and (late or step // epochs > last_step // epochs)

    def tell(guard: Guard) -> None:
        log_rows([guard.row()])
        work.reporter.message(f"{work.run}: {guard.line()}")

    def watched_rows(rows: list[dict[str, Any]]) -> None:
        log_rows(rows)
        watch.see(rows)

    def glance(step: int) -> bool:
        watch.look(step)
        return False

    hooks = Hooks(watched_rows, show, checkpoint, due, work.reporter.should_stop, watch.look_due, glance)
    if guard is not None:

        def look(step: int) -> bool:
            ends = guard.look(step)
            tell(guard)
            return ends

        hooks = replace(hooks, look_due=guard.due, look=look)
        if not guard.has_begun:
            guard.begin(start)
            tell(guard)
    yield hooks
    if tracker is not None:
        tracker.finish({})


def check_finite(method: Method[Any], step: int) -> None:
    """Raises UserError where a weight is not finite: such a state must not replace a good checkpoint."""
    if all(bool(torch.isfinite(parameter).all()) for parameter in method.parameters()):
        return
    raise NotFinite(
        f"the weights are not finite after step {step}, though the loss was: the gradient grew out of bounds: lower "
        "--train.learning-rate, or limit the gradient with --train.clip-grad 1",
        step,
    )


def new_guard(work: Work, method: Method[Any], steps: int, start: int, saved: Any) -> Guard | None:
    """The guard over pre-training, where there is one: as it was after `start` steps, from a checkpoint's facts."""
    settings, data = work.config.train, work.dataset
    if not is_guarded(work.config):
        return None
    classes = 0 if data.some_classes else len(data.class_names or ())
    # Runs of older versions have no guard in their checkpoints; one that is made longer goes on looking at the same.
    before = saved.get("guard") if saved is not None else None
    size = before["size"] if before else look_size(steps, settings.batch_size * len(work.config.augment.views or ()))
    sample = draw_sample(data.train, data.val, classes, settings.seed, size)
    if sample is None:
        work.reporter.message(f"{work.run}: no held-out images: nothing guards the weights it starts from")
        return None
    guard = Guard(
        method,
        sample,
        steps=steps,
        keeps=lambda name: method.keeps_decoder or name.startswith("encoder."),
        device=work.device,
        precision=plain_precision(work.precision),
    )
    if before:
        guard.restore(load_extra(work.run / "checkpoints", start), before["state"])
    return guard


def new_watch(work: Work, method: Method[Any], steps: int, guard: Guard | None) -> Watch:
    """The watch over pre-training; where a guard looks at validation kNN, the watch does not."""
    settings, data = work.config.train, work.dataset
    classes = 0 if data.some_classes or guard is not None else len(data.class_names or ())
    size = look_size(steps, settings.batch_size * len(work.config.augment.views or ()))
    sample = draw_sample(data.train, data.val, classes, settings.seed, size)

    def hits() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert sample is not None
        devices = [work.device] if work.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # which making a network seeds
            untrained = new_encoder(work.config, weights=False).to(work.device)
        precision = plain_precision(work.precision)
        now, before = (
            validation_knn(encoder, sample, device=work.device, precision=precision)
            for encoder in (method.encoder, untrained)
        )
        return now, before

    measured = hits if sample is not None and sample.measure == "knn" else None
    return Watch(steps, method.chance(settings.batch_size), measured, work.reporter.message)


def watched(guard: Guard | None, go_on: Callable[[], int]) -> int:
    """Train, unless the guard has ended it before; returns the steps done.

    Where there is a guard a loss that is no number is an end, too: there is a better state to keep.
    """
    if guard is None:
        return go_on()
    if guard.stopped is not None:
        return guard.stopped
    try:
        return go_on()
    except NotFinite as error:
        guard.stop(error.step, "the loss was no number any more")
        return error.step


def show_reconstructions(work: Work, method: Method[Any]) -> None:
    """figures/reconstructions.png, and the errors of the first held-out images; of a PixelCNN their likelihood."""
    trained = Trained(
        work.run,
        work.config,
        work.dataset,
        method.eval(),
        work.device,
        plain_precision(work.precision),
        own_encoder=True,
    )
    images = trained.held_out.select(np.arange(min(len(trained.held_out), RECONSTRUCTED)))
    if reconstructs(trained):
        save_pictures(trained, images, work.run / "figures" / "reconstructions.png")
    figures = measure(trained, images, 0, lambda done, total: None)
    record(work, [summarise(trained, name, values, 0) for name, values in figures.items()])


# Probe and fine-tuning


def labelled_images(dataset: Dataset) -> list[int]:
    """How many images of train, val and test have a label."""
    splits = (dataset.train, dataset.val, dataset.test)
    return [len(images.labelled()[0]) if images is not None else 0 for images in splits]


def has_labels(dataset: Dataset) -> bool:
    """Whether every split has labelled images, of all classes."""
    return bool(dataset.class_names) and all(labelled_images(dataset)) and not dataset.some_classes


def require_labels(dataset: Dataset, verb: str) -> None:
    """Raises UserError where a split has no labelled image."""
    if has_labels(dataset):
        return
    if dataset.some_classes:
        raise UserError(f"`{verb}` needs training images of all classes: the run was started with --data.classes")
    train, val, test = labelled_images(dataset)
    few = f"too few (of {train} training, {val} held-out and {test} test images)"
    raise UserError(
        f"`{verb}` needs labels and {dataset.path} has {few if dataset.class_names else 'none'}: put the images of "
        "each class in a folder of its own, or name a CSV with --data.labels when the run is started"
    )


def encoders_to_compare(work: Work) -> Iterator[tuple[str, Encoder]]:
    """The trained encoder, then the same network as it was initialised, then the weights it started from.

    Of a run that trains nothing its encoder alone.
    """
    yield "", load_encoder(work.run).to(work.device)
    if work.config.method is None:
        return
    yield f"baseline/{BASELINE}/", new_encoder(work.config, weights=False).to(work.device)
    if work.config.encoder.weights is not None:
        yield "baseline/pretrained/", new_encoder(work.config).to(work.device)


def embeddings_of(work: Work, encoder: Encoder, prefix: str, split: str) -> NDArray[np.float32]:
    """(N, D) features of a split: those that the probe has made already, or just these."""
    if f"{prefix}{split}" in work.features:
        return work.features[f"{prefix}{split}"]["features"]
    if prefix or work.config.method is None:  # nothing trains it: it is seen once, whichever runs ask
        return work.frozen(encoder, split, frozen_names(encoder) if split != "test" and not prefix else ())
    images = split_of(work, split)
    precision, progress = plain_precision(work.precision), counting(work, f"{prefix}embed/{split}")
    return embed_images(encoder, images, device=work.device, precision=precision, progress=progress)


def split_of(work: Work, split: str) -> Images:
    """The images of train, val or test."""
    images: Images = test_images(work) if split == "test" else getattr(work.dataset, split)
    return images


def counting(work: Work, stage_name: str) -> Callable[[int, int], None]:
    """Reports how far a stage has come."""

    def show(done: int, total: int) -> None:
        work.reporter.progress({"run": work.run.name, "stage": stage_name, "done": done, "total": total})

    return show


def features_of(work: Work, encoder: Encoder, prefix: str, split: str) -> dict[str, NDArray[np.float32]]:
    """Features of every stage for a split; kept, because the probe and the embeddings need the same ones."""
    key = f"{prefix}{split}"
    if key not in work.features:
        work.features[key] = stage_features(
            encoder,
            split_of(work, split),
            pool=work.config.probe.pool,
            device=work.device,
            precision=plain_precision(work.precision),
            progress=counting(work, f"{prefix}features/{split}"),
        )
    return work.features[key]


def probe_stages(work: Work, prefix: str, stages: dict[str, list[NDArray[np.float32]]]) -> None:
    """Probe every stage; the one that is best on held-out training images is the result."""
    if not work.is_main:
        return
    results: dict[str, ProbeResult] = {}
    for name, vectors in stages.items():
        row = {"run": work.run.name, "stage": f"{prefix}probe", "done": len(results), "total": len(stages)}
        work.reporter.progress(row)
        results[name] = fit_probe(work, vectors)
    best = max(reversed(results), key=lambda name: results[name].val_accuracy)  # the deeper one where they tie
    cells = f"maps pooled to {work.config.probe.pool} × {work.config.probe.pool}"
    records = [
        probe_record(work, f"{prefix}probe/{name}/top1", f"{name} ({cells})", result)
        for name, result in results.items()
    ]
    chosen = f"{best}, chosen on held-out train ({cells})"
    record(work, [*records, probe_record(work, f"{prefix}probe/top1", chosen, results[best])])


def probe_baselines(work: Work) -> None:
    """Probe what needs no encoder, on rank 0."""
    settings = {**dataclasses.asdict(work.config.probe), "seed": work.config.train.seed, "device": work.device.type}
    pictures = Pictures(work.dataset, work.at_size, lambda name: counting(work, f"baseline/{name}"))
    records = []
    for name in VERSIONS:
        work.reporter.progress({"run": work.run.name, "stage": f"baseline/{name}/probe"})
        result = probe_baseline(name, pictures, lambda vectors: fit_probe(work, vectors), settings)
        records.append(probe_record(work, f"baseline/{name}/probe/top1", name.replace("-", " "), result))
    before = tuple(f"baseline/{name}/probe/" for name in VERSIONS)
    write_evaluation(work.run, records, keep=lambda record: not record["metric"].startswith(before))


def fit_probe(work: Work, vectors: list[NDArray[np.float32]]) -> ProbeResult:
    """A probe on features (N, D) of the images of train, val and test."""
    settings = work.config.probe
    known = [split_of(work, name).labelled() for name in ("train", "val", "test")]
    return probe(
        *((part[rows], labels) for part, (rows, labels) in zip(vectors, known)),
        classes=len(work.dataset.class_names or ()),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rates=settings.learning_rates,
        weight_decays=settings.weight_decays,
        seed=work.config.train.seed,
        device=work.device,
    )


def probe_record(work: Work, metric: str, where: str, result: ProbeResult) -> Record:
    """Test accuracy of one probe with its 95 % interval."""
    n = len(test_images(work).labelled()[0])
    settings = work.config.probe
    protocol = (
        f"linear probe on frozen features of {where}, "
        f"{settings.epochs} epochs of SGD, last epoch; learning rate {result.learning_rate:g} and weight decay "
        f"{result.weight_decay:g} chosen on held-out train (accuracy there {result.val_accuracy:.4f})"
    )
    return new_record(
        work, metric, result.test_accuracy, protocol, n, list(interval_of_proportion(result.test_correct, n))
    )


def finetune_draws(work: Work, *, scratch: bool) -> list[float]:
    """Test accuracies of all draws; those that were finished before, of this or another amount, are not done again."""
    path = work.run / "checkpoints" / "finetune.json"
    settings = replace(work.config.finetune, scratch=scratch)
    key = stage_key(dataclasses.asdict(settings), encoder_hash(work.run), work.dataset.fingerprint)
    accuracies = collectives.broadcast_object(finished_draws(path).get(key, []) if work.is_main else [])
    if accuracies and not scratch and not collectives.broadcast_object(work.is_main and keeps_draws_of(work.run, key)):
        accuracies[0] = finetune_draw(work, 0, key, scratch=False)  # finetuned/ is another amount's
    for draw in range(len(accuracies), settings.draws):
        accuracies.append(finetune_draw(work, draw, key, scratch=scratch))
        if work.is_main:
            write_json(path, {**finished_draws(path), key: accuracies})
    return accuracies


def keeps_draws_of(run: Path, key: str) -> bool:
    """Whether finetuned/ is whole and of the draws with this key."""
    whole = not damaged_of(run, "finetuned/") and is_whole(lambda: load_encoder(run / "finetuned"))
    return whole and draws_in(run / "finetuned") == key


def draws_in(folder: Path) -> Any:
    """The key of the draws that a fine-tuned encoder is of."""
    return read_export_manifest(folder).get("extra", {}).get("draws")


def finished_draws(path: Path) -> dict[str, list[float]]:
    """Accuracies of the draws that were finished, by a hash of what they depend on."""
    if fits(path) is False:  # changed, or gone: they are done again
        return {}
    try:
        found: dict[str, list[float]] = load(path, Draws, "")
    except UserError:
        return {}
    return found


def finetune_draw(work: Work, draw: int, key: str, *, scratch: bool) -> float:
    """Test accuracy after fine-tuning on one draw of labelled images; the first draw's encoder is kept in finetuned/.

    `key` tells these draws from others; `scratch`: the same network as it was initialised, which is not kept.
    """
    settings, seed = work.config.finetune, work.config.train.seed
    rows, labels = work.dataset.train.labelled()
    chosen = draw_labelled(
        labels,
        fraction=settings.label_fraction,
        per_class=settings.labels_per_class,
        seed=seed,
        draw=draw,
    )
    images = work.dataset.train.select(rows[chosen])
    world = collectives.world_size()
    batch = min(settings.batch_size, len(images)) // world * world
    if batch == 0:
        raise UserError(f"--cluster.workers is {world}: there are only {len(images)} labelled images to fine-tune on")
    traits = traits_of(work.config, work.dataset)
    encoder = new_encoder(work.config, weights=False) if scratch else load_encoder(work.run)
    torch.manual_seed(seed + draw)
    classifier = Classifier(ClassifierConfig(len(work.dataset.class_names or ())), encoder, traits)
    to_device(classifier, work)
    order = Order(len(images), batch, seed + draw)
    steps = settings.epochs * order.steps_per_epoch
    rates = TrainConfig(
        learning_rate=settings.learning_rate, batch_size=batch, weight_decay=settings.weight_decay, nesterov=True
    )
    views = Views(
        images, order, Classifier.default_views(traits), traits.image_size, seed + draw, collectives.rank(), world
    )
    name = f"finetune{'-scratch' if scratch else ''}/{draw}"
    log = MetricsLog(work.run)
    if work.is_main:
        log.cut_back(name, 0)
    hooks = Hooks(
        log=lambda rows: log.append(rows) if work.is_main else None,
        progress=lambda row: work.reporter.progress({"run": work.run.name, **row}),
        checkpoint=lambda step: None,
        checkpoint_due=lambda step: False,
        should_stop=work.reporter.should_stop,
    )
    done = train(
        classifier,
        load_batches(views, 0, steps, loader_processes(work.config, work.device)),
        optimizer=new_optimizer(classifier, rates),
        learning_rate=schedule_of(rates, steps, order.steps_per_epoch),
        start=0,
        stop=steps,
        steps_per_epoch=order.steps_per_epoch,
        seed=seed + draw,
        device=work.device,
        precision=work.precision,
        clip_grad=None,
        stage=name,
        hooks=hooks,
    )
    if done < steps:
        raise Stopped(done, steps)
    if work.is_main and draw == 0 and not scratch:
        facts = {"stage": "finetune", "encoder": encoder_hash(work.run), "draws": key}
        export_encoder(classifier.encoder, work.run / "finetuned", facts)
    return test_accuracy(work, classifier)


def test_accuracy(work: Work, classifier: Classifier) -> float:
    """Share of the labelled test images that the classifier gets right."""
    test = test_images(work)
    rows, labels = test.labelled()
    correct = 0
    for start in range(0, len(rows), 256):
        pixels = torch.from_numpy(test.square(rows[start : start + 256], work.dataset.image_size))
        found = predict(classifier, to_float(pixels, work.device, work.precision))
        correct += int((found == labels[start : start + 256]).sum())
    return correct / len(rows)


# Records and embeddings


def new_record(work: Work, metric: str, value: float, protocol: str, n: int, interval: list[float] | None) -> Record:
    """A record of this run; the checkpoint is told by the encoder's hash."""
    return {
        "metric": metric,
        "value": value,
        "protocol": protocol,
        "data": work.dataset.name,
        "split": "test",
        "checkpoint": encoder_hash(work.run)[:12],
        "seed": work.config.train.seed,
        "n": n,
        "interval": interval,
    }


def record(work: Work, records: list[Record]) -> None:
    """Add to evaluation.json, on rank 0."""
    if work.is_main:
        write_evaluation(work.run, records)
