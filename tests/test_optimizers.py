"""Each optimiser is torch's with the settings of the study file, or that of its authors."""

import copy
import math

import prodigyopt
import pytest
import schedulefree
import torch
from helpers import complete
from torch import nn

from tuner.config import Space
from tuner.training import checkpoint
from tuner.training.lion import Lion
from tuner.training.muon import Muon
from tuner.training.optimizers import OPTIMIZERS, averages, make, restore
from tuner.training.rate_free import DoG, Prodigy
from tuner.training.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD

# name in a study file, its settings there, torch's class, torch's settings
CASES = [
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}, torch.optim.SGD,
     {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
    ("adam", {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}, torch.optim.Adam,
     {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "decoupled_weight_decay": False}),
    ("adamw", {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}, torch.optim.AdamW,
     {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    ("nadam", {"beta1": 0.8, "eps": 1e-6, "momentum_decay": 0.01, "decoupled_weight_decay": True,
     "weight_decay": 0.1}, torch.optim.NAdam,
     {"betas": (0.8, 0.999), "eps": 1e-6, "momentum_decay": 0.01, "decoupled_weight_decay": True,
      "weight_decay": 0.1}),
    ("rmsprop", {"alpha": 0.9, "eps": 1e-6, "momentum": 0.5, "centered": True}, torch.optim.RMSprop,
     {"alpha": 0.9, "eps": 1e-6, "momentum": 0.5, "centered": True}),
    ("adagrad", {"eps": 1e-6, "weight_decay": 0.1, "initial_accumulator_value": 0.2},
     torch.optim.Adagrad, {"eps": 1e-6, "weight_decay": 0.1, "initial_accumulator_value": 0.2}),
    ("lion", {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}, Lion,
     {"betas": (0.8, 0.95), "weight_decay": 0.1}),
    ("muon", {"momentum": 0.8, "nesterov": False, "weight_decay": 0.2, "adjust": "original"}, Muon,
     {"momentum": 0.8, "nesterov": False, "weight_decay": 0.2, "adjust": "original"}),
    ("schedule_free_sgd", {"momentum": 0.8, "weight_decay": 0.1}, ScheduleFreeSGD,
     {"momentum": 0.8, "weight_decay": 0.1}),
    ("schedule_free_adamw", {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1},
     ScheduleFreeAdamW, {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    ("prodigy", {"beta1": 0.8, "beta2": 0.95, "d_coef": 2.0, "bias_correction": True,
     "safeguard_warmup": True}, Prodigy,
     {"betas": (0.8, 0.95), "d_coef": 2.0, "use_bias_correction": True, "safeguard_warmup": True}),
    ("dog", {"reps_rel": 1e-4, "weight_decay": 0.1, "gamma": 2.0}, DoG,
     {"reps_rel": 1e-4, "weight_decay": 0.1, "gamma": 2.0}),
]  # fmt: skip


def trained(optimizer_of, steps=20):
    """Minimise a small quartic; the parameter after each step."""
    parameter = nn.Parameter(torch.linspace(-1, 2, 5, dtype=torch.float64))
    optimizer = optimizer_of([parameter])
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        (parameter**4 - parameter).sum().backward()
        optimizer.step()
        path.append(parameter.detach().clone())
    return torch.stack(path)


@pytest.mark.longer
@pytest.mark.parametrize(("name", "own", "kind", "settings"), CASES)
def test_settings_reach_the_optimizer(name, own, kind, settings):
    params = complete(0.01, "constant", {"name": name, **own})
    made = make(params, [nn.Parameter(torch.zeros(2))])
    assert type(made) is kind
    assert {key: made.defaults[key] for key in settings} == settings
    assert made.defaults["lr"] == 0.01
    ours = trained(lambda parameters: make(params, parameters))
    theirs = trained(lambda parameters: kind(parameters, lr=0.01, **settings))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("name", "own", "kind", "settings"), CASES)
def test_the_defaults_are_torchs(name, own, kind, settings):
    params = complete(0.01, "constant", name)
    made = make(params, [nn.Parameter(torch.zeros(2))])
    assert made.defaults == kind([nn.Parameter(torch.zeros(2))], lr=0.01).defaults


def test_every_optimizer_is_tested():
    assert [name for name, *_ in CASES] == list(OPTIMIZERS)


def test_other_optimizers_parameters_are_passed_over():
    params = complete(0.1, "constant", "sgd") | {"adamw.eps": 1.0}
    assert isinstance(make(params, [nn.Parameter(torch.zeros(2))]), torch.optim.SGD)


def test_nesterov_is_dropped_without_momentum():
    params = complete(0.1, "constant", "sgd") | {"sgd.nesterov": True}
    assert make(params, [nn.Parameter(torch.zeros(2))]).defaults["nesterov"] is False


def test_the_default_space_can_be_made():
    for choice in Space().optimizer:
        params = complete(0.1, "constant", choice.name)
        make(params, [nn.Parameter(torch.zeros(2))])


@pytest.mark.parametrize(
    ("optimizer", "schedules"),
    [
        ("prodigy", ["constant"]),
        (["dog", {"name": "schedule_free_sgd"}], ["constant"]),
        (["dog", "adamw"], ["linear", "cosine"]),
        ("muon", ["linear", "cosine"]),
    ],
)
def test_without_a_schedule_it_is_constant_for_those_that_need_none(optimizer, schedules):
    space = Space.model_validate({"lr": 1.0, "optimizer": optimizer})
    assert [one.name for one in space.schedule] == schedules
    given = Space.model_validate({"lr": 1.0, "optimizer": optimizer, "schedule": "wsd"})
    assert [one.name for one in given.schedule] == ["wsd"]
    again = Space.model_validate(space.model_dump(mode="json"))
    assert again == space


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_is_restored_as_it_was(name, dtype):
    """torch alone would give NAdam's product of momenta, in single precision, the parameter's."""
    params = complete(0.01, "constant", name)
    parameter = nn.Parameter(torch.linspace(-1, 2, 5, dtype=dtype))
    optimizer = make(params, [parameter])
    (parameter**4).sum().backward()
    optimizer.step()
    saved = checkpoint.from_bytes(checkpoint.to_bytes(optimizer.state_dict()))
    other = make(params, [nn.Parameter(parameter.detach().clone())])
    restore(other, saved)
    before, after = optimizer.state_dict(), other.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for index, states in before["state"].items():
        for key, value in states.items():
            again = after["state"][index][key]
            assert (again.dtype, again.tolist()) == (value.dtype, value.tolist()), key


# --- Lion -----------------------------------------------------------------------------------------


def steps_of_lion(gradients, start, *, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0):
    parameter = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = Lion([parameter], lr=lr, betas=betas, weight_decay=weight_decay)
    path = []
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        path.append(parameter.tolist())
    return path, optimizer.state[parameter]["exp_avg"].tolist()


def test_lion_by_hand():
    # m = 0: c = 0.1 g, whose sign is g's; then m = 0.01 g
    path, momentum = steps_of_lion([[3.0, -0.5, 0.0]], [1.0, 1.0, 1.0])
    assert path == [pytest.approx([0.9, 1.1, 1.0])]
    assert momentum == pytest.approx([0.03, -0.005, 0.0])


def test_lions_momentum_outweighs_a_small_gradient_but_not_a_large_one():
    # m = 0.5 · 8 = 4; c = 0.9 · 4 + 0.1 g is above 0 until g is below -36
    small, _ = steps_of_lion([[8.0], [-35.0]], [0.0], betas=(0.9, 0.5))
    large, momentum = steps_of_lion([[8.0], [-37.0]], [0.0], betas=(0.9, 0.5))
    assert small == [pytest.approx([-0.1]), pytest.approx([-0.2])]
    assert large == [pytest.approx([-0.1]), pytest.approx([0.0])]
    assert momentum == pytest.approx([0.5 * 4 - 0.5 * 37])


def test_lions_weight_decay_is_decoupled():
    # p - lr · (sign(c) + wd · p), and the momentum does not see it
    path, momentum = steps_of_lion([[1.0], [1.0]], [2.0], weight_decay=0.5)
    first = 2.0 - 0.1 * (1 + 0.5 * 2.0)
    assert path == [pytest.approx([first]), pytest.approx([first - 0.1 * (1 + 0.5 * first)])]
    assert momentum == pytest.approx([0.01 + 0.99 * 0.01])


@pytest.mark.longer
def test_lion_converges_to_within_its_rate():
    path = trained(lambda parameters: Lion(parameters, lr=0.001), steps=3000)
    assert (path[-1] - 0.25 ** (1 / 3)).abs().max() < 0.1


def test_lion_leaves_parameters_without_gradients_alone():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Lion([used, unused], weight_decay=0.1)
    used.sum().backward()
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    assert unused not in optimizer.state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lion_goes_on_from_a_snapshot_exactly(dtype):
    def begin():
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(7, dtype=dtype))
        return parameter, Lion([parameter], lr=0.01, weight_decay=0.1)

    def advance(parameter, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            (parameter.square() * math.sin(step) - parameter).sum().backward()
            optimizer.step()

    with torch.random.fork_rng():
        whole, optimizer = begin()
        advance(whole, optimizer, range(30))
        parameter, optimizer = begin()
        advance(parameter, optimizer, range(11))
        saved = checkpoint.to_bytes({"p": parameter.detach(), "optimizer": optimizer.state_dict()})
        state = checkpoint.from_bytes(saved)
        resumed = nn.Parameter(state["p"])
        optimizer = Lion([resumed], lr=0.5)
        optimizer.load_state_dict(state["optimizer"])
        advance(resumed, optimizer, range(11, 30))
    assert torch.equal(resumed, whole)


# --- optimizers of others, each against its authors' own ------------------------------------------


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


RATES = [0.1, 0.2, 0.3, *[0.3] * 9, *[0.2] * 9, 0.0, *[0.1] * 8]
"""A warm-up, a decay and a step without a rate."""


def losses_of(optimizer_of, scale, begin=lambda optimizer: None, end=lambda optimizer: None):
    """Train a small network; the losses in training, and at the weights for evaluation."""
    model, generator = network(), torch.Generator().manual_seed(1)
    inputs = torch.randn(20, 3, generator=generator).double()
    optimizer = optimizer_of(model.parameters())
    found = []

    def loss():
        found_now = (model(inputs) - inputs.sum(dim=1, keepdim=True).sin()).square().mean()
        found.append(found_now.item())
        return found_now

    for rate in RATES:
        for group in optimizer.param_groups:
            group["lr"] = scale * rate
        begin(optimizer)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        end(optimizer)
        loss()
    begin(optimizer)
    return found, model, optimizer


def eval_of(optimizer):
    optimizer.eval()


def train_of(optimizer):
    optimizer.train()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("ours", "theirs", "settings", "scale"),
    [
        (ScheduleFreeSGD, schedulefree.SGDScheduleFree, {"momentum": 0.8}, 1.0),
        (ScheduleFreeAdamW, schedulefree.AdamWScheduleFree, {"betas": (0.8, 0.9)}, 0.1),
    ],
)
def test_schedule_free_optimizers_are_their_authors(ours, theirs, settings, scale, weight_decay):
    """In training and at the averages, whether set in place or calculated beside."""
    settings = {**settings, "weight_decay": weight_decay}
    found, model, optimizer = losses_of(
        lambda parameters: ours(parameters, **settings), scale, train_of, eval_of
    )
    expected, _, _ = losses_of(
        lambda parameters: theirs(parameters, **settings), scale, train_of, eval_of
    )
    assert found == pytest.approx(expected, rel=1e-9)
    trained = [one.detach().clone() for one in model.parameters()]
    beside = averages(optimizer, list(model.parameters()))
    optimizer.eval()
    assert all(map(torch.equal, beside, model.parameters()))
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) after"):
        optimizer.step()
    optimizer.train()
    assert all(map(torch.equal, trained, model.parameters()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1, "betas": (0.8, 0.95), "d_coef": 2.0},
        {"use_bias_correction": True, "safeguard_warmup": True},
    ],
)
def test_prodigy_is_its_authors(settings):
    found, _, ours = losses_of(lambda parameters: Prodigy(parameters, **settings), 4.0)
    expected, _, theirs = losses_of(
        lambda parameters: prodigyopt.Prodigy(parameters, **settings), 4.0
    )
    assert found == pytest.approx(expected, rel=1e-9)
    estimates = [one.param_groups[0]["d"] for one in (ours, theirs)]
    assert estimates[0] == pytest.approx(estimates[1], rel=1e-9)
    assert estimates[0] > 1.5e-6  # it grew


