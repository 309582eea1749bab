"""Break the code in known ways, one at a time, and see whether the tests notice.

    make mutants            # or: python tests/mutants.py [WORD ...], those with a word in area or text

Each mutant is a text of the package, found wherever it stands (it must stand there once), and what
takes its place. It is put into a copy of the package, where the tests of its area run. A mutant that
survives is a gap in the tests; one whose text is gone has to be written anew here.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("tuner", "tests", "studies", "benchmarks", "docs", "pyproject.toml", "README.md")
QUICK = ("-m", "not slow and not nightly")
AREAS = {
    "ledger": ("test_ledger.py", *QUICK),
    "search": (
        "test_search.py",
        "test_custom_samplers.py",
        "test_pruners.py",
        "test_versions.py",
        *QUICK,
    ),
    "samplers": ("test_samplers.py", *QUICK),
    "guard": ("test_guard.py", *QUICK),
    "schedules": ("test_schedules.py", *QUICK),
    "reference": ("test_reference.py", "test_options.py", *QUICK),
    "cohort": ("test_cohort.py", "test_cohort_company.py", *QUICK),
    "judging": ("test_judging.py", "test_branches.py", *QUICK),
    "racing": ("test_racing.py", *QUICK),
    # they are slow, for they have MLflow's tables, but start no process
    "recorder": (
        "test_bulk.py",
        "test_recorder_service.py",
        "test_recorder.py",
        "-m",
        "not nightly",
        "-k",
        "sqlite or comes_after or evaluation_counts or in_motion",
    ),
}
"""What runs for the mutants of an area: files of tests, and options of pytest."""


@dataclass(frozen=True)
class Mutant:
    """One way to break the code."""

    area: str
    old: str
    new: str


MUTANTS = [
    Mutant("ledger", "room = min(most - len(old), study.limit - study.reserved)",
           "room = min(most - len(old), study.limit - study.reserved + 1)"),
    Mutant("ledger", "tuple_(self.id, self.token).in_(list(by_token)),", ""),
    Mutant("ledger", "tuple_(self.id, self.token).in_(list(by_token)),\n                self.live,\n",
           "tuple_(self.id, self.token).in_(list(by_token)),\n"),
    Mutant("ledger", "fresh = entry.chunk.after(before.steps, ", "fresh = entry.chunk.after(0, "),
    Mutant("ledger", "values(revision=studies.c.revision + 1)", "values(revision=studies.c.revision)"),
    Mutant("ledger", "if lost > getattr(allowed, ending):", "if lost >= getattr(allowed, ending):"),
    Mutant("ledger", "checkpoints.c.trial_id.in_(trial_ids) & committed",
           "checkpoints.c.trial_id.in_(trial_ids)"),
    Mutant("ledger", "if trial.study in reasons and trial.state == RUNNING:",
           "if trial.study in reasons:"),
    Mutant("ledger", "return and_(self.expires_at < at, database_start()",
           "return and_(self.expires_at < at + 60, database_start()"),
    Mutant("search", "ahead < max(int((others + 1) * self._continuing), 1):",
           "ahead <= max(int((others + 1) * self._continuing), 1):"),
    Mutant("search", "ahead = values.above(value) if self._maximize else values.below(value)",
           "ahead = values.below(value)"),
    Mutant("search", "return ahead, len(values) - 1", "return ahead, len(values)"),
    Mutant("search", "with self._rankings.with_reports(group):", "if True:"),
    Mutant("search", "                assume(drawn, self._storage.study_attrs)\n", ""),
    Mutant("search", "known is not None:\n            self._put(number, _Known(known.bracket, {}, {}))",
           "known is not None:\n            self._put(number, known)"),
    Mutant("search", "cells.cell(cells.untried(index, tried))", "cells.cell(index)"),
    Mutant("samplers", "    def _find_sample_id(self, study: Study, search_space: dict[str, "
                       "BaseDistribution]) -> int:\n        return self._index",
           "    def _find_sample_id(self, study: Study, search_space: dict[str, "
           "BaseDistribution]) -> int:\n        return self._index + 1"),
    Mutant("guard", "finite = np.isfinite(loss) & np.isfinite(grad_norm)", "finite = np.isfinite(loss)"),
    Mutant("guard", "warm = suspect & (at >= warmup)", "warm = suspect"),
    Mutant("guard", "late = whole & (at >= settings.late * horizon)", "late = whole"),
    Mutant("guard", "lowest=np.minimum(state.lowest, losses.min(axis=1, initial=np.inf)),",
           "lowest=state.lowest,"),
    Mutant("guard", "steady: np.ndarray = rises.min(axis=1) >= STEADY * np.abs(rises).max(axis=1)",
           "steady: np.ndarray = rises.min(axis=1) >= -np.inf"),
    Mutant("schedules", "return risen * _anneal(1.0, _real(final), _share(done, total))",
           "return risen * _anneal(1.0, _real(final), _share(done + 1, total))"),
    Mutant("schedules", "happened = (done * (_whole(drops) + 1)) // total",
           "happened = (done * _whole(drops)) // total"),
    Mutant("reference", 'member.rate_source.restore(state["pace"])', "pass"),
    Mutant("reference", 'member.random = state["random"]', "pass"),
    Mutant("reference", "step < rung < last), default=last)", "step < rung < last - 1), default=last)"),
    Mutant("reference", "part = self._workload.forwarded(member.model, own)[0] * share",
           "part = self._workload.forwarded(member.model, own)[0]"),
    Mutant("cohort", "segment.rates += member.rate_source.rates(member.step, seen)",
           "segment.rates += member.rate_source.rates(member.step + 1, seen)"),
    Mutant("cohort", "segment.stopped_step = member.step + seen - 1",
           "segment.stopped_step = member.step + seen"),
    Mutant("cohort", "count = min(left, TOGETHER, *(self._until_evaluation(m) for m in running))",
           "count = min(left, TOGETHER)"),
    Mutant("recorder", "if self._published.get(mark.study_id) == mark:",
           "if mark.study_id in self._published:"),
    Mutant("recorder", "elif due is Due.NOW or waiting:", "elif due is Due.NOW:"),
    Mutant("recorder", ".values(external_id=external_id, revision=revision)",
           ".values(external_id=external_id)"),
    Mutant("recorder", "chunk.eval_times, last + 1)", "chunk.eval_times, last)"),
    Mutant("judging", "return (BY_BRANCH if branches else BY_RAW_VALUE)[self.economy]",
           "return BY_BRANCH[self.economy]"),
    Mutant("judging", "return [rates[len(rates) * (2 * j + 1) // (2 * steps)] for j in range(steps)]",
           "return list(rates[:steps])"),
    Mutant("judging", "stopped -= {t.number for t in known if self._leads(t, completed)} | {default}",
           "pass"),
    Mutant("racing", "return tuple(one for one, bound in self.bounds.items() if bound <= margin)",
           "return tuple(one for one, bound in self.bounds.items() if bound <= 2 * margin)"),
    Mutant("racing", "spread.interval(table[one] - table[other])",
           "spread.interval(table[other] - table[one])"),
]  # fmt: skip


def _test(folder: Path, arguments: list[str]) -> int:
    """Run tests in a copy of the package, in a process that has not imported it."""
    os.chdir(folder)
    with (folder / "log").open("w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    package = str(importlib.import_module("tuner").__file__)
    assert package.startswith(str(folder)), package
    imported = "-Wignore::pytest.PytestAssertRewriteWarning"  # what has been imported already
    return int(pytest.main(["-xq", "-n0", "-pno:cacheprovider", imported, *arguments]))


def run(folder: Path, area: str) -> int:
    """Run the tests of an area in a copy; return pytest's exit code."""
    names = [name for name in AREAS[area] if name.endswith(".py")]
    options = [name for name in AREAS[area] if name not in names]
    files = [f"tests/{name}" for name in names]
    pid = os.fork()  # of a process that has imported the libraries, and nothing of the package
    if pid == 0:
        try:
            code = _test(folder, [*options, *files])
        except BaseException:
            traceback.print_exc()
            code = 3
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(words: list[str]) -> int:
    """Try the mutants; return 1 when one survives or cannot be made."""
    for library in ("torch._dynamo", "mlflow", "optuna", "playwright.sync_api"):
        importlib.import_module(library)
    chosen = [
        one for one in MUTANTS if not words or any(word in one.area + one.old for word in words)
    ]
    ended = {"killed": 0, "SURVIVED": 0, "NOT FOUND": 0}
    with tempfile.TemporaryDirectory(prefix="tuner-mutants-") as name:
        folder = Path(name)
        for part in COPIED:
            copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copied(ROOT / part, folder / part)
        for area in dict.fromkeys(one.area for one in chosen):
            if run(folder, area):
                sys.exit(f"the tests of {area} fail as it is:\n{(folder / 'log').read_text()}")
        for time, mutant in enumerate(chosen):
            found = [
                path
                for path in sorted((folder / "tuner").rglob("*.py"))
                if mutant.old in path.read_text()
            ]
            result, where = "NOT FOUND", ""
            if len(found) == 1 and (text := found[0].read_text()).count(mutant.old) == 1:
                where = str(found[0].relative_to(folder))
                found[0].write_text(text.replace(mutant.old, mutant.new))
                os.utime(found[0], (time, time))  # else bytecode of the same second would serve
                result = "killed" if run(folder, mutant.area) == 1 else "SURVIVED"
                found[0].write_text(text)
            ended[result] += 1
            print(
                f"{result:9} {mutant.area:9} {where}: {mutant.old.strip().splitlines()[0]}",
                flush=True,
            )
    print(", ".join(f"{count} {result.lower()}" for result, count in ended.items()))
    return int(ended["killed"] < len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
