"""A retraining, stage by stage: train, evaluate, log, promote; once a run key, whatever dies.

Each stage is idempotent: what it leaves outside of the ledger is found again by the retraining's
identity, and its result is committed under the retraining's token. The alias `champion` is moved by
one write, after everything about the version has been written: a process that dies before it leaves
the old champion, and one that dies after it a complete new one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tuner.core import run_keys
from tuner.core.cron import run_key
from tuner.core.environment import person
from tuner.core.errors import LeaseLost, WorkloadCodeError
from tuner.core.failpoints import reach
from tuner.ledger import Reader, Retraining, Retrainings, events
from tuner.ledger.database import tracking_client
from tuner.ledger.retrainings import (
    CANARY,
    DONE,
    EVALUATE,
    FAILED,
    KEPT,
    LOG,
    PROMOTE,
    PROMOTED,
    PROPOSED,
    TRAIN,
)
from tuner.retraining import drift, gate, lineage, result, versions
from tuner.retraining.checking import Job
from tuner.retraining.gate import Decision
from tuner.retraining.lineage import Lineage
from tuner.retraining.training import Challengers, LimitExceededError, challengers, known
from tuner.retraining.versions import EXAMPLE, WEIGHTS, BuildRecord
from tuner.tracking.mlflow import registry as aliases
from tuner.tracking.mlflow.registry import CHAMPION, REPLACES, RETRAINING, StoredFile, Version
from tuner.tracking.mlflow.retraining_run import ModelContent, RetrainingRuns, RunContent
from tuner.training import models
from tuner.training.workloads import code_digest
from tuner.worker.lease_renewer import LeaseRenewer

REASON_LIMIT = 5000


class Stages:
    """The stages of one claimed retraining, in this process."""

    def __init__(
        self,
        job: Job,
        store: Retrainings,
        held: Retraining,
        renewer: LeaseRenewer,
        stop: threading.Event,
    ) -> None:
        self._job = job
        self._store = store
        self._held = held
        self._stop = stop
        self._renewer = renewer
        self._lease = held.lease
        self._folder = f"retrain/{held.id}"
        self._trained: Challengers | None = None

    @functools.cached_property
    def _runs(self) -> RetrainingRuns:
        places = self._job.places
        return RetrainingRuns(tracking_client(places), self._job.study.name, places.artifacts)

    def run(self) -> Retraining:
        """Do the stages that are left; return the retraining as it ended.

        Raise `LeaseLost` when another process has claimed it, and `KeyboardInterrupt` when this one
        is asked to stop; in both cases, and after any error, the next call resumes it. What the
        workload's code raises, and a limit that is exceeded, end the retraining as failed.
        """
        stages: Mapping[str, Callable[[], None]] = {
            TRAIN: self._train,
            EVALUATE: self._evaluate,
            LOG: self._log,
            PROMOTE: self._promote,
        }
        with self._holding():
            reach("retrain.claimed")
            while self._held.stage != DONE:
                try:
                    stages[self._held.stage]()
                except WorkloadCodeError as error:
                    self._fail(str(error))
                except LimitExceededError as error:
                    self._fail(f"A limit is exceeded: {error}.")
        self._job.places.checkpoints.remove_below(self._folder)
        return self._held

    # --- the stages

    def _train(self) -> None:
        trained = self._challengers()
        found = trained.found() | lineage.of(self._job, trained.origin).model_dump()
        self._advance(LOG if found["failed"] else EVALUATE, found)
        reach("retrain.trained")

    def _evaluate(self) -> None:
        job, champion = self._job, self._job.champion()
        spec, table = job.spec, job.spec.retrain.gate
        made = [self._rows(one.model) for one in self._challengers().models]
        value = float(made[0].mean())
        if champion is None:
            decision, number, theirs = gate.first(job.metric, value), None, None
        elif champion.module is None:
            number, theirs = champion.version.number, None
            decision = gate.first(job.metric, value, unknown=number)
        else:
            rows = self._rows(champion.module)
            parts = models.slices(job.workload)
            wanted = parts if table.slices is None else {key: parts[key] for key in table.slices}
            decision = gate.decide(
                table,
                job.metric,
                table.direction or spec.study.direction,
                champion=rows,
                challengers=made,
                slices=wanted,
                seed=spec.study.seed,
            )
            number, theirs = champion.version.number, float(rows.mean())
        if champion is not None:
            decision = self._unless_older(decision, champion.version)
        found = {
            "promote": decision.promote,
            "reason": decision.reason + self._omissions(),
            "champion": number,
            "values": {"champion": theirs, "challenger": value},
            "improvement": drift.interval_as_json(decision.improvement),
            "slices": {name: one.as_json() for name, one in decision.slices.items()},
        }
        self._advance(LOG, found)
        reach("retrain.evaluated")

    def _log(self) -> None:
        trained = self._challengers()
        run = self._run_of(trained)
        run_id = self._runs.log(run)
        if self._result(TRAIN)["failed"]:
            champion = self._job.registry.champion()
            number = None if champion is None else champion.number
            self._advance(LOG, {"run_id": run_id, "version": None, "champion": number})
            why = f"The challenger did not train: {self._result(TRAIN)['failed']}."
            return self._end(FAILED, why)
        content = self._model_of(trained)
        version = self._runs.register(self._job.registry, run_id, run, content)
        self._job.registry.complete_tags(version, content.tags)  # those of a second evaluation
        self._describe(run_id, version, trained)
        searched, params = self._job.spec.space.function_arguments, trained.origin.params
        own = {name: params[name] for name in searched if name in params}
        built = BuildRecord(
            factory=self._job.spec.workload.function,
            arguments={**self._job.spec.workload.arguments, **own},
            dtype=self._job.spec.training.dtype,
            code=code_digest(self._job.spec.workload.function, self._job.prefixes),
            on_bad=self._job.spec.retrain.data.on_bad,
        )
        stored = versions.as_json(content.files, built, content.features)
        self._advance(PROMOTE, {"run_id": run_id, "version": version.number, **stored})
        reach("retrain.logged")
        return None

    def _promote(self) -> None:
        registry, decision = self._job.registry, self._result(EVALUATE)
        mine = int(self._result(LOG)["version"])
        if not decision["promote"]:
            return self._end(KEPT, decision["reason"])
        champion = registry.champion()
        now = None if champion is None else champion.number
        if now != mine:
            if now != decision["champion"]:  # a rollback came between: compare with that one
                self._held = self._store.advance(self._held, EVALUATE, {})
                return None
            if why := held_back(self._job.ledger, registry.model, mine):
                return self._end(KEPT, why)
            if self._job.spec.retrain.promote == "manual":
                return self._end(PROPOSED, f"{decision['reason']} It waits for `tuner approve`.")
            if now is not None and self._job.spec.retrain.canary_hours is not None:
                return self._try(mine, self._job.spec.retrain.canary_hours)
            self._still()
            if self._store.renew([self._lease]):
                raise LeaseLost("another process has claimed the retraining; its result counts")
            registry.set_alias(CHAMPION, mine)
        reach("retrain.promoted")
        return self._end(PROMOTED, decision["reason"])

    def _try(self, mine: int, hours: float) -> None:
        """Make it the canary, unless the model has one."""
        registry, reason = self._job.registry, self._result(EVALUATE)["reason"]
        for other in self._store.canaries(registry.model):
            number = other.result[LOG]["version"]
            return self._end(
                KEPT,
                f"{reason} Recorded only: version {number}, of the key {other.run_key!r}, is the "
                "canary, and a model has one at a time.",
            )
        self._still()
        registry.set_alias(aliases.CANARY, mine)
        return self._end(
            CANARY,
            f"{reason} It is the canary for {hours:g} hours; then it is promoted, unless it is "
            "rejected before.",
        )

    def _fail(self, why: str) -> None:
        """End as failed; no run and no version are made."""
        champion = self._job.registry.champion()
        number = None if champion is None else champion.number
        if self._held.stage == TRAIN:
            origin = known(self._job).as_json()
            self._advance(LOG, {"origin": origin, "value": None, "failed": why, "retuned": None})
        if self._held.stage == EVALUATE:
            values = {"champion": None, "challenger": None}
            self._advance(
                LOG, {"promote": False, "reason": why, "champion": number, "values": values}
            )
        if self._held.stage == LOG:
            self._advance(LOG, {"run_id": None, "version": None, "champion": number})
        self._end(FAILED, why)

    # --- what they need

    def _lineage(self, trained: Challengers) -> Lineage:
        """Return the lineage of the training, of this process if the ledger has none."""
        return lineage.stored(self._result(TRAIN)) or lineage.of(self._job, trained.origin)

    def _describe(self, run_id: str, version: Version, trained: Challengers) -> None:
        """Write the page of a version, which is also its run's."""
        found, reason = self._lineage(trained), self._result(EVALUATE)["reason"]
        self._runs.describe(
            self._job.registry,
            run_id,
            version,
            lambda run, trial, own: lineage.page(
                found,
                origin=trained.origin.as_json(),
                reason=reason,
                run=run,
                trial=trial,
                version=own,
            ),
            trial_run=found.trial_run_id,
            trial_key=str(trained.origin.trial),
        )

    def _unless_older(self, decision: Decision, champion: Version) -> Decision:
        """Return a decision that keeps a champion of newer data, unless this run is forced."""
        job, made = self._job, versions.maker(self._job.ledger, champion)
        if made is None or not decision.promote or self._result(TRAIN).get("forced") or job.force:
            return decision
        theirs = run_keys.time_of(made.run_key, job.spec.retrain.key_format)
        if theirs is None or job.data_time is None or job.data_time >= theirs:
            return decision
        reason = (
            f"Recorded only: the key {job.run_key!r} is older than {made.run_key!r}, that of the "
            f"champion, version {champion.number}. {decision.reason} To promote it nevertheless, "
            "use `tuner rollback --to`, or `tuner retrain --force` with another key."
        )
        return dataclasses.replace(decision, promote=False, reason=reason)

    def _omissions(self) -> str:
        """Return a sentence about the batches that were left out, or nothing."""
        left_out = self._job.workload.left_out
        listed = "; ".join(f"{batch} ({why})" for batch, why in left_out.items())
        return f" Without bad batches: {listed}." if left_out else ""

    def _challengers(self) -> Challengers:
        """Return the challengers; after the first stage they are read from their files."""
        if self._trained is None:
            self._trained = challengers(self._job, self._folder, self._still)
        return self._trained

    def _rows(self, model: Any) -> Any:
        return models.row_values(model, self._job.workload, self._job.spec, self._job.metric)

    def _run_of(self, trained: Challengers) -> RunContent:
        job, origin, model = self._job, trained.origin, trained.models[0]
        params = {**origin.params, "log10_lr": math.log10(float(origin.params["lr"]))}
        low, high = origin.lr_range
        metrics = {"lr_low": low, "lr_high": high}
        decision = self._held.result.get(EVALUATE)
        if decision is not None:
            for who, value in decision["values"].items():
                if value is not None and math.isfinite(value):
                    metrics[f"{who}_{job.metric}"] = value
        return RunContent(
            identity=identity_of(self._held),
            name=f"{job.run_key}: retrain",
            started_at=self._held.created_at,
            ended_at=max(self._held.created_at, model.curve.last_time),
            params={key: str(value) for key, value in params.items()},
            metrics=metrics,
            tags=self._tags(trained),
            data=(job.workload.data_name, job.workload.data_digest),
            factory=job.spec.workload.function,
            lineage=(lineage.FILE, self._lineage(trained).model_dump()),
            curve=model.curve,
            status="KILLED" if self._result(TRAIN)["failed"] else "FINISHED",
        )

    def _model_of(self, trained: Challengers) -> ModelContent:
        job, module = self._job, trained.models[0].model
        example = models.example_of(job.workload, job.spec)
        outputs = models.predict(module, example)
        files = {
            WEIGHTS: models.weights_to_bytes(module),
            EXAMPLE: models.example_to_bytes(example, outputs),
        }
        tags = self._tags(trained) | {
            "tuner.outputs": models.fingerprint(outputs),
            "tuner.weights": StoredFile.of(WEIGHTS, files[WEIGHTS]).sha256,
        }
        return ModelContent(
            module=models.AnyReal(module, models.dtype_of(example)),
            example=example,
            outputs=outputs,
            features=models.features_of(job.workload, job.spec),
            files=files,
            tags=tags,
        )

    def _tags(self, trained: Challengers) -> dict[str, str]:
        """Return the tags of run and version: the origin of the model and the gate's decision."""
        job, origin = self._job, trained.origin
        tags = {
            RETRAINING: identity_of(self._held),
            "mlflow.user": events.called(person().os_user, events.login(job.ledger)),
            "tuner.run_key": job.run_key,
            "tuner.study": origin.study,
            "tuner.study_version": str(origin.version),
            "tuner.trial": str(origin.trial),
            "tuner.params": json.dumps(dict(origin.params), sort_keys=True),
            "tuner.seed": str(job.seed(0)),
            **lineage.tags(self._lineage(trained)),
        }
        decision = self._held.result.get(EVALUATE)
        if decision is None:
            return tags | {"tuner.reason": self._result(TRAIN)["failed"]}
        tags |= {"tuner.metric": job.metric, "tuner.reason": decision["reason"][:REASON_LIMIT]}
        tags |= {
            f"tuner.{who}": repr(value)
            for who, value in decision["values"].items()
            if value is not None
        }
        tags["tuner.gate"] = PROMOTED if decision["promote"] else KEPT
        if decision["promote"] and decision["champion"] is not None:
            tags[REPLACES] = str(decision["champion"])
        return tags

    # --- the ledger

    def _result(self, stage: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._held.result[stage]
        return found

    def _advance(self, stage: str, found: Mapping[str, Any]) -> None:
        self._held = self._store.advance(self._held, stage, found)

    def _end(self, outcome: str, reason: str) -> None:
        drift.show(self._runs, self._store, self._held, outcome, self._job.metric)
        ended = replace(self._held, stage=DONE, outcome=outcome, reason=reason)
        notices = result.notices(self._job.study.spec.retrain, ended)
        self._held = self._store.end(self._held, outcome, reason, notices)
        reach("retrain.ended")

    def _still(self) -> None:
        """Raise if the lease is lost or this process is asked to stop."""
        if not self._renewer.holds(self._lease):
            raise LeaseLost(
                f"the retraining {self._held.run_key!r} was given up for lost; another has it"
            )
        if self._stop.is_set():
            raise KeyboardInterrupt

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Renew the lease while the body runs; release it when the body raises."""
        with self._renewer.holding(self._lease):
            try:
                yield
            except BaseException:
                self._store.release(self._held)
                raise


def held_back(ledger: Reader, model: str, version: int) -> str | None:
    """Return why a version may not become the champion: a person has rolled back from it."""
    event = events.rolled_back(ledger, model).get(version)
    if event is None:
        return None
    why = f": {event.reason}" if event.reason else "."
    return (
        f"Version {version} was rolled back by {event.who} at {run_key(event.happened_at)}{why} "
        f"`tuner rollback {event.study} --to {version}` makes it the champion again."
    )


def identity_of(held: Retraining) -> str:
    """Return a name of a retraining that is unique among the ledgers that one MLflow serves."""
    whole = f"{held.id} {held.study} {held.run_key} {held.created_at!r}"
    return hashlib.sha256(whole.encode()).hexdigest()[:32]
