"""What a study costs as it grows: statements, the database's work and processor time, by trials.

A database is filled with one study of many ended trials, each with 200 steps and 20 evaluations,
and with as many studies of one trial as asked. Each operation is then called and counted:

- `statements` that it sends, and how many thousand `instructions` SQLite executes for them, which
  is the same on every machine;
- `cpu`: the processor's time of this process, in seconds;
- of the report, the `bytes` of its page.

*trial* is a whole trial: claim, draw, one report, outcome; *publish* publishes one trial more.
Statements to MLflow's and Optuna's tables are not counted. With --write, results are kept by number
and a run that was interrupted goes on.

    python benchmarks/costs.py [--trials 100 1000 10000] [--studies 1000] [--only report ...]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import filling
import numpy as np
from sqlalchemy import Engine, delete, event, insert, update

from tuner.core.curves import Chunk, empty
from tuner.core.outcome import COMPLETED, Outcome
from tuner.ledger import Ledger, Report, StudyRecord
from tuner.ledger.database import Addresses, addresses, open_ledger, upgrade_tracking
from tuner.ledger.tables import attempts, chunks, published_studies, published_trials, trials
from tuner.operations import best, doctor, report, status, studies
from tuner.search import Search
from tuner.tracking.recorder import Recorder

RESULTS = Path(__file__).resolve().parent / "results" / "costs-sqlite.json"
STEPS, EVERY = 10 * filling.REPORTS + 10, 10
INSTRUCTIONS = 1000
"""SQLite's instructions between two calls of its progress handler."""
WORKLOAD = {"code": "c0de", "data": "da7a", "data_name": "digits", "training_rows": 1437}

Counts = dict[str, float]


class Counter:
    """Counts the statements of an engine, and what SQLite does for them."""

    def __init__(self, engine: Engine) -> None:
        self.statements = self.instructions = 0
        event.listen(engine, "before_cursor_execute", self._statement)
        event.listen(engine, "checkout", self._connection)

    def _statement(self, *_: object) -> None:
        self.statements += 1

    def _connection(self, connection: Any, *_: object) -> None:
        connection.set_progress_handler(self._instructions, INSTRUCTIONS)

    def _instructions(self) -> int:
        self.instructions += 1
        return 0

    def of(self, call: Callable[[], object]) -> Counts:
        """Call and count."""
        self.statements = self.instructions = 0
        began = time.process_time()
        call()
        return {
            "statements": self.statements,
            "instructions": self.instructions,
            "cpu": round(time.process_time() - began, 4),
        }


def curve(loss: float) -> bytes:
    """Return a curve that falls to a loss, as it is stored."""
    steps, at = np.arange(STEPS), np.arange(0, STEPS + 1, EVERY)
    losses = loss * (1 + 10 / (1 + steps))
    return Chunk(
        first_step=0,
        columns={"train_loss": losses, "lr": np.full(STEPS, 0.1), "grad_norm": losses},
        times=filling.CREATED + steps * 0.003,
        eval_steps=at,
        eval_times=filling.CREATED + at * 0.003,
        metrics={"val_loss": loss * (1 + 10 / (1 + at))},
    ).to_bytes()


def fill(ledger: Ledger, count: int, others: int) -> StudyRecord:
    """Fill a database with a study of ended, published trials, and with other studies."""
    spec = filling.spec_of("grown")
    study, _ = ledger.submit(spec, limit=1_000_000, workload=WORKLOAD)
    ended = list(filling.ended(spec, count))
    filling.fill(ledger, study, ended)
    first = study.id * 1_000_000
    done = [(first + number, curve(one.value or 2.0)) for number, one in enumerate(ended)]
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(
            update(trials).where(trials.c.study_id == study.id, trials.c.id < first + count)
            .values(steps=STEPS)
        )  # fmt: skip
        for at in range(0, count, filling.PORTION):
            some = done[at : at + filling.PORTION]
            tx.execute(insert(attempts), [attempt(one) for one, _ in some])
            made = {"first_step": 0, "next_step": STEPS}
            rows = [made | {"trial_id": one, "attempt_id": one, "data": data} for one, data in some]
            tx.execute(insert(chunks), rows)
            named = {"next_step": STEPS, "final": True}
            rows = [
                named | {"trial_id": one, "target": target, "external_id": f"{one:032x}"}
                for one, _ in some
                for target in ("optuna", "mlflow")
            ]
            tx.execute(insert(published_trials), rows)
        made = {"study_id": study.id, "external_id": "0" * 32, "publisher": None, "expires_at": 0.0}
        rows = [made | {"target": one, "revision": count + 1} for one in ("optuna", "mlflow")]
        tx.execute(insert(published_studies), rows)
    for number in range(others):
        other = spec.model_copy(update={"study": replace_name(spec, f"other {number}")})
        made_study, _ = ledger.submit(other, limit=1, workload=WORKLOAD)
        whole_trial(ledger, made_study, Search(made_study, ledger))
    return ledger.study("grown")


