"""Verdicts and comparisons, held to gradient descent on quadratics, whose every number is known."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as cases_of
from hypothesis import settings
from hypothesis import strategies as st

from tuner.analysis import comparisons, ranking, verdicts
from tuner.analysis.verdicts import (
    DIVERGING,
    GOOD_RATE,
    OSCILLATING,
    PLATEAU,
    TOO_HIGH,
    TOO_LOW,
    UNCLEAR,
    Evidence,
    Setting,
    Verdict,
)
from tuner.core.curves import Chunk
from tuner.core.outcome import COMPLETED, DIVERGED, FAILED, PRUNED
from tuner.report import sentences

HOUSES = np.array([[13.5, 5.0], [5.0, 2.0]])  # the Hessian; see studies/house_prices.py
START = np.array([-200.0, 0.0])  # from the optimum, w = 200 and b = 0
LARGEST = 15.369875
BASELINE = 20_000.0


def descent(hessian: np.ndarray, start: np.ndarray, rates: np.ndarray) -> tuple[Chunk, np.ndarray]:
    """Gradient descent on half of x'Hx; its curve, and its gradients [step, dimension]."""
    x, losses, gradients = start.astype(float), [], []
    for rate in [*rates, 0.0]:
        gradient = hessian @ x
        losses.append(0.5 * x @ gradient)
        gradients.append(gradient)
        x = x - rate * gradient
    return curve(losses[:-1], losses, rates, np.linalg.norm(gradients[:-1], axis=1)), np.array(
        gradients[:-1]
    )


def curve(train: Any, measured: Any, rates: Any, norms: Any) -> Chunk:
    steps, at = len(train), np.linspace(0, len(train), len(measured)).astype(np.int64)
    return Chunk(
        first_step=0,
        columns={
            "train_loss": np.asarray(train, float),
            "lr": np.broadcast_to(np.asarray(rates, float), steps),
            "grad_norm": np.broadcast_to(np.asarray(norms, float), steps),
        },
        times=np.arange(steps, dtype=float),
        eval_steps=at,
        eval_times=at.astype(float),
        metrics={"val_loss": np.asarray(measured, float)},
    )


def setting(**changes: Any) -> Setting:
    return Setting(
        **{
            "metric": "val_loss",
            "sign": 1.0,
            "keeps_best": False,
            "horizon": 50,
            "baseline": BASELINE,
            "plain": True,
            "rounding": 2.2e-16,
            **changes,
        }
    )


def seen(number: int, found: Chunk, about: Setting, **changes: Any) -> Evidence:
    told = {"rate": 0.1, "optimizer": "sgd", "schedule": "constant", "outcome": COMPLETED}
    made = verdicts.summarize(
        number, **{**told, "reason": "", "curve": found, "setting": about, **changes}
    )
    assert made is not None
    return made


def houses(*rates: float, steps: int = 50) -> dict[float, Verdict]:
    found = [
        seen(n, descent(HOUSES, START, np.full(steps, rate))[0], setting(), rate=rate)
        for n, rate in enumerate(rates)
    ]
    return dict(zip(rates, verdicts.judge(found, setting()).values(), strict=True))


def test_judging_many_trials_compares_no_two_of_them(monkeypatch) -> None:
    reads = 0

    def counted(self: Evidence, name: str) -> Any:
        nonlocal reads
        reads += 1
        return object.__getattribute__(self, name)

    def judging(count: int) -> int:
        nonlocal reads
        curves = [descent(HOUSES, START, np.full(50, rate))[0] for rate in (1e-4, 0.01, 0.12)]
        found = [
            seen(n, curves[n % 3], setting(), rate=rate)
            for n, rate in enumerate(np.geomspace(1e-4, 0.1, count))
        ]
        with monkeypatch.context() as patched:
            patched.setattr(Evidence, "__getattribute__", counted, raising=False)
            reads = 0
            verdicts.judge(found, setting())
        return reads

    assert judging(400) < 5 * judging(100)


# --- house prices, as it is and not as it is told


