"""TPE over columns draws exactly what Optuna's own draws from the same trials."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from helpers import WIDE, spec
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import Trial

from tuner.config import StudySpec
from tuner.core.outcome import COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING
from tuner.ledger import Searched, SearchedTrial
from tuner.search.mirror import Mirror
from tuner.search.pruners import pruner_for
from tuner.search.samplers import sampler_for
from tuner.search.space import suggest
from tuner.search.storage import MirrorStorage
from tuner.search.tpe import Observations


class Known:
    """Trials that samplers know, without a ledger."""

    def __init__(self, made: StudySpec) -> None:
        self.spec = made
        self.mirror = Mirror(made)
        self.observations = Observations(made)
        self.records: dict[int, SearchedTrial] = {}

    def add(self, number: int) -> None:
        """Let a trial begin, which has no parameters yet."""
        fresh = SearchedTrial(
            number=number,
            imported=False,
            params=None,
            attrs={},
            state=RUNNING,
            value=None,
            created_at=0.0,
            ended_at=None,
            reports={},
        )
        self.change(fresh)

    def change(self, record: SearchedTrial) -> None:
        """Let a trial be as the record says."""
        self.records[record.number] = record
        self.mirror.refresh(Searched(revision=self.mirror.revision + 1, attrs={}, trials=[record]))
        self.observations.update(self.mirror.for_sampler()[record.number])

    def end(self, number: int, state: str, value: float, steps: int) -> None:
        """Let a trial end, with a report at every tenth of its steps."""
        record = self.records[number]
        reports = {step: value + 1 / step for step in range(10, steps + 1, 10)}
        told = value if state == COMPLETED else None
        self.change(replace(record, state=state, value=told, reports=reports))

    def drawn(self, number: int, sampler: BaseSampler) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a trial's parameters; give them and the attributes that the sampler keeps."""
        view = MirrorStorage(self.mirror, self.mirror.for_sampler)
        view.begin(self.mirror.trial(number))
        pruner = pruner_for(self.spec, self.spec.rungs())
        study = optuna.Study(study_name="s", storage=view, sampler=sampler, pruner=pruner)
        params = suggest(Trial(study, number), self.spec.space)
        return params, view.get_trial(number).system_attrs

    def both(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a trial's parameters in both ways, which are to agree."""
        optunas = self.drawn(number, sampler_for(self.spec, number))
        ours = self.drawn(number, sampler_for(self.spec, number, observations=self.observations))
        assert ours == optunas
        return ours


KINDS = [COMPLETED, PRUNED, DIVERGED, FAILED]


@pytest.mark.slow
@settings(max_examples=12)
@given(
    direction=st.sampled_from(["minimize", "maximize"]),
    pruner=st.sampled_from(["asha", "hyperband"]),
    data=st.data(),
)
def test_every_draw_of_a_study_is_that_of_optuna(direction, pruner, data):
    """Trials end in any order and as anything, others run meanwhile, with parameters or without."""
    known = Known(
        spec(
            study={"name": "s", "direction": direction},
            space=WIDE,
            search={"sampler": {"name": "tpe", "startup_trials": 3}, "pruner": pruner},
        )
    )
    running = []
    for number in range(16):
        known.add(number)
        params, attrs = known.both(number)
        if data.draw(st.integers(0, 9)):  # else its worker has not committed them
            known.change(replace(known.records[number], params=params, attrs=attrs))
            running.append(number)
        while running and data.draw(st.booleans()):
            one = running.pop(data.draw(st.integers(0, len(running) - 1)))
            value = float(data.draw(st.integers(-2, 2)))  # some are equal
            steps = data.draw(st.sampled_from([0, 10, 30]))
            known.end(one, data.draw(st.sampled_from(KINDS)), value, steps)


@pytest.mark.slow
@pytest.mark.parametrize("completed", [0, 10, 100])
def test_a_draw_from_hundreds_of_trials_is_that_of_optuna(completed):
    """With more trials than count as good, and fewer or more completed ones than those."""
    known = Known(spec(space=WIDE, search={"sampler": "tpe", "pruner": "asha"}))
    generator = np.random.default_rng(completed)
    kinds = [COMPLETED] * completed + [PRUNED] * (290 - completed) + [DIVERGED] * 10
    for number, kind in enumerate(generator.permutation(kinds).tolist()):
        known.add(number)
        params, _ = known.drawn(number, RandomSampler(seed=number))
        known.change(replace(known.records[number], params=params))
        known.end(number, kind, generator.normal(), 10 * int(generator.integers(1, 9)))
    for number in range(300, 304):
        known.add(number)
        params, attrs = known.both(number)
        known.change(replace(known.records[number], params=params, attrs=attrs))
