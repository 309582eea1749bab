"""A process of Optuna alone, for `workers.py`: `study.optimize` as its own documentation has it.

    python benchmarks/worker_optuna.py URL (random | tpe) [torch]

With `torch`, import it too, as any training program does.
"""

from __future__ import annotations

import importlib
import sys
import threading

import optuna
import waiting

SAMPLERS = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}


def main() -> None:
    url, sampler, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    storage = optuna.storages.RDBStorage(url)

    def serve(name: str, seconds: float, stop: threading.Event) -> None:
        def objective(trial: optuna.Trial) -> float:
            waiting.begin(seconds)
            rate = trial.suggest_float("lr", waiting.LOW, waiting.HIGH, log=True)
            trial.suggest_categorical("schedule", waiting.SCHEDULES)
            trial.suggest_categorical("optimizer", waiting.OPTIMIZERS)
            for step in waiting.RUNGS:
                trial.report(waiting.loss(rate, step), step)
                if trial.should_prune():
                    raise optuna.TrialPruned
            return waiting.loss(rate, waiting.STEPS)

        def until_told(study: optuna.Study, _trial: optuna.trial.FrozenTrial) -> None:
            if stop.is_set():
                study.stop()

        study = optuna.load_study(
            study_name=name,
            storage=storage,
            sampler=SAMPLERS[sampler](),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
        )
        study.optimize(objective, callbacks=[until_told])

    waiting.serve(serve)


if __name__ == "__main__":
    main()
