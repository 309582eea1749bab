"""When timetables fire, over clock changes and leap years, and what is done with late ticks.

The oracle walks through every minute of UTC and asks of each what the local clock shows.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuner.core.cron import ALL, AT_ONCE, LATEST, QUEUE, SKIP, Timetable, checked, due, run_key
from tuner.core.errors import UsageError
from tuner.ledger import Ledger
from tuner.ledger.timetables import ENDED, MISSED, RUNNING, SKIPPED, WAITING, Timetables

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
MINUTE = 60.0


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def shown(instants: list[float], zone: str) -> list[str]:
    return [datetime.fromtimestamp(one, ZoneInfo(zone)).isoformat() for one in instants]


# --- instants


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # spring: 02:00 to 03:00 is left out; what is due in it fires once, right after it
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-29T03:00:00+02:00"]),
        (
            "15,45 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00",
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:15:00+02:00"],
        ),
        # autumn: 02:00 to 03:00 comes twice; what is due in it fires once, in the first
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00",
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        ),
        # every half hour is by elapsed time
        (
            "*/30 * * * *",
            "Europe/Berlin",
            "2026-10-25T01:45",
            [
                "2026-10-25T02:00:00+02:00",
                "2026-10-25T02:30:00+02:00",
                "2026-10-25T02:00:00+01:00",
                "2026-10-25T02:30:00+01:00",
            ],
        ),
        # leap years
        (
            "0 0 29 2 *",
            "UTC",
            "2095-01-01T00:00",
            ["2096-02-29T00:00:00+00:00", "2104-02-29T00:00:00+00:00"],
        ),
        (
            "0 12 L 2 *",
            "UTC",
            "2027-02-01T00:00",
            ["2027-02-28T12:00:00+00:00", "2028-02-29T12:00:00+00:00"],
        ),
    ],
)
def test_an_expression_fires_when_cron_would(
    expression: str, zone: str, after: str, expected: list[str]
) -> None:
    timetable = Timetable(expression=expression, zone=zone)
    found = list(islice(timetable.fires(at(after, zone)), len(expected)))
    assert shown(found, zone) == expected


EVERY_SOME_MINUTES = st.sampled_from(["*/5 * * * *", "*/15 * * * *", "0 * * * *", "* 2 * * *"])
ONCE_A_DAY = st.builds("{} {} * * *".format, st.integers(0, 59), st.integers(0, 23))
INSTANTS = st.integers(int(at("2023-12-30")), int(at("2029-01-02"))).map(float)


@settings(max_examples=60)
@given(ONCE_A_DAY, st.sampled_from(ZONES), INSTANTS)
@example("30 2 * * *", "Europe/Berlin", at("2026-10-24"))
@example("30 2 * * *", "Europe/Berlin", at("2026-03-28"))
@example("45 1 * * *", "Australia/Lord_Howe", at("2026-04-03"))
def test_a_daily_timetable_fires_once_each_local_day(
    expression: str, zone: str, after: float
) -> None:
    found = list(islice(Timetable(expression=expression, zone=zone).fires(after), 10))
    days = [datetime.fromtimestamp(one, ZoneInfo(zone)).date() for one in found]
    assert days == [days[0] + timedelta(days=count) for count in range(10)]


@pytest.mark.slow
@settings(max_examples=60)
@given(EVERY_SOME_MINUTES, st.sampled_from(ZONES), INSTANTS)
@example("0 * * * *", "Europe/Berlin", at("2026-10-25"))
@example("* 2 * * *", "America/New_York", at("2026-11-01"))
def test_a_whole_day_is_what_the_local_clock_shows_minute_by_minute(
    expression: str, zone: str, start: float
) -> None:
    start -= start % MINUTE
    minutes = [start + MINUTE * count for count in range(1, 24 * 60)]
    every, hour = expression.split()[:2]
    step = 1 if every == "*" else int(every.removeprefix("*/"))

    def shows(one: float) -> bool:
        local = datetime.fromtimestamp(one, ZoneInfo(zone))
        minute = local.minute == 0 if step == 0 else local.minute % step == 0
        return minute and (hour == "*" or local.hour == int(hour))

    found = Timetable(expression=expression, zone=zone).fires(start)
    fired = [one for one in islice(found, len(minutes)) if one <= minutes[-1]]
    assert fired == [one for one in minutes if shows(one)]


ANY = st.one_of(ONCE_A_DAY, EVERY_SOME_MINUTES, st.sampled_from(["15,45 2 * * 6", "0 1-3 * * *"]))


@pytest.mark.longer
@settings(max_examples=80)
@given(ANY, st.sampled_from(ZONES), INSTANTS, st.floats(0, 1), st.integers(1, 72))
@example("50 2 * * *", "Europe/Berlin", at("2026-10-25T00:10"), 0.5, 2)
def test_looking_twice_finds_each_tick_once(
    expression: str, zone: str, start: float, share: float, hours: int
) -> None:
    """Whenever a scheduler looks, two looks find together what one would have found."""
    timetable = Timetable(expression=expression, zone=zone, grace=1e9)
    end = start + 3600 * hours
    middle = start + share * (end - start)
    first = due(timetable, start, middle)
    second = due(timetable, first.handled_until, end)
    whole = due(timetable, start, end)
    assert first.run + second.run == whole.run
    assert len(set(whole.run)) == len(whole.run)
    assert list(whole.run) == sorted(whole.run)
    assert second.next == whole.next > end


# --- ticks that are late

HOURLY = "0 * * * *"


@pytest.mark.parametrize(
    ("catch_up", "grace", "expected", "missed"),
    [
        (ALL, 60, ["01", "02", "03"], None),
        (LATEST, 60, ["03"], None),
        (SKIP, 60, [], "03"),
        # within the grace a tick is in time, whatever is done with missed ones
        (ALL, 3600, ["01", "02", "03"], None),
        (LATEST, 3600, ["03"], "02"),
        (SKIP, 3600, ["03"], "02"),
        (SKIP, 1e6, ["01", "02", "03"], None),
    ],
)
def test_missed_ticks_are_caught_up_as_the_timetable_says(
    catch_up: str, grace: float, expected: list[str], missed: str | None
) -> None:
    timetable = Timetable(expression=HOURLY, zone="UTC", grace=grace, catch_up=catch_up)
    found = due(timetable, at("2026-01-01T00:30"), at("2026-01-01T03:50"))
    assert [run_key(one)[11:13] for one in found.run] == expected
    assert (found.missed and run_key(found.missed)[11:13]) == missed
    assert run_key(found.next) == "2026-01-01T04:00:00Z"


def test_years_of_missed_seconds_are_found_at_once() -> None:
    timetable = Timetable(expression="* * * * * *", zone="UTC", catch_up=LATEST)
    found = due(timetable, at("2016-01-01"), at("2026-01-01T12:00"))
    assert found.run[0] > at("2026-01-01T11:58:59")
    assert found.handled_until >= at("2026-01-01T11:59")


def test_more_missed_ticks_than_are_done_at_once_are_all_caught_up() -> None:
    timetable = Timetable(expression="* * * * *", zone="UTC", catch_up=ALL)
    end, ticks = at("2026-01-02T12:00:30"), []
    found = due(timetable, at("2026-01-01"), end)
    while found.run:
        assert len(found.run) <= 2 * AT_ONCE
        ticks += found.run
        found = due(timetable, found.handled_until, end)
    assert ticks == [at("2026-01-01") + MINUTE * (count + 1) for count in range(36 * 60)]


# --- what cannot be


@pytest.mark.parametrize(
    ("expression", "zone", "said"),
    [
        ("* * * *", "UTC", "cron: expected an expression of five fields"),
        ("61 * * * *", "UTC", "got '61 * * * *': Bad minute"),
        ("every day", "UTC", "cron: expected"),
        ("", "UTC", "cron: expected"),
        ("0 0 31 2 *", "UTC", "Bad day-of-month"),
        ("0 6 * * *", "Europe/Atlantis", "zone: expected a name of the IANA time zone database"),
        ("0 6 * * *", "../../etc/passwd", "zone: expected"),
        ("0 6 * * *", "", "zone: expected"),
    ],
)
def test_what_cannot_be_is_refused(expression: str, zone: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        checked(Timetable(expression=expression, zone=zone), at("2026-01-01"))
    assert said in str(error.value)


# --- in the ledger, on both databases

NOON = at("2026-06-01T12:00")


def hourly(overlap: str = QUEUE, catch_up: str = LATEST) -> Timetable:
    return Timetable(expression=HOURLY, zone="UTC", overlap=overlap, catch_up=catch_up)


def test_a_tick_is_written_once_whoever_looks(either: Ledger) -> None:
    store, other = Timetables(either), Timetables(either)
    store.add("a", "study", hourly(), now=NOON)
    assert store.tick(NOON + 10) == 0
    assert store.tick(NOON + 3600) == 1
    assert other.tick(NOON + 3600) == 0
    assert other.tick(NOON + 3601) == 0
    assert [one.fire_at for one in store.history("a")] == [NOON + 3600]


def test_a_run_is_claimed_for_a_lease_and_its_end_may_be_repeated(either: Ledger) -> None:
    store = Timetables(either)
    store.add("a", "study", hourly(), now=NOON)
    store.tick(NOON + 3600)
    held = store.claim("one", now=NOON + 3600)
    assert held is not None
    assert held.study == "study"
    assert store.claim("two", now=NOON + 3629) is None
    again = store.claim("two", now=NOON + 3631)  # the lease has expired
    assert again is not None
    assert (again.id, again.token) == (held.id, 2)
    store.end(again, "kept", "No better.")
    store.end(again, "kept", "No better.")  # a call whose connection was lost is repeated
    (run,) = store.history()
    assert (run.state, run.outcome, run.worker, run.token) == (ENDED, "kept", "two", 2)


@pytest.mark.parametrize(
    ("overlap", "states"), [(SKIP, [RUNNING, SKIPPED]), (QUEUE, [RUNNING, WAITING])]
)
def test_a_tick_during_a_run_waits_or_is_left_out(
    either: Ledger, overlap: str, states: list[str]
) -> None:
    store = Timetables(either)
    store.add("a", "study", hourly(overlap), now=NOON)
    store.tick(NOON + 3600)
    assert store.claim("one", now=NOON + 3600) is not None
    store.tick(NOON + 7200)
    assert store.claim("two", now=NOON + 3600) is None  # the one before it runs
    assert [one.state for one in reversed(store.history("a"))] == states


def test_what_was_missed_is_in_the_history(either: Ledger) -> None:
    store = Timetables(either)
    store.add("a", "study", hourly(catch_up=SKIP), now=NOON)
    assert store.tick(NOON + 5 * 3600 + 600) == 0
    (run,) = store.history("a")
    assert (run.state, run.fire_at) == (MISSED, NOON + 5 * 3600)
    assert run.reason == "no scheduler was running from 2026-06-01T12:00:00Z on to start it in time"


def test_a_disabled_timetable_is_not_heeded_and_one_that_is_enabled_begins_then(
    either: Ledger,
) -> None:
    store = Timetables(either)
    store.add("a", "study", hourly(catch_up=ALL), enabled=False, now=NOON)
    assert store.tick(NOON + 7200) == 0
    store.add("a", "study", hourly(catch_up=ALL), now=NOON + 7200)
    assert store.tick(NOON + 3 * 3600) == 1
    store.remove("a")
    assert store.all() == []
    assert store.history() == []


def test_a_timetable_that_is_changed_still_owes_what_was_due(either: Ledger) -> None:
    store = Timetables(either)
    store.add("a", "study", hourly(catch_up=ALL), now=NOON)
    store.add("a", "study", hourly(catch_up=ALL), enabled=False, now=NOON + 7300)
    assert store.tick(NOON + 5 * 3600) == 0
    assert [one.fire_at for one in store.history("a")] == [NOON + 7200, NOON + 3600]


def test_utc_is_an_instants_key() -> None:
    assert run_key(at("2026-10-25T02:30", "Europe/Berlin")) == "2026-10-25T00:30:00Z"
    assert datetime.fromisoformat(run_key(NOON)) == datetime.fromtimestamp(NOON, UTC)
