"""What a report says of early values: right where it is known how the trials would have ended."""

import numpy as np
import pytest

from tuner.analysis import early
from tuner.analysis.early import judge


def sample(noise, seed=1, trials=40):
    """Return early and final values, and whether a trial is in the worse half at the rung."""
    rng = np.random.default_rng(seed)
    final = np.exp(rng.normal(size=trials))
    early = 2.0 * final * np.exp(noise * rng.normal(size=trials))
    return np.stack([early, final], axis=1), early > np.median(early)


@pytest.mark.longer
@pytest.mark.parametrize(("noise", "least", "most"), [(0.01, 0.95, 1.0), (100.0, -0.4, 0.4)])
def test_correlation_is_of_the_ranks(noise, least, most):
    both, _ = sample(noise)
    found = judge(both, [], whole=20, rng=np.random.default_rng(0))
    assert found is not None
    assert least <= found.correlation <= most
    assert found.low <= found.correlation <= found.high


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.01, 1.0, 10.0])
def test_chance_of_losing_the_best_is_calibrated(noise, monkeypatch):
    """Over many studies, the best is lost about as often as they say."""
    monkeypatch.setattr(early, "RESAMPLES", 5)  # of the correlation, which is not looked at
    said, lost = [], []
    for seed in range(30):
        both, stopped = sample(noise, seed)
        found = judge(
            both[~stopped], list(both[stopped, 0]), whole=27, rng=np.random.default_rng(seed)
        )
        assert found is not None
        assert found.stopped == 20
        said.append(found.lost)
        lost.append(both[stopped, 1].min() < both[~stopped, 1].min())
    assert np.mean(said) == pytest.approx(np.mean(lost), abs=0.15)


def test_few_or_equal_trials_say_nothing():
    both, _ = sample(0.1, trials=7)
    assert judge(both, [], whole=3, rng=np.random.default_rng(0)) is None
    equal = np.ones((20, 2))
    assert judge(equal, [], whole=3, rng=np.random.default_rng(0)) is None
