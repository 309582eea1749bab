"""Killed or interrupted anywhere and run again, a study is what it would have been: bit by bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from processes import (
    STUDY,
    Left,
    assert_whole,
    end,
    left,
    prepare,
    processes_in,
    reader,
    reference,
    rows,
    start,
    trained_steps,
    tuner,
    until,
)

from tuner.config import BudgetTable
from tuner.core.environment import describe
from tuner.core.failpoints import PLACES
from tuner.ledger import Ledger

STALE_RETRIES = BudgetTable(trials=1).retries.stale

pytestmark = pytest.mark.slow

NO_TRAINER = {"settled": {"trainer": "reference", "threads": 1}}


@pytest.fixture(name="whole", scope="module")
def uninterrupted() -> Left:
    return reference()


def slow(folder: Path, seconds: float = 0.01, training: str = "") -> Path:
    """Prepare the same study with steps that take their time; its numbers are the same."""
    arguments = f"arguments = {{ step_seconds = {seconds} }}\n\n[training]\n{training}"
    return prepare(folder, STUDY.replace("\n[training]", arguments, 1))


def finish(folder: Path) -> None:
    """Run to the end what was begun, and look that nobody and nothing stays behind."""
    done = tuner(folder, "run", "study.toml", "--no-report", "--json")
    assert done.code == 0, done.err
    trials = done.json["trials"]
    assert sum(trials.values()) == 8
    assert rows(folder, "SELECT reserved, next_number FROM tuner_studies") == [(8, 8)]
    assert rows(folder, "SELECT * FROM tuner_attempts WHERE live") == []
    assert processes_in(folder) == []
    assert [file for file in (folder / ".tuner").rglob("*") if file.is_file()] == []


def same_but_for_speed(whole: Left) -> Left:
    """Leave out what slow steps change: the study's digest, for its arguments are others."""
    study = whole.mlflow["study"]
    tags = {k: v for k, v in study["tags"].items() if k != "tuner.spec_digest"}
    return Left(whole.ledger, whole.optuna, whole.mlflow | {"study": study | {"tags": tags}})


def assert_same(folder: Path, whole: Left) -> None:
    assert_whole(folder)
    assert same_but_for_speed(left(folder)) == same_but_for_speed(whole)


def test_the_reference_has_every_kind_of_end(whole):
    kinds = {trial["state"] for trial in whole.ledger.values()}
    assert kinds == {"completed", "pruned", "diverged"}
    assert {trial["steps"] for trial in whole.ledger.values()} > {5, 40}


OF_A_RUN = ("ask.", "chunk.", "report.", "checkpoint.", "outcome.", "recorder.")


