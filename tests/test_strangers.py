"""Trials and studies that others have in Optuna's tables beside ours are never taken for ours."""

from __future__ import annotations

import optuna
import pytest
from helpers import PARAMS, completed, rows, spec
from optuna.trial import TrialState
from sqlalchemy import create_engine, delete, select
from test_bulk import WORKLOAD, publish, take

from tuner.core.environment import identity
from tuner.core.errors import UnavailableError
from tuner.ledger import Ledger, database
from tuner.ledger.database import Addresses
from tuner.ledger.publications import Publications
from tuner.operations import doctor
from tuner.tracking.optuna.bulk_writer import TRIALS, USER
from tuner.tracking.optuna.storage_writer import TRIAL
from tuner.tracking.recorder import Recorder

pytestmark = pytest.mark.slow

WAYS = pytest.mark.parametrize("in_bulk", [True, False], ids=["bulk", "one by one"])
STRANGE = 1e-9
"""The value of a stranger's trial: better than any of ours."""


class Team:
    """A study in a ledger, and its study in Optuna as somebody else opens it."""

    def __init__(self, places: Addresses) -> None:
        self.places = places
        self.ledger = Ledger(database.ledger_engine(places.ledger))
        self.study, _ = self.ledger.submit(spec(), limit=10, workload=WORKLOAD)

    def train(self, *values: float) -> None:
        for value in values:
            claimed = take(self.ledger, self.study, **PARAMS)
            self.ledger.finish(claimed.lease, completed(value), chunk=rows(0, 3))

    def publish(self, in_bulk: bool = True) -> None:
        publish(self.ledger.engine, self.places, in_bulk=in_bulk)

    def theirs(self) -> optuna.Study:
        return optuna.load_study(study_name="small", storage=database.optuna_storage(self.places))

    def stranger(self) -> None:
        study = self.theirs()
        trial = study.ask()
        trial.suggest_float("lr", 1e-4, 1.0, log=True)
        study.tell(trial, STRANGE)

    def values(self) -> dict[str | None, list[float | None]]:
        """Read the values of all trials in Optuna by what our attribute calls them."""
        found: dict[str | None, list[float | None]] = {}
        for trial in self.theirs().trials:
            found.setdefault(trial.user_attrs.get(TRIAL), []).append(trial.value)
        return found

    def problems(self) -> list[tuple[str, int | None]]:
        return [(p.kind, p.trial) for p in doctor.examine(self.ledger.engine, self.places)]

    def repair(self) -> list[tuple[str, bool]]:
        repaired = doctor.repair(self.ledger.engine, self.places)
        return [(problem.kind, problem.repaired) for problem in repaired]

    def forget_attributes(self) -> None:
        """Let Optuna's tables be as versions before the attribute wrote them."""
        engine = create_engine(self.places.optuna)
        with engine.begin() as tx:
            tx.execute(delete(USER).where(USER.c.key == TRIAL))
        engine.dispose()


@pytest.fixture
def team(beside):
    made = Team(beside("here"))
    yield made
    made.ledger.engine.dispose()


@pytest.mark.thorough
@WAYS
def test_a_trial_whose_number_a_stranger_took_gets_another_one(team, in_bulk):
    team.train(0.5, 0.25)
    team.publish(in_bulk)
    team.stranger()
    team.train(0.125)
    team.publish(in_bulk)
    assert team.values() == {
        "small:0": [0.5], "small:1": [0.25], None: [STRANGE], "small:2": [0.125]
    }  # fmt: skip
    assert [trial.number for trial in team.theirs().trials] == [0, 1, 2, 3]
    assert team.ledger.best(team.study).value == 0.125
    (problem,) = doctor.examine(team.ledger.engine, team.places)
    assert (problem.kind, problem.trial) == ("optuna_extra", None)
    said = "1 of Optuna's trials are not tuner's: 2; of tuner's trials 2 is 3 there"
    assert problem.detail == said


@WAYS
def test_a_recorder_that_was_killed_before_it_wrote_does_not_take_a_strangers_trial(team, in_bulk):
    team.train(0.5)
    team.publish(in_bulk)
    team.train(0.25)
    (lacking,) = (trial for trial in team.ledger.trials(team.study.id) if trial.number == 1)
    killed = Publications(team.ledger.engine, "optuna", identity())
    assert killed.claim(team.study.id)
    killed.begin(team.study.id, [lacking.id])
    killed.release(team.study.id)
    team.stranger()
    team.publish(in_bulk)
    assert team.values() == {"small:0": [0.5], None: [STRANGE], "small:1": [0.25]}