def test_house_prices_three_rates_are_told_as_they_are() -> None:
    told = houses(1e-4, 0.01, 0.1)
    assert [one.kind for one in told.values()] == [TOO_LOW, GOOD_RATE, GOOD_RATE]
    assert "worse than the best constant predictor (2e+04)" in told[1e-4].reason
    assert "converging, not converged, at 3.3 times the best's" in told[0.01].reason
    best = told[0.1].reason
    assert "val_loss 86.18 after 50 steps, the best of 3" in best
    assert "the training loss fell at every step" in best
    assert "parameters alternate" in best


@pytest.mark.parametrize(
    ("rate", "kind", "labels"),
    [
        (1e-4, TOO_LOW, ()),
        (0.01, GOOD_RATE, ()),
        (0.06, GOOD_RATE, ()),  # below 1/λ nothing alternates
        (0.1, GOOD_RATE, ()),  # alternates along the steep direction, for as long as it matters
        (0.12, GOOD_RATE, (OSCILLATING,)),
        (0.13, TOO_HIGH, (OSCILLATING,)),  # below the limit 0.1301, and of no use
        (0.15, DIVERGING, ()),
    ],
)
def test_every_rate_on_house_prices(rate: float, kind: str, labels: tuple[str, ...]) -> None:
    found = houses(1e-4, 0.01, 0.06, 0.1, 0.12, 0.13, 0.15)[rate]
    assert (found.kind, found.labels) == (kind, labels)


@pytest.mark.parametrize("rate", [0.14, 0.15, 0.2, 1.0])
def test_divergence_grows_by_the_factor_of_theory(rate: float) -> None:
    found, _ = descent(HOUSES, START, np.full(40, rate))
    factor = (1 - rate * LARGEST) ** 2
    assert verdicts.growth_factor(found.columns["train_loss"]) == pytest.approx(factor, rel=1e-6)
    told = verdicts.judge(
        [seen(0, found, setting(), outcome=DIVERGED, reason="It ran.")], setting()
    )
    assert f"growing by a factor of {factor:.4f} a step" in told[0].reason
    assert told[0].reason.endswith(": it ran.")


@pytest.mark.parametrize(
    ("rate", "crossed", "kind"),
    [(0.4, 0, GOOD_RATE), (0.6, 19, GOOD_RATE), (1.0, 19, TOO_HIGH), (1.1, 19, DIVERGING)],
)
def test_a_parabola(rate: float, crossed: int, kind: str) -> None:
    """(x - 2)²: the factor is 1 - 2·lr; it alternates above 0.5, and cycles for ever at 1."""
    about = setting(baseline=None)
    found = [
        seen(n, descent(np.array([[2.0]]), np.array([-2.0]), np.full(20, one))[0], about, rate=one)
        for n, one in enumerate((0.3, rate))
    ]
    assert (found[1].crossed, found[1].pairs) == (crossed, 19)
    assert verdicts.judge(found, about)[1].kind == kind


@pytest.mark.longer
@cases_of(
    spectrum=st.lists(st.floats(0.1, 10), min_size=2, max_size=6),
    rates=st.lists(st.floats(0.01, 0.3), min_size=5, max_size=15),
    seed=st.integers(0, 2**16),
)
def test_the_cosines_of_gradients_follow_from_losses_and_norms(spectrum, rates, seed) -> None:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(len(spectrum), len(spectrum))))[0]
    found, gradients = descent(
        basis @ np.diag(spectrum) @ basis.T, rng.normal(size=len(spectrum)), np.array(rates)
    )
    products = (gradients[1:] * gradients[:-1]).sum(axis=1)
    sizes = np.linalg.norm(gradients[1:], axis=1) * np.linalg.norm(gradients[:-1], axis=1)
    clear = np.abs(products) > 1e-6 * sizes
    told = verdicts.opposing_gradients(found, 0.0)
    assert (told == (products < 0))[clear].all()


# --- curves of any kind


def minibatch(number: int, rate: float, scores: Any, *, every: int = 5, **changes: Any) -> Evidence:
    """A trial of which only the evaluations can be judged."""
    about, losses = setting(plain=False, baseline=None), np.ones(every * (len(scores) - 1))
    return seen(number, curve(losses, scores, rate, 1.0), about, rate=rate, **changes)


