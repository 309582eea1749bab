"""Values that are not finite are named by batch, column, row; their batch may be left out."""

from __future__ import annotations

import pytest
import torch

from tuner.core.errors import WorkloadError
from tuner.training import bad_data, workloads
from tuner.training.workloads import OnBad, Workload

ROWS = "rows 1, 4, 7, 10, 13 and 3 others"


def loaded(on_bad: OnBad = "refuse", **arguments: object) -> Workload:
    prefixes = ("tests.",)
    return workloads.load("tests.retrained:by_day", arguments, prefixes, on_bad=on_bad)


GOT = "expected finite numbers, got"
INPUTS = f"train_inputs: {GOT} 8 that are nan or infinite: batch day 1, column 'width', {ROWS}"
TARGETS = f"validation_targets: {GOT} 2 that are nan or infinite: batch day 1, column 0, rows 1, 4"


@pytest.mark.parametrize(
    ("arguments", "on_bad", "said"),
    [
        ({}, "refuse", INPUTS),
        ({}, "refuse", TARGETS),
        ({"named": False}, "refuse", f"infinite: column 'width', {ROWS}"),
        ({"named": False}, "drop_batch", f"infinite: column 'width', {ROWS}"),
    ],
)
def test_bad_values_are_named(arguments: dict[str, object], on_bad: OnBad, said: str) -> None:
    with pytest.raises(WorkloadError) as error:
        loaded(on_bad, broken="day 1", **arguments)
    assert said in str(error.value)


def test_a_bad_batch_is_left_out_of_every_part() -> None:
    whole, rest = loaded(), loaded("drop_batch", broken="day 1")
    kept = torch.arange(24) % 3 != 1
    assert torch.equal(rest.train_inputs, whole.train_inputs[kept])
    assert torch.equal(rest.validation_targets, whole.validation_targets[kept[:12]])
    assert rest.slices == {}, "nothing is left of the slice of that day"
    assert rest.data_digest != whole.data_digest
    assert rest.data_name == "a moving line, without day 1"
    assert bad_data.rows_by_batch(rest) == {
        "day 0": {"train": 8, "validation": 4},
        "day 2": {"train": 8, "validation": 4},
    }
    assert list(rest.left_out) == ["day 1"]
    assert f"column 'width', {ROWS}" in rest.left_out["day 1"]
    assert "validation_targets" in rest.left_out["day 1"]


def test_good_data_are_the_same_under_either_policy() -> None:
    assert loaded("drop_batch").data_digest == loaded().data_digest
    assert loaded("drop_batch").left_out == {}
