"""The active range: set by a probe once for all, kept to by draws, extended at its edges."""

from __future__ import annotations

import signal

import pytest
from helpers import WIDE, claim, completed, drawn, history, mirror_of, spec, submit
from hypothesis import given
from hypothesis import strategies as st
from processes import STUDY, prepare, reader, tuner
from training_here import submitted, train

from tuner.analysis import ranking
from tuner.config.reading import parse
from tuner.core.errors import LeaseLost, StudyFileError
from tuner.core.failpoints import FailpointError
from tuner.ledger import Ledger, ranges
from tuner.ledger.ranges import ActiveRange
from tuner.operations import status
from tuner.search import Search
from tuner.search.active_range import extend, range_from_probe
from tuner.search.mirror import frozen

PROBED = {"enabled": True, "margin": 4.0}
SPACE = {**WIDE, "lr": {"low": 1e-4, "high": 10.0}}
LONG = {"lr": SPACE["lr"]}
FOUND = {
    "sgd": {"stable": [0.4, 0.5], "fastest": 0.2, "suggested": [0.02, 0.4]},
    "adamw": {"stable": [0.1, 0.12], "fastest": 0.01, "suggested": [0.004, 0.05]},
}


def probed(ledger, sampler="random", **more):
    """Submit a study whose probe is done."""
    tables = {"space": SPACE, "search": {"sampler": sampler}, "budget": {"trials": 99}, **more}
    study = submit(ledger, probe=PROBED, **tables)
    lease = ranges.claim_probe(ledger, study, "me").lease
    active = range_from_probe(study.spec, FOUND)
    ranges.finish_probe(ledger, study, lease, {"optimizers": FOUND}, active)
    return ledger.study(study.name), active


# --- what follows from a probe


def test_the_range_goes_around_what_the_probe_found_by_the_margin():
    active = range_from_probe(spec(space=SPACE, probe=PROBED), FOUND)
    assert (active.low, active.high) == (0.001, 2.0)
    assert [one["optimizer"] for one in active.first] == ["sgd", "adamw"] * 2
    rates = [one["lr"] for one in active.first]
    assert rates == pytest.approx([0.2, 0.01, (0.2 * 0.02) ** 0.5, (0.01 * 0.004) ** 0.5])
    assert active.why == (
        "Probed: sgd learns from 0.02 on and breaks at 0.5; adamw learns from 0.004 on and breaks "
        "at 0.12. By a factor of 4 beyond, within the recorded range."
    )


rates = st.floats(1e-9, 1e9)


@pytest.mark.longer
@given(st.lists(rates, min_size=4, max_size=4), st.booleans(), rates, st.floats(1.1, 1e9))
def test_the_range_and_the_first_rates_never_leave_the_recorded_range(told, breaks, low, width):
    a, b, c, d = sorted(told)
    found = {"sgd": {"stable": [c, d if breaks else None], "fastest": b, "suggested": [a, c]}}
    made = spec(space={"lr": {"low": low, "high": low * width}}, probe={**PROBED, "margin": 1.1})
    active = range_from_probe(made, found)
    assert low * (1 - 1e-12) <= active.low < active.high <= low * width * (1 + 1e-12)
    assert all(active.low <= one["lr"] <= active.high for one in active.first)


def test_where_nothing_learns_the_whole_range_stays():
    nothing = {"sgd": {"stable": [None, None], "fastest": None, "suggested": None}}
    assert range_from_probe(spec(space=SPACE, probe=PROBED), nothing) is None


