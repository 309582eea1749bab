"""The code of a study is shipped to workers that lack it and allow it, and to no others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from processes import tuner
from test_code_files import FILES, write

from tests.test_programs import spec_of
from tuner.core.errors import UsageError, WorkloadError
from tuner.training import code_files, shipping

TREE = {
    "job/__init__.py": "",
    "job/train.py": "from .net import rate\n\n\ndef train(trial, twice=True):\n"
    "    for step in range(trial.steps):\n"
    "        trial.report(step, train_loss=rate(trial.lr))\n"
    "    trial.report(trial.steps, val_loss=rate(trial.lr))\n",
    "job/net.py": "def rate(lr):\n    return lr\n",
}
STUDY = """
[study]
name = "small"

[workload]
train = "job.train:train"

[training]
steps = 3

[space]
lr = { low = 1e-3, high = 1.0 }

[search]
sampler = "random"
pruner = "none"

[budget]
trials = 2
decide = 0
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FILES)
    return spec_of([], workload={"command": None, "train": "job.train:train"}).workload


def test_the_files_come_back_as_they_were(table, tmp_path):
    packed = shipping.pack(table, ["job."])
    digests = code_files.digests(table, ["job."])
    texts = shipping.unpack(packed.content, packed.digest, "job", digests)
    assert texts == {name: FILES[name] for name in digests}
    assert packed == shipping.pack(table, ["job."])


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"job/train.py": "", "torch/__init__.py": "evil"}, "modules of job alone, got 'torch/"),
        ({"../job/train.py": ""}, "modules of job alone, got '../job"),
        ({"/job/train.py": ""}, "modules of job alone, got '/job"),
        ({"job/../x.py": ""}, "modules of job alone, got 'job/../x.py'"),
        ({"job/x.so": ""}, "modules of job alone, got 'job/x.so'"),
        ({"job.py/x": ""}, "modules of job alone, got 'job.py/x'"),
        ({"job/train.py": "other"}, "not the code with which the study was submitted"),
        ({"job/train.py": 1}, "texts by their paths"),
        ([], "texts by their paths"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(files, why):
    content = json.dumps(files).encode()
    digest = hashlib.sha256(content).hexdigest()
    submitted = {"job/train.py": code_files.digest(b"")}
    with pytest.raises(WorkloadError) as refused:
        shipping.unpack(content, digest, "job", submitted)
    assert why in str(refused.value)
    with pytest.raises(WorkloadError, match="expected code with SHA-256 0000"):
        shipping.unpack(content, "0" * 64, "job", submitted)


def test_what_is_no_code_of_modest_size_is_not_shipped(table, tmp_path):
    (tmp_path / "job" / "utils.py").write_text(f"data = {'1' * shipping.MOST_BYTES!r}\n")
    with pytest.raises(UsageError, match=r"at most 1048576 bytes of code, got \d+ in 6 files"):
        shipping.pack(table, ["job."])
    (tmp_path / "job" / "utils.py").write_bytes(b"# \xe9\n")
    with pytest.raises(UsageError, match="in UTF-8"):
        shipping.pack(table, ["job."])
    with pytest.raises(UsageError, match="got a command"):
        shipping.pack(spec_of(["job/train.py"]).workload, ["command:python"])


def test_a_digest_is_allowed_or_the_login_of_who_shipped_it():
    digest = "a" * 64
    for allowed, is_allowed in [
        ([], False),
        (["job.", "command:ann"], False),
        ([shipping.permission("bob")], False),
        ([shipping.permission("ann")], True),
        ([shipping.permission(digest)], True),
    ]:
        assert shipping.is_allowed(digest, "ann", allowed) == is_allowed
    assert not shipping.is_allowed(digest, None, [shipping.permission("ann")]), "on SQLite"


@pytest.mark.slow
def test_a_clean_machine_trains_what_was_shipped_to_it_if_it_allows_that(
    tmp_path: Path, shared: str
) -> None:
    """Ann has the code; Bob's machine has none of it, and shares a database and checkpoints."""
    ann, bob = tmp_path / "ann", tmp_path / "bob"
    write(ann, TREE)
    bob.mkdir()
    (ann / "study.toml").write_text(STUDY)
    env = {
        "TUNER_DATABASE_URL": shared,
        "TUNER_CHECKPOINTS": str(tmp_path / "checkpoints"),
        "TUNER_ALLOW": "job.",
    }
    worker = ("worker", "--study", "small", "--until-idle", "--no-recorder", "--allow-shipped")

    assert tuner(ann, "submit", "study.toml", env=env).code == 0
    lacking = tuner(bob, *worker, "postgres", env=env)
    assert lacking.code == 2
    assert "there is no module job; expected it to be installed or in the current" in lacking.err
    assert "missing: job/__init__.py, job/net.py, job/train.py; install it" in lacking.err

    submitted = tuner(ann, "submit", "--ship", "study.toml", "--json", env=env)
    digest = submitted.json["shipped"]
    refused = tuner(bob, *worker, "carl", env=env)
    assert refused.code == 2
    assert "has shipped it, and this worker does not allow that" in refused.err
    assert f"--allow-shipped {digest}" in refused.err

    file = tmp_path / "checkpoints" / "code" / f"{digest}.json"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"return lr", b"return 1."))
    other = tuner(bob, *worker, digest, env=env)
    assert other.code == 2
    assert f"expected code with SHA-256 {digest}, got one with" in other.err
    assert not list(bob.rglob("*.py"))
    file.write_bytes(whole)

    login = shared.partition("//")[2].partition(":")[0].partition("@")[0]
    done = tuner(bob, *worker, login, env=env)
    assert done.code == 0, done.err
    shown = tuner(ann, "status", "small", "--json", env=env).json
    assert shown["trials"]["completed"] == 2, shown["trials"]
    assert digest in tuner(ann, "history", "small", env=env).out
