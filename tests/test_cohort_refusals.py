"""What cannot be trained together is refused before it begins, with a sentence that says why."""

import pytest
import torch
from test_reference import make_spec, regression
from torch import nn

from tuner.config import StudySpec
from tuner.core.errors import WorkloadError
from tuner.training.cohort import eligibility
from tuner.training.cohort.trainer import CohortTrainer


class Odd(nn.Module):
    """A line that does something that members cannot do together."""

    def __init__(self, seed, dtype, what):
        super().__init__()
        self.line = nn.Linear(3, 1).to(dtype)
        self.drop = nn.Dropout(0.5)
        self.what, self.own = what, float(seed)
        if what == "hook":
            self.line.bias.register_hook(lambda gradient: 2 * gradient)
        if what == "unused":
            self.more = nn.Linear(3, 1).to(dtype)

    def forward(self, inputs):
        outputs = self.line(inputs)
        if self.what == "control flow" and outputs.sum() > 0:
            outputs = -outputs
        if self.what == "random":
            outputs = outputs + torch.rand_like(outputs)
        if self.what == "its own number":
            outputs = outputs * self.own
        if self.what == "dropout twice":
            outputs = self.drop(self.drop(outputs))
        return outputs


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("control flow", "cannot be mapped over members .*data-dependent control flow"),
        ("random", "cannot be mapped over members .*random"),
        ("its own number", "after one step the loss of a member is not what it is alone"),
        ("hook", "after one step the gradient of a member is not what it is alone"),
        ("unused", "the parameter more.weight has no gradient"),
        ("dropout twice", "the dropout drop is used more than once in a forward pass"),
    ],
)
def test_a_model_that_cannot_be_stacked(what, said):
    workload = regression(lambda seed, dtype: Odd(seed, dtype, what))
    found = eligibility.reason_not_stackable(workload, make_spec())
    assert found.startswith("trials cannot be trained together")
    with pytest.raises(WorkloadError, match=said):
        CohortTrainer(workload, make_spec(), 2)


def test_an_operation_that_is_only_looped_over():
    workload = regression(
        loss=nn.functional.multi_margin_loss, train_targets=torch.zeros(50).long()
    )
    found = eligibility.reason_not_stackable(workload, make_spec())
    assert "There is a performance drop" in found


def test_a_metric_that_is_random():
    workload = regression(metrics={"noise": lambda outputs, targets: torch.rand(())})
    assert "the metric noise draws random numbers" in eligibility.reason_not_stackable(
        workload, make_spec()
    )


@pytest.mark.parametrize(
    ("training", "space", "said"),
    [
        ({"seconds": 9.0}, {}, "seconds"),
        ({"accumulate": 2}, {}, "accumulate = 2"),
        ({"precision": "float16"}, {}, 'precision = "float16"'),
        ({}, {"optimizer": ["sgd", "muon"]}, "muon, which rounds to bfloat16"),
    ],
)
def test_a_study_that_only_the_reference_trains(training, space, said):
    content = make_spec(**({"dtype": "float32"} | training)).model_dump(mode="json")
    content["space"] |= {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"} | space
    spec = StudySpec.model_validate(content)
    assert said in eligibility.reason_not_stackable(regression(), spec)


@pytest.mark.parametrize("optimizer", ["prodigy", "dog"])
def test_an_optimizer_whose_steps_depend_on_all_parameters_trains_no_parts(optimizer):
    content = make_spec().model_dump(mode="json")
    content["space"] = {"lr": 1.0, "schedule": "constant", "optimizer": optimizer}
    spec = StudySpec.model_validate(content)
    parted = regression(rate_multipliers={"0": 0.1})
    assert eligibility.reason_not_stackable(regression(), spec) == ""
    assert f"with {optimizer} and frozen" in eligibility.reason_not_stackable(parted, spec)


def test_what_can_be_trained_together_has_no_obstacle():
    assert (
        eligibility.reason_not_stackable(
            regression(), make_spec(precision="float32", dtype="float32")
        )
        == ""
    )


def test_a_metric_that_nobody_measures_is_refused():
    with pytest.raises(
        WorkloadError, match=r"expected one of val_loss, mae, which .* got accuracy"
    ):
        CohortTrainer(regression(), make_spec(metric="accuracy"), 2)
