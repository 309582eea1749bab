"""A study of any space, trained and published: everything downstream takes its parameters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from processes import assert_whole, prepare, reader, train_here
from training_here import PREFIXES, confirmed, submitted, train

from tuner.analysis import ranking
from tuner.config import StudySpec
from tuner.config.reading import parse
from tuner.core.errors import WorkloadError
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.operations import export, rerun, submit
from tuner.training import trainer_choice
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Task

pytestmark = pytest.mark.slow

STUDY = """
[study]
name = "small"

[workload]
factory = "tests.workloads:of_any_kind"

[training]
epochs = 6
evaluate_every = 2
dtype = "float64"

[space]
lr = { low = 1e-2, high = 0.2 }
schedule = ["constant", "cosine"]
optimizer = { name = "sgd", momentum = [0.0, 0.9] }
batch_size = [4, 8, 12]
clip_norm = { low = 0.1, high = 10.0 }
accumulate = { values = [1, 2], when = { batch_size = [8, 12] } }
constraints = ["batch_size * bias <= 12"]

[space.arguments]
kind = ["line", "network"]
width = { low = 2, high = 8, log = true, when = { kind = "network" } }
drop = { values = [0.0, 0.5], when = { kind = "network" } }
bias = [1, 2]

[search]
sampler = "random"

[budget]
trials = 10
"""


def seen_by(module: str) -> list[dict[str, Any]]:
    """Return the arguments of the calls of a module's functions, once it is imported by name."""
    return list(sys.modules[module].SEEN)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("any"), STUDY)
    train_here(folder)
    return folder


