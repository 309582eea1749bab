"""A member's settings: written once, for variables that are not set, and for their database."""

from __future__ import annotations

import json
import stat

import pytest
from click.testing import CliRunner

from tuner.cli.app import cli
from tuner.core.errors import UsageError
from tuner.operations import settings

TEAM = "postgresql://anna:secret@db/tuning"
SERVER = "http://mlflow:5000"


@pytest.fixture
def path(tmp_path, monkeypatch):
    found = tmp_path / "new" / "config.toml"
    monkeypatch.setenv("TUNER_CONFIG", str(found))
    for name in settings.NAMES.values():
        monkeypatch.delenv(name, raising=False)
    return found


def call(*arguments):
    done = CliRunner().invoke(cli, ("config", *arguments), standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_they_are_written_once_for_nobody_else_to_read_and_shown_without_passwords(path):
    call("--database-url", TEAM, "--tracking-uri", SERVER)
    shown = call("--project", "vision")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert settings.read(path) == {
        "database_url": TEAM, "tracking_uri": SERVER, "project": "vision",
    }  # fmt: skip
    assert "secret" not in shown
    assert f"tracking_uri: {SERVER}\n" in shown
    alone = call("--database-url", "")
    assert f"{SERVER} (not used with a database in a file of SQLite)" in alone
    call("--database-url", TEAM)
    assert "project: vision" in shown
    told = json.loads(call("--project", "", "--json"))
    assert told["settings"]["project"] is None
    assert told["settings"]["tracking_uri"] == SERVER


@pytest.mark.parametrize(
    ("kept", "environment", "tracking"),
    [
        ({"database_url": TEAM, "tracking_uri": SERVER}, {}, SERVER),
        ({"database_url": TEAM, "tracking_uri": SERVER}, {settings.DATABASE: TEAM}, SERVER),
        ({"database_url": TEAM, "tracking_uri": SERVER}, {settings.DATABASE: "sqlite:///x"}, None),
        ({"tracking_uri": SERVER}, {settings.DATABASE: TEAM}, SERVER),
        ({"tracking_uri": SERVER}, {}, None),
        ({"tracking_uri": SERVER}, {settings.TRACKING: "http://mine"}, "http://mine"),
    ],
)
def test_they_stand_for_variables_and_the_server_is_that_of_its_database(
    path, kept, environment, tracking
):
    settings.write(path, kept)
    found = {"TUNER_CONFIG": str(path), **environment}
    settings.apply(found)
    assert found.get(settings.TRACKING) == tracking
    assert found.get(settings.DATABASE) == environment.get(
        settings.DATABASE, kept.get("database_url")
    )


def test_what_cannot_be_a_setting_is_refused_with_its_file(path):
    with pytest.raises(UsageError, match="begins with http"):
        call("--tracking-uri", "file:///tmp")
    with pytest.raises(UsageError, match="not a database URL: 'tuning'; expected one like"):
        call("--database-url", "tuning")
    assert not path.exists()
    path.parent.mkdir()
    path.write_text("colour = 1\n")
    with pytest.raises(UsageError, match=r"config.toml: expected texts named database_url"):
        call()
    path.write_text("=")
    with pytest.raises(UsageError, match="cannot be read"):
        settings.apply({"TUNER_CONFIG": str(path)})
    assert settings.file({"HOME": "/home/me"}).as_posix() == "/home/me/.config/tuner/config.toml"
    assert settings.file({"XDG_CONFIG_HOME": "/c"}).as_posix() == "/c/tuner/config.toml"
    for nowhere in ({"TUNER_CONFIG": "", "HOME": "/home/me"}, {}):
        assert settings.read(settings.file(nowhere)) == {}