class TheirDoG(torch.optim.Optimizer):
    """DoG as in arXiv 2302.12022, equations 2 and 3, on one vector of all parameters."""

    def __init__(self, params, weight_decay):
        super().__init__(params, {"lr": 1.0})
        self.weight_decay = weight_decay
        self.path, self.squares, self.distances, self.average = [], [], [], None

    def step(self):
        (group,) = self.param_groups
        vector = torch.cat([one.detach().flatten() for one in group["params"]])
        gradient = torch.cat([one.grad.flatten() for one in group["params"]])
        gradient = gradient + self.weight_decay * vector
        self.path.append(vector)
        self.squares.append(gradient.square().sum())
        first = 1e-4 * (1 + self.path[0].norm())
        self.distances.append((vector - self.path[0]).norm())
        rate = max(first, *self.distances) / (1e-8 + sum(self.squares)).sqrt()
        vector = vector - group["lr"] * rate * gradient
        nn.utils.vector_to_parameters(vector, group["params"])
        weight = 9 / (8 + len(self.path))
        average = vector if self.average is None else self.average
        self.average = (1 - weight) * average + weight * vector


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_dog_is_the_papers(weight_decay):
    settings = {"weight_decay": weight_decay}
    found, model, ours = losses_of(lambda p: DoG(p, reps_rel=1e-4, **settings), 4.0)
    expected, _, theirs = losses_of(lambda p: TheirDoG(p, **settings), 4.0)
    assert found == pytest.approx(expected, rel=1e-9)
    kept = torch.cat([one.flatten() for one in averages(ours, list(model.parameters()))])
    torch.testing.assert_close(kept, theirs.average)


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_is_torchs_for_matrices_and_adamw_for_the_rest(adjust):
    class Both:
        def __init__(self, parameters):
            own = list(parameters)
            matrices = [one for one in own if one.ndim == 2]
            self.parts = [
                torch.optim.Muon(matrices, weight_decay=0.2, adjust_lr_fn=adjust),
                torch.optim.AdamW([one for one in own if one.ndim != 2], weight_decay=0.2),
            ]
            self.param_groups = [group for part in self.parts for group in part.param_groups]

        def zero_grad(self):
            [part.zero_grad() for part in self.parts]

        def step(self):
            [part.step() for part in self.parts]

    found, _, optimizer = losses_of(
        lambda parameters: Muon(parameters, weight_decay=0.2, adjust=adjust), 0.1
    )
    assert found == losses_of(Both, 0.1)[0]
    again = copy.deepcopy(optimizer)
    assert repr(again.state_dict()) == repr(optimizer.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        Muon([nn.Parameter(torch.ones(2))]).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw", "prodigy", "dog"])
def test_parameters_without_gradients_stay(name):
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = make(complete(0.1, "constant", {"name": name, "weight_decay": 0.1}), [used, unused])
    used.sum().backward()
    optimizer.step()
    assert not torch.equal(used, torch.ones(2))
    assert torch.equal(unused, torch.ones(2))
    kept = averages(optimizer, [used, unused])
    assert kept is None or torch.equal(kept[1], unused)
