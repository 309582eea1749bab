"""A challenger that wins is tried under an alias for some time, before it is promoted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline import Pipeline
from processes import copy, prepare, train_here, tuner
from retrained import STUDY

from tuner.config import reading
from tuner.core.errors import StudyFileError
from tuner.core.failpoints import FailpointError
from tuner.operations import canary, history
from tuner.operations.approve import approve, reject
from tuner.operations.rollback import rollback
from tuner.tracking.mlflow.registry import CANARY

HOUR = 3600.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a champion and a canary, to be copied."""
    study = STUDY.replace("[retrain]\n", "[retrain]\ncanary_hours = 24\n")
    folder = prepare(tmp_path_factory.mktemp("trained") / "moving", study)
    train_here(folder)
    pipeline = Pipeline(folder)
    assert pipeline.retrain("0")["outcome"] == "promoted", "there is nothing to compare it with"
    found = pipeline.retrain("5")
    assert (found["outcome"], found["version"], found["champion_version"]) == ("canary", 2, 1)
    return folder


@pytest.fixture
def pipeline(trained: Path, tmp_path: Path) -> Pipeline:
    return Pipeline(copy(trained, tmp_path))


def aliases(pipeline: Pipeline) -> dict[str, int]:
    found = pipeline.registry._client.get_registered_model("moving").aliases
    return {name: int(number) for name, number in found.items() if name != "challenger"}


def promote_due(pipeline: Pipeline, hours: float) -> list[tuple[str, str | None]]:
    """Promote what is due some hours from now."""
    now = pipeline.ledger.now() + HOUR * hours
    found = canary.promote_due(pipeline.ledger, pipeline.places, now=now)
    return [(one.run_key, one.outcome) for one in found]


pytestmark = pytest.mark.slow


def test_a_canary_is_promoted_when_its_time_has_passed(
    pipeline: Pipeline, arm: Callable[[str], object]
) -> None:
    assert aliases(pipeline) == {"champion": 1, CANARY: 2}
    assert promote_due(pipeline, hours=23) == []
    assert pipeline.retrain("5")["outcome"] == "canary"
    arm("approve.promoted=raise")
    with pytest.raises(FailpointError):
        promote_due(pipeline, hours=25)
    assert promote_due(pipeline, hours=25) == [("5", "promoted")]
    assert promote_due(pipeline, hours=25) == []
    assert aliases(pipeline) == {"champion": 2}
    found = pipeline.retrain("5")
    assert (found["outcome"], found["champion_version"]) == ("promoted", 2)
    assert found["reason"].startswith("The canary's time has passed, and nothing worse was")
    assert "Better: val_loss" in found["reason"]
    calls = [one for one in history.history(pipeline.ledger, "moving") if "model" in one["details"]]
    assert [one["details"]["outcome"] for one in calls] == ["promoted"]
    pipeline.assert_whole()


def test_a_scheduler_and_the_next_call_promote_what_is_due(pipeline: Pipeline) -> None:
    pipeline.change("retrain.canary_hours=1e-9")
    done = tuner(pipeline.folder, "scheduler", "--once")
    assert done.code == 0, done.err
    assert aliases(pipeline) == {"champion": 2}
    tried = tuner(pipeline.folder, "retrain", "moving", "--run-key", "9", "--exit-code", "--json")
    assert (tried.code, tried.json["outcome"]) == (10, "canary")
    assert pipeline.retrain("9")["outcome"] == "promoted", "the same key, when it is due"
    assert aliases(pipeline) == {"champion": 3}


def test_a_person_ends_the_trial_of_a_canary(pipeline: Pipeline) -> None:
    done = reject(pipeline.ledger, pipeline.places, "moving", reason="slow in use")
    assert (done["outcome"], done["champion_version"]) == ("rejected", 1)
    assert promote_due(pipeline, hours=25) == []
    assert aliases(pipeline) == {"champion": 1}
    assert pipeline.retrain("5 again")["outcome"] == "canary"
    assert approve(pipeline.ledger, pipeline.places, "moving")["outcome"] == "promoted"
    assert aliases(pipeline) == {"champion": 3}


def test_newer_data_on_which_it_is_worse_reject_it(pipeline: Pipeline) -> None:
    back = pipeline.retrain("0.5")  # the champion fits these data, and the canary does not
    assert back["outcome"] == "canary"
    first = pipeline.retrain("5")
    assert (first["outcome"], first["champion_version"]) == ("rejected", 1)
    assert first["reason"].startswith("On the data of '0.5': The challenger is worse: val_loss")
    assert aliases(pipeline) == {"champion": 1, CANARY: 3}


def test_a_model_has_one_canary_at_a_time(pipeline: Pipeline) -> None:
    found = pipeline.retrain("5.5")
    assert (found["outcome"], found["version"]) == ("kept", 3)
    assert "Recorded only: version 2, of the key '5', is the canary" in found["reason"]
    assert aliases(pipeline) == {"champion": 1, CANARY: 2}


def test_a_canary_that_was_compared_with_another_champion_is_rejected(pipeline: Pipeline) -> None:
    approve(pipeline.ledger, pipeline.places, "moving")
    assert pipeline.retrain("9")["outcome"] == "canary"
    rollback(pipeline.ledger, pipeline.places, "moving", reason="wrong at night")
    assert promote_due(pipeline, hours=25) == [("9", "rejected")]
    assert "was compared with version 2, and version 1 is the" in pipeline.retrain("9")["reason"]
    assert aliases(pipeline) == {"champion": 1}


def test_a_time_and_a_person_exclude_each_other() -> None:
    study = STUDY.replace("[retrain]\n", '[retrain]\ncanary_hours = 24\npromote = "manual"\n')
    with pytest.raises(StudyFileError, match=r"\[retrain\] canary_hours: expected nothing, as pro"):
        reading.parse(study, "study.toml")
