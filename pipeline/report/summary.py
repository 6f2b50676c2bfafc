"""Sections of words and tables: the result, the table, warnings, what was run, the files."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayssl.pipeline.base.documents import load
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.schemas import EncoderFile
from rayssl.pipeline.evaluation.doubts import warnings_of
from rayssl.pipeline.report import table
from rayssl.pipeline.report.html import bar, bullets, data_table, escape, paragraph
from rayssl.pipeline.report.results import Estimate, Run
from rayssl.pipeline.report.run_data import Material, NothingToShowError

# Spread below which codes count as collapsed (1 is healthy, 0 is all codes alike), unless those of a random encoder,
# which ReLU keeps in one corner of the sphere, are as close together.
COLLAPSED = 0.1
WAITING = 0.3  # share of time waiting for data worth a warning
BASELINE_COLOUR = "var(--faint)"
FILES = {
    "config.json": "the whole configuration",
    "manifest.json": "commit, versions, machine, data fingerprint, stages done",
    "metrics.jsonl": "one row a report: loss, learning rate, images a second",
    "checkpoints": "what training resumes from",
    "encoder.safetensors": "weights of the exported encoder",
    "encoder.json": "what the encoder is and how to load it",
    "encoder_module.py": "the encoder's network as a standalone file",
    "MODEL_CARD.md": "whose weights the encoder has learned from, and their licence",
    "embeddings": "parquet: id, path, label, embedding",
    "index": "FAISS index for queries",
    "evaluation.json": "every figure with its protocol and interval",
    "figures": "pictures",
    "report.html": "this report",
}


def result_section(materials: Sequence[Material]) -> str:
    """The result in a sentence and, for the first metric with a better and a worse, a bar a row."""
    runs = [material.run for material in materials]
    columns = [column for column in table.columns_of(runs) if column.percent]
    parts = [paragraph(table.headline(runs), "headline")]
    if columns:
        parts.append(_bars(materials, columns[0]))
    parts.append(bullets(table.remarks(runs), "remarks"))
    parts.append(bullets(_warnings(materials), "warnings"))
    return "".join(parts)


def table_section(materials: Sequence[Material]) -> str:
    """The runs beside the baselines, with ±, then how each figure was measured."""
    runs = [material.run for material in materials]
    columns = [column for column in table.columns_of(runs) if column.percent]
    if not columns:
        raise NothingToShowError("needs labels and `rayssl evaluate RUN`")
    rows = table.rows_of(runs, columns)
    cells = [[_row_label(row), *(_cell(rows, row, column) for column in columns)] for row in rows]
    head = ["", *(escape(column.title) for column in columns)]
    explain = table.explain_errors(columns)
    unit = f"Test split, %. {explain}; bold: the largest figure of a column."
    return data_table(head, cells) + paragraph(unit, "quiet") + _protocols(rows, columns)


def figures_section(materials: Sequence[Material]) -> str:
    """Every record of every run."""
    runs = [material.run for material in materials]
    keys = ["metric", "value", "interval", "n", "data", "split", "checkpoint", "seed", "protocol"]
    rows = [
        [escape(run.label), *(escape(_record_text(record, key)) for key in keys)]
        for run in runs
        for record in run.records
    ]
    if not rows:
        raise NothingToShowError("evaluation.json has no records")
    return f"<details><summary>{len(rows):,} figures</summary>{data_table(['run', *keys], rows)}</details>"


def health_section(materials: Sequence[Material]) -> str:
    """Metrics of the embeddings that need no labels."""
    runs = [material.run for material in materials]
    rows = table.rows_of(runs, table.HEALTH)
    columns = [column for column in table.HEALTH if any(column.metric in row.estimates for row in rows)]
    if not columns:
        raise NothingToShowError("no health metrics in evaluation.json")
    cells = [[_row_label(row), *(_cell(rows, row, column) for column in columns)] for row in rows if row.estimates]
    words = [f"{column.title}: {column.about}." for column in columns]
    return data_table(["", *(escape(column.title) for column in columns)], cells) + bullets(words, "quiet")


def facts_section(materials: Sequence[Material]) -> str:
    """What was trained, on what, with which software, and how long it took."""
    facts = [_facts(material) for material in materials]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    head = ["", *(escape(material.run.label) for material in materials)]
    return data_table(head, [[escape(name), *(escape(fact.get(name, "–")) for fact in facts)] for name in names])


def reproduce_section(materials: Sequence[Material]) -> str:
    """The commands that these runs were made by."""
    commands = list(dict.fromkeys(filter(None, (_command(material.run) for material in materials))))
    if not commands:
        raise NothingToShowError("the manifest does not tell the command")
    return "".join(f"<pre>{escape(command)}</pre>" for command in commands)


def reading_section(materials: Sequence[Material]) -> str:
    """What was concluded about the images, and what was left out."""
    notes: dict[tuple[str, str], None] = {}
    for material in materials:
        concluded = (material.run.manifest.get("data") or {}).get("concluded") or {}
        for note in concluded.get("notes", []):
            flag = f" ({note['flag']} sets it)" if note.get("flag") else ""
            notes["a guess" if note.get("guess") else "found", f"{note['text']}{flag}"] = None
        for what, count in concluded.get("left_out", {}).items():
            notes["left out", f"{count:,} {what}"] = None
    if not notes:
        raise NothingToShowError("the manifest does not tell how the images were read")
    return data_table(["", "what was concluded"], [[escape(kind), escape(text)] for kind, text in notes])


def unreadable_section(materials: Sequence[Material]) -> str:
    """The images that were set aside, each with the reason."""
    found = dict.fromkeys(tuple(map(str, pair)) for material in materials for pair in _unreadable(material.run))
    if not found:
        raise NothingToShowError("every image could be read")
    shown = list(found)[:200]
    rest = f" The first {len(shown)} of them:" if len(found) > len(shown) else ""
    words = paragraph(f"{_count(len(found))} could not be read: set aside.{rest}")
    return words + data_table(["file", "why"], [[escape(path), escape(why)] for path, why in shown])


def files_section(materials: Sequence[Material]) -> str:
    """What lies in the run folders."""
    rows = []
    for material in materials:
        folder = material.run.folder
        present = [(name, about) for name, about in FILES.items() if (folder / name).exists()]
        rows += [[f"{escape(folder.name)}/{name}", escape(about), _size(folder / name)] for name, about in present]
    return data_table(["file", "what it is", "size"], rows)


def _bars(materials: Sequence[Material], column: table.Column) -> str:
    runs = [material.run for material in materials]
    colours = {material.run.label: material.colour for material in materials}
    bars = []
    for row in table.rows_of(runs, [column]):
        estimate = row.estimates.get(column.metric)
        if estimate is not None:
            text = f"{table.format_estimate(estimate, percent=True)} %"
            colour = colours.get(row.label, BASELINE_COLOUR)
            bars.append(bar(row.label, estimate.value, text, colour, estimate.half_width or 0.0))
    caption = paragraph(f"{column.title}: {column.about}. Test split, ± 95 % interval.", "quiet")
    return f'<div class="bars">{"".join(bars)}</div>{caption}'


def _warnings(materials: Sequence[Material]) -> list[str]:
    found = []
    for material in materials:
        found += [f"{material.run.label}: {text}" for text in _run_warnings(material)]
    unreadable = {tuple(map(str, pair)) for material in materials for pair in _unreadable(material.run)}
    if unreadable:
        found.append(f"{_count(len(unreadable))} could not be read: set aside, listed below.")
    return found


def _run_warnings(material: Material) -> list[str]:
    found = warnings_of(material.run.folder)
    spread = _spread(material)
    limit = min(COLLAPSED, material.run.flat.get("baseline/random-init/health/std", COLLAPSED))
    if spread is not None and spread < limit:
        found.append(f"the codes have collapsed (spread {spread:.2g}, healthy is about 1): its figures mean little.")
    if "warnings" not in material.run.manifest.get("stages", {}).get("pretrain", {}):  # of an older version
        _, losses = material.curves.get("train/loss", ([], []))
        tenth = max(len(losses) // 10, 1)
        if len(losses) >= 10 and np.mean(losses[-tenth:]) >= np.mean(losses[:tenth]):
            found.append("the loss did not fall: try another learning rate, or more epochs.")
    _, waits = material.curves.get("perf/data_wait", ([], []))
    if waits and np.mean(waits) > WAITING:
        found.append(f"training waited for data {100 * np.mean(waits):.0f} % of the time.")
    return found


def _spread(material: Material) -> float | None:
    if "health/std" in material.run.flat:
        return material.run.flat["health/std"]
    _, values = material.curves.get("health/std", ([], []))
    return values[-1] if values else None


def _row_label(row: table.Row) -> str:
    return f'<span class="baseline">{escape(row.label)}</span>' if row.baseline else escape(row.label)


def _cell(rows: Sequence[table.Row], row: table.Row, column: table.Column) -> str:
    text = escape(table.format_estimate(row.estimates.get(column.metric), column.percent))
    return f"<strong>{text}</strong>" if row.label in table.best_of(rows, column) else text


def _protocols(rows: Sequence[table.Row], columns: Sequence[table.Column]) -> str:
    words = [
        f"{column.title} ({column.about}): {text}." for column in columns for text in _protocol_texts(rows, column)
    ]
    return f"<details><summary>How each figure was measured</summary>{bullets(words, 'quiet')}</details>"


def _protocol_texts(rows: Sequence[table.Row], column: table.Column) -> list[str]:
    """Each protocol once, with the rows it holds for where they differ."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        if column.metric in row.estimates:
            labels.setdefault(_protocol(row.estimates[column.metric]), []).append(row.label)
    return [f"{', '.join(names)}: {text}" if len(labels) > 1 else text for text, names in labels.items()]


