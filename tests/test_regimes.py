"""Regimes and verdicts, held to gradient descent on quadratics, whose every number is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given as cases_of
from hypothesis import strategies as st

from tuner import regimes, verdicts
from tuner.curves import Chunk
from tuner.outcome import COMPLETED, DIVERGED, FAILED, PRUNED
from tuner.regimes import (
    DIVERGING,
    GOOD_RATE,
    OSCILLATING,
    PLATEAU,
    TOO_HIGH,
    TOO_LOW,
    Evidence,
    Given,
    Regime,
)

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


def given(**changes: Any) -> Given:
    return Given(
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


def seen(number: int, found: Chunk, about: Given, **changes: Any) -> Evidence:
    told = {"rate": 0.1, "optimizer": "sgd", "schedule": "constant", "outcome": COMPLETED}
    made = regimes.evidence(
        number, **{**told, "reason": "", "curve": found, "given": about, **changes}
    )
    assert made is not None
    return made


def houses(*rates: float, steps: int = 50) -> dict[float, Regime]:
    found = [
        seen(n, descent(HOUSES, START, np.full(steps, rate))[0], given(), rate=rate)
        for n, rate in enumerate(rates)
    ]
    return dict(zip(rates, regimes.judge(found, given()).values(), strict=True))


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
    assert regimes.growth(found.columns["train_loss"]) == pytest.approx(factor, rel=1e-6)
    told = regimes.judge([seen(0, found, given(), outcome=DIVERGED, reason="It ran.")], given())
    assert f"growing by a factor of {factor:.4f} a step" in told[0].reason
    assert told[0].reason.endswith(": it ran.")


@pytest.mark.parametrize(
    ("rate", "crossed", "kind"),
    [(0.4, 0, GOOD_RATE), (0.6, 19, GOOD_RATE), (1.0, 19, TOO_HIGH), (1.1, 19, DIVERGING)],
)
def test_a_parabola(rate: float, crossed: int, kind: str) -> None:
    """(x - 2)²: the factor is 1 - 2·lr; it alternates above 0.5, and cycles for ever at 1."""
    about = given(baseline=None)
    found = [
        seen(n, descent(np.array([[2.0]]), np.array([-2.0]), np.full(20, one))[0], about, rate=one)
        for n, one in enumerate((0.3, rate))
    ]
    assert (found[1].crossed, found[1].pairs) == (crossed, 19)
    assert regimes.judge(found, about)[1].kind == kind


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
    told = regimes.against(found, 0.0)
    assert (told == (products < 0))[clear].all()


# --- curves of any kind


def minibatch(number: int, rate: float, scores: Any, *, every: int = 5, **changes: Any) -> Evidence:
    """A trial of which only the evaluations can be judged."""
    about, losses = given(plain=False, baseline=None), np.ones(every * (len(scores) - 1))
    return seen(number, curve(losses, scores, rate, 1.0), about, rate=rate, **changes)


FALLING = 2.0 * 0.7 ** np.arange(11) + 0.1


@pytest.mark.parametrize(
    ("changes", "scores", "kind", "says"),
    [
        ({"rate": 0.001}, np.full(11, 2.1), TOO_LOW, "with sgd and constant begin at 0.1"),
        ({"rate": 1.0}, np.full(11, 2.1), TOO_HIGH, "with sgd and constant end at 0.1"),
        ({"rate": 1.0, "schedule": "cosine"}, np.full(11, 2.1), TOO_HIGH, "with sgd end at 0.1"),
        ({"optimizer": "adam"}, np.linspace(2.1, 1.9, 11), TOO_LOW, "still on its way down"),
        ({"optimizer": "adam"}, np.linspace(2.1, 4.0, 11), TOO_HIGH, "ended above"),
        ({"optimizer": "adam"}, [2.1, 1.5, *[1.5] * 9], TOO_HIGH, "then stayed high"),
        ({"optimizer": "adam"}, [2.1, *[1.8, 1.2] * 5], TOO_HIGH, "goes up and down"),
        ({"optimizer": "adam"}, np.full(11, 2.1), TOO_LOW, "stood still"),
        ({}, FALLING + 0.01, GOOD_RATE, "99 %"),
        ({"outcome": PRUNED}, FALLING[:4] + 0.01, GOOD_RATE, "of the best's progress by then"),
        ({"outcome": DIVERGED, "reason": "Nan."}, [2.1, np.nan], DIVERGING, "nan"),
    ],
)
def test_a_trial_beside_a_good_one(changes: Any, scores: Any, kind: str, says: str) -> None:
    other = minibatch(1, **{"rate": 0.1, **changes}, scores=scores)
    told = regimes.judge([minibatch(0, 0.1, FALLING), other], given(plain=False, baseline=None))
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
    assert regimes.judge(found, given(plain=False, baseline=None))[0].labels == labels


@cases_of(
    scale=st.floats(0.01, 100),
    shift=st.floats(-10, 10),
    falls=st.lists(st.floats(0.3, 0.99), min_size=2, max_size=5),
)
def test_a_regime_does_not_depend_on_the_unit_of_the_loss(scale, shift, falls) -> None:
    about = given(plain=False, baseline=None)

    def kinds(scale: float, shift: float) -> list[str]:
        found = [
            minibatch(n, 10.0**-n, shift + scale * (fall ** np.arange(11)))
            for n, fall in enumerate(falls)
        ]
        return [one.kind for one in regimes.judge(found, about).values()]

    assert kinds(scale, shift) == kinds(1.0, 0.0)


def test_higher_may_be_better() -> None:
    about = given(plain=False, baseline=None, sign=-1.0)
    rising = 1 - 0.7 ** np.arange(11)
    found = [
        seen(n, curve(np.ones(50), scores, rate, 1.0), about, rate=rate)
        for n, (scores, rate) in enumerate([(rising, 0.1), (rising * 0.5, 0.01)])
    ]
    told = regimes.judge(found, about)
    assert [one.kind for one in told.values()] == [GOOD_RATE, TOO_LOW]
    assert "val_loss 0.9718" in told[0].reason


@pytest.mark.parametrize("outcome", [FAILED, "cancelled", "running"])
def test_what_did_not_end_by_itself_has_no_regime(outcome: str) -> None:
    empty = curve([1.0], [1.0], 0.1, 1.0)
    told = regimes.evidence(
        0, rate=0.1, optimizer="sgd", schedule="constant", outcome=outcome, reason="",
        curve=empty, given=given(),
    )  # fmt: skip
    assert told is None
    assert regimes.judge([], given()) == {}


# --- the study's verdict


def ranges(good: list[float], bad: list[float], **kind: str) -> list[verdicts.GoodRates]:
    found = [
        minibatch(n, rate, FALLING, schedule="cosine" if n % 2 else "constant")
        for n, rate in enumerate([*good, *bad])
    ]
    told = {
        one.number: Regime(
            kind=GOOD_RATE if one.number < len(good) else TOO_LOW, labels=(), reason=""
        )
        for one in found
    }
    return verdicts.good_rates(found, told, **kind)


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
    assert before - 0.02 < verdicts.LEVEL < inside + 0.02


def test_the_expected_best_of_n_is_what_drawing_gives() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=9)
    drawn = rng.choice(scores, size=(200_000, 4)).min(axis=1).mean()
    assert verdicts.expected_best(scores[None], 4)[0] == pytest.approx(drawn, abs=0.01)
    assert verdicts.expected_best(scores[None], 1)[0] == pytest.approx(scores.mean())


def finished(schedule: str, scores: np.ndarray, first: int = 0, **changes: Any) -> list[Evidence]:
    return [
        minibatch(first + n, 0.1, [2.0, score], every=50, schedule=schedule, **changes)
        for n, score in enumerate(scores)
    ]


def test_the_winner_is_named_with_its_margin_and_only_when_it_is_sure() -> None:
    rng = np.random.default_rng(0)
    cosine, constant = rng.normal(1.0, 0.1, 20), rng.normal(1.5, 0.1, 20)
    found = finished("cosine", cosine) + finished("constant", constant, 20)
    (wins,) = verdicts.winner(found, 50, rng)
    assert (wins.winner, wins.other, wins.sure) == ("cosine", "constant", True)
    assert 0.3 < wins.by.low < wins.by.mean < wins.by.high < 0.7
    equal = finished("cosine", cosine) + finished("constant", rng.permutation(cosine), 20)
    (tie,) = verdicts.winner(equal, 50, rng)
    assert not tie.sure


def test_only_trials_at_the_horizon_are_compared() -> None:
    rng, scores = np.random.default_rng(0), np.linspace(1, 2, 10)
    pruned = finished("cosine", scores) + finished("step", scores - 9, 10, outcome=PRUNED)
    assert verdicts.winner(pruned, 50, rng) == []
    assert verdicts.winner(finished("cosine", scores), 60, rng) == []


def test_a_schedule_tried_more_often_gains_nothing_by_that() -> None:
    rng, scores = np.random.default_rng(0), np.linspace(1, 2, 10)
    often = np.repeat(scores, 20)
    found = finished("cosine", scores) + finished("step", often, 10)
    (tie,) = verdicts.winner(found, 50, rng)
    assert tie.n == 10
    assert tie.by.mean == pytest.approx(0, abs=1e-9)
