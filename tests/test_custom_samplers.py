"""A study may bring a sampler of its own: a class of Optuna's kind that its workers may import."""

from __future__ import annotations

from pathlib import Path

import own_samplers
import pytest
from helpers import claim, completed, history
from sqlalchemy import update
from training_here import PREFIXES, line_spec, submitted, train, train_all

import tuner
from tests.test_documented_snippets import ROOT, blocks
from tuner.config import StudySpec, building, reading
from tuner.core.errors import StudyFileError, WorkloadCodeError, WorkloadError
from tuner.ledger import Ledger, StudyRecord
from tuner.ledger.tables import studies
from tuner.operations import submit
from tuner.search import Search

SPACE = {"lr": {"low": 1e-4, "high": 1.0}, "optimizer": "sgd"}


def study_with(ledger: Ledger, sampler: object, trials: int = 4, **space: object) -> StudyRecord:
    return submitted(
        ledger,
        space={**SPACE, **space},
        search={"sampler": sampler},
        budget={"trials": trials, "decide": 0},
    )


def drawn_rates(ledger: Ledger, study: StudyRecord, count: int) -> list[float]:
    """Claim trials, and draw them together."""
    numbers = [claim(ledger, study).trial.number for _ in range(count)]
    search = Search(study, ledger, PREFIXES)
    return [float(one.params["lr"]) for one in search.draw_together(numbers)]


def test_it_sees_the_trials_and_those_that_are_drawn_with_it(ledger: Ledger) -> None:
    study = study_with(ledger, "tests.own_samplers:Between")
    together = drawn_rates(ledger, study, 3)
    assert together == pytest.approx([1e-2, 1e-1, 10**-0.5])


def test_it_gets_its_arguments(ledger: Ledger) -> None:
    table = {
        "name": "custom", "sampler": "tests.own_samplers:Between", "arguments": {"share": 1.0},
    }  # fmt: skip
    assert drawn_rates(ledger, study_with(ledger, table), 2) == pytest.approx([1e-2, 1.0])


@pytest.mark.longer
@pytest.mark.parametrize("sampler", ["Seeded", "WithState"])
def test_each_draw_has_its_own_seed_and_is_repeated_by_whoever_draws_it(
    ledger: Ledger, sampler: str
) -> None:
    study = study_with(ledger, f"tests.own_samplers:{sampler}", trials=20)
    history(ledger, study, [completed(float(value)) for value in range(5)])
    numbers = [claim(ledger, study).trial.number for _ in range(3)]
    draws = [
        [one.params for one in Search(study, ledger, PREFIXES).draw_together(numbers)]
        for _ in range(2)
    ]
    assert draws[0] == draws[1]
    assert len({str(one) for one in draws[0]}) == 3


def test_a_function_may_return_one_of_any_library(ledger: Ledger) -> None:
    table = {
        "name": "custom", "sampler": "tests.own_samplers:fixed_rate", "arguments": {"lr": 0.02},
    }  # fmt: skip
    study = study_with(ledger, table, schedule=["constant", "linear", "cosine"])
    assert set(drawn_rates(ledger, study, 3)) == {0.02}


def test_what_a_person_fixed_or_asked_for_first_is_not_drawn(ledger: Ledger) -> None:
    study = submitted(
        ledger,
        space=SPACE,
        search={"sampler": "tests.own_samplers:Between", "first": [{"lr": 0.5}]},
        budget={"trials": 2, "decide": 0},
    )
    assert drawn_rates(ledger, study, 2) == pytest.approx([0.5, 0.5**0.5])


@pytest.mark.longer
def test_a_study_with_it_is_trained(ledger: Ledger, places) -> None:
    study = study_with(ledger, "tests.own_samplers:WithState", trials=5)
    train(ledger, places, study)
    assert ledger.counts(study.id)["completed"] == 5


REFUSED = {
    "not allowed": ("own:Sampler", "if you trust its code, allow it with --allow own."),
    "not there": ("tests.own_samplers:Missing", "sampler .*got no such name"),
    "imported": ("tests.own_samplers:RandomSampler", "defined in tests.own_samplers, got one of"),
    "no sampler": ("tests.own_samplers:unannotated", "derive the class from Optuna's BaseSampler"),
    "a workload": ("tests.training_here:fitting", "derive the class from Optuna's BaseSampler"),
    "of the package": ("tuner.search.samplers:IndexedQMCSampler", "whose name begins with"),
}


