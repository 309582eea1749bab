"""Smaller promises: slow clients, private files, large study files, hostile sampler states."""

from __future__ import annotations

import io
import logging
import os
import pickle
import pickletools
import socket
import stat
import struct
import threading

import numpy as np
import pytest
from cmaes import CMA

from tuner.config import reading
from tuner.core.errors import StudyFileError
from tuner.core.file_stores import FolderStore
from tuner.core.outputs import replacing, writing_into
from tuner.ledger import database
from tuner.observability import serving
from tuner.search.cma_state import restored
from tuner.worker.spill import Spill

# --- the metrics endpoint


@pytest.fixture
def endpoint(ledger, places):
    with serving.serving(0, "127.0.0.1", ledger.engine, places) as address:
        host, port = address.removeprefix("http://").split(":")
        yield host, int(port)


def connected(endpoint) -> socket.socket:
    made = socket.create_connection(endpoint)
    made.settimeout(60)
    return made


def test_a_client_that_asks_nothing_is_cut(endpoint, monkeypatch):
    monkeypatch.setattr(serving, "CLIENT_SECONDS", 0.05)
    with connected(endpoint) as silent:
        silent.sendall(b"GET /metr")
        assert silent.recv(100) == b""


@pytest.mark.longer
def test_more_clients_than_are_answered_are_turned_away(endpoint):
    with connected(endpoint) as first:
        first.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"200" in first.recv(100)
    held = [connected(endpoint) for _ in range(2 * serving.CLIENTS)]
    turned_away = threading.Event()

    def read(one: socket.socket) -> None:
        try:
            if one.recv(1) == b"":
                turned_away.set()
        except OSError:
            turned_away.set()

    threads = [threading.Thread(target=read, args=(one,)) for one in held]
    for thread in threads:
        thread.start()
    assert turned_away.wait(60)
    for one in held:
        one.close() if one.fileno() < 0 else one.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for one in held:
        one.close()


@pytest.mark.slow
def test_a_client_that_goes_away_leaves_no_traceback(endpoint, capfd, caplog):
    for _ in range(20):
        with connected(endpoint) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    with connected(endpoint) as last:
        last.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        while last.recv(1000):
            pass
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- private files


@pytest.fixture
def open_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.slow
def test_databases_are_private(tmp_path, open_umask):
    places = database.addresses({}, tmp_path)
    database.upgrade_ledger(places, tracking=True)
    assert mode(tmp_path / "tuner.db") == 0o600
    assert mode(tmp_path / "mlflow.db") == 0o600


def test_checkpoints_are_private(tmp_path, open_umask):
    file = tmp_path / "checkpoints" / "1" / "a.pt"
    FolderStore(tmp_path / "checkpoints").write("1/a.pt", b"content")
    assert [mode(one) for one in (file, file.parent, file.parent.parent)] == [0o600, 0o700, 0o700]


def test_reports_and_exports_are_private(tmp_path, open_umask):
    file = tmp_path / "reports" / "small" / "index.html"
    with writing_into(file.parent), replacing(file) as partial:
        partial.write_text("page")
    assert [mode(one) for one in (file, file.parent, file.parent.parent)] == [0o600, 0o700, 0o700]


def test_spill_files_are_in_a_private_folder(tmp_path, open_umask):
    spill = Spill(tmp_path / "spill")
    assert spill._opened() is not None
    spill.clear()
    assert mode(tmp_path / "spill") == 0o700


# --- study files


def test_a_large_study_file_is_refused_before_it_is_parsed(tmp_path):
    file = tmp_path / "study.toml"
    with file.open("wb") as written:
        written.truncate(50_000_000)
    with pytest.raises(StudyFileError, match="expected at most 1000000 bytes, got more"):
        reading.load(file)


def test_a_study_file_that_never_ends_is_refused():
    with pytest.raises(StudyFileError, match="expected at most 1000000 bytes"):
        reading.load(reading.Path("/dev/zero"))


# --- the state of CMA-ES


@pytest.fixture
def state() -> CMA:
    made = CMA(mean=np.zeros(3), sigma=1.0, bounds=np.array([[-5.0, 5.0]] * 3), seed=1)
    made._funhist_values.fill(0.0)
    for _ in range(3):
        made.tell([(x := made.ask(), float((x**2).sum())) for _ in range(made.population_size)])
    return made


def test_a_state_is_restored_to_the_last_digit(state):
    found = restored(pickle.dumps(state))
    usual = pickle.loads(pickle.dumps(state))
    for key, value in usual.__getstate__().items():
        np.testing.assert_equal(found.__getstate__()[key], value)
        assert type(found.__getstate__()[key]) is type(value)
    for one in (usual, found):
        one._rng.seed(3)
    assert np.array_equal(found.ask(), usual.ask())


class Reduced:
    def __init__(self, *made):
        self.made = made

    def __reduce__(self):
        return self.made


def hostile() -> dict[str, bytes]:
    array = np._core.multiarray._reconstruct
    huge = (1, (10**10,), np.dtype("f8"), False, b"")
    return {
        "an array of ten billions": pickle.dumps(Reduced(array, (np.ndarray, (10**10,), b"b"))),
        "an array with less than it says": pickle.dumps(
            Reduced(array, (np.ndarray, (0,), b"b"), huge)
        ),
        "a large memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
        "objects": pickle.dumps(np.array([{}], dtype=object)),
        "another thing": pickle.dumps({"a": 1}),
        "a wide type": pickle.dumps(np.dtype("V1000000000")),
        "nothing": b"",
        "a cut one": b"\x80\x04\x95",
        "five megabytes": pickle.dumps(b"a" * 5_000_000),
        "a function": pickle.dumps(os.system),
        "nested": pickle.dumps([[[[[[1]]]]]]),
    }


@pytest.mark.parametrize("case", hostile())
def test_a_hostile_state_is_refused(case):
    with pytest.raises(pickle.UnpicklingError):
        restored(hostile()[case])


@pytest.mark.parametrize("attribute", ["_n_max_resampling", "_n_dim", "_popsize"])
def test_a_state_with_huge_numbers_is_refused(state, attribute):
    setattr(state, attribute, 10**9)
    with pytest.raises(pickle.UnpicklingError, match="so large an integer"):
        restored(pickle.dumps(state))


def test_a_state_uses_no_opcode_that_reserves_memory(state):
    names = {opcode.name for opcode, _, _ in pickletools.genops(io.BytesIO(pickle.dumps(state)))}
    assert not names & {"PUT", "BINPUT", "LONG_BINPUT"}
