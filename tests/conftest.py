"""What many tests start from: addresses in an empty folder, and a fresh ledger there.

`processes` imports torch and MLflow, five seconds: not here, as the process that only hands tests
to others reads this too.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

# before they are imported, so that their assertions say what they compared too
pytest.register_assert_rewrite(
    "browser",
    "cohorts",
    "compose",
    "helpers",
    "pipeline",
    "pooler",
    "postgres",
    "processes",
    "team",
)

import browser as chromium
import postgres as real
import warm
from hypothesis import settings
from playwright.sync_api import Browser

from tuner.core import failpoints, startup
from tuner.ledger import Ledger, database
from tuner.ledger.database import Addresses

# The machine may be busy, and a counter-example must not depend on that.
settings.register_profile("tuner", deadline=None)
settings.load_profile("tuner")

startup.configure_libraries()
os.environ["TUNER_CONFIG"] = ""  # nobody's settings
warm.keep_migrations()


@pytest.fixture(autouse=True)
def processes_end() -> Iterator[None]:
    """Leave no process of a test that failed to those that follow."""
    from processes import ended

    with ended():
        yield


@pytest.fixture
def places(tmp_path: Path) -> Addresses:
    """Addresses in an empty folder; there is no database yet."""
    return database.addresses({}, tmp_path)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of this version, to be copied: making one takes half a second."""
    places = database.addresses({}, tmp_path_factory.mktemp("template"))
    database.upgrade_ledger(places)
    return Path(places.lock.with_suffix(""))


@pytest.fixture
def ledger(places: Addresses, template: Path) -> Ledger:
    """A fresh ledger at `places`."""
    shutil.copy(template, places.lock.with_suffix(""))
    return Ledger(database.ledger_engine(places.ledger))


@pytest.fixture
def tracked(places: Addresses, tmp_path: Path) -> Iterator[Ledger]:
    """A fresh ledger at `places`, beside an MLflow that has its tables."""
    from processes import prepare

    prepare(tmp_path)
    made = Ledger(database.ledger_engine(places.ledger))
    yield made
    made.engine.dispose()


@pytest.fixture(scope="session")
def new_ledger(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Callable[[], Ledger]:
    """Make a fresh ledger as often as it is called, for tests that Hypothesis repeats."""
    folder, numbers = tmp_path_factory.mktemp("ledgers"), count()

    def make() -> Ledger:
        file = folder / f"{next(numbers)}.db"
        shutil.copy(template, file)
        return Ledger(database.ledger_engine(f"sqlite:///{file}"))

    return make


@pytest.fixture(scope="session")
def cluster() -> Iterator[real.Cluster]:
    """A PostgreSQL server of this session's, to be stopped and started."""
    with real.cluster() as made:
        yield made


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> real.Server:
    """A PostgreSQL server: the one that is named, or else this session's."""
    if real.EXTERNAL:
        return real.Server(real.EXTERNAL)
    made = request.getfixturevalue("cluster")
    assert isinstance(made, real.Server)
    return made


@pytest.fixture(scope="session")
def migrated(postgres: real.Server) -> str:
    """The name of a database with all tables, to be copied."""
    return postgres.migrated


@pytest.fixture
def shared(postgres: real.Server, migrated: str) -> str:
    """The URL of a fresh PostgreSQL database with all tables."""
    return postgres.database(migrated)


@pytest.fixture
def arm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str], Callable[[], list[str]]]]:
    """Arm failpoints in this process until the test ends; return what reads which of them fired."""
    log = tmp_path / "failpoints.log"
    monkeypatch.setenv("TUNER_FAILPOINTS_LOG", str(log))
    with ExitStack() as blocks:

        def armed(text: str) -> Callable[[], list[str]]:
            blocks.enter_context(failpoints.armed(text))
            return lambda: log.read_text().splitlines() if log.exists() else []

        yield armed


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium of this module's tests; `browser.opened` gives pages of it.

    Not the session's: while one is open, asyncio takes the thread for one with a running loop.
    """
    with chromium.launched() as found:
        yield found


BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
"""The databases, for tests that say what must hold on each."""


@pytest.fixture(params=BOTH)
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """A fresh ledger, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield request.getfixturevalue("ledger")
        return
    url = request.getfixturevalue("shared")
    places = database.addresses({"TUNER_DATABASE_URL": url}, tmp_path)
    # the server has just been started, and its leases are out of date by what tests do to them
    ledger = Ledger(database.ledger_engine(places.ledger), grace_seconds=0.0)
    yield ledger
    ledger.engine.dispose()


@pytest.fixture(params=BOTH)
def beside(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Addresses]:
    """Make a folder and fresh databases for it."""
    from processes import prepare

    def on_sqlite(name: str) -> Addresses:
        return database.addresses({}, prepare(tmp_path / name))

    def on_postgresql(name: str) -> Addresses:
        server, template = (request.getfixturevalue(one) for one in ("postgres", "migrated"))
        return database.addresses(
            {"TUNER_DATABASE_URL": server.database(template)}, tmp_path / name
        )

    return on_sqlite if request.param == "sqlite" else on_postgresql
