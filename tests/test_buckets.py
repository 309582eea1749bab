"""Checkpoints in an object storage: workers share a database and a bucket, and no folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import free_port
from processes import (
    assert_whole,
    end,
    left,
    reference,
    rows,
    start,
    trained_steps,
    tuner,
    until,
    write_study,
)
from test_interruption import same_but_for_speed, slow

from tuner.core import file_stores
from tuner.core.file_stores import BucketStore

SECRET = "wJalrXUtnFEMI"
RUNNING = "SELECT number FROM tuner_trials WHERE state = 'running'"


@pytest.fixture(name="s3", scope="module")
def server() -> Iterator[dict[str, str]]:
    """Serve S3's interface, and yield what a process has to know."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: answers(url), "the server")
            yield known_to(url)
        finally:
            process.terminate()


def known_to(url: str) -> dict[str, str]:
    """Make the bucket at a server, and return what a process has to know of it."""
    import boto3

    known = {"aws_access_key_id": "team", "aws_secret_access_key": SECRET}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **known)
    client.create_bucket(Bucket="checkpoints")
    client.close()
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "team",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.integrations
def test_another_machine_goes_on_at_the_checkpoints_of_a_bucket(tmp_path, s3, monkeypatch):
    ours, theirs = slow(tmp_path / "ours"), tmp_path / "theirs"
    write_study(ours, (ours / "study.toml").read_text(), checkpoint_seconds="0.1")
    theirs.mkdir()
    env = s3 | {"TUNER_CHECKPOINTS": "s3://checkpoints/team"}
    killed = start(ours, "run", "study.toml", "--no-report", env=env, cold=True)
    until(lambda: rows(ours, "SELECT 1 FROM tuner_checkpoints WHERE step > 5"), "a checkpoint")
    killed.send_signal(signal.SIGKILL)
    end(killed)
    assert not list((ours / ".tuner").rglob("*.pt"))

    env |= {"TUNER_DATABASE_URL": f"sqlite:///{ours}/tuner.db"}
    done = tuner(theirs, "worker", "--until-idle", env=env)
    assert done.code == 0, done.err
    assert "begins at step 0" not in done.err
    begun = rows(ours, "SELECT first_step FROM tuner_attempts WHERE number > 1")
    assert begun
    assert all(step > 0 for (step,) in begun), begun
    recorded = tuner(theirs, "recorder", "--once", env=env)
    assert recorded.code == 0, recorded.err
    assert tuner(theirs, "doctor", "--json", env=env).json["problems"] == []

    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert BucketStore("s3://checkpoints/team").names("1") == set(), "all are removed at the end"
    assert_whole(ours)
    assert same_but_for_speed(left(ours)) == same_but_for_speed(reference())


@pytest.mark.slow
@pytest.mark.integrations
def test_training_goes_on_while_a_checkpoint_is_sent_and_nothing_refers_to_it_before(tmp_path):
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    folder = slow(tmp_path / "folder", 0.05)
    write_study(folder, (folder / "study.toml").read_text(), checkpoint_seconds="0.1")
    stored: list[str] = []
    moto = DomainDispatcherApplication(create_backend_app)

    def patient(request, respond):
        """Store the first checkpoints once ten more steps of the study are committed."""
        path = request["PATH_INFO"].removeprefix("/checkpoints/team/")
        if request["REQUEST_METHOD"] == "PUT" and path.endswith(".pt"):
            if len(stored) < 3:
                steps = trained_steps(folder)
                until(lambda: trained_steps(folder) >= steps + 10, "training to go on", 240)
            assert (path,) not in rows(folder, "SELECT path FROM tuner_checkpoints")
            stored.append(path)
        return moto(request, respond)

    server = make_server("127.0.0.1", 0, patient, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        env = known_to(f"http://127.0.0.1:{server.server_port}")
        env |= {"TUNER_CHECKPOINTS": "s3://checkpoints/team"}
        begun = start(folder, "run", "study.toml", "--no-report", env=env)
        until(lambda: len(stored) >= 3, "three checkpoints", 240)
        begun.terminate()
        assert end(begun).code == 130
        running = {str(number) for (number,) in rows(folder, RUNNING)}
        recorded = {path for (path,) in rows(folder, "SELECT path FROM tuner_checkpoints")}
        last = {path.split("/")[1]: path for path in stored}
        assert recorded >= {last[one] for one in running & last.keys()}, "it waits for the last"
        done = tuner(folder, "run", "study.toml", "--no-report", env=env)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.code == 0, done.err
    assert_whole(folder)
    assert same_but_for_speed(left(folder)) == same_but_for_speed(reference())


@pytest.mark.slow
@pytest.mark.integrations
def test_a_worker_that_cannot_read_the_bucket_says_so_and_trains_nothing(tmp_path, s3):
    folder = slow(tmp_path / "folder")
    env = s3 | {"TUNER_CHECKPOINTS": "s3://no-such-bucket"}
    done = tuner(folder, "run", "study.toml", "--no-report", env=env)
    assert done.code == 4, done.err
    assert "s3://no-such-bucket/: " in done.err
    assert "NoSuchBucket" in done.err
    assert SECRET not in done.err + done.out
    assert rows(folder, "SELECT * FROM tuner_attempts") == []


def test_a_store_that_is_away_is_an_error_without_secrets(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "team")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(file_stores, "RETRY_SECONDS", 0)
    store = BucketStore("s3://checkpoints/team")
    for act in (store.read, store.exists, store.remove, store.names):
        with pytest.raises(OSError, match="s3://checkpoints/team/1") as away:
            act("1")
        assert not isinstance(away.value, FileNotFoundError)
        assert SECRET not in str(away.value)
    with pytest.raises(OSError, match="s3://checkpoints/team/1"):
        store.write("1", b"content")
    store.remove_below("1")


def test_an_object_that_is_larger_than_any_checkpoint_is_not_fetched(monkeypatch):
    store = BucketStore("memory://checkpoints/team")
    store.write("1", b"content")
    assert store.read("1") == b"content"
    monkeypatch.setattr(file_stores, "MOST_BYTES", 6)
    with pytest.raises(OSError, match="team/1 has 7 bytes"):
        store.read("1")