def _protocol(estimate: Estimate) -> str:
    text = estimate.protocol.rstrip(".") or "protocol not recorded"
    return f"{text}; n = {estimate.n:,}" if estimate.n else text


def _record_text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        return "–"
    if key == "interval":
        return f"{value[0]:.4g} to {value[1]:.4g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(material: Material) -> dict[str, str]:
    run = material.run
    config, manifest = run.config, run.manifest
    train, trained = config["train"], manifest.get("stages", {}).get("pretrain", {})
    facts = {
        "recipe": config.get("recipe"),
        "method": run.method,
        "data": run.data_path,
        **_data_facts(manifest.get("data", {})),
        "encoder": _encoder(run),
        "weights of others": _licence(run),
        "epochs": train.get("epochs"),
        "steps": trained.get("steps"),
        "batch": train.get("batch_size"),
        "precision": trained.get("precision"),
        "seed": train.get("seed"),
        "device": trained.get("device"),
        "machine": manifest.get("machine"),
        "time": _times(manifest),
        "commit": manifest.get("commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items()),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _data_facts(data: dict[str, Any]) -> dict[str, str]:
    if not data:
        return {}
    return {
        "images": f"{data['train']:,} train, {data['val']:,} validation, {data['test']:,} test",
        "classes": _classes(data),
        "image size": f"{data['image_size']} × {data['image_size']} pixels, {_channels(data['channels'])}",
        "fingerprint": str(data["fingerprint"])[:12],
    }


def _classes(data: dict[str, Any]) -> str:
    if not data["classes"]:
        return "none: unlabelled"
    images = data["train"] + data["val"] + data["test"]
    labelled = data.get("labelled", images)
    partly = f", {labelled:,} of {images:,} images labelled" if labelled < images else ""
    return f"{len(data['classes'])}{partly}"


def _channels(n: int) -> str:
    return "1 channel" if n == 1 else f"{n} channels"


def _encoder(run: Run) -> str:
    weights = run.config["encoder"].get("weights")
    return f"{run.network}, started from {weights}" if weights else run.network


def _licence(run: Run) -> str:
    """Whose weights the exported encoder has learned from, where they are not the user's own."""
    try:
        encoder = load(run.folder / "encoder.json", EncoderFile, "")
    except (OSError, UserError):
        return ""
    return str(encoder.get("licence", "")) if encoder.get("origin") else ""


def _times(manifest: dict[str, Any]) -> str:
    stages = {name: stage["seconds"] for name, stage in manifest.get("stages", {}).items() if "seconds" in stage}
    return ", ".join(f"{name} {_duration(seconds)}" for name, seconds in stages.items())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _command(run: Run) -> str:
    command = run.manifest.get("command") or ""
    return command if isinstance(command, str) else shlex.join(map(str, command))


def _unreadable(run: Run) -> list[Sequence[str]]:
    return list(run.manifest.get("unreadable") or [])


def _count(n: int) -> str:
    return "1 image" if n == 1 else f"{n:,} images"


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in listed(path, below=True) if file.is_file()]
    size = float(sum(file.stat().st_size for file in files))
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
