"""Fit a line to noisy points by scikit-learn's `partial_fit`, a pass over the data at a time.

Lines that end with `# tuner` are those that tuning needs, and those that end with `# checkpoint`
let an interrupted trial go on; the others are the program as it was.
"""

import numpy as np
from sklearn.linear_model import SGDRegressor

NUMBERS = np.random.default_rng(0)
X = NUMBERS.normal(size=(60, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.1 * NUMBERS.normal(size=60)
SEEN, UNSEEN = slice(0, 40), slice(40, None)
STATE = ("coef_", "intercept_", "t_")  # checkpoint


def error(model, rows):
    return np.square(model.predict(X[rows]) - Y[rows]).mean() if hasattr(model, "coef_") else 4.0


def restore(model, saved):  # checkpoint
    for name, value in (saved or {}).items():  # checkpoint
        setattr(model, name, value)  # checkpoint


def train(trial):  # tuner
    model = SGDRegressor(learning_rate="constant", eta0=0.01)
    restore(model, trial.checkpoint.load())  # checkpoint
    for step in range(trial.first_step, trial.steps):  # tuner
        train_loss, val_loss = error(model, SEEN), error(model, UNSEEN)
        trial.report(step, train_loss=train_loss, val_loss=val_loss)  # tuner
        model.eta0 = trial.rate(step)  # tuner
        order = np.random.permutation(40)
        model.partial_fit(X[SEEN][order], Y[SEEN][order])
        trial.checkpoint.save({name: getattr(model, name) for name in STATE})  # checkpoint
