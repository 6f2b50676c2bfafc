"""The report of a search over made-up trials, whose scores are known functions of their parameters."""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Links
from scipy.stats import pearsonr, rankdata, spearmanr

from rayssl.pipeline.augment import view_to_dict
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.report.figures import INK
from rayssl.pipeline.report.run_data import NothingToShowError
from rayssl.pipeline.tune import charts
from rayssl.pipeline.tune.report import rank_correlations, write_tune_report
from rayssl.pipeline.tune.space import Candidate, Parameter, Space, build_space
from rayssl.pipeline.tune.trials import FAILED, FINISHED, STOPPED, Trial, save_trial

EVIL = "<script>alert('x')</script> & co"
SPACE = build_space(["crop", "color", "blur", "cutout"])
OFF = {"crop.p": 0.0, "color.p": 0.0, "blur.p": 0.0, "cutout.p": 0.0}
STRENGTHS = {"crop.scale": 0.2, "color.strength": 0.5, "blur.sigma": 1.0, "cutout.size": 0.4}


def make_trial(number: int, score: float | None, *, space: Space = SPACE, on: Sequence[str] = (), **more: Any) -> Trial:
    """A finished trial that applies some operations at fixed strengths, or has `parameters` of its own."""
    drawn: Candidate = {**OFF, **STRENGTHS, **{f"{name}.p": 0.5 for name in on}}
    parameters = more.pop("parameters", drawn)
    given: dict[str, Any] = {
        "state": FINISHED,
        "views": [view_to_dict(view) for view in space.views(parameters, 2)],
        "changes": space.changes(parameters),
        "scores": {} if score is None else {"rotation": score},
        "curve": [],
        "began": 60.0 * number,
        "seconds": 60.0,
    }
    return Trial(number=number, parameters=parameters, score=score, **{**given, **more})


def drawn_trials(count: int, score: Callable[[Candidate], float], space: Space = SPACE) -> list[Trial]:
    """Trials of a random search."""
    drawn = [space.draw(0, number) for number in range(count)]
    return [make_trial(i, score(own), space=space, parameters=own) for i, own in enumerate(drawn)]