def replace_name(spec: Any, name: str) -> Any:
    return spec.study.model_copy(update={"name": name})


def attempt(trial: int) -> dict[str, Any]:
    return {
        "id": trial, "trial_id": trial, "number": 1, "worker": "benchmark", "live": False,
        "expires_at": 0.0, "first_step": 0, "environment": {}, "started_at": filling.CREATED,
        "ended_at": filling.CREATED + 60, "ending": "finished",
    }  # fmt: skip


def whole_trial(ledger: Ledger, study: StudyRecord, search: Search) -> None:
    """Run one trial to its end."""
    claim = ledger.claim(study.id, "benchmark", {})
    assert claim is not None
    draw = search.draw(claim.trial.number)
    ledger.draw(
        claim.lease,
        draw.params,
        attrs=draw.attrs,
        study_attrs=draw.study_attrs,
        asked_revision=draw.revision,
    )
    went_on = Report(step=EVERY, value=1.0, pruned=False, reason="It is good.")
    ledger.report(claim.lease, empty(), went_on, attrs={})
    outcome = Outcome(kind=COMPLETED, reason="Ran all steps.", value=1.0)
    ledger.finish(claim.lease, outcome, chunk=Chunk.from_bytes(0, curve(1.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--studies", type=int, default=0, help="studies of one trial beside it")
    parser.add_argument("--only", nargs="*", help="these operations alone")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--profile", action="store_true", help="print where each spends its time")
    chosen = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for count in chosen.trials:
        key = f"{count} trials" + (f", {chosen.studies} other studies" if chosen.studies else "")
        found.setdefault(key, {})
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), count, chosen, found[key], key)
        if chosen.write:
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def measure(folder: Path, count: int, chosen: Any, found: dict[str, Counts], key: str) -> None:
    """Fill a database and count each operation that is not counted yet."""
    places = addresses({}, folder)
    wanted = [one for one in OPERATIONS if chosen.only is None or one in chosen.only]
    if {"doctor", "publish"} & set(wanted):
        upgrade_tracking(places)
    with closing_engine(places) as ledger:
        study = fill(ledger, count, chosen.studies)
        counter = Counter(ledger.engine)
        for name in wanted:
            if chosen.write and name in found:
                continue
            call = OPERATIONS[name](ledger, study, places, folder)
            if chosen.profile:
                profiled(call)
            found[name] = counter.of(call)
            page = folder / "report" / "report.html"
            if name == "report":
                found[name]["bytes"] = page.stat().st_size
            found[name]["peak, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"{key}: {name}: {found[name]}", flush=True)


def profiled(call: Callable[[], object]) -> None:
    import cProfile  # noqa: PLC0415
    import pstats  # noqa: PLC0415

    profile = cProfile.Profile()
    profile.runcall(call)
    pstats.Stats(profile).sort_stats("cumtime").print_stats(60)


def closing_engine(places: Addresses) -> Any:
    class Closing(Ledger):
        def close(self) -> None:
            self.engine.dispose()

    return closing(Closing(open_ledger(places, create=True)))


def trial_of(ledger: Ledger, study: StudyRecord, *_: object) -> Callable[[], object]:
    search = Search(study, ledger)
    whole_trial(ledger, study, search)  # the first draw reads all trials
    return lambda: whole_trial(ledger, study, search)


def publish_all(ledger: Ledger, places: Addresses) -> Recorder:
    """Publish what `fill` has only marked as published."""
    with ledger.engine.execution_options(writes=True).begin() as tx:
        for table in (published_trials, published_studies):
            tx.execute(delete(table))
    recorder = Recorder(ledger.engine, places)
    publish(recorder)
    return recorder


def publish(recorder: Recorder) -> None:
    """Publish everything that is new."""
    for projection in recorder.projections.values():
        while projection.publish():
            pass


def publish_one(ledger: Ledger, study: StudyRecord, places: Addresses, _: Path) -> Any:
    recorder = publish_all(ledger, places)
    whole_trial(ledger, study, Search(study, ledger))
    return lambda: publish(recorder)


def examine(ledger: Ledger, _: StudyRecord, places: Addresses, __: Path) -> Any:
    publish_all(ledger, places).close()
    return lambda: doctor.examine(ledger.engine, places)


Prepared = Callable[[Ledger, StudyRecord, Addresses, Path], Callable[[], object]]
OPERATIONS: dict[str, Prepared] = {
    "trial": trial_of,
    "status": lambda ledger, study, *_: lambda: status.status(ledger, study),
    "best": lambda ledger, study, *_: lambda: best.best(ledger, study),
    "studies": lambda ledger, *_: lambda: studies.studies(ledger),
    "report": lambda ledger, study, places, folder: (
        lambda: report.report(ledger, [study], places, to=folder / "report", tracked=False)
    ),
    "publish": publish_one,
    "doctor": examine,
}


if __name__ == "__main__":
    main()
