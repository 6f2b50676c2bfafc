"""How a race spends its time, and who goes on: pure functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.race.plan import (
    LEAST_SECONDS,
    Overhead,
    Round,
    affordable,
    budget_table,
    more_rounds,
    plan_rounds,
    quick_enough,
    ranked,
    steps_for,
    threads_of,
)
from rayssl.pipeline.race.race_file import FAILED, FINISHED, About, Ledger, Result, load_ledger, save_ledger
from rayssl.pipeline.verify import verify

FIVE = Overhead(5, 5)
SIX = ["distill", "adapt", "simclr", "essl", "rotnet", "autoencoder"]


def seconds_of(rounds: list[Round], at_a_time: int, overhead: Overhead) -> float:
    """How long rounds take."""

    def trial(one: Round) -> float:
        return one.seconds + (overhead.searching if one.full else overhead.seeing)

    return sum(-(-(len(one.names) or one.keep or 0) // at_a_time) * trial(one) for one in rounds)


def test_the_budget_table_of_a_quarter_of_an_hour() -> None:
    parts = {part.name: part.seconds for part in budget_table(15, trained=6, frozen=1)}
    assert parts == {
        "start, and what needs no training": 120,
        "features of the frozen network": 60,
        "round 1": 240,  # 6 × 40 s
        "round 2": 360,  # 2 × 3 min
        "index, test images and report": 120,
    }


@given(st.floats(0.5, 600), st.integers(0, 8), st.integers(0, 2), st.integers(1, 4))
def test_a_budget_table_spends_no_more_than_there_is(minutes: float, trained: int, frozen: int, at_a_time: int) -> None:
    parts = budget_table(minutes, trained, frozen, at_a_time)
    assert all(part.seconds >= 0 for part in parts)
    assert sum(part.seconds for part in parts) <= 60 * minutes * (1 + 1e-9)


@given(st.integers(1, 9), st.floats(10, 20_000), st.integers(1, 8), st.floats(0, 30), st.floats(0, 90))
def test_rounds_fill_the_time_and_halve(
    count: int, seconds: float, at_a_time: int, seeing: float, comparing: float
) -> None:
    overhead = Overhead(seeing, seeing + comparing)
    names = [str(number) for number in range(count)]
    fitting = affordable(names, seconds, at_a_time, overhead)
    rounds = plan_rounds(fitting, seconds, at_a_time, overhead)
    if not fitting:
        assert plan_rounds(names[:1], seconds, at_a_time, overhead)[0].seconds < LEAST_SECONDS
        return
    assert rounds[0].names == tuple(fitting) == tuple(names[: len(fitting)])
    assert rounds[0].seconds >= LEAST_SECONDS
    sizes = [len(fitting), *(one.keep or 0 for one in rounds[1:])]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == min(2, len(fitting))
    assert [one.full for one in rounds] == [False] * (len(rounds) - 1) + [True]
    if all(one.seconds > 0 for one in rounds):
        assert seconds_of(rounds, at_a_time, overhead) == pytest.approx(seconds)


def test_a_long_race_has_three_rounds() -> None:
    assert [one.keep for one in plan_rounds(SIX, 45 * 60, 2, FIVE)] == [None, 3, 2]
    assert [one.keep for one in plan_rounds(SIX, 10 * 60, 2, FIVE)] == [None, 2]
    assert [one.keep for one in plan_rounds(SIX[:2], 45 * 60, 2, FIVE)] == [None]


def test_a_short_race_drops_those_with_the_least_chances() -> None:
    assert affordable(SIX, 600, 2, FIVE) == SIX
    assert affordable(SIX, 170, 2, Overhead(10, 10)) == SIX[:4]
    assert affordable(SIX, 31, 2, Overhead(10, 10)) == SIX[:2]
    assert affordable(SIX, 29, 2, Overhead(10, 10)) == []


def test_who_is_too_slow_for_some_steps_is_out_and_the_others_have_its_time() -> None:
    speeds = {**dict.fromkeys(SIX, 0.5), "adapt": 15.0}
    fitting = quick_enough(SIX, 600, 2, FIVE, speeds)
    assert fitting == ["distill", "simclr", "essl", "rotnet", "autoencoder"]
    assert quick_enough(SIX, 6000, 2, FIVE, speeds) == SIX
    assert quick_enough(SIX[1:2], 200, 1, FIVE, speeds) == []
    assert quick_enough(SIX, 600, 2, FIVE, {"essl": 1.0}) == ["essl"]


def test_equal_scores_go_by_the_order_of_chances() -> None:
    assert ranked({"essl": 0.3, "distill": 0.3, "simclr": 0.4}, SIX) == ["simclr", "distill", "essl"]


def test_seconds_become_steps() -> None:
    assert steps_for(40, 0.5) == 80
    assert steps_for(0.1, 0.5) == 1


def test_two_trials_at_a_time_share_a_machine() -> None:
    assert [threads_of(cores, 6) for cores in (1, 2, 3, 4, 16, 64)] == [1, 1, 1, 2, 8, 8]
    assert threads_of(4, 1) == 4


def test_more_minutes_go_on_with_the_best_and_take_in_who_had_no_time() -> None:
    rounds = more_rounds(["simclr", "distill", "essl"], ["rotnet"], 600, at_a_time=2, overhead=FIVE, first=80)
    assert rounds[0] == Round(80, names=("rotnet",))
    assert rounds[1].keep == 2
    assert seconds_of(rounds, 2, FIVE) == pytest.approx(600)
    assert more_rounds(["simclr"], ["rotnet"], 30, at_a_time=2, overhead=FIVE, first=80) == [
        Round(25, keep=1, full=True)
    ]
    assert more_rounds(["simclr"], [], 20, at_a_time=2, overhead=FIVE, first=80) == []


# race.json


def ledger_of(**changes: object) -> Ledger:
    about = {name: About(name, name, name) for name in ["untrained", *SIX]}
    values = {"speeds": dict.fromkeys(SIX, 0.5), "threads": 1, "rounds": plan_rounds(SIX, 600, 2, FIVE), **changes}
    data = {"name": "a", "path": "/a", "fingerprint": "f", "train": 50, "val": 10, "labelled": True}
    return Ledger({"options": {}, "candidates": None}, data, 15.0, about, list(SIX), **values)  # type: ignore[arg-type]


def add(ledger: Ledger, number: int, scores: dict[str, float | None]) -> None:
    for name, score in scores.items():
        ledger.add(name, Result(number, FAILED if score is None else FINISHED, 10 * number, score))


def test_entrants_follow_from_the_results_before() -> None:
    ledger = ledger_of()
    assert ledger.entrants(1) == ledger.left_in(1) == SIX
    add(ledger, 1, {"distill": 0.5, "adapt": None, "simclr": 0.2, "essl": 0.4, "rotnet": 0.4})
    assert ledger.left_in(1) == ["autoencoder"]
    add(ledger, 1, {"autoencoder": 0.1})
    assert ledger.left_in(1) == []
    assert ledger.entrants(2) == ledger.left_in(2) == ["distill", "essl"]
    add(ledger, 2, {"essl": 0.1})
    assert ledger.entrants(2) == ["distill", "essl"]  # a result of the round itself changes nobody's place
    assert ledger.left_in(2) == ["distill"]
    assert ledger.steps_before("essl", 2) == 10


def test_who_failed_later_is_out_and_keeps_what_it_had() -> None:
    ledger = ledger_of()
    add(ledger, 1, dict(zip(SIX, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])))
    add(ledger, 2, {"distill": None, "adapt": 0.7})
    assert ledger.failed("distill")
    assert ledger.scores(3) == {"adapt": 0.7, "simclr": 0.4, "essl": 0.3, "rotnet": 0.2, "autoencoder": 0.1}
    ledger.rounds.append(Round(60.0, keep=2))
    assert ledger.entrants(3) == ["adapt", "simclr"]


def test_a_candidate_whose_speed_could_not_be_measured_is_out() -> None:
    ledger = ledger_of(speeds={"simclr": 1.0})
    assert ledger.entrants(1) == ["simclr"]


def test_race_json_comes_back_as_it_was(tmp_path) -> None:
    ledger = ledger_of(winner="essl", finished=True, told=["a"], overhead=FIVE)
    add(ledger, 1, {"distill": 0.5, "adapt": None})
    save_ledger(tmp_path, ledger)
    assert load_ledger(tmp_path) == ledger


def test_a_changed_file_of_a_race_is_found(tmp_path) -> None:
    save_ledger(tmp_path, ledger_of())
    assert [(one.path.name, one.fault) for one in verify(tmp_path)] == [("race.json", None)]
    changed = tmp_path / "race.json"
    changed.write_text(changed.read_text().replace("15.0", "16.0"))  # a race still, and another
    (found,) = verify(tmp_path)
    assert found.path == changed
    assert "sha256" in str(found.fault)
    with pytest.raises(UserError, match="sha256"):
        load_ledger(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not a race"),
        ("{", "damaged"),
        ('{"schema": 7}', "schema 7"),
        ('{"schema": 1, "x": 2}', "damaged"),
        ("3", "damaged"),
    ],
)
def test_a_race_json_that_cannot_be_read(tmp_path, text, words) -> None:
    if text is not None:
        (tmp_path / "race.json").write_text(text)
    with pytest.raises(UserError, match=words):
        load_ledger(tmp_path)
