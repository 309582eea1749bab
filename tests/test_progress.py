"""Watching a study reads what changed, and curves as far as they are committed."""

import io
import re
import sys
from dataclasses import replace

import pytest
from helpers import claim, completed, draw, pruned, rows, submit
from rich.console import Console

from tuner.cli.base import print_results
from tuner.report import terminal
from tuner.report.progress import LiveView, StudyReader


def test_a_trial_that_ended_is_told_once_and_its_curve_is_whole(ledger):
    study = submit(ledger)
    watch = StudyReader(ledger, study)
    held = claim(ledger, study)
    draw(ledger, held)
    ledger.append(held.lease, rows(0, 10))
    assert watch.refresh() == []
    assert [trial.state for trial in watch.trials()] == ["running"]
    assert watch.curve(0).next_step == 10
    ledger.append(held.lease, rows(10, 20))
    assert watch.curve(0).next_step == 20
    ledger.finish(held.lease, completed(1.0), chunk=rows(20, 30))
    assert [trial.number for trial in watch.refresh()] == [0]
    assert watch.refresh() == []
    assert watch.curve(0).next_step == 30
    assert watch.counts()["completed"] == 1


def drawn(view: LiveView, console: Console) -> str:
    console.print(view.draw())
    return console.export_text()


@pytest.mark.parametrize("width", [80, 130, 250])
def test_the_table_moves_with_the_curve_and_cuts_nothing_but_why(ledger, width):
    study = submit(ledger, budget={"trials": 4})
    ended, held = claim(ledger, study), claim(ledger, study)
    for claimed in (ended, held):
        draw(ledger, claimed)
    reason = "Pruned by asha: val_loss was 0.09462 at step 240, where 2 of 4 others were lower."
    ledger.finish(ended.lease, replace(pruned(0.09462), reason=reason), chunk=rows(0, 5))
    console = Console(record=True, width=width, height=30, file=io.StringIO())
    view = LiveView(StudyReader(ledger, study), console)
    steps = study.spec.training.steps
    assert f" 0/{steps} " in drawn(view, console)
    ledger.append(held.lease, rows(0, 10))
    text = drawn(view, console)
    assert f" 10/{steps} " in text
    assert "training loss" in text
    assert "remaining" in text
    assert ("…" in text) == (width == 130)
    assert (reason in text) == (width == 250)
    assert f"{(1 + 10 / steps) / 4:.0%}" in text


def test_of_trials_that_were_reported_only_completed_ones_are_ranked(ledger, capsys):
    study = submit(ledger)
    for outcome in (completed(1.0), pruned(2.0)):
        claimed = claim(ledger, study)
        draw(ledger, claimed)
        ledger.finish(claimed.lease, outcome, chunk=rows(0, 10))
    console = terminal.console()
    print_results(console, ledger, study, reported=True)
    text = capsys.readouterr().out
    assert "1 pruned\n" in text
    assert "trial 1" not in text
    assert len(re.findall(r"^ +\d+ .* sgd ", text, re.MULTILINE)) == 1
    assert "Open the curves in MLflow: " in text
    assert f" ui {study.name}\n" in text


def test_a_file_has_no_colour_codes_whatever_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        terminal.print_text(terminal.console(), "important", style="bold red")
    assert (tmp_path / "log").read_text() == "important\n"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    terminal.print_text(terminal.console(), "important", style="bold red")
    assert "\x1b[" in sys.stdout.getvalue(), "such as the log of a pipeline that somebody watches"
