"""What is settled once for a data set from all its headers and, where these are not enough, from all its pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayssl.pipeline.data.reading import AUTO, Note, Reading
from rayssl.pipeline.data.scan import FLAT, Look
from rayssl.pipeline.data.shown import COLOURS, TYPE, WHITE, Shown, Survey, colour_of, range_of, told

TOO_MANY_FLAT = 0.05  # share of all images
RANGE, BACKGROUND = "--data.range", "--data.background"


@dataclass(frozen=True)
class Settled:
    """How values and transparency are read, as the config has it, and what is said of it."""

    range: str  # auto where nothing is told and no image has more than 8 bits
    background: str  # likewise
    identity: tuple[
        str, ...
    ] = ()  # lines of the data set's fingerprint: none where images are read as they always were
    notes: tuple[Note, ...] = ()

    @property
    def shown(self) -> Shown:
        """The same for the decoder."""
        return Shown.of(self.range, self.background)


def found_in(survey: Survey) -> dict[str, Any]:
    """What is concluded from the pixels of all images, as JSON."""
    range_ = survey.range() if survey.images else None
    return {
        "images": survey.images,
        "range": None if range_ is None else list(range_),
        "by_type": survey.is_by_type(range_),
        "seen": [survey.low, survey.high] if survey.images else None,
        "transparent": survey.transparent,  # where something shows through
        "background": survey.background(),
        "lost": dict(zip(COLOURS, survey.lost.tolist(), strict=True)),
    }


def settle(seen: Look, reading: Reading, survey: Callable[[], dict[str, Any]]) -> Settled:
    """Range and background as they are given, else as `survey()` found them; it is asked only where that is needed.

    What is given says nothing of images of 8 bits, or without transparency. Raises UserError for a wrong value.
    """
    given, colour = range_of(reading.range), colour_of(reading.background)
    range_, background = told(given) if given else reading.range, reading.background.lower() if colour else AUTO
    open_range, open_background = seen.wide > 0 and range_ == AUTO, seen.transparent > 0 and background == AUTO
    found = survey() if open_range or open_background else {}
    notes = _range_notes(seen, range_, found) + _background_notes(seen, background, found) + _shape_notes(seen)
    if open_range:
        range_ = TYPE if found["by_type"] else told(tuple(found["range"]))
    if open_background:
        background = found["background"]
    identity = [f"range {range_}"] * (seen.wide > 0 and range_ != TYPE)
    identity += ["white is zero"] * (seen.negative > 0)
    identity += [f"background {background}"] * (seen.transparent > 0 and background != WHITE)
    return Settled(range_, background, tuple(identity), tuple(notes))


def flat_notes(flat: int | None, images: int, seen: Look) -> tuple[Note, ...]:
    """A warning where many images show nothing, with the flag that may be the cause."""
    if not flat or flat < TOO_MANY_FLAT * images:
        return ()
    text = (
        f"{flat:,} of {images:,} images are nearly flat: less than {FLAT} of 256 grey levels lie between dark and "
        "bright as they are read"
    )
    return (Note(text, guess=True, flag=RANGE if seen.wide else BACKGROUND if seen.transparent else ""),)


def _range_notes(seen: Look, range_: str, found: dict[str, Any]) -> list[Note]:
    of = f"{seen.wide:,} images hold more than 8 bits"
    if seen.wide == 0:
        return []
    if seen.negative:
        of += f", and {seen.negative:,} of them say that white is zero, which are turned over"
    if range_ == TYPE:
        return [Note(f"{of}: each is read by its type (whole numbers 0 to 65535, floats 0 to 1 or 255)", flag=RANGE)]
    if range_ != AUTO:
        return [Note(f"{of}: values {range_.replace(',', ' to ')} become black to white", flag=RANGE)]
    if found["range"] is None:
        return [Note(f"{of}, and one value only: each is read by its type", guess=True, flag=RANGE)]
    (low, high), (least, most) = found["range"], found["seen"]
    beyond = ", those beyond are taken for outliers" if least < low or most > high else ""
    values = f"values {low:.7g} to {high:.7g} become black to white ({least:.7g} to {most:.7g} occur{beyond})"
    return [Note(f"{of}: {values}", guess=True, flag=RANGE)]


def _background_notes(seen: Look, background: str, found: dict[str, Any]) -> list[Note]:
    if seen.transparent == 0:
        return []
    if background != AUTO:
        return [Note(f"transparent pixels show {background}", flag=BACKGROUND)]
    if found["transparent"] == 0:
        return []
    chosen, lost = found["background"], found["lost"]
    text = f"transparent pixels of {found['transparent']:,} images show {chosen}"
    if chosen != WHITE:
        text += f": on white {lost[WHITE]:,} of the drawings would not be seen"
    if lost[chosen]:
        text += f"; {lost[chosen]:,} are not seen on {chosen}"
    return [Note(text, guess=True, flag=BACKGROUND)]


def _shape_notes(seen: Look) -> list[Note]:
    notes = []
    if seen.long:
        notes.append(Note(f"of {seen.long:,} images that are very long for their width the middle is used"))
    if seen.paged:
        notes.append(Note(f"{seen.paged:,} files hold several pages or frames: the first is read", guess=True))
    return notes
