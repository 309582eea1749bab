"""Watching a study reads what changed, and curves as far as they are committed."""

from helpers import claim, completed, draw, rows, submit

from tuner.progress import Watch


def test_a_trial_that_ended_is_told_once_and_its_curve_is_whole(ledger):
    study = submit(ledger)
    watch = Watch(ledger, study)
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
