"""Tables of trials and curves: everything is in them, and files give it back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import claim, diverged, draw, rows, submit
from hypothesis import example, given
from hypothesis import strategies as st
from training_here import submitted, train

from tuner.core.errors import NotFoundError, OutputError, UsageError
from tuner.operations import export

ODD = [math.nan, math.inf, -math.inf, 0.1 + 0.2, 5e-324]


@pytest.fixture
def study(ledger, places):
    """A study whose trials completed and diverged, with one more that has every odd number."""
    study = train(ledger, places, submitted(ledger, budget={"trials": 4}))
    ledger.submit(study.spec, limit=6, workload=study.workload)
    one, _ = (claim(ledger, study) for _ in range(2))  # the second is not drawn
    draw(ledger, one, **{"sgd.nesterov": True, "lr": 100.0})
    odd = rows(0, 5, losses=ODD)
    ledger.finish(one.lease, diverged(4), chunk=odd)
    return ledger.study("line")


@pytest.mark.longer
def test_every_trial_is_a_row(ledger, study):
    table = export.trials(ledger, study)
    assert list(table.columns[: len(export.TRIAL_TYPES)]) == list(export.TRIAL_TYPES)
    assert list(table["number"]) == list(range(6))
    assert list(table["state"][:3]) == ["completed"] * 3
    assert table["value"].isna().tolist() == [False] * 3 + [True] * 3
    assert (table["seconds"][:5] >= 0).all()
    assert table["params_lr"].dtype == "Float64"
    assert table["params_sgd.nesterov"].dtype == "boolean"
    assert pd.isna(table["params_lr"][5])
    ended = table[table["ended_at"].notna()].sort_values("ended_at")
    assert ended["best_so_far"].tolist() == ended["value"].cummin().ffill().tolist()
    assert pd.isna(table["best_so_far"][5])


def test_every_measured_value_is_a_row(ledger, study):
    table = export.curves(ledger, study)
    assert table.dtypes.astype(str).tolist() == ["int64", "int64", "string", "float64", "float64"]
    for trial in ledger.trials(study.id):
        curve = ledger.curve(trial.id)
        here = table[table["trial"] == trial.number]
        for name, values in curve.columns.items():
            mine = here[here["metric"] == name]
            assert mine["step"].tolist() == list(range(trial.steps))
            np.testing.assert_array_equal(mine["value"], values)
            np.testing.assert_array_equal(mine["time"], curve.times)
        for name, values in curve.metrics.items():
            mine = here[here["metric"] == name]
            assert mine["step"].tolist() == curve.eval_steps.tolist()
            np.testing.assert_array_equal(mine["value"], values)
    odd = table[(table["trial"] == 4) & (table["metric"] == "train_loss")]["value"]
    np.testing.assert_array_equal(odd, ODD)


def test_some_trials_of_them(ledger, study):
    assert set(export.curves(ledger, study, [1, 3])["trial"]) == {1, 3}
    assert list(export.curves(ledger, study, []).columns) == list(export.CURVE_TYPES)
    with pytest.raises(NotFoundError, match="no trial 77"):
        export.curves(ledger, study, [1, 77])


@pytest.mark.slow
@pytest.mark.parametrize("file_format", export.FORMATS)
def test_files_give_back_what_was_written(ledger, study, tmp_path, file_format):
    files = export.export(ledger, study, tmp_path / "new" / "folder", file_format)
    assert (
        {file.name for file in (tmp_path / "new" / "folder").iterdir()}
        == {
            f"line.trials.{file_format}",
            f"line.curves.{file_format}",
        }
        == {file.name for file in files.values()}
    )
    for what, make in (("trials", export.trials), ("curves", export.curves)):
        back = read(tmp_path / "new" / "folder", "line", what, file_format)
        wanted = make(ledger, study)
        flags = {name: wanted[name].dtype for name in wanted if name not in export.TRIAL_TYPES}
        if file_format == "csv":
            back = back.astype(flags)
        pd.testing.assert_frame_equal(back, wanted, check_exact=True)


def read(folder: Path, name: str, what: str, file_format: str = "csv") -> pd.DataFrame:
    """Read a table that `export` wrote."""
    file = folder / f"{export.file_name(name)}.{what}.{file_format}"
    if file_format == "parquet":
        return pd.read_parquet(file)
    types = export.CURVE_TYPES if what == "curves" else export.TRIAL_TYPES
    return pd.read_csv(file, dtype=types)


def test_a_study_without_trials_has_empty_tables(ledger, tmp_path):
    study = submit(ledger)
    export.export(ledger, study, tmp_path)
    assert not len(read(tmp_path, "small", "trials"))
    assert not len(read(tmp_path, "small", "curves"))


@pytest.mark.longer
@given(name=st.text(min_size=1, max_size=200))
@example("../../etc/passwd")
@example("..")
@example("/absolute")
@example("C:\\windows")
@example(".hidden")
def test_no_name_leaves_the_folder(tmp_path_factory, name):
    file = export.file_name(name)
    folder = tmp_path_factory.getbasetemp()
    assert (folder / f"{file}.trials.csv").resolve().parent == folder.resolve()
    assert not file.startswith(".")
    assert len(file) <= 120


@pytest.mark.longer
@given(st.lists(st.text(alphabet="a./\\ -_", min_size=1), unique=True))
def test_two_studies_never_share_a_file(names):
    assert len({export.file_name(name) for name in names}) == len(names)


def test_what_cannot_be_written_is_said(ledger, study, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write into"):
        export.export(ledger, study, tmp_path / "file")
    with pytest.raises(UsageError, match="csv or parquet"):
        export.export(ledger, study, tmp_path, "xls")