FALLING = 2.0 * 0.7 ** np.arange(11) + 0.1


@pytest.mark.parametrize(
    ("changes", "scores", "kind", "says"),
    [
        ({"rate": 0.001}, np.full(11, 2.1), TOO_LOW, "with sgd and constant begin at 0.1"),
        ({"rate": 1.0}, np.full(11, 2.1), TOO_HIGH, "with sgd and constant end at 0.1"),
        ({"rate": 1.0, "schedule": "cosine"}, np.full(11, 2.1), TOO_HIGH, "with sgd end at 0.1"),
        ({"optimizer": "adam"}, np.linspace(2.1, 1.9, 11), TOO_LOW, "still falling"),
        ({"optimizer": "adam"}, np.linspace(2.1, 4.0, 11), TOO_HIGH, "ended above"),
        ({"optimizer": "adam"}, [2.1, 1.5, *[1.5] * 9], TOO_HIGH, "then stayed high"),
        ({"optimizer": "adam"}, [2.1, *[1.8, 1.2] * 5], TOO_HIGH, "goes up and down"),
        ({"optimizer": "adam"}, np.full(11, 2.1), TOO_LOW, "did not change"),
        ({}, FALLING + 0.01, GOOD_RATE, "99 %"),
        ({"outcome": PRUNED}, FALLING[:4] + 0.01, GOOD_RATE, "of the best's progress by then"),
        ({"outcome": DIVERGED, "reason": "Nan."}, [2.1, np.nan], DIVERGING, "nan"),
    ],
)
def test_a_trial_beside_a_good_one(changes: Any, scores: Any, kind: str, says: str) -> None:
    other = minibatch(1, **{"rate": 0.1, **changes}, scores=scores)
    told = verdicts.judge([minibatch(0, 0.1, FALLING), other], setting(plain=False, baseline=None))
    assert (told[0].kind, told[1].kind) == (GOOD_RATE, kind)
    assert says in told[1].reason


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (FALLING, ()),
        ([2.0, 1.0, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], (PLATEAU,)),
        ([2.0, 1.0, *[0.3, 0.5] * 6], (OSCILLATING,)),
        ([2.0, 1.0, *[0.300, 0.301] * 6], (PLATEAU,)),  # noise
    ],
)
def test_labels(scores: Any, labels: tuple[str, ...]) -> None:
    found = [minibatch(0, 0.1, np.append(scores, scores[-1]))]
    assert verdicts.judge(found, setting(plain=False, baseline=None))[0].labels == labels


def test_a_curve_that_dips_and_rises_again_is_no_bar() -> None:
    """Ordinary overfitting: the higher the rate, the sooner and the deeper the dip."""
    about = setting(plain=False, baseline=None)
    found = [minibatch(0, 0.001, np.linspace(2.0, 0.9, 11))]
    for n, rate in enumerate(np.geomspace(0.01, 0.08, 7), 1):
        dip = np.concatenate([np.linspace(2.0, 0.3, 4), np.linspace(0.32, 0.5 + 0.02 * n, 7)])
        found.append(minibatch(n, rate, dip))
    told = verdicts.judge(found, about)
    assert told[1].kind == GOOD_RATE
    assert "the best of 8 that completed" in told[1].reason
    assert [one.kind for one in told.values()].count(TOO_HIGH) == 0
    assert told[0].kind == TOO_LOW
    (range_of_all,) = comparisons.good_rates(found, told)
    assert range_of_all.low.rate <= 0.01 <= range_of_all.high.rate


WARMING = np.linspace(0.01, 0.1, 25)


@pytest.mark.parametrize(
    ("scores", "rates", "says"),
    [
        (FALLING[:2], 0.5, "after 5 of 50 steps, too early to tell"),
        (FALLING[:3], 0.5, "after 10 of 50 steps, too early to tell"),  # of two evaluations
        (FALLING[:6] + 1, WARMING, "after 25 of 50 steps, while its rate still rose"),
    ],
)
def test_a_trial_that_was_stopped_early_is_unclear(scores: Any, rates: Any, says: str) -> None:
    about, steps = setting(plain=False, baseline=None), 5 * (len(scores) - 1)
    stopped = seen(1, curve(np.ones(steps), scores, rates, 1.0), about, rate=0.5, outcome=PRUNED)
    told = verdicts.judge([minibatch(0, 0.1, FALLING), stopped], about)
    assert told[1].kind == UNCLEAR
    assert says in told[1].reason


