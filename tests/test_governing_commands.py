"""The commands that check, take away and govern: their words, their JSON and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from training_here import submitted, train

from tuner.cli.app import cli
from tuner.core.errors import NotFoundError, UsageError

README = (Path(__file__).parents[1] / "README.md").read_text()
ALLOW = ("--allow", "tests.")


@pytest.fixture
def tuner(ledger, places, monkeypatch, tmp_path):
    """Run a command in a folder with one trained study; give its code, output and JSON."""
    monkeypatch.chdir(tmp_path)
    for name in ("TUNER_DATABASE_URL", "MLFLOW_TRACKING_URI", "TUNER_CHECKPOINTS", "TUNER_ALLOW"):
        monkeypatch.delenv(name, raising=False)
    train(ledger, places, submitted(ledger))

    def call(*arguments, answer=None):
        done = CliRunner().invoke(cli, arguments, input=answer, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        told = json.loads(done.stdout) if "--json" in arguments else None
        return done.return_value or 0, done.output, told

    return call


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_and_json_and_a_line_in_the_readme(name):
    command = cli.commands[name]
    assert command.help
    assert f"`tuner {name}" in README
    leaves = command.commands.values() if isinstance(command, click.Group) else [command]
    for leaf in leaves:
        assert leaf.help
        assert "--json" in {opt for param in leaf.params for opt in param.opts}


def test_rerun(tuner):
    assert tuner("rerun", "line", "2", *ALLOW)[:2] == (
        0,
        "Equal: trial 2 of 'line', 40 values of 12 steps, to the last bit.\n",
    )
    code, _, told = tuner("rerun", "line", "2", "--json", *ALLOW)
    assert (code, told["equal"], told["difference"]) == (0, True, None)


def test_export(tuner, tmp_path):
    _, _, told = tuner("export", "line", "--to", "out", "--format", "parquet", "--json")
    assert set(told["files"]) == {"trials", "curves"}
    assert all((tmp_path / file).exists() for file in told["files"].values())


@pytest.mark.longer
def test_pause_resume_stop(tuner):
    assert tuner("pause", "line", "--json")[2]["state"] == "paused"
    assert "Study 'line' is paused: Paused;" in tuner("pause", "line")[1]
    assert tuner("resume", "line", "--json")[2]["state"] == "ended"
    _, said, _ = tuner("stop", "line", "--reason", "enough")
    assert said == "Study 'line' is stopped: Stopped by hand: enough.\n"
    assert "Stopped by hand: enough." in tuner("status", "line")[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("confirm", "x"), ("rerun", "x", "1"), ("export", "x", "--to", "y"), ("pause", "x"),
        ("resume", "x"), ("stop", "x"), ("delete", "x", "--yes"),
    ],
)  # fmt: skip
def test_a_study_that_is_not_there(tuner, arguments):
    with pytest.raises(NotFoundError, match="no study 'x'; studies here: line") as error:
        tuner(*arguments)
    assert error.value.exit_code == 2


def test_delete_asks(tuner):
    with pytest.raises(click.Abort):
        tuner("delete", "line", answer="n\n")
    assert tuner("studies", "--json")[2]["studies"][0]["study"] == "line"


def test_a_live_study_is_not_deleted(tuner, ledger):
    study = submitted(ledger, study={"name": "live"})
    assert ledger.claim(study.id, "elsewhere:1:1", {})
    with pytest.raises(UsageError, match="--force"):
        tuner("delete", "live", "--yes")


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own statement
def test_confirm_and_delete(tuner):
    code, _, told = tuner("confirm", "line", "--top", "2", "--seeds", "2", "--json", *ALLOW)
    assert code == 0
    assert (told["confirmation"], told["winner"], told["seeds"]) == ("line confirm", 2, 2)
    assert told["unfinished"] == 0
    assert [len(one["values"]) for one in told["candidates"]] == [2, 2]
    again = tuner("confirm", "line", "--top", "2", "--seeds", "2", *ALLOW)
    assert told["sentence"] in again[1]
    assert tuner("delete", "line confirm", "--yes", "--json")[2]["deleted"]
    told = tuner("doctor", "--json")[2]
    assert {problem["study"] for problem in told["problems"]} == {"line"}  # never published


@pytest.mark.slow
@pytest.mark.thorough
def test_a_study_that_fails_from_its_beginning_ends_by_itself(tuner, tmp_path):
    (tmp_path / "study.toml").write_text(
        """
        study = { name = "failing" }
        workload = { factory = "tests.training_here:fitting", arguments = { failing = true } }
        training = { steps = 12, batch_size = 4, dtype = "float64" }
        space = { lr = { low = 0.1, high = 1.0 }, schedule = "constant", optimizer = "sgd" }
        budget = { trials = 50 }
        """
    )
    code, said, _ = tuner("run", "study.toml", *ALLOW)
    assert code == 3
    assert "failed for one reason, RuntimeError at training_here.py" in said
    assert "`tuner resume failing`" in said
    told = tuner("status", "failing", "--json")[2]
    assert (told["state"], told["trials"]["failed"]) == ("stopped", 3)
    with pytest.raises(UsageError, match="is stopped: Stopped by itself"):
        tuner("run", "study.toml", *ALLOW)
