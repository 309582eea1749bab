"""A checkpoint is whole or not there, and nothing else is ever taken for one."""

import hashlib
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuner.core import failpoints
from tuner.core.errors import UsageError
from tuner.core.file_stores import BucketStore, FolderStore, file_store
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


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    """A store of each kind. The objects of the bucket are in memory."""
    return FolderStore(tmp_path) if request.param == "folder" else BucketStore("memory://")


def test_a_file_is_read_by_its_digest(store):
    digest = checkpoint.write(store, "new/folder/7.pt", b"content")
    assert digest == hashlib.sha256(b"content").hexdigest()
    assert checkpoint.read(store, "new/folder/7.pt", digest) == b"content"
    again = checkpoint.write(store, "new/folder/7.pt", b"newer")
    assert checkpoint.read(store, "new/folder/7.pt", again) == b"newer"
    assert store.names("new/folder") == {"7.pt"}


def test_what_is_not_the_file_that_was_written_is_refused(store):
    digest = checkpoint.write(store, "7.pt", b"content")
    store.write("7.pt", b"CONTENT")
    with pytest.raises(CheckpointError, match=rf"7.pt: expected .* {digest}, got 7 bytes"):
        checkpoint.read(store, "7.pt", digest)
    store.remove("7.pt")
    with pytest.raises(CheckpointError, match=r"7.pt: expected a checkpoint, got \w+"):
        checkpoint.read(store, "7.pt", digest)


def test_a_failure_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    store = FolderStore(tmp_path)
    digest = checkpoint.write(store, "7.pt", b"old")
    reached = []

    def broken(place):
        reached.append((place, len(list(tmp_path.iterdir()))))
        raise OSError("disk gone")

    monkeypatch.setattr(failpoints, "reach", broken)
    with pytest.raises(OSError, match="disk gone"):
        checkpoint.write(store, "7.pt", b"new")
    assert reached == [("checkpoint.before_rename", 2)]  # old and new were both there
    assert checkpoint.read(store, "7.pt", digest) == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["7.pt"]


def test_files_are_removed_one_by_one_and_all_below_a_key(store):
    for key in ("1/0/3-1.pt", "1/0/9-1.pt", "1/0/9-2.pt", "1/10/4-1.pt", "2/0/1-1.pt"):
        store.write(key, key.encode())
    assert (store.names(""), store.names("1")) == ({"1", "2"}, {"0", "10"})
    store.remove("1/0/3-1.pt")
    store.remove("1/0/3-1.pt")
    assert [store.exists(f"1/0/{name}.pt") for name in ("3-1", "9-1")] == [False, True]
    store.remove_below("1/0", but="1/0/9-2.pt")
    assert store.names("1/0") == {"9-2.pt"}
    store.remove_below("1/0")
    store.remove_below("1/7")
    assert (store.names("1"), store.read("2/0/1-1.pt")) == ({"10"}, b"2/0/1-1.pt")
    with pytest.raises(FileNotFoundError):
        store.read("1/0/9-2.pt")


def test_the_address_of_a_store(tmp_path):
    assert isinstance(file_store(tmp_path), FolderStore)
    assert str(file_store("some/folder")) == "some/folder"
    assert str(file_store(tmp_path.as_uri())) == str(tmp_path)
    assert str(file_store("s3://bucket/path/")) == "s3://bucket/path"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://server/bucket", "expected a folder, file://, s3://"),
        ("s3://", "expected a folder, file://, s3://"),
        ("s3://AKIA:secret@bucket", "without credentials .* AWS_ACCESS_KEY_ID"),
        ("s3://bucket?secret_access_key=secret", "without credentials"),
    ],
)
def test_an_address_of_no_store_is_refused(address, message):
    with pytest.raises(UsageError, match=message) as refused:
        file_store(address)
    assert not re.search("[:=]secret", str(refused.value))