# --- draws


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "gp"])
def test_draws_keep_to_the_range_and_begin_with_the_suggestions(ledger, sampler):
    told = sampler if sampler in {"random", "qmc"} else {"name": sampler, "startup_trials": 6}
    study, active = probed(ledger, told)
    search, params = Search(study, ledger), []
    for number in range(14):
        held = claim(ledger, study)
        made = search.draw(held.trial.number)
        assert Search(study, ledger).draw(held.trial.number) == made
        ledger.draw(held.lease, made.params, attrs=made.attrs, study_attrs={},
                    asked_revision=made.revision)  # fmt: skip
        params.append(made.params)
        ledger.finish(held.lease, completed(abs(float(made.params["lr"]) - 0.1) + number % 3))
    given_first = [{key: one[key] for key in ("lr", "optimizer")} for one in params[:4]]
    assert given_first == list(active.first)
    assert all(active.low <= one["lr"] <= active.high for one in params)
    assert len({one["lr"] for one in params[4:]}) > 5
    recorded = {trial.distributions["lr"].high for trial in mirror_of(ledger, study).for_sampler()}
    assert recorded == {10.0}, "Optuna has the range that was submitted"


@pytest.mark.slow
def test_trials_outside_the_range_are_as_if_there_were_none(new_ledger):
    """TPE learns nothing from trials that a narrower range does not have."""
    drawn_next = []
    for outside in (0, 8):
        ledger = new_ledger()
        study = submit(ledger, probe=PROBED, search={"sampler": "tpe"}, budget={"trials": 99})
        search = Search(study, ledger)
        for number in range(24 + outside):
            held = claim(ledger, study)
            lr = 0.9 if number >= 24 else 0.01 * 1.1**number
            ledger.draw(held.lease, {"lr": lr, "schedule": "constant", "optimizer": "sgd"},
                        attrs={}, study_attrs={}, asked_revision=1)  # fmt: skip
            ledger.finish(held.lease, completed(abs(lr - 0.04)))
        found = ActiveRange(low=0.005, high=0.2, why="Told.")
        lease = ranges.claim_probe(ledger, study, "me").lease
        ranges.finish_probe(ledger, study, lease, {}, found)
        for _ in range(24 + outside, 40):
            held = claim(ledger, study)
        drawn_next.append(search.draw(held.trial.number).params["lr"])
    assert drawn_next[0] == drawn_next[1]


def test_a_draw_depends_on_the_ranges_of_the_revision_that_it_saw(ledger):
    study, first = probed(ledger)
    after = ranges.history(ledger.study("small").attrs)[-1].revision
    wider = ActiveRange(low=first.low, high=10.0, why="Told.", trials=0)
    ranges.extend(ledger, study, after, wider)
    attrs = ledger.study("small").attrs
    assert [one.high for one in ranges.history(attrs)] == [2.0, 10.0]
    assert [one.high for one in ranges.history(attrs, after)] == [2.0]
    assert ranges.history(attrs, after - 1) == []


# --- extension

NARROW = ActiveRange(low=0.01, high=1.0, why="Told.", trials=0)


def ended(ledger, study, rates_and_values):
    search = Search(study, ledger)
    for lr, value in rates_and_values:
        held, _ = drawn(ledger, study, search)
        ledger.draw(held.lease, {"lr": lr, "schedule": "constant", "optimizer": "sgd"},
                    attrs={}, study_attrs={}, asked_revision=1)  # fmt: skip
        ledger.finish(held.lease, completed(value))
    return [frozen(trial, study.spec) for trial in ledger.trials(study.id)]


@pytest.mark.longer
@pytest.mark.parametrize(
    ("best", "count", "direction", "expected"),
    [
        (0.9, 6, "minimize", (0.01, 4.0)),
        (0.011, 6, "minimize", (0.0025, 1.0)),
        (0.1, 6, "minimize", None),
        (0.9, 4, "minimize", None),  # too few to say
        (0.9, 6, "maximize", (0.01, 4.0)),
    ],
)
def test_the_range_is_extended_where_the_best_trial_is_at_an_edge(
    ledger, best, count, direction, expected
):
    sign = 1 if direction == "minimize" else -1
    study = submit(ledger, probe=PROBED, space=LONG, study={"name": "s", "direction": direction})
    trials = ended(ledger, study, [(best, -sign), *[(0.1, sign)] * (count - 1)])
    found = extend(study.spec, NARROW, trials)
    assert (found and (found.low, found.high)) == (expected and pytest.approx(expected))
    if found is not None:
        assert f"the best of {count} completed trials, 0, has a rate of {best:.3g}" in found.why
        assert found.trials == count
        assert extend(study.spec, found, trials) is None, "not again by the same trials"