@pytest.mark.thorough
@WAYS
def test_a_repair_leaves_strangers_trials_and_writes_what_is_missing(team, in_bulk):
    team.train(0.5)
    team.publish(in_bulk)
    team.stranger()
    team.theirs().enqueue_trial({"lr": 0.5})
    engine = create_engine(team.places.optuna)
    with engine.begin() as tx:  # as if ours had never been there
        ours = tx.scalar(select(USER.c.trial_id).where(USER.c.key == TRIAL))
        tx.execute(delete(USER).where(USER.c.trial_id == ours))
        tx.execute(TRIALS.update().where(TRIALS.c.trial_id == ours).values(datetime_start=None))
    engine.dispose()
    assert team.problems() == [("optuna_extra", None), ("optuna_missing", 0)]
    assert team.repair() == [("optuna_extra", False), ("optuna_missing", True)]
    assert team.values() == {None: [0.5, STRANGE, None], "small:0": [0.5]}


@pytest.mark.thorough
@WAYS
def test_trials_of_versions_without_the_attribute_are_still_ours(team, in_bulk):
    team.train(0.5)
    running = take(team.ledger, team.study, **PARAMS)
    team.publish(in_bulk)
    team.forget_attributes()
    assert team.problems() == []
    team.ledger.finish(running.lease, completed(0.25), chunk=rows(0, 3))
    team.publish(in_bulk)
    team.stranger()
    recorder = Recorder(team.ledger.engine, team.places, in_bulk=in_bulk)
    recorder.republish(team.ledger.study("small"))
    recorder.close()
    assert team.values() == {None: [0.5, STRANGE], "small:1": [0.25]}
    assert team.problems() == [("optuna_extra", None)]


@pytest.mark.thorough
def test_a_copy_of_our_trial_is_found_and_cleared_away(team):
    team.train(0.5)
    team.publish()
    study = team.theirs()
    study.add_trial(study.trials[0])
    assert team.problems() == [("optuna_doubled", 0)]
    assert team.repair() == [("optuna_doubled", True)]
    assert team.values() == {"small:0": [0.5]}


@pytest.mark.thorough
@WAYS
def test_a_running_trial_that_is_deleted_in_optuna_is_not_published_unseen(team, in_bulk):
    team.train(0.5)
    running = take(team.ledger, team.study, **PARAMS)
    team.publish(in_bulk)
    optuna.delete_study(study_name="small", storage=database.optuna_storage(team.places))
    team.ledger.finish(running.lease, completed(0.25), chunk=rows(0, 3))
    with pytest.raises(UnavailableError, match="small:1 was deleted from Optuna's tables"):
        team.publish(in_bulk)
    assert all(repaired for _, repaired in team.repair())
    assert team.values() == {"small:0": [0.5], "small:1": [0.25]}


def test_a_study_of_a_stranger_is_left_alone(beside):
    places = beside("here")
    theirs = optuna.create_study(study_name="small", storage=database.optuna_storage(places))
    theirs.tell(theirs.ask(), STRANGE)
    team = Team(places)
    team.train(0.5)
    with pytest.raises(UnavailableError, match="a study named 'small' that is not tuner's"):
        team.publish()
    assert ("optuna_study", None) in team.problems()
    assert dict(team.repair())["optuna_study"] is False
    recorder = Recorder(team.ledger.engine, places)
    with recorder.claimed(team.study):
        recorder.erase(team.study)
    recorder.close()
    assert team.values() == {None: [STRANGE]}
    team.ledger.engine.dispose()


def test_a_study_that_a_killed_recorder_only_created_becomes_ours(beside):
    places = beside("here")
    optuna.create_study(study_name="small", storage=database.optuna_storage(places))
    team = Team(places)
    team.train(0.5)
    team.publish()
    assert team.values() == {"small:0": [0.5]}
    assert team.theirs().user_attrs["tuner.study"] == "small"
    assert [trial.state for trial in team.theirs().trials] == [TrialState.COMPLETE]
    team.ledger.engine.dispose()
