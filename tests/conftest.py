"""What many tests start from: addresses in an empty folder, and a fresh ledger there."""

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

from tuner import storage
from tuner.ledger import Ledger
from tuner.storage import Addresses

# The machine may be busy, and a counter-example must not depend on that.
settings.register_profile("tuner", deadline=None)
settings.load_profile("tuner")


@pytest.fixture
def places(tmp_path: Path) -> Addresses:
    """Addresses in an empty folder; there is no database yet."""
    return storage.addresses({}, tmp_path)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of this version, to be copied: making one takes half a second."""
    places = storage.addresses({}, tmp_path_factory.mktemp("template"))
    storage.upgrade_ledger(places)
    return Path(places.lock.with_suffix(""))


@pytest.fixture
def ledger(places: Addresses, template: Path) -> Ledger:
    """A fresh ledger at `places`."""
    shutil.copy(template, places.lock.with_suffix(""))
    return Ledger(storage.ledger_engine(places.ledger))


@pytest.fixture(scope="session")
def new_ledger(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Callable[[], Ledger]:
    """Make a fresh ledger as often as it is called, for tests that Hypothesis repeats."""
    folder, numbers = tmp_path_factory.mktemp("ledgers"), count()

    def make() -> Ledger:
        file = folder / f"{next(numbers)}.db"
        shutil.copy(template, file)
        return Ledger(storage.ledger_engine(f"sqlite:///{file}"))

    return make