def test_each_trial_is_trained_with_its_parameters(trained: Path) -> None:
    study = reader(trained).study("small")
    trials = reader(trained).trials(study.id)
    assert len(trials) == 10
    seen = seen_by("tests.workloads")
    for trial in trials:
        params = dict(trial.params or {})
        assert study.spec.space.missing(params) == {}
        assert ("width" in params) == (params["kind"] == "network")
        own = {name: params[name] for name in ("kind", "width", "drop", "bias") if name in params}
        assert {"width": 3, "drop": 0.0, **own} in seen, "arguments that do not exist are defaults"
        size = int(params["batch_size"])
        assert study.horizon(params) == 6 * (24 // size)
        if trial.state == "completed":
            assert trial.steps == study.horizon(params)
        curve = reader(trained).curve(trial.id)
        assert set(curve.eval_steps) <= {epoch * (24 // size) for epoch in (0, 2, 4, 6)}
        assert {report.step for report in trial.reports} <= {4}, "at the same epoch"


def test_the_three_records_agree(trained: Path) -> None:
    assert_whole(trained)
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{trained}/tuner.db")
    client = MlflowClient(tracking_uri=f"sqlite:///{trained}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = {
        run.data.tags["tuner.trial"]: run
        for run in client.search_runs([experiment.experiment_id])
        if "tuner.trial" in run.data.tags
    }
    for trial in reader(trained).trials(reader(trained).study("small").id):
        params = dict(trial.params or {})
        plain = study.trials[trial.number].params
        assert plain["batch_size"] == params["batch_size"]
        assert all(params[name] == value for name, value in plain.items())
        logged = runs[str(trial.number)].data.params
        assert {name: str(value) for name, value in params.items()}.items() <= logged.items()


def test_what_is_made_of_the_trials_has_their_parameters(trained: Path, tmp_path: Path) -> None:
    ledger = reader(trained)
    study = ledger.study("small")
    best = ledger.best(study)
    assert best is not None
    assert best.params is not None
    assert f"batch_size {best.params['batch_size']}" in ranking.best_in_words(study, best)
    table = export.trials(ledger, study)
    assert {"params_kind", "params_width", "params_batch_size"} <= set(table.columns)
    assert table["params_width"].isna().sum() == (table["params_kind"] == "line").sum()
    export.export(ledger, study, tmp_path, "parquet")
    for number in (best.number, 0):
        assert rerun.rerun(ledger, study, number, PREFIXES).equal


def test_the_best_are_confirmed_with_their_arguments(ledger: Ledger, places: Addresses) -> None:
    tables = parse(STUDY, "x.toml").model_dump(exclude={"study", "guard", "probe", "retrain"})
    tables["training"] |= {"steps": None, "epochs": 2}
    tables["budget"] = {"trials": 3}
    study = train(ledger, places, submitted(ledger, **tables))
    found = confirmed(ledger, places, study, top=2, seeds=1)
    assert all("batch_size" in one.params for one in found.candidates)
    assert all(one.values[0] is not None for one in found.candidates)


def test_a_train_function_has_further_rates_and_a_batch_size(
    ledger: Ledger, places: Addresses
) -> None:
    study = train(
        ledger,
        places,
        submitted(
            ledger,
            workload={"factory": None, "train": "tests.workloads:two_rates"},
            training={"steps": None, "epochs": 2, "evaluate_every": 1},
            space={
                "rates": {"head_lr": {"low": 1e-3, "high": 0.1}},
                "arguments": {
                    "batch_size": [4, 8],
                    "extra": {"values": ["a", "b"], "when": {"batch_size": 8}},
                },
                "lr": [0.01, 0.1],
            },
            search={"sampler": "random"},
            budget={"trials": 6},
        ),
    )
    trials = ledger.trials(study.id)
    assert [one.state for one in trials] == ["completed"] * 6
    for trial, seen in zip(trials, seen_by("tests.workloads")[-6:], strict=True):
        assert trial.params is not None
        own = {name: value for name, value in trial.params.items() if name in seen}
        assert seen == {"extra": "none", **own}
        assert trial.steps == 2 * 24 // int(trial.params["batch_size"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"depth": [1, 2]}, "got an unexpected keyword argument 'depth'"),
        ({"kind": "network", "width": "no number"}, "cannot be trained"),
    ],
)
def test_arguments_that_the_function_does_not_take_are_refused(
    arguments: dict[str, Any], line: str
) -> None:
    text = STUDY[: STUDY.index("[space.arguments]")] + "[budget]\ntrials = 1\n"
    text = text.replace('constraints = ["batch_size * bias <= 12"]', "")
    spec = parse(text, "x.toml")
    space = spec.space.model_validate({**spec.space.model_dump(), "arguments": arguments})
    with pytest.raises(WorkloadError, match=line):
        trainer_choice.load(spec.model_copy(update={"space": space}), PREFIXES)


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "optuna_gp", "qmc", "cmaes", "grid"])
def test_every_sampler_searches_a_tabulated_benchmark(
    ledger: Ledger, places: Addresses, sampler: str
) -> None:
    """Four ordered lists of numbers, labels, a schedule and a rate, as in FCNet."""
    text = f"""
    study = {{ name = "tabulated" }}
    workload = {{ train = "tests.workloads:looked_up" }}
    training = {{ examples = 640, evaluate_every = 320 }}
    search = {{ sampler = "{sampler}" }}
    budget = {{ trials = 12 }}
    [space]
    lr = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1]
    schedule = ["constant", "cosine"]
    optimizer = {{ name = "adamw", weight_decay = 0.01 }}
    arguments.batch_size = [8, 16, 32, 64]
    arguments.units = [16, 32, 64, 128, 256, 512]
    arguments.second = [512, 256, 128, 64, 32, 16]
    arguments.drop = [0, 0.3, 0.6]
    arguments.activation = ["tanh", "relu"]
    """
    spec = parse(text, "x.toml")
    study, _ = ledger.submit(spec, limit=12, workload=submit.prepare(spec, PREFIXES).description)
    trials = ledger.trials(train(ledger, places, study).id)
    assert len(trials) == 12
    assert {one.state for one in trials} <= {"completed", "pruned"}
    assert len({str(one.params) for one in trials}) == 12
    assert all(study.spec.space.contains(one.params or {}) for one in trials)


SEARCHED = {"batch_size": 8, "clip_norm": 0.5, "accumulate": 2, "precision": "bfloat16"}


def rows_of(spec: StudySpec, params: dict[str, Any]) -> list[Any]:
    """Return what the reference trainer measures of a trial."""
    trainer = ReferenceTrainer(trainer_choice.load(spec, PREFIXES), spec)  # type: ignore[arg-type]
    trainer.admit(Task(number=0, seed=3, params=params))
    (event,) = trainer.advance(30)
    return [event.columns["train_loss"].tolist(), event.evaluations[-1].metrics["val_loss"]]


def test_a_searched_setting_trains_as_a_fixed_one() -> None:
    text = STUDY.replace('dtype = "float64"', 'dtype = "float32"')
    text = "\n".join(line for line in text.splitlines() if line.split(" ")[0] not in SEARCHED)
    text = text.replace('constraints = ["batch_size * bias <= 12"]', "")
    base = parse(text, "x.toml", ["training={ steps = 20, evaluate_every = 10 }"])
    fixed = base.model_copy(update={"training": base.training.model_copy(update=SEARCHED)})
    space = base.space.model_copy(update={name: (value,) for name, value in SEARCHED.items()})
    params = base.space.example() | {"kind": "network", "width": 5, "drop": 0.5, "lr": 0.1}
    alone = rows_of(fixed, params)
    assert rows_of(base.model_copy(update={"space": space}), params | SEARCHED) == alone
    assert rows_of(base, params) != alone
