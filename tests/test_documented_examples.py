"""Every example of the documentation is published in a way that `doctor` finds whole."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from processes import prepare

from tuner.config import reading
from tuner.core.outcome import FAILED
from tuner.ledger import Ledger, database
from tuner.operations import doctor, submit
from tuner.tracking.recorder import record
from tuner.worker import work

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PREFIXES = ("studies.", "mine.")
SHORT = (
    "training.steps=8",
    "training.evaluate_every=4",
    "search.pruner='none'",
    "budget.trials=1",
)
BY_EPOCHS = ("training.epochs=1", "training.evaluate_every=1", *SHORT[2:])
"""What makes an example quick; what it trains, and on which data, stays as documented."""


def loop_of_the_document(folder: Path) -> Path:
    """Write the module and the study file that `docs/own_loop.md` shows; return the file."""
    text = (ROOT / "docs" / "own_loop.md").read_text()
    code, study = (
        re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)[0] for kind in ("python", "toml")
    )
    (folder / "mine").mkdir()
    (folder / "mine" / "spirals.py").write_text(code)
    (folder / "spirals.toml").write_text(study)
    return folder / "spirals.toml"


@pytest.mark.thorough
def test_doctor_finds_every_example_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = database.addresses({}, prepare(tmp_path))
    ledger = Ledger(database.ledger_engine(places.ledger))
    monkeypatch.syspath_prepend(str(tmp_path))
    examples = sorted((ROOT / "studies").glob("*.toml"))
    for file in (*examples, loop_of_the_document(tmp_path)):
        by_epochs = reading.load(file).unit == "epochs"
        short = BY_EPOCHS if by_epochs else SHORT
        if reading.load(file).workload.factory:  # one trial needs no measurement of what many gain
            short = (*short, "training.trainer='reference'")
        spec = reading.load(file, short)
        submit.submit(ledger, spec, submit.prepare(spec, PREFIXES).description)
    stop = threading.Event()
    work(ledger, places, names=[], prefixes=PREFIXES, stop=stop, until_idle=True)
    stop.set()
    record(ledger.engine, places, names=[], closing=stop)
    studies = ledger.studies()
    assert len(studies) == len(examples) + 1
    for study in studies:
        counts = ledger.counts(study.id)
        assert (sum(counts.values()), counts[FAILED]) == (1, 0), study.name
    assert ledger.study("spirals").workload["data"] == "", "an example without a data digest"
    assert doctor.examine(ledger.engine, places) == []
    ledger.engine.dispose()
