"""Run keys: a timetable's are in its own zone, and a key may name the time of its data."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tuner.core import run_keys

DAY = "%Y-%m-%d"


@pytest.mark.parametrize(
    ("zone", "key_format", "key"),
    [
        ("Asia/Tokyo", DAY, "2026-03-04"),
        ("UTC", DAY, "2026-03-03"),
        ("America/New_York", "%Y-%m-%dT%H", "2026-03-03T16"),
        ("Asia/Tokyo", "%Y%j", "2026063"),
        ("Asia/Tokyo", None, "2026-03-03T21:00:00Z"),
    ],
)
def test_the_key_of_six_in_the_morning_in_tokyo(
    zone: str, key_format: str | None, key: str
) -> None:
    at = datetime(2026, 3, 3, 21, tzinfo=UTC).timestamp()
    assert run_keys.key_of(at, zone, key_format) == key


@pytest.mark.parametrize(
    ("key", "key_format", "time"),
    [
        ("2026-03-04", None, "2026-03-04"),
        ("2026-03-04 again", None, "2026-03-04"),
        ("2026-03-04T06:00:00Z", None, "2026-03-04T06:00:00Z"),
        ("2026-03-04T06:00:00+09:00", None, "2026-03-03T21:00:00Z"),
        ("20260304", None, None),  # the number of a run, for all we know
        ("7", None, None),
        ("nightly-2026-03-04", None, None),
        ("nightly-2026-03-04", f"nightly-{DAY}", "2026-03-04"),
        ("2026-03-04 again", DAY, "2026-03-04"),
        ("2026-03-04T06:00:00Z", DAY, None),
        ("2026-02-30", DAY, None),
    ],
)
def test_the_time_of_a_key(key: str, key_format: str | None, time: str | None) -> None:
    at = run_keys.time_of(key, key_format)
    assert (None if at is None else run_keys.iso(at)) == time