def test_what_is_no_further_from_the_best_than_noise_is_unclear() -> None:
    noise = 0.02 * np.array([0, 1, -1, 1, 0, -1, 1, -1, 1, 0, 0])
    best, near, far = (np.linspace(0.15, end, 11) + noise for end in (0.12, 0.135, 0.22))
    found = [minibatch(n, 0.1 * 4.0**n, scores) for n, scores in enumerate((best, near, far))]
    told = verdicts.judge(found, setting(plain=False, baseline=None))
    assert [one.kind for one in told.values()] == [GOOD_RATE, UNCLEAR, TOO_HIGH]
    assert "within the noise of the evaluations" in told[1].reason


def test_rates_between_good_ones_are_not_to_blame() -> None:
    found = [minibatch(n, rate, FALLING) for n, rate in enumerate((0.01, 1.0))]
    found.append(minibatch(2, 0.1, np.full(11, 2.1)))
    told = verdicts.judge(found, setting(plain=False, baseline=None))
    assert told[2].kind == UNCLEAR
    assert "the rate is not the reason" in told[2].reason


def test_beside_other_parameters_a_rate_near_a_good_one_is_not_to_blame() -> None:
    rates = (0.1, 0.08, 0.14, 0.01, 0.5)
    found = [minibatch(n, r, FALLING if r == 0.1 else FALLING + 1) for n, r in enumerate(rates)]
    about = setting(plain=False, baseline=None)
    kinds = [one.kind for one in verdicts.judge(found, about).values()]
    assert kinds == [GOOD_RATE, TOO_LOW, TOO_HIGH, TOO_LOW, TOO_HIGH]
    told = verdicts.judge(found, replace(about, several=True))
    kinds = [one.kind for one in told.values()]
    assert kinds == [GOOD_RATE, UNCLEAR, UNCLEAR, TOO_LOW, TOO_HIGH]
    assert "end at 0.1, too near to tell, as other parameters differ too" in told[2].reason


def test_a_trial_that_was_pruned_is_compared_at_the_same_epoch() -> None:
    """The batch of the best trial is twice as large, so it has half the steps."""
    about = setting(plain=False, baseline=None)
    best = seen(0, curve(np.ones(25), FALLING, 0.1, 1.0), replace(about, horizon=25))
    stopped = minibatch(1, 0.1, FALLING[:6] + 0.01, outcome=PRUNED)
    told = verdicts.judge([best, stopped], about)
    assert told[1].kind == GOOD_RATE, told[1].reason


def test_before_a_trial_has_completed_nothing_is_compared() -> None:
    found = [minibatch(n, 0.1, FALLING[:5], outcome=PRUNED) for n in range(2)]
    told = verdicts.judge(found, setting(plain=False, baseline=None))
    assert {one.kind for one in told.values()} == {UNCLEAR}


def test_a_verdict_says_for_which_optimizer() -> None:
    about = setting(plain=False, baseline=None)
    found = [minibatch(0, 0.1, FALLING), minibatch(1, 0.1, np.full(11, 2.1), optimizer="adamw")]
    told = verdicts.judge(found, about)
    assert str(told[0]) == "good for sgd"
    assert str(told[1]) == "too low for adamw"
    assert told[1].reason.startswith("Too low for adamw: ")
    assert ranking.verdicts_in_words(told) == "with adamw 1 too low; with sgd 1 good"


def test_earlier_versions_of_a_study_set_the_bar_too() -> None:
    found = [minibatch(0, 0.1, np.linspace(2.0, 1.5, 11))]
    about = setting(plain=False, baseline=None)
    assert verdicts.judge(found, about)[0].kind == GOOD_RATE
    assert verdicts.judge(found, about, imported=0.1)[0].kind == TOO_LOW


# --- advice and ranking agree, whatever the curves


