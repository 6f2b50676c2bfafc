"""A search before it starts, a trial in this process, and what is left when trials have ended."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rayssl.pipeline.augment import load_views, view_to_dict
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.cluster import tune as ray_tune
from rayssl.pipeline.cluster.capacity import cores_a_worker
from rayssl.pipeline.cluster.tune import (
    DIED,
    Room,
    extended,
    find_room,
    fitted,
    new_scheduler,
    optuna_search,
    remember_curves,
    remember_rungs,
)
from rayssl.pipeline.cluster.tune import Standing as RayStanding
from rayssl.pipeline.config import override, to_dict
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.tune.live_table import Board
from rayssl.pipeline.tune.results import write_results
from rayssl.pipeline.tune.search import (
    Search,
    TuneSettings,
    check_same_search,
    command_to_use,
    parse_settings,
    plan_search,
    write_search,
)
from rayssl.pipeline.tune.space import Parameter, build_space
from rayssl.pipeline.tune.trial import Course, report_steps, run_trial
from rayssl.pipeline.tune.trials import (
    FAILED,
    FINISHED,
    STOPPED,
    Trial,
    best_trial,
    drop_member,
    load_member,
    load_trials,
    member_folder,
    save_member,
    save_table,
    save_trial,
)
from rayssl.pipeline.verify import verify

CHANGES = {
    "encoder.name": "cnn-small",
    "data.limit": 256,
    "train.batch-size": 64,
    "train.threads": 1,
    "train.steps": 160,
}
SETTINGS = {"space": "crop,color,rotation", "share": "0.1", "images": "200"}


def plan(out: Path, recipe: str = "simclr-digits", changes: dict[str, Any] | None = None, **settings: str) -> Any:
    config = replace(override(build_recipe(recipe), {**CHANGES, **(changes or {})}), recipe=recipe)
    own = parse_settings({**SETTINGS, **settings})
    return plan_search(config, own, out, warn=lambda _: None, progress=lambda *_: None)


def trial(number: int, score: float | None, state: str = FINISHED, **values: Any) -> Trial:
    space = build_space(["crop", "color", "rotation"])
    parameters = space.draw(0, number)
    views = [view_to_dict(space.spec(parameters))] * 2
    curve = [(16, score)] if score is not None else []
    scores = {"knn": score} if score is not None else {}
    return Trial(number, state, parameters, views, {}, score, scores, curve, 0.0, 1.0, **values)


def test_a_trial_takes_its_share_of_the_recipes_steps(tmp_path: Path) -> None:
    search, _ = plan(tmp_path / "tuned")
    assert search.config.train.steps == 16  # a tenth of 160
    assert search.objective == "knn"
    assert not (tmp_path / "tuned").exists()  # planning writes nothing


def test_a_trial_trains_and_is_measured_as_it_goes(tmp_path: Path) -> None:
    search, _ = plan(tmp_path / "tuned")
    config = search.config_of(search.space.draw(0, 1))
    reports = list(run_trial(config, Course("rotation", 4, 200)))
    assert [report.step for report in reports] == report_steps(16, 4) == [4, 8, 12, 16]
    assert [set(report.scores) for report in reports[:3]] == [{"rotation"}] * 3
    assert set(reports[-1].scores) == {"knn", "rotation", "rankme", "alignment-uniformity"}
    again = list(run_trial(config, Course("rotation", 1, 200)))
    assert again[-1].scores == reports[-1].scores  # looking on the way changes nothing


def test_a_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    search, _ = plan(tmp_path / "tuned")
    config = search.config_of(search.space.draw(0, 1))
    whole = list(run_trial(config, Course("knn", 4, 200)))
    first = run_trial(config, Course("knn", 4, 200), tmp_path / "checkpoints")
    assert next(first).step == 4
    first.close()
    rest = list(run_trial(config, Course("knn", 4, 200), tmp_path / "checkpoints"))
    assert [report.step for report in rest] == [8, 12, 16]
    assert rest[-1].scores == whole[-1].scores


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    search, _ = plan(tmp_path / "tuned", changes={"train.learning_rate": 1e30})
    with pytest.raises(UserError, match=r"not finite|the loss is"):
        list(run_trial(search.config_of(search.space.draw(0, 1)), Course("knn", 1, 200)))


def test_candidates_are_the_seeds_and_leave_out_nothing_when_more_are_asked_for(tmp_path: Path) -> None:
    few, _ = plan(tmp_path / "a", search="random", trials="3")
    more, _ = plan(tmp_path / "a", search="random", trials="5")
    other, _ = plan(tmp_path / "a", search="random", trials="5", seed="1")
    assert more.candidates()[:3] == few.candidates()
    assert not [one for one in other.candidates() if one in more.candidates()]
    assert plan(tmp_path / "a", search="optuna")[0].candidates() is None


def test_values_of_the_config_are_searched_on_request(tmp_path: Path) -> None:
    search, _ = plan(tmp_path / "a", parameters="temperature,train.weight-decay=0..0.01")
    config = search.config_of(search.space.draw(0, 0))
    assert config.method.temperature != search.config.method.temperature
    assert 0 <= config.train.weight_decay <= 0.01
    assert 0.05 <= config.method.temperature <= 1.0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"objective": "best"}, r"--tune\.objective is 'best'"),
        ({"trials": "0"}, r"--tune\.trials is '0'"),
        ({"share": "1.5"}, r"--tune\.share is '1\.5'"),
        ({"spaces": "crop"}, r"unknown option --tune\.spaces \(did you mean 'space'\?\)"),
        ({"parameters": "temprature"}, r"unknown 'temprature' \(did you mean 'temperature'\?\)"),
        (
            {"parameters": "method.temperatur=1..2"},
            r"has 'method\.temperatur' \(did you mean 'method\.temperature'\?\)",
        ),
        ({"parameters": "method.temperature=1-2"}, r"the range must be LOW\.\.HIGH"),
        ({"parameters": "method.temperature=-1..1"}, r"--method\.temperature is -1\.0"),
        ({"parameters": "corruption"}, r"has 'method\.corruption'"),
        ({"search": "grid", "levels": "9", "space": "crop,color,blur,noise"}, r"more than 10,000"),
        ({"scheduler": "pbt"}, r"a population starts from random"),
        ({"scheduler": "pbt", "search": "random", "trials": "2"}, r"at least 4"),
        ({"parameters": "method.views=2..4"}, r"has 'method\.views'"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as caught:
        plan(tmp_path / "tuned", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tuned").exists()


def file_of(tmp_path: Path, **config: list[Any]) -> str:
    """A space that searches values of the config."""
    path = tmp_path / "space.json"
    values = {name.replace("__", "."): {"values": value} for name, value in config.items()}
    path.write_text(json.dumps({"operations": ["crop"], "config": values}))
    return str(path)


def test_batches_that_no_trial_could_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a train\.batch-size of 512 is searched: there are \d+ training images"):
        plan(tmp_path / "tuned", space=file_of(tmp_path, train__batch_size=[32, 512, 64]))
    with pytest.raises(UserError, match=r"--train\.batch-size 33 cannot be shared evenly by 2 workers"):
        plan(tmp_path / "tuned", changes={"cluster.workers": 2}, space=file_of(tmp_path, train__batch_size=[32, 33]))
    plan(tmp_path / "tuned", space=file_of(tmp_path, train__batch_size=[32, 33]))


def test_a_population_searches_nothing_that_makes_networks_differ(tmp_path: Path) -> None:
    population = {"scheduler": "pbt", "search": "random"}
    for config, told in (
        ({"train__optimizer": ["sgd", "adamw"]}, "leave train.optimizer out"),
        ({"method__projector_dim": [32, 64]}, "networks, which method.projector_dim make differ"),
    ):
        with pytest.raises(UserError, match=told):
            plan(tmp_path / "tuned", space=file_of(tmp_path, **config), **population)
        plan(tmp_path / "tuned", space=file_of(tmp_path, **config))
    plan(tmp_path / "tuned", space=file_of(tmp_path, method__temperature=[0.1, 0.5]), **population)


def test_no_trial_chooses_its_backend(tmp_path: Path) -> None:
    search, _ = plan(tmp_path / "tuned", changes={"augment.backend": "fastest"})
    assert search.config.augment.backend == "auto"


def test_what_a_search_makes_itself_is_not_taken(tmp_path: Path) -> None:
    for changes in (
        {"augment.spec": "views.json"},
        {"train.minutes": 1},
        {"encoder.name": "resnet19"},
        {"encoder.weights": "nonsense"},
    ):
        with pytest.raises(UserError, match=r"leave it out|run equally long|resnet19|nonsense"):
            plan(tmp_path, changes=changes)
    with pytest.raises(UserError, match=r"--cluster\.workers is 2"):
        plan(tmp_path, changes={"cluster.workers": 2}, scheduler="pbt", search="random")


def test_another_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    search, dataset = plan(out, trials="4")
    write_search(search, dataset, "rayssl tune …")
    plan(out, trials="9", concurrent="1")  # may differ
    for settings, told in (
        ({"space": "crop,color"}, r"another search: tune\.space is 'crop,color,rotation' there and 'crop,color' here"),
        ({"seed": "3"}, r"another search: tune\.seed"),
        ({"objective": "rotation"}, r"another search: tune\.objective"),
    ):
        with pytest.raises(UserError, match=told):
            plan(out, **settings)
    with pytest.raises(UserError, match=r"another search: .*temperature"):
        plan(out, changes={"method.temperature": 0.4})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    with pytest.raises(UserError, match="not empty and is not a search"):
        check_same_search(replace(search, out=tmp_path / "full"), dataset)


def test_results_are_those_of_the_best_finished_trial(tmp_path: Path) -> None:
    search, dataset = plan(tmp_path / "tuned", trials="4")
    write_search(search, dataset, "rayssl tune …")
    trials = [trial(0, 0.5), trial(1, 0.8), trial(2, 0.9, STOPPED), trial(3, None, FAILED, reason="it died")]
    for one in reversed(trials):
        save_trial(search.out, one)
    best = write_results(search, dataset)
    assert best is not None
    assert best.number == 1
    assert load_trials(search.out) == trials
    assert [view_to_dict(view) for view in load_views(str(search.out / "best.json"), 3)] == [trials[1].views[0]] * 3
    table = pq.read_table(search.out / "trials.parquet").to_pylist()
    assert [row["state"] for row in table] == [FINISHED, FINISHED, STOPPED, FAILED]
    assert [row["objective/knn"] for row in table] == [0.5, 0.8, 0.9, None]
    assert table[1]["parameter/color.strength"] == trials[1].parameters["color.strength"]
    assert (search.out / "tune-report.html").stat().st_size > 10_000
    changed = replace(trials[1], changes={"method.temperature": 0.12345678})
    assert command_to_use(
        search.out, "simclr-digits", {"data.path": "my photos", "train.batch-size": "64"}, changed
    ) == (
        f"rayssl run simclr-digits --augment.spec {search.out}/best.json --data.path 'my photos' --train.batch-size 64 "
        "--method.temperature 0.123457"
    )


@pytest.mark.parametrize("name", ["search.json", "best.json", "trials.parquet", "tune-report.html", "trials/0000.json"])
def test_a_changed_file_of_a_search_is_found(name: str, tmp_path: Path) -> None:
    search, dataset = plan(tmp_path / "tuned", trials="1")
    write_search(search, dataset, "rayssl tune …")
    save_trial(search.out, trial(0, 0.5))
    write_results(search, dataset)
    assert [one for one in verify(search.out) if one.fault is not None or one.unfinished] == []
    changed = search.out / name
    changed.write_bytes(changed.read_bytes() + b"\n")  # which no reader of JSON minds
    found = {one.path for one in verify(search.out) if one.fault is not None}
    assert found - {search.out / "trials"} == {changed}


def test_a_search_in_which_all_trials_failed_has_no_best(tmp_path: Path) -> None:
    search, dataset = plan(tmp_path / "tuned")
    write_search(search, dataset, "rayssl tune …")
    save_trial(search.out, trial(0, None, FAILED, reason="it died"))
    assert write_results(search, dataset) is None
    assert not (search.out / "best.json").exists()
    assert "it died" in (search.out / "tune-report.html").read_text()


def test_a_damaged_trial_is_one_line(tmp_path: Path) -> None:
    save_trial(tmp_path, trial(0, 0.5))
    path = tmp_path / "trials" / "0000.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "of a newer version": 1}))
    assert load_trials(tmp_path) == [trial(0, 0.5)]
    for text in ("{", "{}", json.dumps({**whole, "curve": [[1, 0.5, 2]]})):
        path.write_text(text)
        with pytest.raises(UserError, match=r"0000\.json is damaged \(.*\): remove it"):
            load_trials(tmp_path)


def test_a_table_of_trials_with_different_objectives(tmp_path: Path) -> None:
    save_table(tmp_path, [trial(0, None, FAILED), replace(trial(1, 0.5), scores={"rankme": 3.0})])
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [row["objective/rankme"] for row in rows] == [None, 3.0]
    assert best_trial([]) is None


# What Ray is told


def room(monkeypatch: pytest.MonkeyPatch, search: Search, *nodes: dict[str, float]) -> Any:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    return find_room(search)


def with_cluster(search: Search, trials: int, concurrent: int | None = None, **cluster: Any) -> Search:
    config = replace(search.config, cluster=replace(search.config.cluster, **cluster))
    return replace(search, config=config, trials=trials, settings=replace(search.settings, concurrent=concurrent))


def test_room_is_made_from_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, _ = plan(tmp_path)
    small, gpu = {"CPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}
    found = room(monkeypatch, with_cluster(search, 9), small)
    assert (found.concurrent, found.cpus, found.gpus) == (2, 1.0, 0.0)
    assert room(monkeypatch, with_cluster(search, 1), small).cpus == 2  # one trial gets it all
    found = room(monkeypatch, with_cluster(search, 9), small, small, small)
    assert (found.concurrent, found.cpus) == (6, 1.0)
    found = room(monkeypatch, with_cluster(search, 9), gpu)
    assert (found.concurrent, found.cpus, found.gpus) == (4, 4.0, 1.0)
    found = room(monkeypatch, with_cluster(search, 20, gpu_per_worker=0.25), gpu)
    assert (found.concurrent, found.gpus) == (16, 0.25)
    found = room(monkeypatch, with_cluster(search, 9, workers=2), gpu)
    assert (found.concurrent, found.workers, found.text) == (2, 2, "2 workers with 4 cores and 1 GPU")
    for wrong, nodes in (
        (with_cluster(search, 9, concurrent=3), [small]),
        (with_cluster(search, 9, workers=4), [small]),
        (with_cluster(search, 9, gpu_per_worker=1.0), [small]),
        (with_cluster(search, 9, concurrent=5), [gpu]),
    ):
        with pytest.raises(UserError, match=r"there is room for|there are 0 GPUs"):
            room(monkeypatch, wrong, *nodes)


@pytest.mark.parametrize("own_cluster", [True, False])
def test_trials_know_whether_all_their_workers_are_here(
    own_cluster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, _ = plan(tmp_path)
    settings: dict[str, Any] = {}
    monkeypatch.setattr(ray_tune, "connected", lambda *_: nullcontext(own_cluster))
    monkeypatch.setattr(ray_tune, "find_room", lambda search: Room(1, 2, 1.0, 0.0))
    monkeypatch.setattr(ray_tune, "pending", lambda search, standing: [] if settings else [0])
    monkeypatch.setattr("ray.tune.with_parameters", lambda work, **given: settings.update(given["settings"]))
    monkeypatch.setattr("ray.tune.with_resources", MagicMock())
    monkeypatch.setattr("ray.tune.Tuner", MagicMock())
    ray_tune.run_search(search, lambda: None, lambda standing: None, lambda line: None)
    assert settings["here"] is own_cluster
    assert settings["workers"] == 2


@pytest.mark.parametrize(("here", "meeting"), [(True, "file:///session/store"), (False, "tcp://")])
def test_workers_that_are_all_here_meet_by_a_file(here: bool, meeting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, places = MagicMock(), []
    monkeypatch.setattr("rayssl.pipeline.cluster.rendezvous.meeting_folder", lambda: Path("/session"))
    monkeypatch.setattr("ray.remote", remote)
    monkeypatch.setattr("ray.get", lambda others: None)
    monkeypatch.setattr("ray.util.get_current_placement_group", MagicMock())
    monkeypatch.setattr("ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy", MagicMock())
    monkeypatch.setattr(ray_tune, "join", lambda settings, place, rank: places.append(place))
    settings = {"workers": 2, "here": here, "cpus": 1.0, "gpus": 0.0}
    with ray_tune.gathered(settings, {}):
        pass
    places += [call.args[2] for call in remote.return_value.options.return_value.remote.call_args_list]
    assert len(places) == 2
    assert len(set(places)) == 1
    assert places[0].startswith(meeting)


def test_gpus_and_cores_of_a_worker_are_on_one_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, _ = plan(tmp_path)
    head, gpus = {"CPU": 64.0}, {"CPU": 8.0, "GPU": 4.0}
    found = room(monkeypatch, with_cluster(search, 9), head, gpus)
    assert (found.concurrent, found.cpus, found.gpus) == (4, 2.0, 1.0)
    found = room(monkeypatch, with_cluster(search, 9, gpu_per_worker=0.2), {"CPU": 8.0, "GPU": 1.0})
    assert found.concurrent == 5
    assert cores_a_worker([{"CPU": 3}, {"CPU": 3}], 2, 0) == 3
    assert cores_a_worker([{"CPU": 3}, {"CPU": 3}], 3, 0) == 1  # twice 2 would fit, not three times
    assert cores_a_worker([{"CPU": 4}, {"CPU": 4}], 4, 0) == 2


def test_a_continued_search_by_optuna_is_told_what_has_ended(tmp_path: Path) -> None:
    search, _ = plan(tmp_path)
    assert search.space == build_space(["crop", "color", "rotation"])
    ended = [
        trial(0, 0.5),
        trial(1, 0.7, STOPPED),
        trial(2, None, FAILED, reason="nan"),
        trial(3, None, FAILED, reason=DIED),
    ]
    study = optuna_search(search, RayStanding(20, search.space, ended))._ot_study
    assert [known.value for known in study.trials] == [0.5, 0.7, 0.0]  # one that was killed may be as good as any
    fresh = [optuna_search(search, RayStanding(20, search.space, ended[:n])).suggest("a") for n in (0, 1, 2)]
    assert len({json.dumps(one) for one in fresh}) == 3


class RayTrial:
    """What a scheduler asks of a trial."""

    status = "RUNNING"

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def test_a_slow_trial_is_not_stopped_for_being_slow(tmp_path: Path) -> None:
    search, _ = plan(tmp_path, scheduler="median")
    scheduler = new_scheduler(search, RayStanding(9, search.space))
    scheduler.set_search_properties("score", "max")
    controller = SimpleNamespace(get_live_trials=lambda: [], _live_trials=[])
    for number, seconds in enumerate((1.0, 1.0, 1.0, 50.0)):
        one = RayTrial(str(number))
        for report in (1, 2, 3):
            row = {"training_iteration": report, "time_total_s": seconds * report, "score": 0.1 * report}
            assert scheduler.on_trial_result(controller, one, row) == "CONTINUE"
    row = {"training_iteration": 2, "time_total_s": 1.0, "score": 0.01}
    assert scheduler.on_trial_result(controller, RayTrial("bad"), row) == "STOP"


def test_a_network_that_has_nothing_left_to_learn_is_not_copied(tmp_path: Path) -> None:
    search, _ = plan(tmp_path, scheduler="pbt", search="random")
    scheduler = new_scheduler(search, RayStanding(4, search.space))
    scheduler.set_search_properties("score", "max")
    members = [MagicMock(status="RUNNING", **{"is_finished.return_value": False}) for _ in range(4)]
    controller = MagicMock(search_alg=None, **{"get_trials.return_value": members})
    controller._schedule_trial_save = lambda member, result: f"a checkpoint of step {result['step']}"
    copied: list[str] = []
    scheduler._exploit = lambda _, member, best: copied.append(scheduler._trial_state[best].last_checkpoint)
    for member in members:
        member.run_metadata.checkpoint_manager.checkpoint_config.num_to_keep = None
        member.config = {"parameters": dict.fromkeys(search.space.parameters, 0.5)}
        scheduler.on_trial_add(controller, member)

    def report(number: int, step: int, score: float) -> str:
        row = {"training_iteration": step, "score": score, "step": step, "steps": 3}
        return str(scheduler.on_trial_result(controller, members[number], row))

    for number, step, score in ((3, 1, 0.9), (2, 1, 0.6), (1, 1, 0.5), (3, 2, 0.92)):
        assert report(number, step, score) == "CONTINUE"
    assert report(3, 3, 0.95) == "STOP"
    report(0, 1, 0.1)
    assert copied == ["a checkpoint of step 2"]


def test_a_copied_network_brings_its_history_along(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    extended(path, 10, {"crop.p": 1.0})
    rows = extended(path, 20, {"crop.p": 0.5})
    assert rows == [{"step": 10, "parameters": {"crop.p": 1.0}}, {"step": 20, "parameters": {"crop.p": 0.5}}]


def test_rungs_of_an_earlier_session_count() -> None:
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler(metric="score", mode="max", max_t=4, grace_period=1, reduction_factor=2)
    remember_rungs(scheduler, [replace(trial(n, 0.5), curve=[(4, 0.5 + n / 10), (8, 0.9)]) for n in range(4)])
    scheduler.on_trial_add(None, SimpleNamespace(trial_id="new"))
    answer = scheduler.on_trial_result(None, SimpleNamespace(trial_id="new"), {"training_iteration": 1, "score": 0.55})
    assert answer == "STOP"  # below the median of the four
    scheduler.on_trial_add(None, SimpleNamespace(trial_id="good"))
    answer = scheduler.on_trial_result(None, SimpleNamespace(trial_id="good"), {"training_iteration": 1, "score": 0.85})
    assert answer == "CONTINUE"


def test_the_median_is_that_of_an_earlier_session_too() -> None:
    from ray.tune.schedulers import MedianStoppingRule

    rule = MedianStoppingRule(
        time_attr="training_iteration", metric="score", mode="max", grace_period=1, min_samples_required=3
    )
    remember_curves(rule, [replace(trial(n, 0.5), curve=[(4, 0.5 + n / 10), (8, 0.9)]) for n in range(4)])
    controller = SimpleNamespace(get_live_trials=list)
    for name, score, expected in (("low", 0.55, "STOP"), ("high", 0.75, "CONTINUE")):
        row = {"training_iteration": 1, "score": score}
        assert rule.on_trial_result(controller, RayTrial(name), row) == expected


def test_a_member_is_kept_whole_or_as_it_was(tmp_path: Path) -> None:
    def copy(word: str) -> Callable[[Path], None]:
        def to(place: Path) -> None:
            place.mkdir(parents=True)
            (place / "weights").write_text(word)
            if word == "torn":
                raise OSError("disk full")

        return to

    assert load_member(tmp_path, 3) == []
    save_member(tmp_path, 3, [{"step": 4}], copy("first"))
    with pytest.raises(OSError, match="disk full"):
        save_member(tmp_path, 3, [{"step": 4}, {"step": 8}], copy("torn"))
    assert load_member(tmp_path, 3) == [{"step": 4}]
    assert (member_folder(tmp_path, 3) / "checkpoint" / "weights").read_text() == "first"
    save_member(tmp_path, 3, [{"step": 4}, {"step": 8}], copy("second"))
    assert load_member(tmp_path, 3) == [{"step": 4}, {"step": 8}]
    assert (member_folder(tmp_path, 3) / "checkpoint" / "weights").read_text() == "second"
    drop_member(tmp_path, 3)
    assert load_member(tmp_path, 3) == []
    assert [*(tmp_path / "population").iterdir()] == []


def test_values_that_were_written_down_are_within_the_ranges() -> None:
    space = build_space(["crop", "flip"])
    near = {"crop.p": 0.30000000004, "crop.scale": 0.9000000001, "flip.p": 0.5}
    assert fitted(space, near) == {"crop.p": 0.3, "crop.scale": 0.9, "flip.p": 0.5}


# What a person sees


def test_the_board_tells_of_every_trial_once() -> None:
    text = StringIO()
    ended = [trial(0, 0.5)]
    with Board(Console(file=text, width=200)) as board:
        standing = SimpleNamespace(total=3, space=build_space(["crop", "color", "rotation"]), ended=ended, running={})
        board(standing)  # which an earlier session has done
        ended += [trial(1, 0.75), trial(2, None, FAILED, reason="[red]out of memory")]
        board(standing)
        board(standing)
    lines = text.getvalue().splitlines()
    assert len(lines) == 2
    assert "trial 1 finished: 0.7500 with " in lines[0]
    assert "3/3, best 0.7500 of trial 1" in lines[0]
    assert "trial 2 failed after 1 s: [red]out of memory" in lines[1]


def test_a_search_is_told_by_plain_json(tmp_path: Path) -> None:
    search, dataset = plan(tmp_path / "tuned", parameters="temperature", order="true")
    write_search(search, dataset, "rayssl tune …")
    told = json.loads((tmp_path / "tuned" / "search.json").read_text())
    assert told["space"]["parameters"]["method.temperature"] == {"low": 0.05, "high": 1.0, "log": True}
    assert "color.place" in told["space"]["parameters"]
    assert told["config"] == json.loads(json.dumps(to_dict(search.config)))
    assert told["data"]["labelled"] is True


@pytest.mark.parametrize("wrong", [{"objective": "foo"}, {"search": "foo"}, {"trials": 0}])
def test_settings_from_python_are_looked_at_too(wrong: dict[str, Any], tmp_path: Path) -> None:
    config = override(build_recipe("simclr-digits"), CHANGES)
    with pytest.raises(UserError, match=rf"--tune\.{next(iter(wrong))} is "):
        plan_search(config, TuneSettings(**wrong), tmp_path, warn=lambda _: None, progress=lambda *_: None)


def test_a_space_from_python_takes_the_place_of_the_settings(tmp_path: Path) -> None:
    config = replace(override(build_recipe("simclr-digits"), CHANGES), recipe="simclr-digits")
    own: dict[str, Any] = {"warn": lambda _: None, "progress": lambda *_: None}
    space = build_space(["crop"], others={"method.temperature": Parameter(0.1, 0.2)})
    search, _ = plan_search(config, TuneSettings(), tmp_path / "tuned", space=space, **own)
    assert search.space == space
    unknown = build_space(["crop"], others={"data.path": Parameter(values=("a", "b"))})
    with pytest.raises(UserError, match=r"has 'data\.path'"):
        plan_search(config, TuneSettings(), tmp_path / "tuned", space=unknown, **own)