@pytest.mark.parametrize(("name", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_a_study_may_not_name_is_refused_when_it_is_submitted(
    ledger: Ledger, name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkloadError, match=f"sampler {name}: ") as refused:
        study_with(ledger, name)
    assert expected.rpartition(".*")[2] in str(refused.value)
    assert "workload" not in str(refused.value)
    assert not Path("ran").exists()


def test_arguments_that_it_does_not_take_are_named(ledger: Ledger) -> None:
    table = {
        "name": "custom", "sampler": "tests.own_samplers:Between", "arguments": {"width": 2},
    }  # fmt: skip
    with pytest.raises(WorkloadError, match="width"):
        study_with(ledger, table)


def test_what_it_raises_when_it_is_made_is_said(ledger: Ledger) -> None:
    table = {
        "name": "custom", "sampler": "tests.own_samplers:Raising", "arguments": {"broken": True},
    }  # fmt: skip
    with pytest.raises(WorkloadCodeError, match="RuntimeError: no licence for this sampler"):
        study_with(ledger, table)


@pytest.mark.longer
def test_where_it_raises_its_study_waits_and_others_go_on(ledger: Ledger, places) -> None:
    study = study_with(ledger, "tests.own_samplers:Raising", trials=3)
    other = submitted(ledger, study={"name": "other"})
    with pytest.raises(WorkloadCodeError, match="ZeroDivisionError: nothing is left to divide"):
        train_all(ledger, places, ["line", "other"])
    assert ledger.counts(other.id)["completed"] + ledger.counts(other.id)["diverged"] == 4
    assert ledger.counts(study.id)["completed"] == 1
    assert ledger.counts(study.id)["running"] == 0, "its trial is left to others"


def test_a_worker_whose_sampler_has_other_code_refuses_the_study(ledger: Ledger, places) -> None:
    study = study_with(ledger, "tests.own_samplers:Between")
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(studies).values(workload={**study.workload, "sampler": "0" * 16}))
    with pytest.raises(
        WorkloadError, match=r"the sampler of tests\.training_here:fitting is not what"
    ):
        train(ledger, places, study)


def test_a_row_names_no_other_function_of_an_allowed_module(
    ledger: Ledger, places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker who may write a study's row knows the digest of the module too."""
    monkeypatch.chdir(tmp_path)
    study = study_with(ledger, "tests.own_samplers:Between")
    planted = study.spec.model_dump_json().replace(":Between", ":unannotated")
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(studies).values(spec=planted))
    with pytest.raises(WorkloadError, match="derive the class"):
        train(ledger, places, ledger.study("line"))
    assert not Path("ran").exists()


def test_an_earlier_studys_digest_is_what_it_was() -> None:
    assert "sampler" not in submit.prepare(line_spec(), PREFIXES).description


@pytest.mark.parametrize(
    ("sampler", "key"),
    [
        ({"name": "custom"}, r"\[search.sampler\] sampler: expected a class named as"),
        (
            {"name": "custom", "sampler": "samplers"},
            r"\[search.sampler\] sampler: expected a class named as",
        ),
        ("samplers:a.b", r"\[search.sampler\] sampler: expected a class named as"),
        (
            {"name": "custom", "sampler": "a:B", "arguments": {"a-b": 1}},
            r"\[search.sampler.arguments\] a-b",
        ),
    ],
)
def test_mistakes_in_its_table_are_named(sampler: object, key: str) -> None:
    document = {"search": {"sampler": sampler}}
    with pytest.raises(StudyFileError, match=key):
        reading.parse(building.toml(document), "mine.toml")


def test_a_study_in_a_file_may_write_its_name_alone() -> None:
    spec = line_spec(search={"sampler": "mine:Sampler"}, space=SPACE)
    assert spec.search.sampler.name == "custom"
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.slow
def test_a_program_that_asks_for_trials_may_bring_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = tuner.Study(
        "asked",
        space={"x": tuner.floats(1e-4, 1.0, log=True)},
        search={"sampler": own_samplers.Between},
        budget=tuner.Budget(trials=2),
    )
    trial = study.ask()
    assert trial is not None
    assert trial.params["x"] == pytest.approx(1e-2)
    study.tell(trial, 1.0)
    study.close()


def test_the_documented_samplers_are_named_by_a_study(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = blocks(ROOT / "docs" / "search.md", "python")
    Path(tmp_path, "samplers.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    spec = line_spec(space=SPACE, search={"sampler": "samplers:Joint"})
    prefixes = (*PREFIXES, "samplers.")
    study, _ = submit.submit(ledger, spec, submit.prepare(spec, prefixes).description)
    search = Search(study, ledger, prefixes)
    first, second = (search.draw(claim(ledger, study).trial.number).params for _ in range(2))
    assert first != second