def assert_advice_and_ranking_agree(found: list[Evidence], about: Setting) -> None:
    told = verdicts.judge(found, about)
    order = sorted(
        (one for one in found if one.outcome == COMPLETED and len(one.scores)),
        key=lambda one: (one.scores[-1], one.number),
    )
    kinds = [told[one.number].kind for one in order]
    if order:
        assert kinds[0] in ((GOOD_RATE, UNCLEAR, DIVERGING) if order[0].exploded else
                            (GOOD_RATE, UNCLEAR))  # fmt: skip
    assert GOOD_RATE not in kinds[kinds.count(GOOD_RATE) :], "the good ones rank first"
    for place, one in enumerate(order):
        sign = {TOO_HIGH: -1, TOO_LOW: 1}.get(kinds[place])
        if sign is None:
            continue
        rivals = [other for other in order if other.optimizer == one.optimizer]
        there = [other for other in rivals if sign * (other.rate - one.rate) > 0]
        assert not there or min(other.scores[-1] for other in there) < one.scores[-1]
    if not order:
        return
    best = order[0]
    params = {"lr": best.rate, "optimizer": best.optimizer, "schedule": best.schedule}
    said = sentences.on_rates(params, found, told)
    own = [one for one in order if one.optimizer == best.optimizer]
    for line in said:
        if line.startswith("No good rate"):
            assert GOOD_RATE not in kinds
        if (wanted := re.search(r"ten times (lower|higher)", line)) is not None:
            sign = -1 if wanted[1] == "lower" else 1
            assert not [one for one in own if sign * (one.rate - best.rate) > 0]
        if (wanted := re.search(r"try some (above|below) (\S+)\.$", line)) is not None:
            sign = 1 if wanted[1] == "above" else -1
            edge = float(wanted[2])
            assert not [one for one in own if sign * one.rate > sign * edge * 1.01**sign]
        if (wanted := re.search(r"limited to (\S+) to (\S+)\.$", line)) is not None:
            low, high = float(wanted[1]) * 0.99, float(wanted[2]) * 1.01
            inside = [one.scores[-1] for one in own if low <= one.rate <= high]
            outside = [one.scores[-1] for one in own if not low <= one.rate <= high]
            assert best.scores[-1] == min(inside)
            assert not outside or min(outside) >= min(inside)


SCORES = st.lists(st.floats(-10, 10) | st.integers(0, 3).map(float), min_size=3, max_size=11) | (
    st.lists(st.sampled_from([0.0, 1.0, 1.7e308, -1.7e308, np.nan]), min_size=3, max_size=11)
)
LOSSES = {
    "still": np.ones(50),
    "falls": np.geomspace(1, 0.1, 50),
    "swings": np.tile([1.0, 0.5], 25),
    "explodes": np.geomspace(1, 100, 50),
}


@pytest.mark.slow
@settings(max_examples=100)
@cases_of(
    trials=st.lists(
        st.tuples(
            st.integers(-4, 1),
            st.sampled_from(["sgd", "sgd", "adamw"]),
            st.sampled_from(["constant", "cosine"]),
            st.sampled_from([COMPLETED, COMPLETED, COMPLETED, PRUNED, DIVERGED]),
            SCORES,
            st.sampled_from(list(LOSSES)),
        ),
        min_size=1,
        max_size=8,
    ),
    sign=st.sampled_from([1.0, -1.0]),
    keeps_best=st.booleans(),
    baseline=st.none() | st.floats(-1, 1),
    plain=st.booleans(),
)
def test_advice_and_ranking_agree_on_random_curves(
    trials, sign, keeps_best, baseline, plain
) -> None:
    about = setting(plain=plain, baseline=baseline, sign=sign, keeps_best=keeps_best)
    found = []
    for number, (power, optimizer, schedule, outcome, scores, losses) in enumerate(trials):
        own = curve(LOSSES[losses][: 5 * (len(scores) - 1)], scores, 10.0**power, 1.0)
        told = {"optimizer": optimizer, "schedule": schedule, "outcome": outcome}
        found.append(seen(number, own, about, rate=10.0**power, **told))
    assert_advice_and_ranking_agree(found, about)


