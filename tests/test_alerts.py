"""Each rule of deploy/alerts.yml fires when it should and not otherwise, by Prometheus itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parents[1] / "deploy" / "alerts.yml"
RULES = {rule["alert"]: rule for rule in yaml.safe_load(FILE.read_text())["groups"][0]["rules"]}
HERE = 'job="tuner", instance="a"'
AT = {"job": "tuner", "instance": "a"}
CASES: dict[str, tuple[str, str, str, dict[str, str]]] = {
    # a series; its values each minute when the alert fires after an hour, and when it does not;
    # the alert's labels
    "TunerServiceDown": (f"up{{{HERE}}}", "1x56 0x4", "1x56 0 1x4", AT),
    "TunerCrashLoop": (
        f"process_start_time_seconds{{{HERE}}}",
        "0x40 41 41 45 45 48 48 51 51 55x9",
        "0x50 51x9",
        AT,
    ),
    "TunerLoopStuck": (
        f'tuner_loop_turned_timestamp_seconds{{{HERE}, loop="worker"}}',
        "0+60x48 2880x12",
        "0+60x60",
        {**AT, "loop": "worker"},
    ),
    "TunerLoopErrors": (
        f'tuner_loop_errors_total{{{HERE}, loop="leases"}}',
        "0x40 1x20",
        "3x60",
        {},
    ),
    "TunerDatabaseAway": (f"tuner_database_up{{{HERE}}}", "1x56 0x4", "1x60", {}),
    "TunerTargetAway": (
        f'tuner_outage{{{HERE}, target="mlflow"}}',
        "0x44 1x16",
        "0x50 1x10",
        {"target": "mlflow"},
    ),
    "TunerPublishingBehind": (
        f'tuner_unpublished_seconds{{{HERE}, target="mlflow"}}',
        "0x27 0+60x33",
        "1790x60",  # one trial after the other waits, none of them for long
        {"target": "mlflow"},
    ),
    "TunerNobodyReaps": (f"tuner_leases_expired{{{HERE}}}", "0x48 1x12", "0x55 1x5", {}),
    "TunerNobodyTrains": (f"tuner_studies_unattended{{{HERE}}}", "0x59 1", "0x60", {}),
    "TunerWorkersLost": (
        f"tuner_attempts_reaped_total{{{HERE}}}",
        "0x30 7x30",
        "0x30 4x30",
        {},
    ),
    "TunerLeasesLost": (f"tuner_leases_lost_total{{{HERE}}}", "0x30 1x30", "2x60", {}),
    "TunerTrialsFail": (
        f'tuner_trials{{{HERE}, state="failed"}}',
        "0x30 4x30",  # from zero on
        "40x30 42x30",
        {},
    ),
    "TunerSpills": (f"tuner_chunks_spilled_total{{{HERE}}}", "0x30 1x30", "2x60", {}),
    "TunerRetrainingOverdue": (f"tuner_retrainings_overdue{{{HERE}}}", "0x59 1", "0x60", {}),
    "TunerNotificationsFail": (
        f'tuner_notifications_unsent{{{HERE}, state="waiting"}}',
        "0x40 1x20",
        "0x50 1x10",
        {"state": "waiting"},
    ),
}


def asked(alert: str, values: str, labels: dict[str, str] | None) -> dict[str, Any]:
    """Return a test of promtool: which alert there is after an hour."""
    severity = RULES[alert]["labels"]
    fired = [] if labels is None else [{"exp_labels": {**severity, **labels}}]
    return {
        "name": f"{alert} {'fires' if fired else 'is silent'}",
        "interval": "1m",
        "input_series": [{"series": CASES[alert][0], "values": values}],
        "alert_rule_test": [{"eval_time": "60m", "alertname": alert, "exp_alerts": fired}],
    }


def test_every_rule_has_a_case():
    assert set(CASES) == set(RULES)


@pytest.mark.slow
def test_every_rule_fires_when_it_should_and_not_otherwise(tmp_path):
    beside = Path(sys.executable).with_name("promtool")
    promtool = shutil.which("promtool") or (str(beside) if beside.exists() else None)
    assert promtool, "no promtool: expected that of Debian's package prometheus (make test)"
    tests = [
        asked(alert, values, about)
        for alert, (_, fires, silent, labels) in CASES.items()
        for values, about in ((fires, labels), (silent, None))
    ]
    content = {"rule_files": [str(FILE)], "evaluation_interval": "1m", "tests": tests}
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
