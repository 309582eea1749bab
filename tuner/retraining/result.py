"""The result of a retraining, as `tuner retrain --json` prints it, and its notifications."""

from __future__ import annotations

import uuid
from typing import Any

from tuner.config import RetrainTable
from tuner.ledger import Retraining
from tuner.ledger.notifications import Notice
from tuner.ledger.retrainings import EVALUATE, LOG, PROMOTED, TRAIN
from tuner.observability import notify

REFUSED, ROLLED_BACK = "refused", "rolled_back"
"""What notifications are of beside outcomes: a call was refused before anything was trained; a
person has made an earlier version the champion."""


def as_json(ended: Retraining) -> dict[str, Any]:
    """Return what `tuner retrain --json` prints."""
    decision, logged = ended.result.get(EVALUATE, {}), ended.result[LOG]
    stayed = decision.get("champion", logged.get("champion"))
    return {
        "study": ended.study,
        "run_key": ended.run_key,
        "outcome": ended.outcome,
        "reason": ended.reason,
        "model": ended.model,
        "version": logged["version"],
        "champion_version": logged["version"] if ended.outcome == PROMOTED else stayed,
        "metrics": decision.get("values", {"champion": None, "challenger": None}),
        "run_id": logged["run_id"],
        "left_out": ended.result[TRAIN].get("left_out", {}),
        "changed": [],
    }


def notices(table: RetrainTable, ended: Retraining) -> list[Notice]:
    """Return the notifications of how a retraining ended."""
    return notify.notices(
        table.notify,
        on=str(ended.outcome),
        event=f"retraining {ended.study} {ended.run_key} {ended.created_at!r} {ended.outcome}",
        study=ended.study,
        title=f"{ended.model}: {ended.outcome} ({ended.run_key})",
        content=as_json(ended),
    )


def rollback(
    table: RetrainTable,
    study: str,
    model: str,
    was: int | None,
    now: int,
    who: str,
    reason: str | None,
) -> list[Notice]:
    """Return the notifications of a rollback."""
    why = f": {reason.strip()}" if reason else "."
    sentence = f"{who} has made version {now} of {model!r} the champion again{why}"
    about = {"study": study, "outcome": ROLLED_BACK, "reason": sentence, "model": model}
    return notify.notices(
        table.notify,
        on=ROLLED_BACK,
        event=f"rollback {uuid.uuid4()}",
        study=study,
        title=f"{model}: rolled back to version {now}",
        content=about | {"was": was, "champion_version": now},
    )


def refusal(table: RetrainTable, study: str, run_key: str, reason: str) -> list[Notice]:
    """Return the notifications of a call that was refused; a repeated call adds none."""
    about = {"study": study, "run_key": run_key, "outcome": REFUSED, "reason": reason}
    return notify.notices(
        table.notify,
        on=REFUSED,
        event=f"refused {study} {run_key} {reason}",
        study=study,
        title=f"{study}: refused ({run_key})",
        content=about,
    )