REAL: dict[str, list[dict[str, Any]]] = {}
with gzip.open(Path(__file__).parent / "data" / "algoperf_sample.jsonl.gz", "rt") as lines:
    for line in lines:
        row = json.loads(line)
        if len(row["step"]) >= 10:
            REAL.setdefault(row["workload"], []).append(row)
LONG = [rows for rows in REAL.values() if len(rows) >= 10]


@pytest.mark.longer
@settings(max_examples=40)
@cases_of(
    rows=st.sampled_from(LONG).flatmap(
        lambda rows: st.lists(st.sampled_from(rows), min_size=4, max_size=12)
    ),
    metric=st.sampled_from(["train_loss", "validation_loss"]),
    stops=st.lists(st.floats(0.02, 1) | st.just(1.0), min_size=12, max_size=12),
)
def test_advice_and_ranking_agree_on_real_curves(rows, metric, stops) -> None:
    """Runs of AlgoPerf, some of them stopped on the way."""
    horizon = min(max(row["step"]) for row in rows)
    about = setting(plain=False, baseline=None, horizon=horizon)
    found = []
    for number, (row, stop) in enumerate(zip(rows, stops, strict=False)):
        values = [(s, float("nan" if v is None else v)) for s, v in zip(row["step"], row[metric],
                  strict=True) if s <= max(stop * horizon, row["step"][1])]  # fmt: skip
        at, scores = (np.array(column) for column in zip(*values, strict=True))
        steps = horizon if stop == 1.0 else int(at[-1])
        rate = float(row["hparams"].get("learning_rate") or 10.0 ** -(number % 5))
        own = Chunk(
            first_step=0,
            columns={"train_loss": np.ones(steps), "lr": np.full(steps, rate)},
            times=np.empty(steps),
            eval_steps=at.astype(np.int64),
            eval_times=at.astype(float),
            metrics={"val_loss": scores},
        )
        outcome = COMPLETED if stop == 1.0 else PRUNED
        found.append(seen(number, own, about, rate=rate, outcome=outcome))
    assert_advice_and_ranking_agree(found, about)


@pytest.mark.longer
@cases_of(
    scale=st.floats(0.01, 100),
    shift=st.floats(-10, 10),
    falls=st.lists(st.floats(0.3, 0.99), min_size=2, max_size=5),
)
def test_a_verdict_does_not_depend_on_the_unit_of_the_loss(scale, shift, falls) -> None:
    about = setting(plain=False, baseline=None)

    def kinds(scale: float, shift: float) -> list[str]:
        found = [
            minibatch(n, 10.0**-n, shift + scale * (fall ** np.arange(11)))
            for n, fall in enumerate(falls)
        ]
        return [one.kind for one in verdicts.judge(found, about).values()]

    assert kinds(scale, shift) == kinds(1.0, 0.0)


def test_higher_may_be_better() -> None:
    about = setting(plain=False, baseline=None, sign=-1.0)
    rising = 1 - 0.7 ** np.arange(11)
    found = [
        seen(n, curve(np.ones(50), scores, rate, 1.0), about, rate=rate)
        for n, (scores, rate) in enumerate([(rising, 0.1), (rising * 0.5, 0.01)])
    ]
    told = verdicts.judge(found, about)
    assert [one.kind for one in told.values()] == [GOOD_RATE, TOO_LOW]
    assert "val_loss 0.9718" in told[0].reason


@pytest.mark.parametrize("outcome", [FAILED, "cancelled", "running"])
def test_what_did_not_end_by_itself_has_no_verdict(outcome: str) -> None:
    empty = curve([1.0], [1.0], 0.1, 1.0)
    told = verdicts.summarize(
        0, rate=0.1, optimizer="sgd", schedule="constant", outcome=outcome, reason="",
        curve=empty, setting=setting(),
    )  # fmt: skip
    assert told is None
    assert verdicts.judge([], setting()) == {}


# --- comparisons


