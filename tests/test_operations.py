"""docs/operations.md: its alerts are about metrics that there are, and its backup restores."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from postgres import binaries
from processes import STUDY, end, until, write_study
from prometheus_client.parser import text_string_to_metric_families
from team import Team, team

from tuner.ledger import Ledger
from tuner.observability import metrics, serving

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "operations.md").read_text()
RULES = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"][0]["rules"]
FUNCTIONS = {
    "time",
    "max",
    "min",
    "sum",
    "by",
    "increase",
    "min_over_time",
    "delta",
    "changes",
}  # of PromQL


def names(ledger: Ledger) -> set[str]:
    """Give the metrics that a scrape has, and those that come with their first event."""
    counts = serving.LedgerCollector(ledger.engine)
    found = {sample.name for family in counts.collect() for sample in family.samples}
    for family in metrics.REGISTRY.collect():
        found |= {f"{family.name}_total"} if family.type == "counter" else {family.name}
    return found | {"tuner_trials", "tuner_studies"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_about_metrics_that_there_are(rule, ledger):
    words = set(re.findall(r"[a-z_]{2,}", re.sub(r"\{[^}]*\}|\"[^\"]*\"", "", rule["expr"])))
    assert set(rule) <= {"alert", "expr", "for", "labels"}
    asked = words - FUNCTIONS - {"target", "state"}
    assert asked
    assert asked <= names(ledger) | {"up"}


def test_every_alert_and_every_metric_has_its_line_and_no_other():
    alerts = re.findall(r"^\| `(Tuner\w+)` \|", TEXT, re.MULTILINE)
    assert alerts == [rule["alert"] for rule in RULES]
    tables = re.findall(r"\| metric \|.*?\n\n", TEXT, re.DOTALL)
    described = set(re.findall(r"`(tuner_\w+)", "".join(tables)))
    code = "".join(
        (ROOT / "tuner" / "observability" / file).read_text()
        for file in ("metrics.py", "serving.py")
    )
    counters = set(re.findall(r'Counter\(\s*"(tuner_\w+)"', code))
    gauges = set(re.findall(r'(?:Gauge|_gauge|GaugeMetricFamily)\(\s*"(tuner_\w+)"', code))
    assert described == {f"{name}_total" for name in counters} | gauges - {"tuner_build_info"}


def test_what_a_scrape_says_is_what_prometheus_reads(ledger, places):
    from prometheus_client import generate_latest

    with serving.serving(0, "127.0.0.1", ledger.engine, places):
        body = generate_latest(metrics.REGISTRY).decode()
    assert len({family.name for family in text_string_to_metric_families(body)}) > 10


def test_sizes_are_those_that_were_measured():
    measured = {
        name: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for name in ("storing", "workers", "joining-postgresql", "publishing")
    }
    size = TEXT.partition("## Size")[2]
    stored = measured["storing"]["kilobytes a trial"]
    assert re.findall(r"^\| (\d+) \| (\S+) \| (\S+) \| (\S+) \|$", size, re.MULTILINE) == [
        (steps, *(str(of[schema]) for schema in ("tuner", "public", "mlflow")))
        for steps, of in stored.items()
    ]
    a_point = 1000 * stored["200"]["mlflow"] / (200 * measured["storing"]["metrics"])
    assert f"{round(a_point, -2):.0f} bytes a point" in size
    assert f"{1e4 * sum(stored['200'].values()) / 1e6:.1f} GB" in size
    workers = measured["workers"]
    rates = [workers[f"0 s, {n} workers"]["tuner"] for n in (1, 2, 16)]
    alone, two, sixteen = (f"{rate:.0f}" for rate in rates)
    flat = " ".join(size.split())
    assert f"{workers['memory, MB']['tuner']['uss']:.0f} MB of its own" in flat
    assert f"{measured['joining-postgresql']['tuner']['memory, MB']['median']:.0f} MB for a" in flat
    assert f"{alone} trials a second with one worker, {two} with two, and {sixteen} with 16" in flat
    assert f"{workers['0.1 s, 16 workers']['tuner']:.1f} with 16" in flat
    published = measured["publishing"]
    for way, said in (("bulk", "in {:.1f} ms where"), ("public", "and in {:.0f} through")):
        assert said.format(published[f"mlflow: {way}, wall ms a trial"]["median"]) in flat


# --- back up and restore

SLOW = STUDY.replace(
    'factory = "tests.workloads:noisy"',
    'factory = "tests.workloads:noisy"\narguments = { step_seconds = 0.005 }',
).replace("checkpoint_seconds = 0.001", "checkpoint_seconds = 0.1")
CALM = {"trials": "5", "steps": "150", "sampler": '"random"', "pruner": '"none"'}


def documented(program: str) -> list[str]:
    """Give the options that the page gives a program, but for whom to connect as."""
    (line, *_) = re.findall(rf"\b{program} (--.*)$", TEXT, re.MULTILINE)
    options = [word for word in line.split() if word.startswith("--")]
    return [one for one in options if not one.startswith(("--username", "--dbname"))]


@pytest.mark.slow
@pytest.mark.thorough
def test_a_backup_under_load_restores(tmp_path, cluster):
    """Dumped while two workers train, dropped, restored: whole, and every curve as undisturbed."""
    url = cluster.database(cluster.migrated)
    with team(tmp_path, cluster, url, TUNER_LEASE_SECONDS="2") as here:
        submit(here, SLOW)
        workers = [here.start("worker") for _ in range(2)]
        until(lambda: ended(here) >= 2, "two trials")
        dump = tmp_path / "tuning.dump"
        run("pg_dump", *documented("pg_dump"), f"--file={dump}", f"--dbname={url}")
        at_dump = ended(here)
        until(lambda: ended(here) == 5, "the workers, to go on")
        for worker in workers:
            worker.terminate()
            end(worker)
        cluster.execute(f"DROP DATABASE {here.database} WITH (FORCE)")
        cluster.execute(f"CREATE DATABASE {here.database}")
        run("pg_restore", *documented("pg_restore"), f"--dbname={url}", str(dump))
        assert 2 <= at_dump < 5
        assert ended(here) < 5, "the dump is of a moment when they trained"
        lines = here.tuner("doctor", "--repair").out.splitlines()
        found = list(takewhile(lambda line: "verything" not in line, lines))
        assert all(one.startswith("checkpoint: ") or one.endswith("(repaired)") for one in found)
        assert here.tuner("worker", "--until-idle").code == 0
        here.assert_whole("small", 5)
        restored = here.curves("small")
        submit(here, SLOW.replace('"small"', '"calm"'))
        assert here.tuner("worker", "--until-idle").code == 0
        assert here.curves("calm") == restored


def submit(here: Team, study: str) -> None:
    write_study(here.folder, study, **CALM)
    done = here.tuner("submit", "study.toml")
    assert done.code == 0, done.err


def ended(here: Team) -> int:
    query = "SELECT count(*) FROM tuner.tuner_trials WHERE state <> 'running'"
    return int(here.rows(query)[0][0])


def run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [binaries() / program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
