"""What `make chaos` has measured, one row a line of a file: a table need not be made in one go."""

from __future__ import annotations

import fcntl
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chaos.checker import Findings
from chaos.scenarios import HEADER, Row

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks" / "results" / "chaos.jsonl"


def keep(step: str, row: Row, file: Path = FILE) -> None:
    """Keep what was measured last of a step, and when, and of which commit."""
    about = {"step": step, "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": _commit()}
    with file.open("a") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)  # others may be measuring other steps
        kept = _read(file) | {step: about | asdict(row)}
        lines.truncate(0)
        lines.writelines(json.dumps(one) + "\n" for one in kept.values())


def table(steps: Sequence[str], file: Path = FILE) -> str:
    """Give the table of all steps, with what was measured last, and say what was not."""
    kept = _read(file)
    there = [kept[step] for step in steps if step in kept]
    lacking = [step for step in steps if step not in kept]
    dates, commits = ({one[key]: None for one in there} for key in ("date", "commit"))
    measured = f"Measured on {', '.join(dates)}, at {', '.join(commits)}."
    said = f"{measured} Not measured: {', '.join(lacking)}." if lacking else measured
    return "\n".join([HEADER, *(str(_row(one)) for one in there), "", said])


def _read(file: Path) -> dict[str, dict[str, Any]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {one["step"]: one for one in map(json.loads, lines)}


def _row(kept: dict[str, Any]) -> Row:
    fields = {key: kept[key] for key in Row.__dataclass_fields__}
    return Row(**fields | {"findings": Findings(**kept["findings"])})


def _commit() -> str:
    """Name the commit that is checked out, and say so if the code is not that commit's."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", "tuner", "tests")
    return f"{commit}, changed" if changed else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "no commit"