def ranges(good: list[float], bad: list[float], **kind: str) -> list[comparisons.GoodRates]:
    found = [
        minibatch(n, rate, FALLING, schedule="cosine" if n % 2 else "constant")
        for n, rate in enumerate([*good, *bad])
    ]
    told = {
        one.number: Verdict(
            kind=GOOD_RATE if one.number < len(good) else TOO_LOW,
            optimizer="sgd",
            labels=(),
            reason="",
        )
        for one in found
    }
    return comparisons.good_rates(found, told, **kind)


def test_good_rates_are_those_tried_with_what_lies_beyond() -> None:
    (told,) = ranges([0.1, 0.01, 0.03], [0.001, 0.002, 0.5])
    assert (told.trials, told.of) == (3, 6)
    assert (told.low.rate, told.low.beyond) == (0.01, 0.002)
    assert (told.high.rate, told.high.beyond) == (0.1, 0.5)
    assert told.factor == pytest.approx(10)
    (alone,) = ranges([0.1], [])
    assert (alone.low.beyond, alone.high.beyond, alone.factor) == (None, None, 1.0)
    assert [one.name for one in ranges([0.1, 0.2], [], by="schedule")] == ["constant", "cosine"]
    assert ranges([], [0.1]) == []


@pytest.mark.slow
@cases_of(good=st.integers(1, 12), bad=st.integers(0, 12))
def test_how_sure_an_edge_is_as_the_bootstrap_by_drawing_has_it(good: int, bad: int) -> None:
    rates = np.arange(1.0, good + bad + 1)
    is_good = rates <= good
    (told,) = ranges(rates[is_good].tolist(), rates[~is_good].tolist())
    rng, n = np.random.default_rng(0), len(rates)
    draws = rng.integers(n, size=(20_000, n))
    lows = np.where(is_good, rates, np.inf)[draws].min(axis=1)
    lows = lows[np.isfinite(lows)]
    inside = np.mean(lows <= told.low.inner)
    before = np.mean(lows < told.low.inner)
    assert before - 0.02 < comparisons.LEVEL < inside + 0.02


def test_the_expected_best_of_n_is_what_drawing_gives() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=9)
    drawn = rng.choice(scores, size=(200_000, 4)).min(axis=1).mean()
    assert comparisons.expected_best(scores[None], 4)[0] == pytest.approx(drawn, abs=0.01)
    assert comparisons.expected_best(scores[None], 1)[0] == pytest.approx(scores.mean())


def finished(schedule: str, scores: np.ndarray, first: int = 0, **changes: Any) -> list[Evidence]:
    return [
        minibatch(first + n, 0.1, [2.0, score], every=50, schedule=schedule, **changes)
        for n, score in enumerate(scores)
    ]


def test_the_winner_is_named_with_its_margin_and_only_when_it_is_sure() -> None:
    rng = np.random.default_rng(0)
    cosine, constant = rng.normal(1.0, 0.1, 20), rng.normal(1.5, 0.1, 20)
    found = finished("cosine", cosine) + finished("constant", constant, 20)
    (wins,) = comparisons.compare(found, rng)
    assert (wins.winner, wins.other, wins.significant) == ("cosine", "constant", True)
    assert 0.3 < wins.margin.low < wins.margin.mean < wins.margin.high < 0.7
    equal = finished("cosine", cosine) + finished("constant", rng.permutation(cosine), 20)
    (tie,) = comparisons.compare(equal, rng)
    assert not tie.significant


def test_only_trials_at_the_horizon_are_compared() -> None:
    rng, scores = np.random.default_rng(0), np.linspace(1, 2, 10)
    pruned = finished("cosine", scores) + finished("step", scores - 9, 10, outcome=PRUNED)
    assert comparisons.compare(pruned, rng) == []
    longer = [replace(one, horizon=60) for one in finished("cosine", scores)]
    assert comparisons.compare(longer, rng) == []


def test_a_schedule_tried_more_often_gains_nothing_by_that() -> None:
    rng, scores = np.random.default_rng(0), np.linspace(1, 2, 10)
    often = np.repeat(scores, 20)
    found = finished("cosine", scores) + finished("step", often, 10)
    (tie,) = comparisons.compare(found, rng)
    assert tie.n == 10
    assert tie.margin.mean == pytest.approx(0, abs=1e-9)