@pytest.mark.longer
def test_an_edge_of_the_recorded_range_does_not_move(ledger):
    study = submit(ledger, probe=PROBED, space=LONG)
    trials = ended(ledger, study, [(9.9, 0.0), *[(0.1, 1.0)] * 6])
    whole = ActiveRange(low=0.01, high=10.0, why="Told.")
    assert extend(study.spec, whole, trials) is None


def test_of_two_workers_that_extend_one_is_heard(either: Ledger):
    study, first = probed(either)
    after = ranges.history(either.study("small").attrs)[-1].revision
    for high in (4.0, 8.0):
        ranges.extend(either, study, after, ActiveRange(low=first.low, high=high, why="Told."))
    assert [one.high for one in ranges.history(either.study("small").attrs)] == [2.0, 4.0]


# --- the claim


def test_one_worker_probes_and_the_first_result_stays(either: Ledger):
    study = submit(either, probe=PROBED, space=SPACE)
    first = ranges.claim_probe(either, study, "one")
    taken = ranges.claim_probe(either, study, "two", lambda worker: worker == "one")
    before = either.study("small").revision
    ranges.finish_probe(either, study, taken.lease, {"optimizers": FOUND}, NARROW)
    late = ActiveRange(low=1.0, high=2.0, why="Late.")
    with pytest.raises(LeaseLost, match="its token is refused"):
        ranges.finish_probe(either, study, first.lease, {"optimizers": {}}, late)
    ranges.finish_probe(either, study, taken.lease, {"optimizers": {}}, late)  # a repeated call
    assert ranges.result(either, study) == {"optimizers": FOUND}
    (active,) = ranges.history(either.study("small").attrs)
    assert (active.low, active.high) == (0.01, 1.0)
    assert active.revision == either.study("small").revision == before + 1
    assert active.at > 1e9
    assert ranges.claim_probe(either, study, "two").done


def test_a_deleted_study_takes_its_probe_with_it(either: Ledger):
    from tuner.ledger import managing

    study, _ = probed(either)
    managing.delete_study(either, study)
    assert ranges.result(either, study) is None


# --- a whole study

LINE = {
    "space": {"lr": {"low": 1e-4, "high": 1e3}},
    "search": {"sampler": "random"},
    "budget": {"trials": 6},
}


def line(ledger, **tables):
    from training_here import line_spec

    from tuner.operations import submit as submission

    made = line_spec(**{**LINE, **tables})
    probe = made.probe.model_copy(update={"enabled": True, "rates": 12, "steps": 12})
    made = made.model_copy(update={"probe": probe})
    study, _ = ledger.submit(
        made,
        limit=made.budget.trials,
        workload=submission.prepare(made, ("tests.", "studies.")).description,
    )
    return study


@pytest.mark.longer
def test_a_study_is_probed_before_its_first_trial_and_says_so(ledger, places):
    study = train(ledger, places, line(ledger))
    (active, *_) = ranges.history(study.attrs)
    assert 1e-4 < active.low < active.high < 1e3
    drawn_rates = [trial.params["lr"] for trial in ledger.trials(study.id)]
    assert all(active.low <= rate <= active.high for rate in drawn_rates)
    assert drawn_rates[0] == active.first[0]["lr"]
    (said, *_) = ranking.ranges_in_words(study)
    assert "Probed: sgd learns from" in said
    told = status.status(ledger, study)["probe"]
    assert told["error"] is None
    assert told["optimizers"]["sgd"]["stable"][0] > 0
    assert told["ranges"][0]["low"] == active.low


