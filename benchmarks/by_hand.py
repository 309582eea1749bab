"""What people write today: an Optuna objective that trains digits and logs to MLflow, one by one.

It makes the documented calls and no others: `mlflow.log_metrics` at every step, or, as a careful
person would, with everything of a trial kept and written by one `log_batch` at its end.

    python benchmarks/by_hand.py (steps | batch) STORAGE_URL TRACKING_URI TRIALS

prints the seconds of `study.optimize`, imports and the creation of all tables left out.
"""

from __future__ import annotations

import sys
import time

import mlflow
import optuna
import torch
from mlflow.entities import Metric
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

STEPS, BATCH, EVERY = 200, 64, 20


def main() -> None:
    how, storage, tracking, trials = sys.argv[1:]
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri(tracking)
    name = f"by hand, {how}"
    mlflow.set_experiment(name)
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=optuna.samplers.RandomSampler(seed=0),
        load_if_exists=True,
    )
    pixels, digits = load_digits(return_X_y=True)
    data = train_test_split(pixels, digits, test_size=0.2, random_state=0, stratify=digits)
    center, scale = data[0].mean(axis=0), data[0].std(axis=0)
    scale[scale == 0] = 1.0
    inputs, validation = ((torch.tensor(x - center) / scale).float() for x in data[:2])
    targets, answers = (torch.tensor(y) for y in data[2:])

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("lr", 1e-3, 1e-2, log=True)
        kept: list[Metric] = []

        def log(step: int, **metrics: float) -> None:
            if how == "steps":
                mlflow.log_metrics(metrics, step=step)
            else:
                now = int(time.time() * 1000)
                kept.extend(Metric(key, value, now, step) for key, value in metrics.items())

        with mlflow.start_run(run_name=f"trial {trial.number}") as run:
            mlflow.log_params(trial.params)
            torch.manual_seed(trial.number)
            model = nn.Sequential(
                nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
            )
            optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            loss_of = nn.CrossEntropyLoss()
            order = torch.cat([torch.randperm(len(inputs)) for _ in range(STEPS // 22 + 1)])
            for step, rows in enumerate(order[: STEPS * BATCH].split(BATCH)):
                optimizer.zero_grad()
                loss = loss_of(model(inputs[rows]), targets[rows])
                loss.backward()
                norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
                log(
                    step,
                    train_loss=loss.item(),
                    lr=schedule.get_last_lr()[0],
                    grad_norm=norm.item(),
                )
                optimizer.step()
                schedule.step()
                if (step + 1) % EVERY == 0:
                    with torch.no_grad():
                        outputs = model(validation)
                    val_loss = loss_of(outputs, answers).item()
                    accuracy = (outputs.argmax(dim=1) == answers).double().mean().item()
                    log(step + 1, val_loss=val_loss, accuracy=accuracy)
            if kept:  # the store takes a thousand at most at a time
                mlflow.MlflowClient().log_batch(run.info.run_id, metrics=kept)
        return val_loss

    study.optimize(objective, n_trials=1)  # the first calls of a process are slower
    began = time.perf_counter()
    study.optimize(objective, n_trials=int(trials))
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
