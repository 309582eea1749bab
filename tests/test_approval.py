"""Promotion by a person: a challenger that wins waits, and what was rolled back stays away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline import Pipeline
from processes import copy, prepare, train_here, tuner
from retrained import STUDY

from tuner.core.errors import NotFoundError, UsageError
from tuner.core.failpoints import FailpointError
from tuner.ledger import Retrainings, events
from tuner.operations import history
from tuner.operations.approve import approve, reject
from tuner.operations.rollback import rollback

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study trained, and its first champion, to be copied."""
    study = STUDY.replace("[retrain]\n", '[retrain]\npromote = "manual"\n')
    folder = prepare(tmp_path_factory.mktemp("trained") / "moving", study)
    train_here(folder)
    pipeline = Pipeline(folder)
    assert pipeline.retrain("0")["outcome"] == "proposed"
    assert approve(pipeline.ledger, pipeline.places, "moving", reason="the first")["version"] == 1
    return folder


@pytest.fixture
def pipeline(trained: Path, tmp_path: Path) -> Pipeline:
    return Pipeline(copy(trained, tmp_path))


def champion(pipeline: Pipeline) -> int | None:
    found = pipeline.registry.champion()
    return None if found is None else found.number


def acts(pipeline: Pipeline, *actions: str) -> list[tuple[str, str | None]]:
    found = history.history(pipeline.ledger, "moving")
    return [(one["action"], one["reason"]) for one in found if one["action"] in actions]


def test_a_challenger_that_wins_waits_until_a_person_approves_it(pipeline: Pipeline) -> None:
    found = pipeline.retrain("5")
    assert (found["outcome"], found["version"], found["champion_version"]) == ("proposed", 2, 1)
    assert found["reason"].endswith("It waits for `tuner approve`.")
    assert champion(pipeline) == 1
    assert pipeline.retrain("5") == found
    done = tuner(pipeline.folder, "approve", "moving", "--reason", "it looks right", "--json")
    assert (done.code, done.json["outcome"], done.json["champion_version"]) == (0, "promoted", 2)
    assert champion(pipeline) == 2
    pipeline.assert_whole()
    assert acts(pipeline, events.APPROVED) == [
        ("approved", "the first"),
        ("approved", "it looks right"),
    ]
    assert pipeline.registry.champion().tags["tuner.approval_reason"] == "it looks right"
    assert pipeline.retrain("5")["outcome"] == "promoted"
    with pytest.raises(NotFoundError, match="no retraining of study 'moving' waits for approval"):
        approve(pipeline.ledger, pipeline.places, "moving")
    with pytest.raises(UsageError, match="is promoted, expected a proposed one"):
        reject(pipeline.ledger, pipeline.places, "moving", "5")


def test_a_rejected_one_is_never_promoted(pipeline: Pipeline) -> None:
    pipeline.retrain("5")
    done = reject(pipeline.ledger, pipeline.places, "moving", reason="wrong labels")
    assert (done["outcome"], done["champion_version"]) == ("rejected", 1)
    assert champion(pipeline) == 1
    assert acts(pipeline, events.REJECTED) == [("rejected", "wrong labels")]
    with pytest.raises(UsageError, match="is rejected, expected a proposed one"):
        approve(pipeline.ledger, pipeline.places, "moving", "5")
    again = tuner(pipeline.folder, "retrain", "moving", "--run-key", "5", "--exit-code", "--json")
    assert (again.json["outcome"], again.code) == ("rejected", 10), "nothing is to be deployed"


def test_one_that_was_compared_with_an_earlier_champion_is_refused(pipeline: Pipeline) -> None:
    pipeline.retrain("5")
    pipeline.retrain("9")
    approve(pipeline.ledger, pipeline.places, "moving", "9")
    with pytest.raises(UsageError, match="was compared with version 1, and version 3 is the"):
        approve(pipeline.ledger, pipeline.places, "moving")
    assert champion(pipeline) == 3
    assert Retrainings(pipeline.ledger).read("moving", "5").live is False, "others may go on"


def test_an_approval_that_is_interrupted_is_completed_by_the_next_call(
    pipeline: Pipeline, arm: Callable[[str], object]
) -> None:
    pipeline.retrain("5")
    arm("approve.promoted=raise")
    with pytest.raises(FailpointError):
        approve(pipeline.ledger, pipeline.places, "moving")
    assert champion(pipeline) == 2
    assert approve(pipeline.ledger, pipeline.places, "moving")["outcome"] == "promoted"
    assert len(acts(pipeline, events.APPROVED)) == 2


def test_a_rollback_holds_its_version_until_a_person_rolls_back_to_it(
    pipeline: Pipeline, arm: Callable[[str], object]
) -> None:
    """Also where the retraining that promoted it had not ended, and goes on."""
    pipeline.change("retrain.promote='auto'")
    arm("retrain.promoted=raise")
    with pytest.raises(FailpointError):
        pipeline.retrain("5")
    assert champion(pipeline) == 2
    done = tuner(pipeline.folder, "rollback", "moving", "--reason", "it is wrong at night")
    assert done.code == 0, done.err
    assert champion(pipeline) == 1
    found = pipeline.retrain("5")
    assert (found["outcome"], champion(pipeline)) == ("kept", 1)
    assert "Version 2 was rolled back by" in found["reason"]
    assert "it is wrong at night" in found["reason"]
    assert acts(pipeline, events.ROLLED_BACK) == [("rolled back", "it is wrong at night")]
    rollback(pipeline.ledger, pipeline.places, "moving", 2, "it was right after all")
    assert champion(pipeline) == 2
    assert events.rolled_back(pipeline.ledger, "moving").keys() == {1}
