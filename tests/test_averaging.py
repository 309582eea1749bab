"""Averaged weights, frozen parameters and multipliers of the rate, by both trainers."""

import re

import pytest
import torch
from cohorts import OPTIMISERS, alone, assert_close, branched, chain, resumed, together, train_all
from helpers import complete
from test_reference import ADAMW, assert_same, curve_of, make_spec, make_task, regression, small_net
from torch import nn

from tuner.config import StudySpec, reading
from tuner.core.errors import StudyFileError
from tuner.core.file_stores import file_store
from tuner.training import averaging, checkpoint, models
from tuner.training.branches import BranchPlan, same_schedule
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Task
from tuner.training.workloads import Workload, _problems, load, seeded

TRAINERS = {"reference": ReferenceTrainer, "cohort": lambda *a: CohortTrainer(*a, 4)}


def some(optimizers=OPTIMISERS):
    return [
        Task(number=n, seed=n, params=complete(lr, {"name": "cosine", "warmup": 0.2}, own))
        for n, (lr, own) in enumerate(optimizers)
    ]


def of(optimizer):
    return Task(number=7, seed=3, params=complete(0.1, "constant", optimizer))


def frozen(model):
    """A model whose first parameter is frozen, as that of a pretrained one."""

    def made(seed, dtype):
        network = model(seed, dtype)
        next(network.parameters()).requires_grad_(False)
        return network

    return made


def same(workload, spec, tasks, rtol=1e-9):
    found, expected = (train(workload, spec, tasks) for train in (together, alone))
    for number in expected:
        assert_close(found[number], expected[number], rtol)
    return expected


# --- averaged weights -----------------------------------------------------------------------------


