"""A trial that raises keeps what it measured, its traceback, and the line of the user's code."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner
from training_here import PREFIXES, submitted, train

from tuner.cli.app import cli
from tuner.config import StudySpec
from tuner.core import failures
from tuner.core.errors import NotFoundError
from tuner.core.outcome import COMPLETED, FAILED
from tuner.ledger.database import tracking_client
from tuner.ledger.publications import Publications
from tuner.ledger.records import FINISHED, RAISED
from tuner.operations import status, submit
from tuner.tracking.recorder import Recorder

PARSING = "json.loads(text)  # raises in the library"
LINE = 1 + Path(__file__).read_text().splitlines().index(f"    {PARSING}")
SAID = (
    "The training code raised JSONDecodeError: Expecting property name enclosed in double quotes: "
    f"line 1 column 2 (char 1) (test_failures.py:{LINE})."
)
TRIES: list[int] = []
"""How many steps each next try reports."""


def parse(text):
    json.loads(text)  # raises in the library


def broken(trial):
    """Report some steps and an evaluation after them, then let a library raise."""
    steps = TRIES.pop(0)
    for step in range(steps):
        trial.report(step, train_loss=1.0 + step)
    trial.report(steps, val_loss=0.25)
    parse("{")


def put(ledger, tries, failed=0):
    from tests import test_failures  # the module as the worker imports it

    test_failures.TRIES[:] = tries
    spec = StudySpec.model_validate(
        {
            "study": {"name": "broken"},
            "workload": {"train": "tests.test_failures:broken"},
            "training": {"steps": 60},
            "space": {"lr": [0.1], "schedule": "constant", "optimizer": "sgd"},
            "search": {"sampler": "grid", "pruner": "none"},
            "budget": {"trials": 1, "retries": {"failed": failed}, "stop_after_failures": 0},
        }
    )
    return submit.submit(ledger, spec, submit.prepare(spec, PREFIXES).description)[0]


@pytest.mark.longer
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_train_function_that_raises_keeps_its_steps_and_its_traceback(ledger, places, steps):
    study = train(ledger, places, put(ledger, [steps]))
    (trial,) = ledger.trials(study.id)
    assert (trial.state, trial.reason, trial.steps) == (FAILED, SAID, steps)
    curve = ledger.curve(trial.id)
    assert curve.columns["train_loss"].tolist() == [1.0 + step for step in range(steps)]
    assert (curve.eval_steps.tolist(), curve.metrics["val_loss"].tolist()) == ([steps], [0.25])
    (attempt,) = ledger.attempts(study.id)
    assert attempt.ending == FINISHED
    assert PARSING in attempt.traceback
    assert "json/decoder.py" in attempt.traceback


@pytest.mark.longer
@pytest.mark.parametrize("tries", [(5, 3), (3, 5), (0, 5), (5, 0)])
def test_a_try_that_raises_before_another_one_keeps_them_too(ledger, places, tries):
    study = train(ledger, places, put(ledger, tries, failed=1))
    (trial,) = ledger.trials(study.id)
    assert (trial.state, trial.steps) == (FAILED, 5)
    assert ledger.curve(trial.id).columns["train_loss"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    first, second = ledger.attempts(study.id, trial.number)
    assert (first.ending, second.ending) == (RAISED, FINISHED)
    assert all(PARSING in attempt.traceback for attempt in (first, second))


@pytest.mark.longer
@pytest.mark.parametrize("trainer", ["reference", "cohort"])
def test_a_workload_that_raises_keeps_its_steps_and_its_traceback(ledger, places, trainer):
    """The metric raises at the evaluation of step 4, beside a trial where it does not."""
    study = submitted(
        ledger,
        workload={"factory": "tests.training_here:picky"},
        training={"trainer": trainer, "slots": 2 if trainer == "cohort" else "auto"},
        space={"lr": [0.1, 4.0]},
        budget={"trials": 2},
    )
    study = train(ledger, places, study)
    good, bad = ledger.trials(study.id)
    assert (good.state, bad.state, bad.steps) == (COMPLETED, FAILED, 4)
    assert "such outputs cannot be scored (training_here.py:" in bad.reason
    curve = ledger.curve(bad.id)
    assert len(curve.columns["train_loss"]) == 4
    assert curve.eval_steps.tolist() == [0]
    tracebacks = {one.trial_id: one.traceback for one in ledger.attempts(study.id)}
    assert tracebacks[good.id] is None
    assert 'RuntimeError("such outputs cannot be scored")' in tracebacks[bad.id]


@pytest.fixture
def published(tracked, places):
    """A study with a failed trial, published."""
    study = train(tracked, places, put(tracked, [5]))
    recorder = Recorder(tracked.engine, places)
    recorder.publish()
    recorder.close()
    return study


@pytest.mark.slow
def test_mlflow_and_status_have_the_traceback(published, tracked, places, monkeypatch, tmp_path):
    (run_id,) = Publications(tracked.engine, "mlflow").external_ids(published.id).values()
    (attempt,) = tracked.attempts(published.id)
    file = tracking_client(places).download_artifacts(run_id, "traceback.txt", str(tmp_path))
    assert Path(file).read_text() == attempt.traceback
    monkeypatch.chdir(places.file.parent)
    shown = CliRunner().invoke(cli, ["status", "broken", "--trial", "0"]).output
    assert shown.startswith(f"broken, trial 0: failed after 5 steps\n{SAID}\n")
    assert all(line in shown for line in attempt.traceback.splitlines())
    told = json.loads(
        CliRunner().invoke(cli, ["status", "broken", "--trial", "0", "--json"]).output
    )
    assert told == status.trial_status(tracked, published, 0)
    assert (told["run_id"], told["traceback"]) == (run_id, attempt.traceback)
    with pytest.raises(NotFoundError, match="study 'broken' has no trial 7"):
        status.trial_status(tracked, published, 7)


@pytest.mark.slow
def test_what_an_artifact_store_refuses_holds_nothing_up(tracked, places, caplog):
    places.artifacts.write_text("a file, where a folder is expected")
    study = train(tracked, places, put(tracked, [5]))
    recorder = Recorder(tracked.engine, places)
    with caplog.at_level(logging.WARNING):
        recorder.publish()
    assert not recorder.behind()
    recorder.close()
    assert "the traceback of run" in caplog.text
    (run_id,) = Publications(tracked.engine, "mlflow").external_ids(study.id).values()
    assert tracking_client(places).get_run(run_id).info.status == "FAILED"


# --- the sentence


def caught(call):
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("expected an exception")


def converted():
    try:
        parse("{")
    except ValueError as error:
        problem = KeyError("no such setting")
        raise problem from error


def of_libraries_alone():
    """Lose the frames of this file, as where a library raised in a thread of its own."""
    error = caught(lambda: json.loads("{"))
    while "test_failures" in error.__traceback__.tb_frame.f_code.co_filename:
        error.__traceback__ = error.__traceback__.tb_next
    return error


def wrapped():
    """Raise nothing: a trainer makes such an exception of what is none."""
    error = RuntimeError("the function raised SystemExit")
    error.__cause__ = caught(lambda: parse("{"))
    return error


class UnsayableError(Exception):
    def __str__(self) -> str:
        raise ValueError("never")


def unsayable():
    raise UnsayableError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (caught(lambda: parse("{")), f"(test_failures.py:{LINE})."),
        (caught(converted), "raised KeyError: 'no such setting' (test_failures.py:"),
        (wrapped(), f"the function raised SystemExit (test_failures.py:{LINE})."),
        (of_libraries_alone(), "(decoder.py:"),
        (KeyError("never raised"), "raised KeyError: 'never raised' (unknown:0)."),
        (caught(unsayable), "raised UnsayableError (test_failures.py:"),
    ],
)  # fmt: skip
def test_the_reason_names_the_last_line_of_the_users_code(error, said):
    sentence = failures.sentence(error)
    assert said in sentence
    assert failures.cause(sentence) is not None


def test_an_installed_package_is_the_users_where_the_workload_is_of_it():
    error = caught(lambda: json.loads("{"))
    assert "(test_failures.py:" in failures.sentence(error, "mine.module:train")
    assert "(decoder.py:" in failures.sentence(error, "json.tool:main")


def test_a_traceback_can_be_stored_and_shown_whatever_it_says():
    def call():
        raise ValueError("a\0b\x1b[31m" + "x" * 50_000 + "\nthe end")

    text = failures.full_traceback(caught(call))
    assert len(text) <= failures.LONGEST_TRACEBACK
    assert text.endswith("\nthe end")
    assert all(character.isprintable() or character == "\n" for character in text)