@pytest.mark.longer
def test_a_probe_that_raises_leaves_the_whole_range_and_says_why(ledger, places):
    arguments = {"factory": "tests.training_here:fitting", "arguments": {"failing": True}}
    study = train(ledger, places, line(ledger, workload=arguments))
    assert ranges.history(study.attrs) == []
    assert "RuntimeError: no such thing" in status.status(ledger, study)["probe"]["error"]


@pytest.mark.longer
def test_a_probe_that_is_interrupted_is_left_to_the_next_worker(ledger, places, arm):
    study = line(ledger)
    arm("probe.before_commit=raise")
    with pytest.raises(FailpointError):
        train(ledger, places, study)
    assert ranges.claim_probe(ledger, study, "another").lease is not None


@pytest.mark.longer
def test_without_a_probe_nothing_is_said(ledger, places):
    study = train(ledger, places, submitted(ledger))
    assert ranking.ranges_in_words(study) == []
    assert status.status(ledger, study)["probe"] is None
    history(ledger, submit(ledger), [completed(1.0)])


def kept(folder):
    """What a study drew, and from which ranges."""
    ledger = reader(folder)
    study = ledger.study("small")
    told = [(one.low, one.high, one.why) for one in ranges.history(study.attrs)]
    return told, [trial.params for trial in ledger.trials(study.id)]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("place", ["probe.claimed", "probe.before_commit"])
def test_killed_in_its_probe_a_study_is_probed_again_and_draws_the_same(place, tmp_path):
    text = STUDY.replace("trials = 8", "trials = 4") + "\n[probe]\nenabled = true\nrates = 8\n"
    whole, folder = prepare(tmp_path / "whole", text), prepare(tmp_path / "killed", text)
    log = folder / "failpoints.log"
    armed = {"TUNER_FAILPOINTS": f"{place}=kill", "TUNER_FAILPOINTS_LOG": str(log)}
    assert tuner(folder, "run", "study.toml", env=armed).code == -signal.SIGKILL
    assert log.read_text() == f"{place}=kill\n"
    for one in (whole, folder):
        done = tuner(one, "run", "study.toml", "--json")
        assert done.code == 0, done.err
    assert kept(folder) == kept(whole)
    assert len(kept(folder)[0]) == 1
    status = tuner(folder, "status", "small")
    assert "Rates from " in status.out
    assert "Probed: sgd " in status.out


# --- the command


@pytest.mark.slow
def test_tuner_probe_says_what_pipelines_read_and_creates_nothing(tmp_path):
    text = STUDY + "\n[probe]\nrates = 8\nsteps = 20\n"
    (tmp_path / "study.toml").write_text(text)
    done = tuner(tmp_path, "probe", "study.toml", "--json")
    assert done.code == 0, done.err
    assert list(done.json) == ["study", "optimizers"]
    assert done.json["study"] == "small"
    assert list(done.json["optimizers"]) == ["sgd", "adamw"]
    for one in done.json["optimizers"].values():
        assert list(one) == ["stable", "fastest", "suggested", "curvature", "warmup"]
        assert list(one["curvature"]) == ["lambda_max", "bound", "relative_error"]
        assert len(one["stable"]) == len(one["suggested"]) == 2
    shown = tuner(tmp_path, "probe", "study.toml")
    assert "largest stable rate" in shown.out
    assert "sgd with sgd.momentum 0.9" in shown.out
    assert "an estimate" in shown.out
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("space.lr=0.1", "[space] lr: expected a range, as [probe] is enabled, got 0.1"),
        (
            "search.sampler=cmaes",
            "[search] sampler: expected one of auto, tpe, random, gp, optuna_gp, qmc, as [probe]",
        ),
        (
            "workload={ train = 'tests.workloads:loop' }",
            "[probe] enabled: expected false, since a train function cannot train",
        ),
    ],
)
def test_what_cannot_be_probed_is_refused_in_the_study_file(override, said):
    text = STUDY + "\n[probe]\nenabled = true\n"
    with pytest.raises(StudyFileError) as refused:
        parse(text, "study.toml", [override])
    assert f"study.toml: {said}" in str(refused.value)