def test_a_trial_is_evaluated_at_the_average_of_its_weights():
    """By the loop that anybody would write, with an average whose decay warms up."""
    workload, spec = regression(), make_spec(steps=30, batch_size="full", ema=0.8)
    rows, evaluations, _ = alone(workload, spec, [make_task(lr=0.05)])[7]
    with seeded(make_task().seed):
        model = small_net(0, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    averages = [parameter.detach().clone() for parameter in model.parameters()]
    losses = []
    for step in range(1, 31):
        loss = nn.functional.mse_loss(model(workload.train_inputs), workload.train_targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(0.8, (1 + step) / (10 + step))
        for average, parameter in zip(averages, model.parameters(), strict=True):
            average.mul_(decay).add_(parameter.detach(), alpha=1 - decay)
    torch.testing.assert_close(torch.tensor(rows["train_loss"]), torch.tensor(losses).double())
    averaging.load(model, averages)
    outputs = model(workload.validation_inputs)
    expected = nn.functional.mse_loss(outputs, workload.validation_targets).item()
    assert evaluations[-1][1]["val_loss"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("model", [chain, branched])
def test_a_cohort_averages_as_the_reference_trainer_does(model):
    spec = make_spec(steps=40, ema=0.9)
    expected = same(regression(model), spec, some())
    plain = alone(regression(model), make_spec(steps=40), some()[:1])[0]
    assert (expected[0][0]["train_loss"] == plain[0]["train_loss"]).all()
    assert expected[0][1][-1] != plain[1][-1]


@pytest.mark.longer
@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_resumed_or_branched_trial_is_averaged_as_if_nothing_had_happened(name, ema):
    """Also with frozen parameters and multipliers."""
    workload = regression(frozen(chain), rate_multipliers={"3": 0.1, "13": 3.0})
    spec = make_spec(steps=30, evaluate_every=6, ema=ema)
    task = make_task(optimizer=ADAMW)
    whole = curve_of(train_all(TRAINERS[name](workload, spec), [task])[7])
    trainer = TRAINERS[name](workload, spec)
    trainer.admit(task)
    events = trainer.advance(8)
    plan = BranchPlan(steps=4, schedule=same_schedule)
    (branch,) = trainer.branch([7], plan, lambda: True)
    (averaged,) = trainer.branch(
        [7], BranchPlan(steps=4, schedule=same_schedule, averaged=True), lambda: True
    )
    assert branch.losses.tolist() == averaged.losses.tolist()
    assert branch.metrics != averaged.metrics
    rest = train_all(TRAINERS[name](workload, spec), [resumed(trainer, task)])[7]
    assert_same(curve_of(events + rest), whole)


@pytest.mark.longer
@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("optimizer", ["schedule_free_adamw", "dog"])
def test_an_optimizer_that_averages_needs_no_other_average(name, optimizer):
    """Nor do a resume and branches change it."""
    workload, task = regression(chain), of(optimizer)
    found = {}
    for ema in (None, 0.9):
        spec = make_spec(steps=30, evaluate_every=6, ema=ema)
        trainer = TRAINERS[name](workload, spec)
        trainer.admit(task)
        events = trainer.advance(8)
        plans = [BranchPlan(steps=4, schedule=same_schedule, averaged=one) for one in (False, True)]
        (plain,), (averaged,) = (trainer.branch([7], plan, lambda: True) for plan in plans)
        assert plain.metrics == averaged.metrics
        rest = train_all(TRAINERS[name](workload, spec), [resumed(trainer, task)])[7]
        found[ema] = curve_of(events + rest)
        assert_same(curve_of(train_all(TRAINERS[name](workload, spec), [task])[7]), found[ema])
    assert_same(found[None], found[0.9])


@pytest.mark.parametrize("optimizer", ["schedule_free_sgd", "dog"])
def test_a_retrained_model_has_the_averages_of_its_optimizer(tmp_path, optimizer):
    workload, spec = regression(), make_spec(steps=20)
    trained = models.train(
        workload, spec, of(optimizer), file_store(tmp_path), "1.pt",
        still=lambda _: None, clock=float,
    )  # fmt: skip
    loss = models.row_values(trained.model, workload, spec, "val_loss").mean()
    assert loss == pytest.approx(trained.value, rel=1e-12)


def test_a_retrained_model_has_the_averages(tmp_path):
    workload, task = regression(), make_task()
    found = {}
    for ema in (None, 0.9):
        spec = make_spec(steps=20, ema=ema)
        trained = models.train(
            workload, spec, task, file_store(tmp_path), f"{ema}", still=lambda _: None, clock=float
        )
        loss = models.row_values(trained.model, workload, spec, "val_loss").mean()
        assert loss == pytest.approx(trained.value)
        found[ema] = loss
    assert found[None] != found[0.9]


@pytest.mark.longer
def test_a_retrained_model_counts_its_time_over_interruptions(tmp_path):
    workload, task, seen = regression(), make_task(), []
    spec = make_spec(steps=500, checkpoint_seconds=1e-6)

    def still(seconds):
        seen.append(seconds)
        if len(seen) == 2:
            raise KeyboardInterrupt

    store = file_store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        models.train(workload, spec, task, store, "1.pt", still=still, clock=float)
    trained = models.train(workload, spec, task, store, "1.pt", still=still, clock=float)
    assert seen[0] == 0 < seen[1] == seen[2] < trained.seconds


def test_a_loop_of_ones_own_averages_by_itself():
    study = """
        study = { name = "own" }
        workload = { train = "tests.workloads:two_rates" }
        training = { steps = 9, ema = 0.9 }
        space = { lr = 0.1, schedule = "constant", optimizer = "sgd" }
        budget = { trials = 1 }
    """
    with pytest.raises(StudyFileError, match=r"ema: expected nothing, since .* own training loop"):
        reading.parse(study, "study.toml")


# --- frozen parameters and multipliers ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", [chain, branched])
def test_a_cohort_freezes_and_multiplies_as_torch_does(model):
    names = {chain: {"3": 0.3, "13": 2.0}, branched: {"wide": 0.3, "last.3": 2.0, "last": 0.5}}
    workload = regression(frozen(model), rate_multipliers=names[model])
    # prodigy and dog measure over all parameters, so such a workload is the reference trainer's
    own = [one for one in OPTIMISERS if one[1]["name"] not in ("prodigy", "dog")]
    same(workload, make_spec(steps=40, clip_norm=1.0, ema=0.9), some(own))


@pytest.mark.parametrize("name", TRAINERS)
def test_a_parameter_moves_at_its_rate_or_not_at_all(name):
    """Whatever the weight decay."""

    def model(seed, dtype):
        with seeded(seed):
            network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 1)).to(dtype)
        network[0].requires_grad_(False)
        return network

    optimizer = {"name": "sgd", "weight_decay": 0.1}
    task = Task(number=7, seed=3, params=complete(0.01, "constant", optimizer))
    moved = {}
    for multipliers in ({}, {"1.weight": 0.5, "2": 10.0}):
        workload = regression(model, rate_multipliers=multipliers)
        trainer = TRAINERS[name](workload, make_spec(steps=1, batch_size="full"))
        trainer.admit(task)
        before = parameters(trainer, name)
        trainer.advance(1)
        after = parameters(trainer, name)
        moved[bool(multipliers)] = [b - a for a, b in zip(before, after, strict=True)]
    expected = [0, 0, 0.5, 1.0, 10.0, 10.0]
    for factor, plain, own in zip(expected, moved[False], moved[True], strict=True):
        torch.testing.assert_close(own, plain * factor)
        assert plain.any() == (factor > 0)


def parameters(trainer, name):
    state = checkpoint.from_bytes(trainer.snapshot(7))
    if name == "reference":
        return list(state["model"].values())
    layout = trainer._plan.stack.layout
    return [view[0] for view in layout.views(state["trained"]["parameters"][None])]


def scaled(head: float = 1.0) -> Workload:
    """A workload whose multiplier is an argument, which a study may search."""
    return regression(small_net, rate_multipliers={"2": head})


def test_a_multiplier_is_searched_as_an_argument():
    content = make_spec(steps=20).model_dump(mode="json", exclude_none=True)
    content["workload"] = {"factory": "tests.test_averaging:scaled"}
    content["space"]["arguments"] = {"head": [0.1, 1.0]}
    spec = StudySpec.model_validate(content)
    workload = load("tests.test_averaging:scaled", {}, ["tests."], spec.space)
    task = make_task()
    curves = []
    for head in (0.1, 1.0):
        own = Task(number=7, seed=3, params={**task.params, "head": head})
        curves.append(curve_of(train_all(ReferenceTrainer(workload, spec), [own])[7]))
    assert_same(curves[1], alone(regression(small_net), make_spec(steps=20), [task])[7])
    assert curves[0][1][-1] != curves[1][1][-1]


def all_frozen(seed, dtype):
    return small_net(seed, dtype).requires_grad_(False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_multipliers": {"0": 0.5, "haed": 2.0}}, "modules around them .*, got 'haed'"),
        ({"rate_multipliers": {"0.weigh": 2.0}}, "got '0.weigh'"),
        ({"rate_multipliers": {"2": 0.0}}, "2: expected a number above 0, got 0.0"),
        ({"model": all_frozen}, "expected a parameter that requires a gradient, got none"),
    ],
)
def test_mistakes_of_multipliers(changes, message):
    assert re.search(message, "\n".join(_problems(regression(**changes))))
