"""One fault after the other: a study with it, what is left of that, and the table of all."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos import checker
from chaos.checker import Findings
from chaos.faults import Fault, NotFiredError, fill
from chaos.stack import Stack, small_disk
from tuner.core.failpoints import PLACES

HEADER = (
    "| fault | trainer | fired | lost | doubled | stuck | missing | wrong | over budget | "
    "recovery, s |\n|---|---|---|---|---|---|---|---|---|---|"
)


NOTHING = Findings()
DELETIONS_PLACES = [place for place in PLACES if place.startswith("delete.")]
UPGRADES_PLACE = "upgrade.before_ours"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table."""

    what: str
    trainer: str
    fired: str
    findings: Findings = NOTHING
    recovery: float | None = None  # seconds
    failed: bool = False  # it could not be done as it should

    def __str__(self) -> str:
        found = self.findings
        counts = (found.lost, found.doubled, found.stuck, found.missing, found.wrong, found.overrun)
        recovery = "" if self.recovery is None else f"{self.recovery:.1f}"
        return (
            f"| {' | '.join([self.what, self.trainer, self.fired, *map(str, counts), recovery])} |"
        )


def calm(stack: Stack, trainer: str) -> Row:
    """Let nothing happen: the study that all others are compared with, judged by itself."""
    name = f"calm {trainer}"
    stack.fill()
    stack.submit(name, trainer)
    stack.until(lambda: stack.is_done(name), "the undisturbed study")
    whole, findings = stack.judge(name, trainer)
    seen = f"{whole.rows.total()} numbers in the ledger, {whole.points.total()} in MLflow"
    return Row(what="none", trainer=trainer, fired=seen, findings=findings)


def disturbed(stack: Stack, fault: Fault) -> Row:
    """Do one fault in the middle of a study, let it end, and judge it."""
    name = f"{fault.what} {fault.trainer}"
    stack.fill()
    with stack.slow():
        stack.submit(name, fault.trainer)
        stack.until(lambda: stack.trained(name) > 0, "some steps")
        seen = fault.do(stack, name)
        stack.fill()
    ended = time.monotonic()
    stack.until(_moves_again(stack, name), "everything to go on")
    recovery = time.monotonic() - ended
    stack.until(lambda: stack.is_done(name), f"the end of {name}")
    _, findings = stack.judge(name, fault.trainer)
    return Row(
        what=fault.what, trainer=fault.trainer, fired=seen, findings=findings, recovery=recovery
    )


def _moves_again(stack: Stack, name: str) -> Callable[[], bool]:
    """Tell once each trial that runs now has more steps or has ended, and MLflow has more too."""
    running = stack.running(name)
    points = stack.points(name)

    def moves() -> bool:
        now = stack.running(name)
        trains = all(
            steps > running.get(number, -1) for number, steps in now.items() if number in running
        )
        return trains and (stack.points(name) > points or stack.is_done(name))

    return moves


def deleted(stack: Stack, name: str, action: str) -> Row:
    """Break the deletion of a study at each of its failpoints, then delete it."""
    log = stack.folder / "delete.fired"
    for place in DELETIONS_PLACES:
        armed = {"TUNER_FAILPOINTS": f"{place}={action}", "TUNER_FAILPOINTS_LOG": str(log)}
        code = stack.tuner("delete", name, "--yes", "--force", **armed)
        if code == 0:
            raise NotFiredError(f"delete went through {place}")
    assert stack.tuner("delete", name, "--yes") == 0
    with checker.postgresql(stack.url) as ask:
        findings = checker.remains(ask, name)
    seen = f"{len(log.read_text().splitlines())} of {len(DELETIONS_PLACES)} places"
    return Row(
        what=f"{action} at each failpoint of a deletion", trainer="", fired=seen, findings=findings
    )


