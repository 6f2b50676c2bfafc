"""What a race says at its end, in plain words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayssl.pipeline.base.progress import format_duration
from rayssl.pipeline.race.candidates import UNTRAINED
from rayssl.pipeline.race.finals import Final
from rayssl.pipeline.race.plan import Part

FEW_LABELS = 500  # validation images below which more labels are worth it
WORTH_A_WORD = 2.0  # times less work
GAIN = 0.01  # between two rounds, from which more time is worth it
NAMES = {"color-histogram": "colour histogram", "hog": "HOG", "pixels": "raw pixels"}


@dataclass(frozen=True)
class Circumstances:
    """What the advice depends on, beside the candidates."""

    labelled: bool
    minutes: float
    gains: Mapping[str, float]  # of trained candidates, between their last two rounds
    networks: int  # with weights, that took part
    by_hand: bool
    stopped: bool  # before its end
    skipped: Sequence[str]  # trained candidates that there was no time for
    failed: Mapping[str, str]  # candidates that failed, and why
    weights_line: str  # the command that fetches weights which would help; empty: none


def recommendation(finals: Sequence[Final], baselines: Mapping[str, float], told: Circumstances) -> list[str]:
    """Lines for a person: what to use, how the others did, and what would buy more."""
    winner, *others = finals
    lines = [_head(winner, told)]
    if not winner.alone:
        others = list(finals)
    lines += [f"  {_compared(one, winner, told.labelled)}" for one in others]
    for name, score in sorted(baselines.items(), key=lambda pair: -pair[1]):
        lines.append(f"  {NAMES.get(name, name)}: {_value(score, told.labelled)}")
    if told.labelled:
        lines.append(
            f"  (kNN of {winner.images} validation images; ± is a 95 % interval, of differences a paired one: what is "
            "within it may be chance)"
        )
    else:
        lines.append(
            "  (no labels: a written order decides, distilled before frozen before trained from scratch, which is a "
            "guess; scores are how far neighbours are those of other candidates)"
        )
    return lines + _advice(finals, told)


def _head(winner: Final, told: Circumstances) -> str:
    word = "chosen by hand" if told.by_hand else "best so far" if told.stopped else "use"
    half = f" ± {100 * winner.score_half:.1f}" if winner.score_half is not None else ""
    value = f"{_value(winner.score, told.labelled)}{half}"
    if not winner.alone:
        return f"{word}: {winner.vectors}, which the run folder {winner.name} is searched by: {value}"
    return f"{word}: {winner.text}: {value} (searched by {winner.vectors})"


def _compared(one: Final, winner: Final, labelled: bool) -> str:
    text = f"{one.text}: {_value(one.own, labelled)}"
    if one.behind_half is not None and one.behind != 0:
        word = "behind" if one.behind > 0 else "ahead"
        real = "" if abs(one.behind) > one.behind_half else ", which may be chance"
        text += f" ({100 * abs(one.behind):.1f} ± {100 * one.behind_half:.1f} {word}{real})"
    if quicker := _quicker(one, winner):
        text += f", {quicker}"
    return text


def _quicker(one: Final, winner: Final) -> str:
    """How much less work an image is, where that is worth a word."""
    if one.kind == UNTRAINED or one.flops <= 0 or winner.work / one.flops < WORTH_A_WORD:
        return ""
    return f"{winner.work / one.flops:.0f} × less work to embed"


def _advice(finals: Sequence[Final], told: Circumstances) -> list[str]:
    lines = [f"failed: {name}: {reason}" for name, reason in told.failed.items()]
    if told.skipped:
        lines.append(f"no time for {', '.join(told.skipped)}: a larger --minutes takes them in")
    growing = {name: gain for name, gain in told.gains.items() if gain > GAIN}
    if growing:
        name, gain = max(growing.items(), key=lambda pair: pair[1])
        gained = f"{100 * gain:.1f} points" if told.labelled else f"{gain:.3f}"
        more = f"--minutes {2 * told.minutes:g}"
        lines.append(f"more time: {name} gained {gained} in its last round: the same command with {more} goes on")
    elif told.gains:
        lines.append("more time: the last round gained little; longer training may not either")
    if not told.labelled:
        lines.append("labels: put 200 images into folders by class, or into a CSV for --data.labels: kNN then decides")
    elif finals[0].images < FEW_LABELS:
        lines.append(f"labels: {finals[0].images} validation images are few; more of them make the differences clearer")
    if told.weights_line:
        have = "no network with weights is on this machine" if not told.networks else "larger networks may be better"
        lines.append(f"weights: {have}: {told.weights_line}")
    return lines


def _value(score: float, labelled: bool) -> str:
    return f"{100 * score:.1f} %" if labelled else f"{score:.3f}"


def budget_lines(parts: Sequence[Part]) -> list[str]:
    """The budget table."""
    width = max(len(part.name) for part in parts)
    return [f"  {part.name:<{width}}  {format_duration(part.seconds):>7}  {part.text}".rstrip() for part in parts]
