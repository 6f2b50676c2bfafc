"""The report as one HTML file that needs nothing from anywhere else."""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TypeVar

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_text
from rayssl.pipeline.base.seals import damaged_of, fits
from rayssl.pipeline.report import sections, summary
from rayssl.pipeline.report.figures import colours
from rayssl.pipeline.report.html import bullets, escape
from rayssl.pipeline.report.results import Run, load_runs
from rayssl.pipeline.report.run_data import Material, NothingToShowError, load_material
from rayssl.pipeline.report.search import search_section

SHOWN = ("train", "test", "search/")  # of the embeddings
T = TypeVar("T")
Draw = Callable[[Sequence[Material]], str]
Parts = Sequence[tuple[str, str]]  # title and HTML of every section

SECTIONS: tuple[tuple[str, Draw], ...] = (
    ("Result", summary.result_section),
    ("Comparison", summary.table_section),
    ("What is searched", search_section),
    ("Nearest neighbours", sections.neighbours_section),
    ("Embedding map", sections.map_section),
    ("Reconstructions and other pictures", sections.pictures_section),
    ("Augmentation", sections.augmentation_section),
    ("Training", sections.curves_section),
    ("Probe by stage", sections.stages_section),
    ("Few labels", sections.few_labels_section),
    ("Health of the embeddings", summary.health_section),
    ("Every figure", summary.figures_section),
    ("How the images were read", summary.reading_section),
    ("Unreadable images", summary.unreadable_section),
    ("What was run", summary.facts_section),
    ("Run it again", summary.reproduce_section),
    ("Files", summary.files_section),
)


def write_report(runs: Sequence[Path | str], out: Path | str) -> list[str]:
    """Write the report of one run, or of several compared, to `out`, whole or not at all.

    What a run lacks is left out and named at the end. Returns what is left out because its file is damaged. Raises
    UserError where a folder is no run, and where a report is there already and this one would lack the images.
    """
    loaded = load_runs([Path(run) for run in runs])
    materials = load_material(loaded, colours(len(loaded)))
    check_images(materials, Path(out))
    parts, left_out = draw_sections(SECTIONS, materials)
    write_text(Path(out), render_page(_title(materials), _subtitle(materials), parts, left_out))
    figures = [run.lost for run in loaded if run.lost]
    told = [*figures, *(reason for reason in left_out if " is damaged (" in reason)]
    return [*told, *(lost for run in loaded for lost in lost_vectors(run, told))]


def lost_vectors(run: Run, told: Sequence[str]) -> list[str]:
    """What is damaged or gone of the vectors that neighbours and map are drawn from, where nothing tells it yet."""
    data = run.manifest.get("data", {}).get("name")
    names = damaged_of(run.folder, "search.", *(f"embeddings/{data}/{part}" for part in SHOWN))
    paths = [run.folder / name for name in names]
    lost = [path for path in paths if fits(path) is False and not any(str(path) in one for one in told)]
    return [f"{path} is damaged: `rayssl verify {run.folder} --repair` says what makes it again" for path in lost]


def check_images(materials: Sequence[Material], out: Path) -> None:
    """Raises UserError where there is a report that has more to show: images that cannot be opened any more."""
    missing = next((one for one in materials if isinstance(one.opened, UserError)), None)
    if missing is None or not out.exists():
        return
    run = missing.run.folder
    raise UserError(
        f"{out} stays as it is, because a new one would have no pictures: {missing.opened}; if the images are "
        f"elsewhere, `rayssl report {run} --data.path NEW`; else give another --out"
    )


def draw_sections(sections: Sequence[tuple[str, Callable[[T], str]]], subject: T) -> tuple[Parts, list[str]]:
    """(title, HTML) of every section, and `title: reason` of those that have nothing to show."""
    parts, left_out = [], []
    for title, draw in sections:
        try:
            parts.append((title, draw(subject)))
        except (NothingToShowError, UserError) as reason:
            left_out.append(f"{title}: {reason}")
    return parts, left_out


def render_page(title: str, subtitle: str, parts: Parts, left_out: Sequence[str]) -> str:
    """The page of sections that are HTML already; titles and reasons are escaped here."""
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name, _ in parts)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{content}</section>' for name, content in parts
    )
    if left_out:
        body += f"<section><h2>Not shown</h2>{bullets(left_out, 'quiet')}</section>"
    return Template(_asset("template.html")).substitute(
        title=escape(title), subtitle=escape(subtitle), style=_asset("style.css"), links=links, body=body
    )


def _asset(name: str) -> str:
    return (resources.files("rayssl.pipeline.report") / name).read_text(encoding="utf-8")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _title(materials: Sequence[Material]) -> str:
    labels = ", ".join(material.run.label for material in materials)
    data = ", ".join(dict.fromkeys(Path(material.run.data_path).name for material in materials))
    return f"{labels} on {data}"


def _subtitle(materials: Sequence[Material]) -> str:
    facts = [_images(materials[0]), _encoders(materials), _commits(materials)]
    return " · ".join(fact for fact in facts if fact)


def _images(material: Material) -> str:
    data = material.run.manifest.get("data")
    if not data:
        return ""
    return f"{data['train'] + data['val']:,} training images, {data['image_size']} × {data['image_size']} pixels"


def _encoders(materials: Sequence[Material]) -> str:
    return ", ".join(dict.fromkeys(material.run.network for material in materials))


def _commits(materials: Sequence[Material]) -> str:
    commits = dict.fromkeys(filter(None, (material.run.manifest.get("commit") for material in materials)))
    return "commit " + ", ".join(map(str, commits)) if commits else ""
