"""Failpoints fire where and when a test said, once, and cost nothing where nothing is armed."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos import page
from chaos.faults import RARE_PLACES, RECORDERS_PLACES, WORKERS_PLACES
from chaos.scenarios import DELETIONS_PLACES, UPGRADES_PLACE
from hypothesis import given
from hypothesis import strategies as st

from tuner.core import failpoints
from tuner.core.failpoints import PLACES, FailpointError, reach


def reached_in(module: Path) -> set[str]:
    """Find the places that a module's code names in its calls of `reach`."""
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    return {
        ast.literal_eval(call.args[0])
        for call in calls
        if ast.unparse(call.func).rpartition(".")[2] == "reach"
    }


@pytest.mark.slow
def test_the_places_are_those_that_the_code_reaches():
    modules = Path(failpoints.__file__).parents[1].rglob("*.py")
    assert set().union(*map(reached_in, modules)) == set(PLACES)


def test_the_documents_list_is_of_this_code():
    assert page.read("failpoints") == page.failpoints(), "`make chaos` writes it"


ELSEWHERE = {
    "approve.": "test_approval.py",
    "branch.": "test_judging.py",
    "decide.": "test_racing.py",
    "extend.": "test_extending.py",
    "notify.": "test_outbox.py",
    "probe.": "test_ranges.py",
    "retrain.": "test_retraining.py",
    "scheduler.": "test_schedulers.py",
}
"""Where the places are reached that no study of the chaos comes by."""


def test_each_place_is_reached_by_the_chaos():
    """Those of a study, of outages and ends, of deletions, of upgrades; each says that it fired."""
    of_all = {*WORKERS_PLACES, *RECORDERS_PLACES, *RARE_PLACES, *DELETIONS_PLACES, UPGRADES_PLACE}
    elsewhere = {place for place in PLACES if place.startswith(tuple(ELSEWHERE))}
    assert of_all == set(PLACES) - elsewhere
    for place in elsewhere:
        kind = place.partition(".")[0] + "."
        tests = Path(__file__).with_name(ELSEWHERE[kind]).read_text()
        assert f'"{place}' in tests or f'startswith("{kind}")' in tests, place


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nowhere=raise", "there is no place 'nowhere'"),
        ("=raise", "there is no place ''"),
        ("ask.reserved", "ask.reserved: expected kill, stop, raise or delay:SECONDS"),
        ("ask.reserved=", "got ''"),
        ("ask.reserved=explode", "got 'explode'"),
        ("ask.reserved=kill:9", "got 'kill:9'"),
        ("ask.reserved=delay", "got 'delay'"),
        ("ask.reserved=delay:soon", "got 'delay:soon'"),
        ("ask.reserved=delay:-1", "got 'delay:-1'"),
        ("ask.reserved=raise@", "got 'raise@'"),
        ("ask.reserved=raise@0", "got 'raise@0'"),
        ("ask.reserved=raise@twice", "got 'raise@twice'"),
        ("ask.drawn=raise;ask.reserved=kil", "ask.reserved: expected"),
    ],
)
def test_what_cannot_be_understood_is_refused_at_once(text, named):
    with pytest.raises(ValueError, match="TUNER_FAILPOINTS") as error:
        failpoints.arm(text)
    assert named in str(error.value)


@pytest.mark.longer
@given(
    st.dictionaries(
        st.sampled_from(sorted(PLACES)),
        st.tuples(
            st.sampled_from(["kill", "stop", "raise", "delay:0", "delay:1.5"]),
            st.integers(1, 99) | st.none(),
        ),
    )
)
def test_what_is_armed_is_what_was_written(wanted):
    text = ";".join(
        f"{place}={action}" + (f"@{count}" if count else "")
        for place, (action, count) in wanted.items()
    )
    armed = failpoints._parse(text)
    assert {place: (one.kind, one.waits) for place, one in armed.items()} == {
        place: (action.partition(":")[0], count or 1) for place, (action, count) in wanted.items()
    }


def test_a_failpoint_fires_once_and_says_so(arm):
    log = arm("ask.drawn=raise")
    reach("ask.reserved")
    assert log() == []
    with pytest.raises(FailpointError, match=r"ask\.drawn"):
        reach("ask.drawn")
    reach("ask.drawn")
    assert log() == ["ask.drawn=raise"]


def test_a_failpoint_waits_for_its_turn(arm):
    log = arm("chunk.committed=raise@3")
    reach("chunk.committed")
    reach("chunk.committed")
    assert log() == []
    with pytest.raises(FailpointError):
        reach("chunk.committed")
    reach("chunk.committed")
    assert log() == ["chunk.committed=raise"]


def test_a_failpoint_of_a_block_is_armed_in_it_alone():
    with failpoints.armed("ask.drawn=raise"), failpoints.armed("ask.reserved=raise"):
        with pytest.raises(FailpointError, match=r"ask\.drawn"):
            reach("ask.drawn")
        with pytest.raises(FailpointError, match=r"ask\.reserved"):
            reach("ask.reserved")
    with failpoints.armed("ask.drawn=raise"):
        pass
    reach("ask.drawn")
    reach("ask.reserved")


def test_several_failpoints_are_independent(arm):
    log = arm("ask.drawn=raise;chunk.committed=delay:0;ask.reserved=raise@2")
    reach("chunk.committed")
    with pytest.raises(FailpointError):
        reach("ask.drawn")
    reach("ask.reserved")
    with pytest.raises(FailpointError):
        reach("ask.reserved")
    assert log() == ["chunk.committed=delay", "ask.drawn=raise", "ask.reserved=raise"]


def test_a_delay_delays(arm):
    log = arm("ask.drawn=delay:0.05")
    began = time.monotonic()
    reach("ask.drawn")
    assert time.monotonic() - began >= 0.05
    assert log() == ["ask.drawn=delay"]


def test_without_failpoints_a_place_costs_nothing(arm):
    arm("")
    began = time.perf_counter()
    for _ in range(10_000):
        reach("chunk.committed")
    assert time.perf_counter() - began < 0.1  # 10 microseconds each is a hundred times too much


SCRIPT = """
from tuner.core import failpoints, startup
startup.configure_program()
failpoints.reach('ask.drawn')
print('went on')
"""


def start(action, log):
    environment = os.environ | {
        "TUNER_FAILPOINTS": f"ask.drawn={action}",
        "TUNER_FAILPOINTS_LOG": str(log),
    }
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_kill_kills(tmp_path):
    log = tmp_path / "log"
    process = start("kill", log)
    printed, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert printed == ""
    assert log.read_text() == "ask.drawn=kill\n"


@pytest.mark.slow
def test_stop_stops_until_it_is_continued(tmp_path):
    log = tmp_path / "log"
    process = start("stop", log)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    printed, _ = process.communicate()
    assert (process.returncode, printed) == (0, "went on\n")
    assert log.read_text() == "ask.drawn=stop\n"


@pytest.mark.slow
def test_the_start_of_a_program_refuses_what_it_cannot_understand(tmp_path):
    process = start("explode", tmp_path / "log")
    printed, error = process.communicate()
    assert process.returncode == 1
    assert printed == ""
    assert "TUNER_FAILPOINTS: ask.drawn: expected kill, stop, raise or delay:SECONDS" in error
