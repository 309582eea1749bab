"""A model is data: whatever the registry and its files contain, no code of theirs runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from pipeline import Pipeline
from processes import PREFIXES, prepare, train_here, tuner
from retrained import STUDY

from tuner.core.errors import NotFoundError, TunerError, UsageError
from tuner.ledger.database import tracking_client
from tuner.ledger.retraining_tables import retrainings
from tuner.operations.predict import predict
from tuner.operations.rollback import rollback

pytestmark = pytest.mark.slow

EXECUTED = "executed"
"""The file that a planted program creates in the folder of the test."""


class Trap:
    """An object that creates a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._file,)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline with a champion, version 1, which the tests leave as it is."""
    folder = prepare(tmp_path_factory.mktemp("models") / "moving", STUDY)
    train_here(folder)
    made = Pipeline(folder)
    assert made.retrain("0")["outcome"] == "promoted"
    np.save(folder / "rows.npy", np.linspace(0, 1, 14).reshape(7, 2))
    return made


@pytest.fixture(autouse=True)
def nothing_is_executed(pipeline: Pipeline) -> Iterator[None]:
    yield
    assert not (pipeline.folder / EXECUTED).exists()


def predict_here(pipeline: Pipeline, prefixes: tuple[str, ...] = PREFIXES) -> np.ndarray:
    rows = pipeline.folder / "rows.npy"
    return predict(pipeline.ledger, pipeline.places, "moving", rows, prefixes=prefixes).outputs


def file_of(pipeline: Pipeline, what: str) -> Path:
    """Return the stored file of the champion, `weights` or `example`."""
    run = tracking_client(pipeline.places).get_run(pipeline.registry.champion().run_id)
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    (found,) = folder.glob(f"{what}-*.safetensors")
    return found


@pytest.fixture
def in_ledger(pipeline: Pipeline) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Change the ledger's record of the champion, and restore it after the test."""
    engine = pipeline.ledger.engine.execution_options(writes=True)

    def write(result: Mapping[str, Any]) -> None:
        here = retrainings.c.run_key == "0"
        with engine.begin() as tx:
            tx.execute(sa.update(retrainings).where(here).values(result=result))

    with engine.connect() as tx:
        before = tx.scalar(sa.select(retrainings.c.result).where(retrainings.c.run_key == "0"))

    def change(logged: Mapping[str, Any]) -> None:
        write({**before, "log": {**before["log"], **logged}})

    yield change
    write(before)
    engine.dispose()


def test_a_champion_predicts_exactly_whatever_its_logged_model_contains(pipeline: Pipeline) -> None:
    """The model that MLflow shows is never loaded: not its MLmodel, programs or pickles."""
    before = predict_here(pipeline)
    trap = pipeline.folder / EXECUTED
    model = Path(pipeline.registry.champion().source.removeprefix("file://"))
    files = [one for one in model.rglob("*") if one.is_file()]
    assert {"MLmodel"} < {one.name for one in files}
    for one in files:
        one.write_bytes(pickle.dumps(Trap(trap)))
    (model / "code").mkdir()
    (model / "code" / "planted.py").write_text(f"open({str(trap)!r}, 'w')\n")
    (model / "pickle_module_info.txt").write_text("planted")
    (model / "MLmodel").write_text(
        "flavors:\n"
        "  python_function: {loader_module: planted, code: code, data: data}\n"
        "  pytorch: {code: code, model_data: data, pytorch_version: '2'}\n"
    )
    done = tuner(pipeline.folder, "predict", "moving", "--input", "rows.npy", "--json")
    assert done.code == 0, done.err
    assert done.json["exact"]
    assert np.array_equal(np.array(done.json["outputs"]), before)
    shutil.rmtree(model)
    assert np.array_equal(predict_here(pipeline), before)


def flipped(content: bytes, _: Path) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def pickled(_: bytes, trap: Path) -> bytes:
    return pickle.dumps(Trap(trap))


def pickled_in_as_many_bytes(content: bytes, trap: Path) -> bytes:
    program = pickle.dumps(Trap(trap), protocol=0)
    return program[: len(content)].ljust(len(content), b"\0")


