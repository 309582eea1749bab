"""Retraining as a team has it: commands and schedulers as processes, which are killed with -9."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from postgres import free_port
from processes import PREFIXES, Done, copy, end, prepare, start, train_here, tuner, until
from retrained import STUDY
from team import mlflow_server
from test_retraining import Pipeline

from tuner.core.cron import ALL, LATEST, QUEUE, SKIP, Timetable
from tuner.core.failpoints import PLACES
from tuner.ledger import Ledger, Retrainings, database
from tuner.ledger.database import tracking_client
from tuner.ledger.retrainings import DONE
from tuner.ledger.timetables import ENDED, MISSED, RUNNING, SKIPPED, Timetables
from tuner.operations.predict import predict
from tuner.operations.retrain import retrain
from tuner.operations.rollback import rollback
from tuner.tracking.mlflow.registry import Registry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study trained, to be copied."""
    folder = prepare(tmp_path_factory.mktemp("trained") / "moving", STUDY)
    train_here(folder)
    return folder


@pytest.fixture
def pipeline(trained: Path, tmp_path: Path) -> Pipeline:
    return Pipeline(copy(trained, tmp_path))


@pytest.fixture(scope="module")
def promoted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a first champion, to be copied; copies share the files of its model."""
    folder = copy(trained, tmp_path_factory.mktemp("promoted"))
    assert Pipeline(folder).retrain("0")["outcome"] == "promoted"
    return folder


@pytest.fixture
def successor(promoted: Path, tmp_path: Path) -> Pipeline:
    """A pipeline that has retrained "0"."""
    return Pipeline(copy(promoted, tmp_path))


def failing(folder: Path, place: str) -> dict[str, str]:
    log = str(folder / "failpoints.log")
    return {"TUNER_FAILPOINTS": f"{place}=kill", "TUNER_FAILPOINTS_LOG": log}


# --- killed


@pytest.mark.thorough
@pytest.mark.parametrize(
    "place",
    [
        "retrain.claimed",  # before training
        "retrain.in_training",
        "retrain.evaluated",  # before logging
        "retrain.model_logged",
        "retrain.logged",  # between logging and promotion
        "retrain.promoted",
    ],
)
def test_a_killed_retraining_is_ended_by_the_next_call(successor: Pipeline, place: str) -> None:
    pipeline = successor
    was = pipeline.predictions()
    command = ("retrain", "moving", "--run-key", "5", "--json")
    killed = tuner(pipeline.folder, *command, env=failing(pipeline.folder, place))
    assert killed.code == -signal.SIGKILL
    assert (pipeline.folder / "failpoints.log").read_text() == f"{place}=kill\n"
    pipeline.assert_whole()
    if place != "retrain.promoted":
        assert np.array_equal(pipeline.predictions(), was)
    found = tuner(pipeline.folder, *command)
    assert found.code == 0, found.err
    assert (found.json["outcome"], found.json["champion_version"]) == ("promoted", 2)
    assert pipeline.registry.champion().number == 2
    assert pipeline.trainings() == 2
    pipeline.assert_whole()


def test_two_processes_with_one_key_train_once(pipeline: Pipeline) -> None:
    command = ("retrain", "moving", "--run-key", "0", "--json")
    both = [start(pipeline.folder, *command) for _ in range(2)]
    first, second = (end(one) for one in both)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.json == second.json
    assert first.json["outcome"] == "promoted"
    assert pipeline.trainings() == 1


@pytest.mark.thorough
def test_the_same_on_postgresql(shared: str, tmp_path: Path) -> None:
    env = {"TUNER_DATABASE_URL": shared}
    (tmp_path / "study.toml").write_text(STUDY)
    assert tuner(tmp_path, "run", "study.toml", env=env).code == 0
    command = ("retrain", "moving", "--run-key", "0", "--json")
    killed = tuner(tmp_path, *command, env=env | failing(tmp_path, "retrain.logged"))
    assert killed.code == -signal.SIGKILL
    places = database.addresses(env, tmp_path)
    registry = Registry(tracking_client(places), "moving")
    assert registry.champion() is None
    both = [start(tmp_path, *command, env=env) for _ in range(2)]
    first, second = (end(one) for one in both)
    assert first.json == second.json
    assert registry.champion().number == first.json["champion_version"] == 1


@pytest.mark.thorough
def test_a_holder_that_hangs_is_followed_by_another_host_and_changes_nothing(
    pipeline: Pipeline,
) -> None:
    """To another host a stopped process is one that cannot be reached: only its lease expires."""
    pipeline.retrain("0")
    folder, command = pipeline.folder, ("retrain", "moving", "--run-key", "5", "--json")
    env = {"TUNER_LEASE_SECONDS": "3"}
    armed = {"TUNER_FAILPOINTS": "retrain.evaluated=stop"}
    hangs = start(folder, *command, env=env | armed, cold=True)
    assert os.WIFSTOPPED(os.waitpid(hangs.pid, os.WUNTRACED)[1])
    found = tuner(folder, *command, env=env)
    assert found.code == 0, found.err
    assert (found.json["outcome"], found.json["champion_version"]) == ("promoted", 2)
    hangs.send_signal(signal.SIGCONT)
    late = end(hangs)
    assert late.code == 1, late.err
    assert "was given up for lost and its token is refused" in late.err
    assert pipeline.registry.champion().number == 2
    assert pipeline.trainings() == 2
    assert len(pipeline.registry._client.search_model_versions("name = 'moving'")) == 2
    pipeline.assert_whole()


@pytest.mark.nightly
def test_killed_at_each_stage_and_the_server_of_mlflow_restarts(tmp_path: Path) -> None:
    """Each time the server is away for a call, which changes nothing and is to be repeated."""
    folder = prepare(tmp_path / "moving", STUDY)
    train_here(folder)
    tracking, port = database.addresses({}, folder).tracking, free_port()
    pipeline = Pipeline(folder, f"http://127.0.0.1:{port}")
    env = {"MLFLOW_TRACKING_URI": pipeline.tracking, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    stages = [place for place in PLACES if place.startswith("retrain.")]

    def retrained(number: int, **more: str) -> Done:
        command = ("retrain", "moving", "--run-key", str(5 * number), "--json")
        return tuner(folder, *command, env=env | more)

    for number in range(len(stages) + 1):
        with mlflow_server(folder, tracking, port=port):
            if number > 0:  # what was killed before the restart
                found = retrained(number - 1)
                assert found.code == 0, found.err
                assert found.json["outcome"] == "promoted"
                assert found.json["version"] == pipeline.registry.champion().number == number
                assert pipeline.trainings() == number
                pipeline.assert_whole()
            if number == len(stages):
                return
            place, log = stages[number], folder / f"{stages[number]}.log"
            armed = {"TUNER_FAILPOINTS": f"{place}=kill", "TUNER_FAILPOINTS_LOG": str(log)}
            assert retrained(number, **armed).code == -signal.SIGKILL
            assert log.read_text() == f"{place}=kill\n"
        if place != "retrain.ended":
            away = retrained(number)
            assert away.code == 4, away.err


# --- commands


def test_commands_say_how_it_ended(successor: Pipeline) -> None:
    folder = successor.folder
    kept = tuner(folder, "retrain", "moving", "--run-key", "0 b", "--exit-code", "--json")
    assert kept.code == 10
    assert set(kept.json) == {
        *("study", "run_key", "outcome", "reason", "model", "version", "champion_version"),
        *("metrics", "run_id", "left_out", "changed"),
    }
    assert set(kept.json["metrics"]) == {"champion", "challenger"}
    again = tuner(folder, "retrain", "moving", "--run-key", "0 b")
    assert again.code == 0
    assert again.out.startswith("moving, version 2: kept. The challenger is better, but not by")
    refused = tuner(folder, "retrain", "moving", "--run-key", "wide")
    assert refused.code == 2
    assert "does not fit the signature" in refused.err
    for key, code in (("wide", 20), ("1e200", 20), ("0", 0)):  # refused, diverged, promoted
        assert tuner(folder, "retrain", "moving", "--run-key", key, "--exit-code").code == code
    history = tuner(folder, "retrain", "moving", "--history", "--json")
    assert [one["outcome"] for one in history.json["retrainings"]] == ["promoted", "kept", "failed"]


def test_a_timetable_is_made_run_once_and_removed(pipeline: Pipeline) -> None:
    folder = pipeline.folder
    bad = tuner(folder, "timetable", "add", "moving", "--cron", "0 6 * * *", "--zone", "Nowhere")
    assert bad.code == 2
    assert "zone: expected" in bad.err
    none = tuner(folder, "timetable", "add", "standing", "--cron", "0 6 * * *")
    assert none.code == 2
    made = tuner(folder, "timetable", "add", "moving", "--cron", "* * * * * *", "--json")
    assert made.json["study"] == "moving"
    store = Timetables(pipeline.ledger)
    until(lambda: store.tick() or store.history("moving"), "a tick")
    done = tuner(folder, "scheduler", "--once", "--json")  # the key is a time, and no number
    assert done.code == 0, done.err
    runs = tuner(folder, "timetable", "history", "moving", "--json").json["runs"]
    assert {one["outcome"] for one in runs if one["state"] == ENDED} == {"failed"}
    assert "could not convert string to float" in runs[-1]["reason"]
    assert tuner(folder, "timetable", "remove", "moving").code == 0
    assert tuner(folder, "timetable", "list", "--json").json == {"timetables": []}


# --- schedulers


@pytest.mark.parametrize("place", ["scheduler.claimed", "scheduler.retrained"])
def test_a_scheduler_killed_at_a_tick_leaves_it_to_the_next_one(
    pipeline: Pipeline, place: str
) -> None:
    folder, store = pipeline.folder, Timetables(pipeline.ledger)
    assert tuner(folder, "timetable", "add", "moving", "--cron", "* * * * * *").code == 0
    until(lambda: store.tick() or store.history("moving"), "a tick")
    killed = tuner(folder, "scheduler", "--once", env=failing(folder, place))
    assert killed.code == -signal.SIGKILL
    assert (folder / "failpoints.log").read_text() == f"{place}=kill\n"
    (held,) = [one for one in store.history("moving") if one.worker is not None]
    assert tuner(folder, "scheduler", "--once").code == 0
    runs = [one for one in store.history("moving") if one.fire_at == held.fire_at]
    assert [one.state for one in runs] == [ENDED]


def test_missed_ticks_are_caught_up_as_each_timetable_says(pipeline: Pipeline) -> None:
    """No scheduler ran for three days; the keys are days, so those of two timetables are one."""
    pipeline.change("retrain.factory=tests.retrained:on_a_day", "retrain.key_format=%Y-%m-%d")
    store = Timetables(pipeline.ledger)
    then = store.now() - 3 * 86_400
    daily = Timetable(expression="0 6 * * *", zone="Asia/Tokyo")
    for catch_up in (ALL, LATEST, SKIP):
        store.add(catch_up, "moving", replace(daily, catch_up=catch_up), now=then)
    store.add("disabled", "moving", daily, now=then, enabled=False)
    done = tuner(pipeline.folder, "scheduler", "--once")
    assert done.code == 0, done.err
    runs = {
        name: [one.fire_at for one in store.history(name) if one.state == ENDED]
        for name in (ALL, LATEST, SKIP, "disabled")
    }
    assert [len(one) for one in runs.values()] == [3, 1, 0, 0]
    assert runs[LATEST] == runs[ALL][:1]
    assert [one.state for one in store.history(SKIP)] == [MISSED]
    retrainings = Retrainings(pipeline.ledger).history("moving")
    assert len(retrainings) == len({one.run_key for one in retrainings}) == 3
    assert {one.stage for one in retrainings} == {DONE}


@pytest.mark.thorough
def test_a_tick_during_a_run_is_skipped_and_a_disabled_timetable_has_none(
    pipeline: Pipeline,
) -> None:
    """One scheduler hangs in its run while another one sees the next ticks."""
    folder, store = pipeline.folder, Timetables(pipeline.ledger)
    (folder / "study.toml").write_text(STUDY.replace('key_argument = "key"', ""))
    pipeline.change()
    armed = {"TUNER_FAILPOINTS": "scheduler.claimed=stop"}
    added = ("timetable", "add", "moving", "--cron", "* * * * * *")
    assert tuner(folder, *added).code == 0
    hangs = start(folder, "scheduler", "--once", env=armed, cold=True)
    assert os.WIFSTOPPED(os.waitpid(hangs.pid, os.WUNTRACED)[1])
    other = start(folder, "scheduler")
    until(lambda: any(one.state == SKIPPED for one in store.history("moving")), "a skipped tick")
    assert tuner(folder, *added, "--disabled").code == 0
    known = len(store.history("moving"))
    hangs.send_signal(signal.SIGCONT)
    assert end(hangs).code == 0
    until(lambda: all(one.state != RUNNING for one in store.history("moving")), "the run")
    other.send_signal(signal.SIGTERM)
    assert end(other).code == 0
    assert store.tick(store.now() + 3600) == 0
    runs = store.history("moving")
    assert len(runs) == known
    assert [one.state for one in runs].count(ENDED) == 1
    assert {one.state for one in runs} == {ENDED, SKIPPED}
    assert all("had not ended" in str(one.reason) for one in runs if one.state == SKIPPED)
    assert len(Retrainings(pipeline.ledger).history("moving")) == 1


@pytest.mark.nightly
def test_schedulers_killed_in_turn_lose_and_double_no_tick(shared: str, tmp_path: Path) -> None:
    """Twelve ticks a minute; after every two, a scheduler is killed and another started."""
    env = {"TUNER_DATABASE_URL": shared}
    (tmp_path / "study.toml").write_text(STUDY.replace('key_argument = "key"', ""))
    assert tuner(tmp_path, "run", "study.toml", env=env).code == 0
    places = database.addresses(env, tmp_path)
    ledger = Ledger(database.open_ledger(places, create=False))
    store = Timetables(ledger)
    seconds = Timetable(
        expression="*/5 * * * * *", zone="UTC", grace=3600, catch_up=ALL, overlap=QUEUE
    )
    began = store.add("seconds", "moving", seconds)

    def scheduler() -> Any:
        return start(tmp_path, "scheduler", "--log", "json", env=env)

    def ended() -> int:
        return sum(one.state == ENDED for one in store.history("seconds"))

    team = [scheduler() for _ in range(3)]
    for turn in range(3):
        wanted = ended() + 2
        until(lambda wanted=wanted: ended() >= wanted, f"{wanted} runs", seconds=200)
        team[turn].kill()
        assert end(team[turn]).code == -signal.SIGKILL
        team[turn] = scheduler()
    last = store.add("seconds", "moving", seconds, enabled=False).seen_at
    until(lambda: all(one.state == ENDED for one in store.history("seconds")), "the rest", 250)
    for one in team:
        one.send_signal(signal.SIGTERM)
        assert end(one).code == 0
    runs = store.history("seconds")[::-1]
    first = 5 * (int(began.seen_at) // 5 + 1)
    assert [one.fire_at for one in runs] == [first + 5 * turn for turn in range(len(runs))]
    assert first + 5 * len(runs) >= int(last)
    retrainings = Retrainings(ledger).history("moving")
    assert len(retrainings) == len(runs)
    assert {one.stage for one in retrainings} == {DONE}
    assert [one.outcome for one in retrainings] == [one.outcome for one in runs]
    assert runs[0].outcome == "promoted"
    assert {one.outcome for one in runs} <= {"promoted", "kept"}
    client = tracking_client(places)
    experiment = client.get_experiment_by_name("moving retrain").experiment_id
    assert len(client.search_runs([experiment])) == len(runs) + 1  # and their parent
    ledger.engine.dispose()


# --- ten batches by date


@pytest.fixture(scope="module")
def by_date(tmp_path_factory: pytest.TempPathFactory) -> Path:
    studies = Path(__file__).parents[1] / "studies"
    text = (studies / "digits_by_date.toml").read_text().replace("trials = 6", "trials = 4")
    folder = prepare(tmp_path_factory.mktemp("by-date") / "digits", text)
    train_here(folder)
    return folder


@pytest.mark.thorough
def test_digits_that_arrive_in_ten_batches_of_which_one_is_broken(by_date: Path) -> None:
    places = database.addresses({}, by_date)
    ledger = Ledger(database.open_ledger(places, create=False))
    name, found, seen = "digits-by-date", {}, {}
    rows = by_date / "rows.npy"
    np.save(rows, np.random.default_rng(0).random((20, 64)))
    for day in range(1, 11):
        key = f"2026-03-{day:02}"
        found[key] = one = retrain(ledger, places, name, key, prefixes=PREFIXES)
        predicted = predict(ledger, places, name, rows, prefixes=PREFIXES, by_position=True)
        assert predicted.exact
        seen.setdefault(one["champion_version"], predicted.outputs)
        # whoever is the champion predicts what it always did
        assert np.array_equal(predicted.outputs, seen[one["champion_version"]])
    assert found["2026-03-01"]["outcome"] == "promoted"
    later = [one for key, one in found.items() if key != "2026-03-01"]
    for one in later:  # on the same rows, which neither has seen
        better = one["metrics"]["challenger"] < one["metrics"]["champion"]
        assert better or one["outcome"] == "kept"
    assert sum(one["outcome"] == "promoted" for one in later) >= 2
    broken = found["2026-03-07"]
    assert broken["outcome"] == "kept"
    assert broken["reason"].startswith("Better as a whole")  # by wrong labels
    assert "worse on 2026-03-0" in broken["reason"]
    champion = later[-1]["champion_version"]
    back = rollback(ledger, places, name)
    assert back.was == champion
    assert np.array_equal(
        predict(ledger, places, name, rows, prefixes=PREFIXES, by_position=True).outputs,
        seen[back.now],
    )
    ledger.engine.dispose()
    assert_the_champions_loss_on_the_rows_of_the_last_day_never_rises(by_date)


def assert_the_champions_loss_on_the_rows_of_the_last_day_never_rises(by_date: Path) -> None:
    """All champions on one yardstick: the held-out rows of all ten batches."""
    from tuner.retraining import versions
    from tuner.training import models, trainer_choice

    places = database.addresses({}, by_date)
    ledger = Ledger(database.open_ledger(places, create=False))
    spec = ledger.study("digits-by-date").spec
    arguments: Mapping[str, Any] = {"day": "2026-03-10"}
    workload = spec.workload.model_copy(update={"arguments": arguments})
    last = trainer_choice.load(spec.model_copy(update={"workload": workload}), PREFIXES)
    registry = Registry(tracking_client(places), "digits-by-date")
    promoted = [
        one.result["log"]["version"]
        for one in Retrainings(ledger).history("digits-by-date")
        if one.outcome == "promoted"
    ]
    stored = [versions.read(ledger, registry, registry.version(number)) for number in promoted]
    champions = [versions.build(one, PREFIXES).module for one in stored]
    losses = [models.row_values(one, last, spec, "val_loss").mean() for one in champions]
    assert len(losses) >= 3
    assert losses == sorted(losses, reverse=True), json.dumps(losses)
    ledger.engine.dispose()
