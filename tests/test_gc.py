"""What is old goes, everywhere and for good; what a champion came from stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import completed, rows, spec
from processes import change, mlflow_left, optuna_left, tuner
from processes import rows as asked
from test_bulk import ADAMW, SPACE, WORKLOAD, take

from tuner.core.errors import NotFoundError
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses, tracking_client
from tuner.ledger.publications import Publications
from tuner.operations import doctor, retention
from tuner.tracking.recorder import Recorder

pytestmark = pytest.mark.slow

AGES = {"ancient": 400, "old": 100, "champion": 400, "new": 1}
"""Studies, and how many days ago their trial ended."""
COLUMNS = (
    ("created_at", "tuner_studies", "id"),
    ("created_at", "tuner_trials", "study_id"),
    ("ended_at", "tuner_trials", "study_id"),
)


@pytest.fixture
def ledger(tracked: Ledger) -> Ledger:
    """Everything here is published."""
    return tracked


def train(ledger: Ledger, places: Addresses) -> None:
    """Train a trial of each study, publish it with a file, and let it be as old as it shall be."""
    for name, days in AGES.items():
        made = spec(study={"name": name}, space=SPACE, budget={"trials": 1})
        study, _ = ledger.submit(made, limit=1, workload=WORKLOAD)
        one = take(ledger, study, **ADAMW)
        ledger.finish(one.lease, completed(1.0), chunk=rows(0, 10))
        earlier = days * retention.DAY
        for column, table, key in COLUMNS:
            where = f"WHERE {key} = {study.id}"
            statement = f"UPDATE {table} SET {column} = {column} - {earlier} {where}"
            change(Path(places.lock).parent, statement)
    recorder = Recorder(ledger.engine, places)
    recorder.publish()
    recorder.close()
    client = tracking_client(places)
    for study in ledger.studies():
        parent, _ = Publications(ledger.engine, "mlflow").study(study.id)
        client.log_text(parent, "of " + study.name, "a.txt")


def crown(ledger: Ledger, places: Addresses, name: str) -> None:
    """Let the study's trial have become a model that serves."""
    client = tracking_client(places)
    (run_id,) = Publications(ledger.engine, "mlflow").external_ids(ledger.study(name).id).values()
    client.create_registered_model("served")
    version = client.create_model_version("served", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("served", "champion", version.version)


RULES = {
    "all that is older": ({"older_than": 50}, ["ancient", "old"]),
    "nothing is as old": ({"older_than": 1000}, []),
    "one is kept by name": ({"older_than": 50, "keep": ["old"]}, ["ancient"]),
    "the newest are kept": ({"older_than": 0, "keep_newest": 2}, ["ancient"]),
}


def test_a_rule_names_what_goes_and_a_champion_is_never_in_it(ledger, places):
    train(ledger, places)
    crown(ledger, places, "champion")
    for what, (rule, expected) in RULES.items():
        made = retention.plan(ledger, places, **rule)
        assert list(made.remove) == expected, what
        assert all(one.reason for one in made.kept)


def test_what_goes_is_gone_everywhere_and_the_rest_is_whole(ledger, places):
    train(ledger, places)
    crown(ledger, places, "champion")
    folder = Path(places.lock).parent
    files = {one.name: list((folder / "mlartifacts" / f"study-{one.id}").rglob("a.txt"))
             for one in ledger.studies()}  # fmt: skip
    said = tuner(folder, "gc", "--older-than", "50")
    assert said.code == 0, said.err
    assert "would be removed: old" in said.out
    assert "kept: champion" in said.out
    assert len(ledger.studies()) == 4, "nothing goes unless it is asked for"
    done = tuner(folder, "gc", "--older-than", "50", "--yes", "--json")
    assert done.code == 0, done.err
    assert done.json["remove"] == ["ancient", "old"]
    assert done.json["problem"] is None
    assert {one.name for one in ledger.studies()} == {"champion", "new"}
    for name, paths in files.items():
        assert paths
        gone = name in ("ancient", "old")
        assert [path.exists() for path in paths] == [not gone] * len(paths), name
        assert bool(asked(folder, f"SELECT 1 FROM studies WHERE study_name = '{name}'")) != gone
        if gone:
            with pytest.raises(NotFoundError):
                ledger.study(name)
        else:
            assert len(optuna_left(folder, name)) == 1
            assert set(mlflow_left(folder, name)) == {"study", "0"}
    names = [one for (one,) in asked(folder, "SELECT name FROM experiments", "mlflow.db")]
    assert sorted(names) == ["Default", "champion", "new"], "not even as deleted"
    assert doctor.examine(ledger.engine, places) == []
    assert tuner(folder, "gc", "--older-than", "50", "--yes", "--json").json["remove"] == []
