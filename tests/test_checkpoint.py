"""A checkpoint is whole or not there, and nothing else is ever taken for one."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuner.core import failpoints
from tuner.training import checkpoint
from tuner.training.checkpoint import CheckpointError

leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
states = st.dictionaries(
    st.text(),
    st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
    ),
)


@pytest.mark.slow
@given(states)
def test_a_state_comes_back_as_it_was(state):
    assert checkpoint.from_bytes(checkpoint.to_bytes(state)) == state


def test_tensors_come_back_to_the_bit():
    state = {
        "a": torch.tensor([0.1, float("nan"), -float("inf"), 5e-324], dtype=torch.float64),
        "nested": [{"b": torch.arange(6).reshape(2, 3)}, torch.get_rng_state()],
    }
    back = checkpoint.from_bytes(checkpoint.to_bytes(state))
    assert back["a"].numpy().tobytes() == state["a"].numpy().tobytes()
    assert torch.equal(back["nested"][0]["b"], state["nested"][0]["b"])
    assert torch.equal(back["nested"][1], state["nested"][1])


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("it-ran"),)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        checkpoint.to_bytes({"a": 1})[:-40],
        pickle.dumps({"a": 1}),
        pickle.dumps(Malicious()),
    ],
)
def test_other_bytes_are_refused_and_not_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="expected a checkpoint, got"):
        checkpoint.from_bytes(content)
    assert not (tmp_path / "it-ran").exists()


def test_a_state_is_a_dict():
    with pytest.raises(CheckpointError, match="got a list"):
        checkpoint.from_bytes(checkpoint.to_bytes([1, 2]))


def test_a_file_is_read_by_its_digest(tmp_path):
    path = tmp_path / "new" / "folder" / "7.ckpt"
    digest = checkpoint.write(path, b"content")
    assert digest == hashlib.sha256(b"content").hexdigest()
    assert checkpoint.read(path, digest) == b"content"
    assert list(path.parent.iterdir()) == [path]
    again = checkpoint.write(path, b"newer")
    assert checkpoint.read(path, again) == b"newer"


def test_what_is_not_the_file_that_was_written_is_refused(tmp_path):
    path = tmp_path / "7.ckpt"
    digest = checkpoint.write(path, b"content")
    path.write_bytes(b"CONTENT")
    with pytest.raises(CheckpointError, match=rf"7.ckpt: expected .* {digest}, got 7 bytes"):
        checkpoint.read(path, digest)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"7.ckpt: expected a checkpoint, got No such file"):
        checkpoint.read(path, digest)


def test_a_failure_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "7.ckpt"
    digest = checkpoint.write(path, b"old")
    reached = []

    def broken(place):
        reached.append((place, len(list(tmp_path.iterdir()))))
        raise OSError("disk gone")

    monkeypatch.setattr(failpoints, "reach", broken)
    with pytest.raises(OSError, match="disk gone"):
        checkpoint.write(path, b"new")
    assert reached == [("checkpoint.before_rename", 2)]  # old and new were both there
    assert checkpoint.read(path, digest) == b"old"
    assert list(tmp_path.iterdir()) == [path]