@pytest.mark.parametrize("what", ["weights", "example"])
@pytest.mark.parametrize("tamper", [flipped, pickled, pickled_in_as_many_bytes])
def test_files_that_differ_from_the_ledgers_digest_are_not_used(
    pipeline: Pipeline, what: str, tamper: Callable[[bytes, Path], bytes]
) -> None:
    file = file_of(pipeline, what)
    before = file.read_bytes()
    file.write_bytes(tamper(before, pipeline.folder / EXECUTED))
    try:
        for call in (
            lambda: predict_here(pipeline),
            lambda: rollback(pipeline.ledger, pipeline.places, "moving", 1),
            lambda: pipeline.retrain("5"),
        ):
            with pytest.raises(NotFoundError, match=f"cannot be read: expected {what}-"):
                call()
    finally:
        file.write_bytes(before)


def test_the_command_ends_with_2_and_a_sentence(pipeline: Pipeline) -> None:
    file = file_of(pipeline, "weights")
    before = file.read_bytes()
    file.write_bytes(flipped(before, file))
    try:
        done = tuner(pipeline.folder, "predict", "moving", "--input", "rows.npy", "--json")
    finally:
        file.write_bytes(before)
    assert done.code == 2
    assert "version 1 of model 'moving' cannot be read" in done.err
    assert "Traceback" not in done.err


def test_a_version_registered_by_hand_is_refused(pipeline: Pipeline) -> None:
    client = tracking_client(pipeline.places)
    experiment = client.create_experiment("elsewhere", (pipeline.folder / "elsewhere").as_uri())
    run = client.create_run(experiment)
    champion = pipeline.registry.champion()
    tags = {**champion.tags, "tuner.replaces": "none"}
    made = client.create_model_version("moving", champion.source, run.info.run_id, tags=tags)
    with pytest.raises(NotFoundError, match="train a new champion with `tuner retrain`"):
        rollback(pipeline.ledger, pipeline.places, "moving", int(made.version))
    client.set_registered_model_alias("moving", "champion", made.version)
    try:
        with pytest.raises(NotFoundError, match="no digest of the weights of version 2"):
            predict_here(pipeline)
        with pytest.raises(NotFoundError, match="name a version with --to"):
            rollback(pipeline.ledger, pipeline.places, "moving")
    finally:
        rollback(pipeline.ledger, pipeline.places, "moving", 1)
    predict_here(pipeline)


@pytest.mark.parametrize(
    ("logged", "prefixes", "message"),
    [
        ({"weights": None}, PREFIXES, "train a new champion with `tuner retrain`"),
        ({"weights": {"sha256": "../../x", "size": 1}}, PREFIXES, "no digest of the weights"),
        ({"weights": {"sha256": "0" * 64, "size": 1}}, PREFIXES, "of 1 bytes in run"),
        ({"build": {"code": "0" * 16}}, PREFIXES, "trained by other code"),
        ({"build": {"factory": "os:system"}}, PREFIXES, "expected a module whose name begins"),
        ({"build": {"dtype": "load"}}, PREFIXES, "no digest of the weights"),
        ({"build": {"arguments": {"columns": 3}}}, PREFIXES, "size mismatch for weight"),
        ({}, ("tuner.",), "expected a module whose name begins"),
    ],
    ids=json.dumps,
)
def test_what_the_ledger_does_not_support_is_refused(
    pipeline: Pipeline,
    in_ledger: Callable[[Mapping[str, Any]], None],
    logged: dict[str, Any],
    prefixes: tuple[str, ...],
    message: str,
) -> None:
    if "build" in logged:
        logged = {"build": {**build_of(pipeline), **logged["build"]}}
    in_ledger(logged)
    with pytest.raises(UsageError) as error:
        predict_here(pipeline, prefixes)
    assert message in str(error.value)


def build_of(pipeline: Pipeline) -> dict[str, Any]:
    with pipeline.ledger.engine.connect() as tx:
        found = tx.scalar(sa.select(retrainings.c.result).where(retrainings.c.run_key == "0"))
    return dict(found["log"]["build"])


def test_a_champion_of_an_earlier_release_is_replaced_by_a_retraining(
    pipeline: Pipeline, in_ledger: Callable[[Mapping[str, Any]], None]
) -> None:
    """Without a comparison, which would need its weights; the reason says so."""
    in_ledger({"weights": None})
    with pytest.raises(TunerError, match="tuner retrain"):
        predict_here(pipeline)
    found = pipeline.retrain("0 again")
    assert found["outcome"] == "promoted"
    assert "the ledger has no digest of the weights of the champion, version 1" in found["reason"]
    predict_here(pipeline)
