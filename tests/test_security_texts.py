"""The threat model of docs/security.md: what people name and write is neither obeyed nor run."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import claim, draw, spec, submit
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name
from processes import assert_whole, prepare, train_here
from pydantic import ValidationError

from tuner.cli.app import cli
from tuner.core import failures
from tuner.core import text as texts
from tuner.core.outcome import FAILED, Outcome
from tuner.ledger import Ledger, database

HOSTILE = {
    "a path": "../x",
    "the folder above": "..",
    "absolute": "/etc/passwd",
    "quotes": """a'b"c`d\\e""",
    "SQL": "x'; DROP TABLE tuner_trials; --",
    "patterns": "%s {0} %(a)s :a ? *",
    "HTML": "<script>alert(1)</script>",
    "markup": "[bold red]x[/] [/x] [link=file:///]",
    "an option": "--help",
    "emoji": "🚀👩‍👩‍👧",
    "an escape": "\x1b[2J\x1b]0;owned\x07",
    "C1 control": "\x9b2J",
    "NUL": "a\0b",
    "a line's end": "a\nb",
    "from right to left": "a\u202ecod.exe",
    "half a character": "\ud800",
    "250 characters": "n" * 250,
    "251 characters": "n" * 251,
}
REFUSED_NAMES = {
    "an escape", "C1 control", "NUL", "a line's end", "from right to left", "half a character",
    "251 characters", "emoji",
}  # fmt: skip
"""emoji: the joiner in this one is invisible, and two names that look alike are two studies."""


@pytest.mark.parametrize("case", HOSTILE)
def test_a_name_is_refused_or_accepted_and_said_in_printable_words(case):
    try:
        spec(study={"name": HOSTILE[case]})
    except ValidationError:
        assert case in REFUSED_NAMES
    else:
        assert case not in REFUSED_NAMES


@pytest.mark.slow
@pytest.mark.thorough
def test_a_name_is_refused_or_harmless(tmp_path, monkeypatch):
    """All accepted ones side by side, trained and published: whole, and nothing is elsewhere."""
    outside = tmp_path / "outside"
    folder = outside / "here"
    outside.mkdir()
    accepted = [name for case, name in HOSTILE.items() if case not in REFUSED_NAMES]
    prepare(folder, trials="1", steps="10", pruner='"none"')
    (folder / "study.toml").rename(folder / "template.toml")
    template = (folder / "template.toml").read_text()
    for name in accepted:
        text = template.replace('"small"', repr_toml(name))
        (folder / "study.toml").write_text(text)
        train_here(folder)
    for name in accepted:
        assert_whole(folder, name=name)
    monkeypatch.chdir(folder)
    for name in accepted:
        for command in (["status"], ["status", "--json"], ["best"], ["export", "--to", "out"]):
            done = CliRunner().invoke(cli, [*command, "--", name])
            assert done.exit_code == 0, done.output
            assert texts.is_readable(done.output)
    assert len(list((folder / "out").iterdir())) == 2 * len(accepted)
    assert [path.name for path in outside.iterdir()] == ["here"]


def repr_toml(text: str) -> str:
    """Write a basic string of TOML."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.mark.longer
@given(st.text(max_size=20) | st.text(alphabet="./:- a\\", min_size=1, max_size=6))
@example("../x")
@example("a/../b")
@example("/a")
@example("a//b")
@example("")
@example("<script>")
@example("n" * 251)
def test_a_metric_is_named_as_mlflow_allows(name):
    """What we let a loop report, MLflow takes; else its run would never be published."""
    if texts.is_metric_name(name):
        _validate_metric_name(name)
        assert texts.is_readable(name)
        assert ".." not in name.split("/")


@pytest.mark.parametrize("text", ["\0", "\x1b[2J", "a\rb", "\x9b", "\ud800", "\u202e"])
@pytest.mark.parametrize("where", ["description", "an argument", "arguments"])
def test_free_text_has_no_control_characters(text, where):
    tables = {
        "description": {"study": {"description": text}},
        "an argument": {"workload": {"arguments": {"a": text}}},
        "arguments": {"workload": {"arguments": {"a": ["b", text]}}},
    }
    with pytest.raises(ValidationError):
        spec(**tables[where])
    plain = spec(study={"description": "Two\nlines,\ta <tab> and größe."})
    assert plain.study.description.startswith("Two\n")


@pytest.mark.longer
@given(st.text(max_size=50))
@example("\0")
@example("\x1b[2J")
@example("\ud800")
def test_what_an_exception_says_is_not_obeyed(text):
    def fail():
        raise ValueError(text)

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - it says whatever is drawn
        fail()
    said = failures.sentence(caught.value)
    assert said.isprintable()
    assert said.encode()
    assert failures.cause(said) == ("ValueError", f"test_security_texts.py:{_line_of_raise()}")


def _line_of_raise() -> int:
    lines = Path(__file__).read_text().splitlines()
    return lines.index("        raise ValueError(text)") + 1


@pytest.mark.longer
def test_a_reason_in_the_database_is_not_obeyed(tmp_path, monkeypatch):
    """Whoever writes it there past us."""
    prepare(tmp_path)
    ledger = Ledger(database.ledger_engine(database.addresses({}, tmp_path).ledger))
    held = claim(ledger, submit(ledger))
    draw(ledger, held)
    ledger.finish(held.lease, Outcome(kind=FAILED, reason="\x1b[2J\x1b]0;owned\x07 [red]x[/red]"))
    ledger.engine.dispose()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["status", "small"])
    assert "\\x1b[2J" in done.output
    assert texts.is_readable(done.output)
