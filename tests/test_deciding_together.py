"""Trials that report in the same step are judged beside all their reports, in any order."""

from __future__ import annotations

import optuna
import pytest
from helpers import completed, mirror_of
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import Trial, TrialState
from test_pruners import PRUNERS, VALUES, study_of, taken

from tuner.core import curves
from tuner.core.outcome import PRUNED, Outcome
from tuner.ledger import Report
from tuner.search import Search

JUMPING = ("patient asha", "patient hyperband")
"""Where a trial may come to several rungs at once; what Optuna does then depends on the order."""


def twin_of(study, pruner):
    """Copy a study of Optuna's, to try something on."""
    direction = study.direction.name.lower()
    twin = optuna.create_study(direction=direction, pruner=pruner, study_name=study.study_name)
    for trial in study.get_trials():
        twin._storage.create_new_trial(twin._study_id, template_trial=trial)
    return twin


def judged_last(study, pruner, number, group):
    """Let Optuna judge a trial after all the others of its group, which have all reported."""
    twin = twin_of(study, pruner)
    ids = {trial.number: trial._trial_id for trial in twin.get_trials(deepcopy=False)}
    for other in group:
        if other != number:
            Trial(twin, ids[other]).should_prune()
    stopped = Trial(twin, ids[number]).should_prune()
    return stopped, twin.get_trials()[number].system_attrs


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", PRUNERS)
@settings(max_examples=4)
@given(direction=st.sampled_from(["minimize", "maximize"]), data=st.data())
def test_each_is_judged_by_optuna_as_if_it_had_asked_last(new_ledger, name, direction, data):
    """Eight trials come to their rungs at their own pace, several of them at a time."""
    ledger = new_ledger()
    study = study_of(ledger, name, direction=direction)
    plain = optuna.create_study(direction=direction, pruner=PRUNERS[name][1](), study_name="s")
    search = Search(study, ledger)
    held = [taken(ledger, study) for _ in range(8)]
    theirs = [plain.ask() for _ in range(8)]
    ahead = {number: list(study.rungs) for number in range(8)}
    for _ in range(6):
        if not ahead:
            break
        group = data.draw(st.lists(st.sampled_from(sorted(ahead)), unique=True, min_size=1))
        ended = [number for number in group if not ahead[number]]
        for number in ended:
            ledger.finish(held[number].lease, completed(1.0))
            plain.tell(theirs[number], 1.0)
            del ahead[number]
        reports = [
            (number, ahead[number].pop(0), data.draw(VALUES))
            for number in group
            if number not in ended
        ]
        decisions = search.decide_together(reports)
        assert search.decide_together(reports[::-1]) == decisions[::-1]
        for number, step, value in reports:
            theirs[number].report(value, step)
        reporting = [number for number, _, _ in reports]
        for (number, step, value), decision in zip(reports, decisions, strict=True):
            if name not in JUMPING:
                told = judged_last(plain, PRUNERS[name][1](), number, reporting)
                assert (decision.prune, decision.attrs) == told
            report = Report(step=step, value=value, pruned=decision.prune, reason=decision.reason)
            if decision.prune:
                outcome = Outcome(kind=PRUNED, reason=decision.reason, value=value)
                lease = held[number].lease
                ledger.finish(lease, outcome, report=report, attrs=decision.attrs)
            else:
                ledger.report(held[number].lease, curves.empty(), report, attrs=decision.attrs)
        for number, decision in zip(reporting, decisions, strict=True):
            for key, value in decision.attrs.items():
                plain._storage.set_trial_system_attr(theirs[number]._trial_id, key, value)
            if decision.prune:
                plain.tell(theirs[number], state=TrialState.PRUNED)
                del ahead[number]
    mine = mirror_of(ledger, study)
    for trial in plain.get_trials():
        same = mine.trial(trial.number)
        assert same.intermediate_values == trial.intermediate_values
        assert same.system_attrs == trial.system_attrs


def test_all_of_a_group_have_come_to_the_rung_before_any_is_judged(ledger):
    """One after another, the first to ask would go on whatever it reported."""
    study = study_of(ledger, "asha")
    search = Search(study, ledger)
    numbers = [taken(ledger, study).trial.number for _ in range(4)]
    values = [4.0, 3.0, 2.0, 1.0]
    reports = [(number, 10, value) for number, value in zip(numbers, values, strict=True)]
    decisions = search.decide_together(reports)
    assert [decision.prune for decision in decisions] == [True, True, False, False]
    assert [decision.attrs for decision in decisions] == [
        {"completed_rung_0": value} for value in values
    ]
    assert decisions[0].reason == (
        "Pruned by asha: val_loss was 4 at step 10, where 3 of the 3 other trials there were lower."
    )
    assert not search.decide(0, 10, 4.0).prune, "alone"


def test_the_rungs_of_a_group_come_from_the_lowest_up(ledger):
    """Of two that come to several rungs at once, each is met at each of them by the other."""
    study = study_of(ledger, "asha")
    search = Search(study, ledger)
    for _ in range(2):
        taken(ledger, study)
    better, worse = search.decide_together([(0, 40, 1.0), (1, 40, 2.0)])
    assert not better.prune
    assert better.attrs == {f"completed_rung_{rung}": 1.0 for rung in range(3)}
    assert worse.prune
    assert worse.attrs == {"completed_rung_0": 2.0}


def test_no_reports_no_decisions(ledger):
    assert Search(study_of(ledger, "asha"), ledger).decide_together([]) == []
