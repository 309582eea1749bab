"""Fit a line to noisy points by scikit-learn's `partial_fit`, a pass over the data at a time.

Lines that end with `# tuner` are those that tuning needs; the others are the program as it was.
"""

import numpy as np
from sklearn.linear_model import SGDRegressor

NUMBERS = np.random.default_rng(0)
X = NUMBERS.normal(size=(60, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.1 * NUMBERS.normal(size=60)
SEEN, UNSEEN = slice(0, 40), slice(40, None)
STATE = ("coef_", "intercept_", "t_")


def error(model, rows):
    return np.square(model.predict(X[rows]) - Y[rows]).mean() if hasattr(model, "coef_") else 4.0


def restore(model, saved):
    for name, value in (saved or {}).items():
        setattr(model, name, value)


def train(trial):  # tuner
    model = SGDRegressor(learning_rate="constant", eta0=trial.lr)
    restore(model, trial.checkpoint.load())  # tuner
    for step in range(trial.first_step, trial.steps):
        train_loss, val_loss = error(model, SEEN), error(model, UNSEEN)
        trial.report(step, train_loss=train_loss, val_loss=val_loss)  # tuner
        model.eta0 = trial.rate(step)  # tuner
        order = np.random.permutation(40)
        model.partial_fit(X[SEEN][order], Y[SEEN][order])
        trial.checkpoint.save({name: getattr(model, name) for name in STATE})  # tuner