def make_search(folder: Path, trials: Sequence[Trial] = (), *, space: Space = SPACE, **changes: Any) -> Path:
    """A search's folder; `changes` are values of search.json."""
    data = {"name": "photos", "path": "DIR", "fingerprint": "f" * 64, "train": 90, "val": 10}
    search = {
        "schema": 1,
        "recipe": "simclr-folder",
        "objective": "rotation",
        "searcher": "random",
        "scheduler": "none",
        "trials": 20,
        "seed": 0,
        "steps": 300,
        "space": space.to_dict(),
        "data": {**data, "image_size": 32, "channels": 3, "labelled": True},
        "config": {"encoder": {"name": "cnn-small", "dim": None}, "train": {"seed": 0}},
        "changes": {"data.path": "my photos", "train.batch-size": "64"},
        "command": "rayssl tune simclr-folder --data.path DIR",
        "commit": "abc123",
        "versions": {"torch": "2.15.0"},
        "machine": "Linux x86_64, 2 cores",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.json").write_text(json.dumps({**search, **changes}))
    for trial in trials:
        save_trial(folder, trial)
    return folder


class Page(Links):
    """Also, by section, the text and the rows of all tables."""

    def __init__(self, text: str) -> None:
        self.texts: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self._section = ""
        self._in_cell = False
        super().__init__(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if tag == "section":
            self._section = dict(attrs).get("id") or "not-shown"
            self.texts[self._section], self.rows[self._section] = "", []
        if tag == "tr":
            self.rows[self._section].append([])
        if tag in ("td", "th"):
            self.rows[self._section][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._section:
            self.texts[self._section] += data
        if self._in_cell:
            self.rows[self._section][-1][-1] += data


def render(folder: Path, **given: Any) -> tuple[str, Page]:
    path = write_tune_report(folder, **given)
    assert path == folder / "tune-report.html"
    text = path.read_text()
    return text, Page(text)


def pictures(count: int = 8) -> list[Any]:
    """Images of one colour each."""
    return [np.full((20, 24, 3), 30 * i, np.uint8) for i in range(count)]


def labelled_trials(count: int = 12) -> list[Trial]:
    """Trials with every objective, one that was stopped early and one that failed."""
    trials = drawn_trials(count, lambda own: 0.5 + 0.1 * float(own["color.p"]))
    full = [
        dataclasses.replace(
            trial,
            scores={
                "knn": (trial.score or 0) ** 2,
                "rotation": trial.score or 0,
                "rankme": 10.0 + trial.number % 5,
                "alignment-uniformity": -(trial.score or 0),
            },
        )
        for trial in trials
    ]
    stopped = make_trial(count, 0.4, on=["crop"], state=STOPPED)
    return [*full, stopped, make_trial(count + 1, None, state=FAILED, reason="the loss is not finite", seconds=5)]


# The page


def test_a_full_report_shows_everything_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text, page = render(make_search(tmp_path / "tuned", labelled_trials()), images=pictures())
    assert list(page.texts) == [
        "result",
        "best-trials",
        "objective-against-time",
        "importance-of-each-operation",
        "parallel-coordinates",
        "pairs-of-operations",
        "what-the-best-and-the-worst-augmentations-look-like",
        "did-the-objectives-without-labels-agree-with-labels?",
        "failures",
        "what-was-run",
        "not-shown",
    ]
    assert page.texts["not-shown"].strip() == "Not shownPopulation: it needs --tune.scheduler pbt"
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert "url(http" not in text
    assert "@import" not in text
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert page.tags.count("img") == 4
    assert page.tags.count("svg") == 2 + 3  # time, parallel coordinates, agreement of three objectives
    assert [row[:1] + row[2:] for row in page.rows["failures"]] == [["trial", "why"], ["13", "the loss is not finite"]]
    facts = dict(row for row in page.rows["what-was-run"] if len(row) == 2)
    assert facts["commit"] == "abc123"
    assert facts["versions"] == "torch 2.15.0"
    assert facts["color.strength"] == "0.1 to 1.5"
    assert "rayssl tune simclr-folder --data.path DIR" in page.texts["what-was-run"]


def test_links_of_the_contents_lead_to_sections(tmp_path: Path) -> None:
    text, page = render(make_search(tmp_path / "tuned", labelled_trials(6)))
    assert re.findall(r'<a href="#([^"]+)"', text) == [name for name in page.texts if name != "not-shown"]


def test_marks_of_the_charts_are_there_and_take_the_page_ink(tmp_path: Path) -> None:
    text, _ = render(make_search(tmp_path / "tuned", labelled_trials(6)))
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert drawings
    for drawing in drawings:
        used = set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', drawing))
        named = set(re.findall(r' id="([^"]+)"', drawing))
        assert {first or second for first, second in used} <= named
    assert "currentColor" in text
    assert INK not in text


def test_the_report_depends_on_the_trials_alone(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "tuned", labelled_trials(8))
    first, _ = render(folder)
    assert render(folder)[0] == first


def test_untrusted_text_is_escaped(tmp_path: Path) -> None:
    space = dataclasses.replace(SPACE, parameters={**SPACE.parameters, f"method.{EVIL}": Parameter(values=("a", EVIL))})
    own = {**OFF, **STRENGTHS, "crop.p": 1.0, f"method.{EVIL}": EVIL}
    trials = [
        make_trial(0, 0.5, space=space, parameters=own, scores={EVIL: 0.5}),
        make_trial(1, 0.4, space=space, parameters={**own, f"method.{EVIL}": "a"}),
        make_trial(2, None, space=space, parameters=own, state=FAILED, reason=EVIL),
    ]
    data = {"name": EVIL, "path": EVIL, "fingerprint": EVIL, "train": 9, "val": 1, "image_size": 8, "channels": 3}
    words = dict.fromkeys(("recipe", "objective", "searcher", "scheduler", "command", "commit", "machine"), EVIL)
    more = {"data": {**data, "labelled": True}, "versions": {EVIL: EVIL}, "config": {"encoder": {"name": EVIL}}}
    text, page = render(make_search(tmp_path / "tuned", trials, space=space, **words, **more))
    assert "script" not in page.tags
    assert "<script" not in text
    shown = ("result", "best-trials", "parallel-coordinates", "failures", "what-was-run")
    assert all("<script>alert(" in page.texts[section] for section in shown)


def test_sections_without_anything_to_show_are_left_out_with_a_reason(tmp_path: Path) -> None:
    failed = make_trial(0, None, state=FAILED, reason="killed")
    _, page = render(make_search(tmp_path / "tuned", [failed]))
    assert list(page.texts) == ["result", "failures", "what-was-run", "not-shown"]
    assert "No trial has a score yet" in page.texts["result"]
    for reason in [
        "Best trials: no trial has a score",
        "Objective against time: no trial has a score",
        "Importance of each operation: 0 trials finished: at least 8 are needed",
        "Parallel coordinates: 0 trials finished: at least 2 are needed",
        "Pairs of operations: it needs two operations, and finished trials that apply them",
        "look like: no images at hand",
        "agree with labels?: it needs 5 finished trials with scores by labels and without",
    ]:
        assert reason in page.texts["not-shown"]


def test_a_search_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    _, page = render(make_search(tmp_path / "tuned"), images=pictures())
    assert "0 finished, 0 stopped early, 0 failed" in page.texts["result"]
    assert "Failures: no trial failed" in page.texts["not-shown"]
    assert "look like: no trial has a score" in page.texts["not-shown"]


def test_without_labels_nothing_is_compared_with_labels(tmp_path: Path) -> None:
    data = {"name": "x", "path": "x", "fingerprint": "f", "train": 9, "val": 1, "image_size": 8, "channels": 1}
    _, page = render(make_search(tmp_path / "tuned", labelled_trials(6), data={**data, "labelled": False}))
    assert "agree with labels?: the images have no labels" in page.texts["not-shown"]


def test_scores_that_are_all_alike_break_no_chart(tmp_path: Path) -> None:
    trials = drawn_trials(9, lambda own: 0.25)
    _, page = render(make_search(tmp_path / "tuned", trials), images=pictures(1))
    assert "Importance of each operation: all scores are alike" in page.texts["not-shown"]
    assert {"parallel-coordinates", "pairs-of-operations", "objective-against-time"} <= page.texts.keys()


# What is wrong with a folder


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 1}', "recipe is missing"),
    ],
)
def test_a_search_file_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    folder = make_search(tmp_path / "tuned")
    (folder / "search.json").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        write_tune_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "tune-report.html").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": "many"}, "steps"),
        ({"data": {"name": "x"}}, r"data\.path"),
        ({"versions": 3}, "versions"),
        ({"config": {}}, r"config\.encoder"),
        ({"space": Space(("crop",), {"crop.p": Parameter(0, 1)})}, r"no crop\.scale"),
        ({"space": Space(("melt",), {"melt.p": Parameter(0, 1)})}, "no melt"),
    ],
)
def test_a_search_file_with_a_wrong_value_says_which(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = make_search(tmp_path / "tuned", **change)
    with pytest.raises(UserError, match=reason) as caught:
        write_tune_report(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_search_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no search"):
        write_tune_report(tmp_path)


def test_a_trial_of_another_space_is_one_line(tmp_path: Path) -> None:
    other = make_trial(3, 0.5)
    other.parameters.pop("blur.sigma")
    folder = make_search(tmp_path / "tuned", [other])
    with pytest.raises(UserError, match=r"trial 3 .* \(no blur\.sigma\)"):
        write_tune_report(folder)


# Result and best trials


def test_the_result_is_the_best_trial_with_its_operations_and_its_command(tmp_path: Path) -> None:
    space = build_space(["crop", "color"], others={"method.noise_scale": Parameter(0.1, 0.6)})
    own = {"crop.p": 1.0, "crop.scale": 0.25, "color.p": 0.8, "color.strength": 0.5, "method.noise_scale": 0.123456789}
    trials = [
        make_trial(0, 0.5, space=space, parameters={**own, "crop.p": 0.0}),
        make_trial(1, 0.75, space=space, parameters=own),
        make_trial(2, 0.9, space=space, parameters=own, state=STOPPED),  # after fewer steps: not compared with it
        make_trial(3, None, space=space, parameters=own, state=FAILED, reason="killed"),
    ]
    data = {"name": "x", "path": "my photos", "fingerprint": "f", "train": 9, "val": 1, "image_size": 8, "channels": 3}
    folder = make_search(tmp_path / "tuned", trials, space=space, data={**data, "labelled": True})
    _, page = render(folder)
    result = page.texts["result"]
    assert "Trial 1 is the best: rotation 0.7500." in result
    assert "Trials: 2 finished, 1 stopped early, 1 failed; 4 min in all." in result
    assert page.rows["result"] == [
        ["operation", "share of images", "settings"],
        ["crop", "100 %", "scale 0.25 to 1, ratio 0.75 to 1.33"],
        ["color", "80 %", "brightness 0.4, contrast 0.4, saturation 0.4, hue 0.1"],
    ]
    assert (
        f"rayssl run simclr-folder --augment.spec {folder}/best.json --data.path 'my photos' --train.batch-size 64 "
        "--method.noise-scale 0.123457" in result
    )


def test_the_best_trials_come_first_with_all_their_scores(tmp_path: Path) -> None:
    trials = [make_trial(number, number / 100, on=["crop"]) for number in range(18)]
    trials[3] = make_trial(3, 0.9, on=["color"], scores={"rotation": 0.9, "rankme": 12.5})
    trials.append(make_trial(18, 0.95, state=STOPPED))
    _, page = render(make_search(tmp_path / "tuned", trials))
    head, *rows = page.rows["best-trials"]
    assert head == ["trial", "state", "rotation", "rankme", "augmentation"]
    assert rows[0] == ["3", "finished", "0.9000", "12.5000", "color 0.5, p 0.5"]
    assert rows[1] == ["17", "finished", "0.1700", "–", "crop 0.2–1, p 0.5"]
    assert len(rows) == 15
    assert "The best 15 of 19." in page.texts["best-trials"]


def test_an_augmentation_is_told_in_the_order_in_which_it_is_applied() -> None:
    space = build_space(["rotation", "color", "flip"], order=True)
    own = {"rotation.p": 0.5, "rotation.degrees": 30.0, "color.p": 0.8, "color.strength": 0.5, "flip.p": 0.0}
    own |= {"rotation.place": 0.9, "color.place": 0.1, "flip.place": 0.5}
    trial = make_trial(0, 0.5, space=space, parameters=own)
    assert space.text(trial.parameters) == "color 0.5, p 0.8 · rotation ±30°, p 0.5"
    nothing = make_trial(0, 0.5, parameters={**OFF, **STRENGTHS})
    assert SPACE.text(nothing.parameters) == "nothing"


def test_the_best_until_then_never_falls_and_is_of_finished_trials() -> None:
    trials = [
        make_trial(0, 0.5, began=0, seconds=240),
        make_trial(1, 0.3, began=0, seconds=60),
        make_trial(2, 0.4, began=60, seconds=240),
        make_trial(3, 0.9, began=0, seconds=30, state=STOPPED),
        make_trial(4, None, began=0, seconds=10, state=FAILED),
    ]
    minutes, best = charts.best_so_far(trials)
    assert minutes.tolist() == [1, 4, 5]
    assert best.tolist() == [0.3, 0.5, 0.5]


def test_the_best_and_the_worst_candidates_are_shown_once_each(tmp_path: Path) -> None:
    trials = [make_trial(number, number / 10, on=["crop"]) for number in range(3)]
    text, page = render(make_search(tmp_path / "tuned", trials), images=pictures(), size=16)
    shown = page.texts["what-the-best-and-the-worst-augmentations-look-like"]
    assert re.findall(r"(Best|Worst): trial (\d)", shown) == [("Best", "2"), ("Best", "1"), ("Worst", "0")]
    assert page.tags.count("img") == 3
    sheets = re.findall(r'src="(data:image[^"]+)"', text)
    assert len(set(sheets)) == 1  # the same augmentation, drawn by the same seed


# Importance


def test_an_operation_that_decides_comes_out_on_top_and_noise_near_zero() -> None:
    trials = drawn_trials(60, lambda own: 0.4 + 0.3 * float(own["color.p"]) * float(own["color.strength"]))
    explained, found = charts.importances(trials, SPACE)
    assert explained > 0.7
    assert found[0].name == "color"
    assert sorted(one.name for one in found) == sorted(SPACE.operations)
    assert found[0].value > 1
    assert all(abs(one.value) < 0.06 for one in found[1:])
    assert all(0 <= one.spread < 0.3 for one in found)


def test_scores_of_pure_noise_leave_no_operation_important(tmp_path: Path) -> None:
    noise = iter(np.random.default_rng(3).normal(0.5, 0.1, 60))
    trials = drawn_trials(60, lambda own: float(next(noise)))
    explained, found = charts.importances(trials, SPACE)
    assert explained < charts.LITTLE
    assert all(abs(one.value) < 0.2 for one in found)
    assert "mostly noise" in charts.importance_section(trials, SPACE)


def test_a_value_of_the_config_has_an_importance_of_its_own() -> None:
    space = build_space(["crop"], others={"method.corruption": Parameter(values=("none", "gaussian", "masking"))})
    worth = {"none": 0.2, "gaussian": 0.9, "masking": 0.5}
    trials = drawn_trials(40, lambda own: worth[str(own["method.corruption"])], space)
    _, found = charts.importances(trials, space)
    assert [one.name for one in found] == ["method.corruption", "crop"]
    assert found[1].value == pytest.approx(0, abs=0.05)


def test_trials_that_did_not_finish_have_no_say_in_importance() -> None:
    trials = drawn_trials(7, lambda own: float(own["crop.p"]))
    stopped = [make_trial(7 + i, 0.9, state=STOPPED) for i in range(5)]
    with pytest.raises(NothingToShowError, match="7 trials finished: at least 8"):
        charts.importances([*trials, *stopped], SPACE)


def test_a_strength_that_is_not_applied_is_no_feature() -> None:
    applied = {**OFF, **STRENGTHS, "color.p": 1.0, "color.strength": 1.5}
    trials = [make_trial(0, 0.5, parameters=applied), make_trial(1, 0.5, parameters={**applied, "color.p": 0.0})]
    names, places = charts.positions(trials, SPACE)
    assert places[:, names.index("color.strength")].tolist() == [1, 0]
    assert places[:, names.index("color.p")].tolist() == [1, 0]


def test_positions_follow_the_scale_of_a_parameter() -> None:
    others = {"train.learning_rate": Parameter(0.01, 1.0, log=True), "method.kind": Parameter(values=("a", "b", "c"))}
    space = build_space(["flip"], others=others)
    own = {"flip.p": 0.5, "train.learning_rate": 0.1, "method.kind": "b"}
    names, places = charts.positions([make_trial(0, 0.5, space=space, parameters=own)], space)
    assert dict(zip(names, places[0].tolist())) == pytest.approx(
        {"flip.p": 1, "train.learning_rate": 0.5, "method.kind": 0.5}
    )


def test_ranges_are_told_in_words() -> None:
    assert charts.range_text(Parameter(values=(16.0, "masking"))) == "16, masking"
    assert charts.range_text(Parameter(0.0, 0.5, step=0.1)) == "0 to 0.5 in steps of 0.1"
    assert charts.range_text(Parameter(0.05, 1.0, log=True)) == "0.05 to 1, logarithmic"


def test_means_with_and_without_an_operation_have_student_intervals() -> None:
    trials = [make_trial(number, score, on=["color"]) for number, score in enumerate((1.0, 2.0, 3.0))]
    trials += [make_trial(number, score) for number, score in ((3, 0.5), (4, 1.5), (5, 0.5), (6, 1.5), (7, 1.0))]
    page = Page(f"<section>{charts.importance_section(trials, SPACE)}</section>")
    rows = {row[0]: row[1:] for row in page.rows["not-shown"]}
    assert rows["color"] == ["2.0000, -0.4841 to 4.4841 (3)", "1.0000, 0.3792 to 1.6208 (5)"]  # t: 4.3027 and 2.7764
    assert rows["crop"][0] == "–"


# Pairs


def cells_of(html: str) -> dict[tuple[str, str], str]:
    (head, *rows) = Page(f"<section>{html}</section>").rows["not-shown"]
    return {(row[0], column): text for row in rows for column, text in zip(head[1:], row[1:])}


def test_pairs_stand_in_their_cells_and_what_is_alone_on_the_diagonal(tmp_path: Path) -> None:
    scores = {("crop",): 0.1, ("color",): 0.2, ("crop", "color"): 0.6, ("crop", "blur"): 0.4}
    scores[("crop", "color", "blur")] = 0.9  # no pair
    trials = [make_trial(number, score, on=on) for number, (on, score) in enumerate(scores.items())]
    cells = cells_of(charts.pairs_section(trials, SPACE.operations, alone=True))
    shown = {pair: text for pair, text in cells.items() if text != "–"}
    assert shown == {
        ("crop", "crop"): "0.1000",
        ("color", "color"): "0.2000",
        ("crop", "color"): "0.6000",
        ("color", "crop"): "0.6000",
        ("crop", "blur"): "0.4000",
        ("blur", "crop"): "0.4000",
    }
    _, page = render(make_search(tmp_path / "tuned", trials, searcher="pairs"))
    assert "of the operation alone" in page.texts["pairs-of-operations"]


def test_in_other_searches_a_cell_is_a_mean_over_the_trials_that_apply_both(tmp_path: Path) -> None:
    trials = [
        make_trial(0, 0.2, on=["crop", "color"]),
        make_trial(1, 0.4, on=["crop", "color", "blur"]),
        make_trial(2, 0.9, on=["crop"]),
        make_trial(3, 0.99, on=["crop", "color"], state=STOPPED),
    ]
    folder = make_search(tmp_path / "tuned", trials)
    _, page = render(folder)
    head, *rows = page.rows["pairs-of-operations"]
    cells = {(row[0], column): text for row in rows for column, text in zip(head[1:], row[1:])}
    assert cells["crop", "color"] == cells["color", "crop"] == "0.3000 (2)"
    assert cells["color", "blur"] == "0.4000 (1)"
    assert cells["crop", "crop"] == "0.5000 (3)"
    assert cells["cutout", "crop"] == "–"


def test_the_highest_cell_is_the_darkest() -> None:
    trials = [make_trial(0, 0.2, on=["crop"]), make_trial(1, 0.4, on=["color"]), make_trial(2, 0.3, on=["blur"])]
    html = charts.pairs_section(trials, SPACE.operations, alone=True)
    found = re.findall(r"rgba\([\d,]+,([\d.]+)\)[^>]*>([\d.]+)<", html)
    assert {float(score): float(opacity) for opacity, score in found} == {0.2: 0.0, 0.3: 0.3, 0.4: 0.6}


# Agreement of the objectives


def scored(number: int, **scores: float) -> Trial:
    return make_trial(number, 0.5, scores={name.replace("_", "-"): value for name, value in scores.items()})


def test_a_rank_correlation_worked_out_by_hand() -> None:
    # Squared differences of ranks 1, 1, 1, 1, 0: ρ = 1 − 6 · 4 / (5 · 24). Interval: atanh 0.8 ± 1.96 √(1.32 / 2).
    pairs = [(10, 0.2), (20, 0.1), (30, 0.4), (40, 0.3), (50, 0.5)]
    trials = [scored(i, knn=knn, rotation=rotation) for i, (knn, rotation) in enumerate(pairs)]
    (found,) = rank_correlations(trials)
    assert found == {
        "objective": "rotation",
        "against": "knn",
        "rho": pytest.approx(0.8),
        "low": pytest.approx(-0.457, abs=5e-4),
        "high": pytest.approx(0.9908, abs=5e-5),
        "n": 5,
    }


def test_rank_correlations_are_those_of_scipy_and_of_ranks_with_ties() -> None:
    draw = np.random.default_rng(5)
    knn = draw.integers(0, 8, 30) / 8
    probe = draw.normal(size=30)
    rankme = knn + draw.normal(size=30)
    trials = [scored(i, knn=knn[i], probe=probe[i], rankme=rankme[i]) for i in range(30)]
    found = {(one["objective"], one["against"]): one for one in rank_correlations(trials)}
    assert found.keys() == {("rankme", "knn"), ("rankme", "probe")}
    assert found["rankme", "knn"]["rho"] == pytest.approx(pearsonr(rankdata(knn), rankdata(rankme)).statistic)
    assert found["rankme", "probe"]["rho"] == pytest.approx(spearmanr(probe, rankme).statistic)
    for one in found.values():
        assert -1 < one["low"] < one["rho"] < one["high"] < 1


def test_intervals_of_rank_correlations_hold_what_they_promise() -> None:
    """Normal pairs of correlation 0.6 have Spearman's ρ = 6/π · asin(0.3): about 95 of 100 intervals hold it."""
    draw = np.random.default_rng(11)
    truth, held = 6 / np.pi * np.arcsin(0.3), 0
    for _ in range(300):
        knn, noise = draw.normal(size=(2, 25))
        rankme = 0.6 * knn + 0.8 * noise
        low, high = charts._interval_of_rho(float(spearmanr(knn, rankme).statistic), 25)
        held += low is not None and high is not None and low < truth < high
    assert 0.92 < held / 300 < 0.985


def test_only_what_can_be_compared_is() -> None:
    trials = [scored(i, knn=i, rotation=2 * i, rankme=3.0, alignment_uniformity=-i) for i in range(6)]
    trials += [dataclasses.replace(scored(9, knn=0.0, rotation=99.0), state=state) for state in (STOPPED, FAILED)]
    found = {one["objective"]: one for one in rank_correlations(trials)}
    assert found.keys() == {"rotation", "alignment-uniformity"}  # rankme is constant
    assert found["rotation"]["n"] == 6
    assert found["rotation"]["rho"] == pytest.approx(1)
    assert found["rotation"]["low"] is found["rotation"]["high"] is None
    assert found["alignment-uniformity"]["rho"] == pytest.approx(-1)
    assert rank_correlations(trials[:4]) == []


# Population


def test_a_population_shows_what_the_best_trial_went_through(tmp_path: Path) -> None:
    others = {"method.corruption": Parameter(values=("none", "masking"))}
    space = build_space(["crop", "blur"], others=others)
    first = {"crop.p": 1.0, "crop.scale": 0.2, "blur.p": 0.5, "blur.sigma": 1.0, "method.corruption": "none"}
    last = {**first, "crop.scale": 0.5, "method.corruption": "masking"}
    schedule = [
        {"step": step, "parameters": own} for step, own in ((75, first), (150, first), (225, last), (300, last))
    ]
    trials = [make_trial(0, 0.5, space=space, parameters=first, schedule=schedule)]
    trials.append(make_trial(1, 0.4, space=space, parameters=first))
    text, page = render(make_search(tmp_path / "tuned", trials, space=space, scheduler="pbt"))
    part = text.partition('<section id="population">')[2].partition("</section>")[0]
    assert re.findall("<h3>(.*?)</h3>", part) == ["crop.scale"]
    assert part.count("<svg") == 1
    assert "method.corruption: none, none, masking, masking" in page.texts["population"]
    # The encoder that was measured in the end had the last parameters.
    assert "scale 0.5 to 1" in page.texts["result"]
    assert "--method.corruption masking" in page.texts["result"]


def test_a_population_that_changed_nothing_says_so(tmp_path: Path) -> None:
    _, page = render(make_search(tmp_path / "tuned", [make_trial(0, 0.5)], scheduler="pbt"))
    assert "Population: the best trial kept its parameters to the end" in page.texts["not-shown"]