# the others have a test beside what they are of: deletions, upgrades, outages
@pytest.mark.thorough
@pytest.mark.parametrize("place", [place for place in PLACES if place.startswith(OF_A_RUN)])
def test_killed_at_a_place_and_run_again_nothing_is_lost_or_doubled(place, tmp_path, whole):
    folder = prepare(tmp_path)
    log = folder / "failpoints.log"
    time = 1 if place == "recorder.begun" else 2  # all runs may begin together
    armed = {"TUNER_FAILPOINTS": f"{place}=kill@{time}", "TUNER_FAILPOINTS_LOG": str(log)}
    killed = tuner(folder, "run", "study.toml", "--no-report", "--json", env=armed)
    assert log.read_text() == f"{place}=kill\n"
    if place.startswith("recorder."):
        assert killed.code == 0, killed.err  # the worker has started another recorder
    else:
        assert killed.code == -signal.SIGKILL
        assert killed.out == ""
        assert processes_in(folder) == [], "the recorder ends by itself"
        finish(folder)
    assert_whole(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_saves_the_trial_and_the_next_run_goes_on(number, tmp_path, whole):
    folder = slow(tmp_path)
    process = start(folder, "run", "study.toml")
    until(lambda: trained_steps(folder) > 20, "the middle of the study")
    os.killpg(process.pid, number)
    done = end(process)
    assert done.code == 130
    assert f"{number.name}: saving the trial" in done.err
    assert "Interrupted; `tuner run study.toml` resumes at the last checkpoint." in done.err
    assert "Traceback" not in done.err
    (attempt,) = rows(
        folder, "SELECT trial_id, live FROM tuner_attempts WHERE ending = 'interrupted'"
    )
    (saved,) = rows(folder, "SELECT trial_id, step, path FROM tuner_checkpoints")
    assert attempt == (saved[0], 0)
    assert (folder / ".tuner" / "checkpoints" / saved[2]).exists()
    steps = rows(folder, f"SELECT steps FROM tuner_trials WHERE id = {saved[0]}")
    assert steps == [(saved[1],)], "the checkpoint is at the last committed step"
    finish(folder)
    began = rows(folder, f"SELECT first_step FROM tuner_attempts WHERE trial_id = {saved[0]}")
    assert began[-1] == (saved[1],), "the second attempt began there"
    assert_same(folder, whole)


def test_a_second_signal_leaves_at_once(tmp_path, whole):
    folder = slow(tmp_path, 60.0, "threads = 1  # not measured first, with steps of a minute")
    process = start(folder, "run", "study.toml")
    until(lambda: rows(folder, "SELECT id FROM tuner_trials WHERE params NOT NULL"), "training")
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr is not None
    said = next(line for line in process.stderr if "SIGINT" in line)
    assert "SIGINT: saving the trial; repeat to end at once" in said
    os.killpg(process.pid, signal.SIGINT)
    done = end(process, 30)  # half a step
    assert done.code == 130
    assert "interrupted" in done.err
    assert "Traceback" not in done.err


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_nothing_is_lost_or_doubled(seed, tmp_path, whole):
    chance = random.Random(seed)
    folder = slow(tmp_path)
    for _ in range(chance.randint(1, 2)):
        process = start(folder, "run", "study.toml")
        goal = trained_steps(folder) + chance.randint(1, 80)
        until(lambda: trained_steps(folder) >= goal, f"{goal} steps")  # noqa: B023
        try:
            process.wait(timeout=chance.random() * 0.2)
        except subprocess.TimeoutExpired:
            victims = [process.pid]
            if chance.random() < 0.5:  # and the recorder with it
                victims += [one.pid for one in processes_in(folder) if one.pid != process.pid]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
        end(process)
    finish(folder)
    assert_same(folder, whole)


def test_a_trial_that_lost_its_worker_too_often_fails_and_the_others_go_on(tmp_path):
    """Even one that has no parameters yet: it keeps its number everywhere."""
    folder = prepare(tmp_path, trials="2")
    assert tuner(folder, "submit", "study.toml").code == 0
    ledger = Ledger(reader(folder).engine, lease_seconds=-1)  # they are lost at once
    for _ in range(1 + STALE_RETRIES):
        assert ledger.claim(ledger.study("small").id, "nobody", describe("cpu") | NO_TRAINER)
        assert ledger.reap() == 1
    done = tuner(folder, "run", "study.toml", "--json")
    assert done.code == 0, done.err
    assert done.json["trials"]["failed"] == 1
    found = left(folder)
    assert found.ledger[0]["state"] == "failed"
    assert "Its worker was lost 4 times" in found.ledger[0]["reason"]
    assert found.optuna[0][0] == "FAIL"
    assert found.mlflow["0"]["status"] == "FAILED"
    assert_whole(folder)


def test_a_checkpoint_that_is_damaged_costs_time_and_changes_nothing(tmp_path, whole):
    folder = slow(tmp_path)
    process = start(folder, "run", "study.toml")
    until(lambda: trained_steps(folder) > 20, "the middle of the study")
    process.send_signal(signal.SIGINT)
    assert end(process).code == 130
    (path,) = rows(folder, "SELECT path FROM tuner_checkpoints")[0]
    file = folder / ".tuner" / "checkpoints" / path
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    finish(folder)
    assert_same(folder, whole)


def test_the_recorder_of_a_killed_worker_publishes_what_is_left_and_ends(tmp_path):
    folder = slow(tmp_path)
    process = start(folder, "run", "study.toml")
    until(lambda: trained_steps(folder) > 30, "the middle of the study")
    until(lambda: len(processes_in(folder)) == 2, "its recorder")
    process.kill()
    process.wait()
    until(lambda: not processes_in(folder), "the recorder to end")
    end(process)
    ledger = reader(folder)
    trials = ledger.trials(ledger.study("small").id)
    found = left(folder)
    assert set(found.optuna) == {trial.number for trial in trials}
    for trial in trials:
        points = found.mlflow[str(trial.number)]["points"]
        losses = [step for key, step, *_ in points if key == "train_loss"]
        assert losses == list(range(min(trial.steps, trial.stopped_step or trial.steps)))


def test_two_workers_share_a_study(tmp_path):
    folder = slow(tmp_path, 0.002)
    assert tuner(folder, "submit", "study.toml").code == 0
    workers = [start(folder, "worker", "--until-idle") for _ in range(2)]
    assert [end(worker).code for worker in workers] == [0, 0]
    finish(folder)
    assert_whole(folder)
    who = rows(folder, "SELECT worker, count(*) FROM tuner_attempts GROUP BY worker")
    assert sum(count for _, count in who) == 8