def upgraded(stack: Stack, *, at_once: int = 10) -> Row:
    """Kill `tuner db upgrade` in the middle, then start it many times at once."""
    log = stack.folder / "upgrade.fired"
    place = UPGRADES_PLACE
    url = stack.cluster.database()
    armed = {"TUNER_FAILPOINTS": f"{place}=kill", "TUNER_FAILPOINTS_LOG": str(log)}
    there_alone = {"TUNER_DATABASE_URL": url, "MLFLOW_TRACKING_URI": ""}  # MLflow's tables too
    code = stack.tuner("db", "upgrade", **there_alone, **armed)
    if code != -signal.SIGKILL or place not in log.read_text():
        raise NotFiredError(f"the upgrade went through {place} with exit code {code}")
    starts = [stack.begin("db", "upgrade", **there_alone) for _ in range(at_once)]
    codes = [one.wait(600) for one in starts]
    query = (
        "SELECT table_schema, table_name, column_name FROM information_schema.columns "
        "WHERE table_schema IN ('public', 'tuner', 'mlflow')"
    )
    with checker.postgresql(url) as here, checker.postgresql(stack.url) as there:
        differing = set(here(query)) ^ set(there(query))
    return Row(
        what=f"{at_once} `db upgrade` at once, after one was killed",
        trainer="",
        fired=f"{place}; {codes.count(0)} of {len(codes)} with exit code 0",
        findings=Findings(wrong=len(differing) + len(codes) - codes.count(0)),
    )


# --- on SQLite, in folders of their own


def ten_first_starts(stack: Stack, trainer: str = "reference") -> Row:
    """Start `tuner run` ten times at once where there is nothing at all."""
    folder = stack.folder / "first"
    folder.mkdir()
    name = "first"
    file = stack.write(name, trainer).rename(folder / "study.toml")
    runs = [stack.alone(folder, "run", file.name) for _ in range(10)]
    codes = [run.wait(900) for run in runs]
    findings = _judge_files(stack, folder, name, trainer)
    return Row(
        what="ten first starts at once (SQLite)", trainer=trainer,
        fired=f"{codes.count(0)} of {len(codes)} ended with exit code 0", findings=findings,
    )  # fmt: skip


def full_sqlite(stack: Stack, trainer: str = "cohort") -> Row:
    """Leave no room for SQLite's files in the middle of a study; then make room, and go on."""
    name = "full"
    with small_disk(stack.folder / "full", 48) as folder:
        shutil.move(stack.write(name, trainer), folder / "study.toml")
        (folder / "slow").touch()
        run = stack.alone(folder, "run", "study.toml")
        stack.until(lambda: _trained(folder) > 100 or run.poll() is not None, "some steps")
        ballast = folder / "ballast"
        fill(ballast)
        stack.until(lambda: run.poll() is not None, "the end of what has no room")
        ballast.unlink()
        (folder / "slow").unlink()
        if run.returncode != 4:
            raise NotFiredError(f"expected exit code 4 of a run without room, got {run.returncode}")
        began = time.monotonic()
        steps = _trained(folder)
        again = stack.alone(folder, "run", "study.toml")
        stack.until(lambda: _trained(folder) > steps, "more steps")
        recovery = time.monotonic() - began
        assert again.wait(900) == 0, f"see {folder}.log"
        findings = _judge_files(stack, folder, name, trainer)
    return Row(
        what="disk full (SQLite)", trainer=trainer, fired="exit code 4, then `run` again",
        findings=findings, recovery=recovery,
    )  # fmt: skip


def _trained(folder: Path) -> int:
    try:
        with checker.sqlite(folder) as ask:
            return int(ask("SELECT sum(steps) FROM tuner.tuner_trials")[0][0] or 0)
    except checker.sqlite3.OperationalError:  # no tables yet
        return 0


def _judge_files(stack: Stack, folder: Path, name: str, trainer: str) -> Findings:
    with checker.sqlite(folder) as ask:
        found = checker.read(ask, name)
    assert found is not None
    return checker.compare(found, stack.whole[trainer])
