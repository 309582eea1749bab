"""The divergence guard stops what is lost, when it is lost, and nothing else."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config import GuardTable
from tuner.training.guard import rules
from tuner.training.guard.rules import GuardState, Rule

GUARD = GuardTable()
NAN, INF = float("nan"), float("inf")


def run(losses, warmup=0, baseline=None, horizon=None, norms=None, table=GUARD, initial=-INF):
    """Feed one trial its losses: the step where it is stopped, by which rule, and the sentence."""
    horizon = horizon or len(losses)
    state = replace(rules.start(1, table), initial_val_loss=np.array([initial]))
    for step, loss in enumerate(losses):
        norm = 1.0 if norms is None else norms[step]
        state, verdict = rules.observe(
            state, np.array([loss], float), np.array([norm]), horizon=horizon, warmup=warmup,
            baseline=baseline, settings=table,
        )  # fmt: skip
        if verdict[0]:
            said = rules.explain(
                verdict[0], state, loss=loss, grad_norm=norm, horizon=horizon, baseline=baseline,
                settings=table,
            )  # fmt: skip
            return step, Rule(verdict[0]), said
    return None


def growing(factor, steps=400, first=1.0):
    return first * factor ** np.arange(steps)


def falling(steps=100, first=1.0, rate=0.97):
    return first * rate ** np.arange(steps)


def noisy(seed=0, steps=300, level=1.0, sigma=0.2):
    return level * np.exp(sigma * np.random.default_rng(seed).standard_normal(steps))


def bump(at, heights, losses):
    losses = np.array(losses, float)
    losses[at : at + len(heights)] *= heights
    return losses


alternating = 1 + 0.9 * (-1.0) ** np.arange(400)
slow_wave = 1.0 + 0.9 * np.sin(np.arange(400) / 20)

CASES = [
    # name, losses, warm-up, baseline; first and last step where it may stop, and the rule
    ("one good step, then nan", [1, NAN, 1], 0, None, (1, 1, Rule.NON_FINITE)),
    ("one good step, then inf", [1, INF, 1], 0, None, (1, 1, Rule.NON_FINITE)),
    ("one good step, then -inf", [1, -INF, 1], 0, None, (1, 1, Rule.NON_FINITE)),
    ("one good step, then 1e30", [1, 1e30, 1], 0, None, (1, 1, Rule.RUNAWAY)),
    ("nan at once", [NAN, 1], 0, None, (0, 0, Rule.NON_FINITE)),
    ("nan within warm-up", [1, 1, NAN], 50, 1.0, (2, 2, Rule.NON_FINITE)),
    ("good for long, then 1e30", [*falling(), 1e30], 0, 1.0, (100, 100, Rule.RUNAWAY)),
    ("x1.02 a step", growing(1.02, 1000), 0, None, (116, 135, Rule.EXPLODING)),
    ("x1.05 a step", growing(1.05), 0, None, (48, 56, Rule.EXPLODING)),
    ("x1.5 a step", growing(1.5), 0, None, (15, 15, Rule.EXPLODING)),
    ("x10 a step", growing(10.0, 300), 0, None, (7, 12, Rule.RUNAWAY)),
    ("falls by half, then x1.1", [*falling(30), *growing(1.1, first=0.5)], 0, None,
     (50, 70, Rule.EXPLODING)),
    ("x1.05 from far over its baseline", growing(1.05, first=100), 0, 1.0,
     (48, 56, Rule.EXPLODING)),
    ("x1.05 from far under its baseline", growing(1.05, first=0.01), 0, 1.0,
     (141, 150, Rule.EXPLODING)),
    ("alternating in a growing envelope", growing(1.1) * (0.7 + 0.3 * alternating), 0, None,
     (25, 50, Rule.EXPLODING)),
    ("alternating wildly in a growing envelope", growing(1.1) * alternating, 0, None,
     (25, 150, Rule.RUNAWAY)),
    ("noisy growth", growing(1.05) * noisy(steps=400), 0, None, (45, 70, Rule.EXPLODING)),
    ("x1.01 a step, at the end above its start", growing(1.01, 100), 0, None,
     (50, 60, Rule.LATE)),
    ("x1.01 with a little noise", growing(1.01, 200) * noisy(steps=200, sigma=0.005), 0, None,
     (100, 130, Rule.LATE)),
    ("negative, then x1.2 upwards", [*(-falling(30)), *growing(1.2)], 0, None,
     (40, 60, Rule.EXPLODING)),
    ("explodes once warm-up is over", [*np.ones(40), *growing(1.2)], 40, None,
     (55, 56, Rule.EXPLODING)),
    # --- and never:
    ("falls", falling(), 0, None, None),
    ("falls from far over its baseline", falling(first=1e9), 0, 1.0, None),
    ("hardly moves, far over its baseline", noisy(level=1e3), 0, 1.0, None),
    ("jumps up and stays", [*np.ones(50), *np.full(50, 1e4)], 0, None, None),
    ("jumps up and stays, in noise", bump(150, [1e4] * 150, noisy()), 0, None, None),
    ("jumps up a little and stays, late", bump(250, [2] * 50, noisy(sigma=0.05)), 0, None, None),
    ("two jumps up", bump(150, [30] * 150, bump(200, [30] * 100, noisy())), 0, None, None),
    ("jumps up and falls back slowly", [*np.ones(50), *falling(first=1e5)], 0, None, None),
    ("spike of one step", bump(50, [1e5], noisy()), 0, None, None),
    ("spike at the first step", bump(1, [1e5], noisy()), 0, None, None),
    ("spike of three steps", bump(50, [10, 1e3, 10], noisy()), 0, None, None),
    ("spike of six steps", bump(50, [5, 50, 500, 500, 50, 5], noisy()), 0, None, None),
    ("wide spike", bump(50, [1e3] * 9, noisy()), 0, None, None),
    ("hill of 40 steps, lower than far", bump(50, 9 * np.hanning(40) + 1, np.ones(300)), 0, None,
     None),
    ("bump in warm-up", bump(2, [2, 8, 32, 99, 400, 1e3, 1e4, 1e7, 1e3, 9], noisy()), 20, None,
     None),
    ("grows all through warm-up, then falls", [*growing(1.2, 60), *falling(first=5e4)], 60, None,
     None),
    ("negative and going down", -growing(1.05), 0, None, None),
    ("from positive through zero to negative", 5 - np.arange(200.0), 0, 5.0, None),
    ("a big negative offset with noise", -1e3 + noisy(), 0, None, None),
    ("zero all the time", np.zeros(100), 0, None, None),
    ("zero all the time, baseline zero", np.zeros(100), 0, 0.0, None),
    ("zero at last", [*falling(50), *np.zeros(50)], 0, 1.0, None),
    ("zero at first, then small noise", [*np.zeros(20), *noisy(level=1e-9)], 0, None, None),
    ("now and then not zero", np.where(np.arange(300) % 7, 0.0, noisy()), 0, None, None),
    ("a lucky first batch", [1e-5, *noisy()], 0, None, None),
    ("plateau, at twice its start", [*np.ones(4), *noisy(level=2.0)], 0, None, None),
    ("alternating", alternating, 0, None, None),
    ("alternating, more and more above", [*np.ones(20), *(3 * alternating)], 0, None, None),
    ("slow wave", slow_wave, 0, None, None),
    ("slow wave, far over its baseline", 1e3 * slow_wave, 0, 1.0, None),
    ("slow wave that begins low", 1.0 - 0.95 * np.cos(np.arange(400) / 20), 0, 1.0, None),
    ("huge", np.full(50, 1e308) * np.tile([1.0, -1.0], 25), 0, 1e308, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "warmup", "baseline", "expected"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_cases(losses, warmup, baseline, expected):
    got = run(losses, warmup, baseline)
    if expected is None:
        assert got is None
    else:
        first, last, rule = expected
        assert got is not None
        assert got[1] == rule
        assert first <= got[0] <= last


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("baseline", [None, 1e-3, 1.0])
@pytest.mark.parametrize("level", [1.0, 2.0])
def test_a_rate_too_low_is_never_divergence(sigma, baseline, level):
    trials, steps = 500, 500
    noise = np.random.default_rng(1).standard_normal((trials, steps))
    losses = np.exp(sigma * noise)
    losses[:, 20:] *= level  # a plateau above the start, which rule 4 looks at
    verdicts = vectorised(losses, np.zeros(trials, np.int64), baseline)
    # a plateau at twice its start in strong noise may pass rule 4 by chance, one time in hundreds
    allowed = 5 if level > 1 and sigma >= 0.3 else 0
    assert (verdicts != Rule.NONE).any(axis=1).sum() <= allowed


@pytest.mark.parametrize("height", [10, 30, 1e4])
def test_a_jump_in_noise_is_no_explosion(height):
    losses = np.exp(0.2 * np.random.default_rng(2).standard_normal((500, 200)))
    losses[:, 100:] *= height
    verdicts = vectorised(losses, 0, None, horizon=10**6)
    assert (verdicts != Rule.NONE).any(axis=1).sum() <= 10  # one in a hundred looks like growth


@pytest.mark.parametrize(
    ("factor", "sigma", "within"),
    [(1.02, 0.05, 45), (1.05, 0.05, 20), (1.05, 0.2, 60), (1.1, 0.2, 25), (2.0, 0.5, 16)],
)
def test_growth_in_noise_is_stopped_soon_after_it_is_far(factor, sigma, within):
    noise = np.random.default_rng(3).standard_normal((100, 250))
    verdicts = vectorised(growing(factor, 250) * np.exp(sigma * noise), 0, None, horizon=10**6)
    stopped = (verdicts != Rule.NONE).argmax(axis=1)
    assert stopped.min() >= 15
    assert stopped.max() <= np.log(10) / np.log(factor) + within


# --- gradient descent, where theory says which rates diverge ------------------------------------


def parabola(lr, steps=100):
    """(x - 2)² from x = 0."""
    return 4.0 * (1 - 2 * lr) ** (2 * np.arange(steps))


@pytest.mark.parametrize(
    ("lr", "stops"), [(0.01, False), (0.5, False), (0.99, False), (1.0, False), (1.1, True)]
)
def test_parabola(lr, stops):
    assert (run(parabola(lr)) is not None) == stops


def house_prices(lr, steps=50):
    """Losses of gradient descent on house prices in closed form.

    In the eigenvectors of the Hessian, the distance to the optimum shrinks by 1 - lr · λ a step.
    """
    hessian = np.array([[13.5, 5.0], [5.0, 2.0]])
    values, vectors = np.linalg.eigh(hessian)
    distance = vectors.T @ np.array([0.0 - 200.0, 0.0])
    shrunk = distance * (1 - lr * values) ** np.arange(steps)[:, None]
    return (0.5 * values * shrunk**2).sum(axis=1)


@pytest.mark.parametrize("lr", [1e-4, 0.01, 0.1, 0.12, 0.13])
@pytest.mark.parametrize("baseline", [None, 20_000.0])
def test_house_prices_never(lr, baseline):
    assert run(house_prices(lr), baseline=baseline) is None


def first_step_of_the_rule(losses, baseline):
    """Rule 3 in plain Python, for positive losses."""
    for step in range(15, len(losses)):
        so_far = losses[: step + 1]
        standard = max(baseline, *losses[:4])
        clipped = [np.log(max(loss, standard)) for loss in so_far[-16:]]
        means = [sum(clipped[4 * k : 4 * k + 4]) / 4 for k in range(4)]
        steps = [means[k + 1] - means[k] for k in range(3)]
        rises = min(steps) >= max(np.log(1.05), max(steps) / 3)
        far = losses[step] > 10 * standard and means[3] > np.log(10 * standard)
        scatter = sum(np.std(clipped[4 * k : 4 * k + 4]) for k in range(4)) / 4
        rises = rises and sum(steps) >= 3 * scatter
        if rises and far and max(so_far[-4:]) >= 1.05 * max(so_far[:-16], default=0.0):
            return step
    return None


@pytest.mark.parametrize(("lr", "at"), [(0.15, 15), (0.1345, 23)])
def test_house_prices_stop_exactly_where_the_rule_says(lr, at):
    losses = house_prices(lr)
    step, rule, said = run(losses, baseline=20_000.0)
    assert rule == Rule.EXPLODING
    assert step == first_step_of_the_rule(losses, 20_000.0) == at
    assert "level of its first steps" in said


def test_house_prices_barely_too_high_stop_late():
    step, rule, said = run(house_prices(0.1325), baseline=20_000.0)
    assert rule == Rule.LATE
    assert 25 <= step <= 30
    assert "of 50" in said


# --- sentences ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "norms", "baseline", "said"),
    [
        ([1, NAN], None, None, "the loss was nan at step 1"),
        ([1, 2.5], [1, INF], None, "the gradient's norm was inf at step 1 (loss 2.5)"),
        ([1, 1e30], None, None,
         ("the loss ran away: 1e+30 at step 1, more than 1e+06 times 1, the level of its "
         "first steps")),
        ([1, 1e30], None, 2.0,
         ("the loss ran away: 1e+30 at step 1, more than 1e+06 times 2, the level of the best "
         "constant predictor")),
        (growing(2.0), None, None,
         ("the loss exploded: 3.277e+04 at step 15, more than 10 times 8, the level of its "
         "first steps, "
         "and growing (means of the last 4 times 4 steps: 8, 45.25, 724.1, 1.159e+04)")),
        (growing(1.02, 60), None, None,
         ("the loss was still rising late: 1.848 at step 31 of 60, more than 1.5 times 1.061, the "
         "level of its first steps (means of the last 2 times 8 steps: 1.473, 1.726)")),
    ],
)  # fmt: skip
def test_sentences_have_the_numbers(losses, norms, baseline, said):
    assert run(losses, norms=norms, baseline=baseline)[2] == said


# --- properties ---------------------------------------------------------------------------------


def vectorised(losses, warmup, baseline, horizon=None):
    """Give the verdicts [trial, step] of losses [trial, step]."""
    state, verdicts = rules.start(len(losses), GUARD), []
    for column in losses.T:
        state, verdict = rules.observe(
            state, column, np.ones(len(losses)), horizon=horizon or losses.shape[1], warmup=warmup,
            baseline=baseline, settings=GUARD,
        )  # fmt: skip
        verdicts.append(verdict)
    return np.stack(verdicts, axis=1)


anything = st.one_of(
    st.floats(),
    st.floats(-10, 10),
    st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324]),
)
curves = st.one_of(
    st.lists(anything, min_size=40, max_size=40),
    st.builds(
        lambda factor, first, seed: (
            growing(factor, 40, first) * noisy(seed, 40, sigma=0.1)
        ).tolist(),
        st.floats(0.5, 3.0),
        st.floats(-10, 10),
        st.integers(0, 99),
    ),
)
baselines = st.one_of(st.none(), st.floats(-1e9, 1e9))
initials = st.one_of(st.just(-INF), st.floats(-1e9, 1e9))


@pytest.mark.longer
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(curves, st.integers(0, 40)), min_size=1, max_size=5), baselines)
def test_together_is_one_at_a_time(trials, baseline):
    losses = np.array([curve for curve, _ in trials])
    warmups = np.array([warmup for _, warmup in trials])
    together = vectorised(losses, warmups, baseline)
    for trial, (curve, warmup) in enumerate(trials):
        alone = run(curve, warmup, baseline)
        stops = np.flatnonzero(together[trial])
        if alone is None:
            assert len(stops) == 0
        else:
            assert alone[:2] == (stops[0], together[trial, stops[0]])
            assert alone[2]


@pytest.mark.longer
@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
       baselines, initials)  # fmt: skip
def test_nothing_finite_stops_within_warmup(losses, baseline, initial):
    assert run(losses, warmup=len(losses), baseline=baseline, initial=initial) is None


@pytest.mark.longer
@settings(deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=60), baselines, initials)
def test_what_never_rises_never_stops(losses, baseline, initial):
    assert run(sorted(losses, reverse=True), baseline=baseline, initial=initial) is None


@pytest.mark.longer
@settings(max_examples=30, deadline=None)
@given(curves, st.integers(0, 40))
def test_a_state_goes_through_arrays_and_slots(losses, cut):
    losses = np.array([losses])
    whole = vectorised(losses, 0, None)
    state, verdicts = rules.start(1, GUARD), []
    for step, column in enumerate(losses.T):
        if step == cut:  # into a dict, into the middle of three slots, and out again
            state = GuardState.of(state.arrays())
            state = rules.start(3, GUARD).put(1, state).take([1])
        state, verdict = rules.observe(
            state, column, np.ones(1), horizon=40, warmup=0, baseline=None, settings=GUARD
        )
        verdicts.append(verdict[0])
    assert verdicts == whole[0].tolist()


def test_names_in_checkpoints_stay():
    """Checkpoints of earlier versions hold these names."""
    assert set(rules.start(1, GUARD).arrays()) == {
        *("step", "counted", "first", "lowest", "highest", "recent"),
        *("begun", "initial", "far_count", "far_logs", "awaited"),
    }


def test_it_is_pure():
    state = rules.start(2, GUARD)
    before = {name: array.copy() for name, array in state.arrays().items()}
    loss = np.array([1.0, NAN])
    rules.observe(state, loss, np.ones(2), horizon=9, warmup=0, baseline=None, settings=GUARD)
    assert all(np.array_equal(before[name], array) for name, array in state.arrays().items())
    np.testing.assert_array_equal(loss, [1.0, NAN])


@pytest.mark.longer
@given(
    st.lists(st.floats(0.1, 1.0), min_size=5, max_size=40),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40),
)
def test_calm_losses_may_be_absorbed_many_at_a_time(before: list[float], calm: list[float]) -> None:
    settings = GuardTable()

    def observe(state: rules.GuardState, loss: float) -> rules.GuardState:
        state, verdict = rules.observe(
            state,
            np.array([loss]),
            np.ones(1),
            horizon=1000,
            warmup=0,
            baseline=None,
            settings=settings,
        )
        assert verdict[0] == rules.Rule.NONE
        return state

    state = functools.reduce(observe, before, rules.start(1, settings))
    bound = rules.calm_below(state, settings)[0]
    assert bound >= max(before[:4])
    losses = [loss * bound for loss in calm]
    one_by_one = functools.reduce(observe, losses, state).arrays()
    at_once = rules.absorb(state, np.array([losses])).arrays()
    for name, values in one_by_one.items():
        np.testing.assert_array_equal(at_once[name], values, err_msg=name)
