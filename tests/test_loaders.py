"""Loaders of a workload: reproducible from the trial's seed, and exact after a resume."""

import random
import re
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import complete
from test_reference import (
    ADAMW,
    advance,
    assert_same,
    curve_of,
    dropout_net,
    make_spec,
    make_task,
    regression,
    small_net,
    train,
)
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from tuner.config import StudySpec, reading, settings_of
from tuner.core.errors import UsageError, WorkloadError
from tuner.operations import submit
from tuner.training import loaders, models
from tuner.training.branches import BranchPlan, fast_forward
from tuner.training.cohort import eligibility
from tuner.training.lr_probe import probe
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Status, Task
from tuner.training.workloads import Workload, _problems

ROWS, SIZE = 50, 16
WHOLE = regression(rows=ROWS)
X, Y = WHOLE.train_inputs, WHOLE.train_targets
VALIDATION = DataLoader(TensorDataset(X, Y), batch_size=20)


class Augmented(Dataset):
    """Rows with noise of every global generator; it notes which were read in this process."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        self.read.append(row)
        noise = torch.rand(3) + float(np.random.rand()) + random.random()
        return X[row] + 0.01 * noise, Y[row]


class Streamed(IterableDataset):
    def __iter__(self):
        for row in torch.randperm(ROWS).tolist():
            yield X[row] + 0.01 * torch.rand(3), Y[row]


class Batches:
    """Batches of a loop of one's own, with rows drawn by numpy."""

    def __iter__(self):
        for rows in np.array_split(np.random.permutation(ROWS), 4):
            yield X[rows], Y[rows]


def mixing(items):
    """Collate as mixup does: with random numbers of its own."""
    inputs, targets = (torch.stack(parts) for parts in zip(*items, strict=True))
    return inputs + 0.01 * torch.rand(()), targets


def from_loader(train=None, model=dropout_net, **changes):
    empty = {f"{part}_{what}": torch.empty(0)
             for part in ("train", "validation") for what in ("inputs", "targets")}  # fmt: skip
    if train is None:
        train = DataLoader(Augmented(), batch_size=SIZE, shuffle=True)
    return regression(model, **{**empty, "train": train, "validation": VALIDATION, **changes})


def of(dataset=None, **changes):
    dataset = Augmented() if dataset is None else dataset
    return DataLoader(dataset, **{"batch_size": SIZE, **changes})


KINDS = {
    "augmented": lambda: of(shuffle=True),
    "whole batches": lambda: of(shuffle=True, drop_last=True, collate_fn=mixing),
    "generator": lambda: of(shuffle=True, generator=torch.Generator()),
    "weighted": lambda: of(sampler=WeightedRandomSampler(torch.arange(1.0, ROWS + 1), 40)),
    "batches of a sampler": lambda: of(
        batch_size=1, batch_sampler=[[3, 1], [7, 8], [5, 2, 9], [11, 4]]
    ),
    "streamed": lambda: of(Streamed()),
    "batches of a dataset": lambda: of(
        TensorDataset(X.view(10, 5, 3), Y.view(10, 5, 1)), batch_size=None, shuffle=True
    ),
    "batches of one's own": Batches,
    "a list": lambda: [(X[:9], Y[:9]), (X[9:], Y[9:])],
}


# --- seeds and positions --------------------------------------------------------------------------


def test_a_loader_trains_as_the_loop_that_anybody_would_write():
    spec = make_spec(steps=10, batch_size=SIZE, evaluate_every=5)
    workload = from_loader(DataLoader(TensorDataset(X, Y), batch_size=SIZE), small_net)
    rows, evaluations, _ = curve_of(train(workload, spec, make_task(lr=0.05)))
    model = small_net(0, torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(make_task().seed)
        model = small_net(0, torch.float64)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    batches = [batch for _ in range(3) for batch in DataLoader(TensorDataset(X, Y), SIZE)]
    assert [len(inputs) for inputs, _ in batches[:4]] == [16, 16, 16, 2], "the last one is ragged"
    for inputs, targets in batches[:10]:
        loss = nn.functional.mse_loss(model(inputs), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert rows["train_loss"].tolist() == losses
    final = {"val_loss": nn.functional.mse_loss, "mae": nn.functional.l1_loss}
    assert evaluations[-1] == (
        10,
        pytest.approx({k: f(model(X), Y).item() for k, f in final.items()}),
    )


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_trial_reads_the_batches_that_it_would_have_read(kind):
    """At every step, in another trainer, whose loader was used by another trial before."""
    spec = make_spec(steps=9, batch_size=SIZE, evaluate_every=3)
    task = make_task(optimizer=ADAMW)
    before = global_states()
    whole = train(from_loader(KINDS[kind]()), spec, task)
    assert global_states() == before
    other = curve_of(train(from_loader(KINDS[kind]()), spec, make_task(seed=4)))
    assert other[0]["train_loss"].tolist() != curve_of(whole)[0]["train_loss"].tolist()
    again = ReferenceTrainer(from_loader(KINDS[kind]()), spec)
    for step in (1, 4, 6, 8):
        trainer = ReferenceTrainer(from_loader(KINDS[kind]()), spec)
        trainer.admit(task)
        events = trainer.advance(step)
        again.admit(make_task(seed=5))
        again.advance(3)
        again.evict(7)
        again.admit(make_task(optimizer=ADAMW, snapshot=trainer.snapshot(7)))
        assert_same(curve_of(events + advance(again, ())), curve_of(whole))
        again.evict(7)


def test_a_resume_loads_no_batch_twice():
    dataset, spec = Augmented(), make_spec(steps=4, batch_size=SIZE, evaluate_every=4)
    workload, task = from_loader(of(dataset, shuffle=True)), make_task()
    trainer = ReferenceTrainer(workload, spec)
    trainer.admit(task)
    trainer.advance(3)
    assert len(dataset.read) == 48
    resumed = make_task(snapshot=trainer.snapshot(7))
    train(workload, spec, resumed)
    assert sorted(dataset.read) == list(range(ROWS))


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"num_workers": 1}, {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 3},
    {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
])  # fmt: skip
def test_the_number_of_workers_changes_nothing(options):
    """Not the order, nor what is random in a batch, a resume, a branch or the next trial."""
    spec = make_spec(steps=9, batch_size=SIZE, evaluate_every=3)
    task = make_task(optimizer=ADAMW)
    expected = curve_of(train(from_loader(of(shuffle=True)), spec, task))
    trainer = ReferenceTrainer(from_loader(of(shuffle=True, **options)), spec)
    for first in (3, 6):
        trainer.admit(task)
        events = trainer.advance(first)
        resumed = make_task(optimizer=ADAMW, snapshot=trainer.snapshot(7))
        trainer.advance(1)
        trainer.branch([7], BranchPlan(steps=2, schedule=fast_forward), lambda: True)
        trainer.evict(7)
        trainer.admit(resumed)
        trainer.branch([7], BranchPlan(steps=2, schedule=fast_forward), lambda: True)
        assert_same(curve_of(events + advance(trainer, ())), expected)
        trainer.evict(7)


def test_a_branch_reads_the_batches_that_come_next_and_leaves_its_member_alone():
    spec, task = make_spec(steps=9, batch_size=SIZE, evaluate_every=3), make_task()
    expected = curve_of(train(from_loader(model=small_net), spec, task))
    trainer = ReferenceTrainer(from_loader(model=small_net), spec)
    trainer.admit(task)
    events = trainer.advance(5)
    (branch,) = trainer.branch([7], BranchPlan(steps=3, schedule=fast_forward), lambda: True)
    assert_same(curve_of(events + advance(trainer, ())), expected)
    assert branch.losses.tolist() == expected[0]["train_loss"][5:8].tolist()


class Broken(Augmented):
    def __getitem__(self, row):
        if row == 20:
            raise OSError("the disk is gone")
        return super().__getitem__(row)


def test_an_exception_of_the_data_ends_its_trial_and_not_the_next_one():
    dataset = Broken()
    spec = make_spec(steps=4, batch_size=SIZE, evaluate_every=4)
    trainer = ReferenceTrainer(from_loader(of(dataset)), spec)
    trainer.admit(make_task())
    assert trainer.advance(4)[0].next_step == 1
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.advance(3)
    trainer.evict(7)
    dataset.__class__ = Augmented
    trainer.admit(make_task())
    assert advance(trainer, ())[-1].status is Status.FINISHED


# --- batches of any structure ---------------------------------------------------------------------

Pair = namedtuple("Pair", ["inputs", "more"])


def as_dict(items):
    inputs, targets = (torch.stack(parts) for parts in zip(*items, strict=True))
    names = [str(number) for number in range(len(items))]
    return {"pair": Pair(inputs, [targets]), "names": names, "what": "a batch"}


def forward(model, batch):
    assert batch["what"] == "a batch"
    assert len(batch["names"]) == len(batch["pair"].inputs)
    outputs, targets = model(batch["pair"].inputs), batch["pair"].more[0]
    loss = nn.functional.mse_loss(outputs, targets)
    return loss, {"mae": nn.functional.l1_loss(outputs, targets), "rows": len(targets)}


def structured(**changes):
    train, validation = (
        DataLoader(TensorDataset(X, Y), batch_size=size, collate_fn=as_dict) for size in (SIZE, 20)
    )
    own = {"metrics": {}, "forward": forward, "train": train, "validation": validation}
    return from_loader(model=small_net, **{**own, **changes})


@pytest.mark.parametrize("more", [{}, {"accumulate": 3}, {"clip_norm": 0.1}])
def test_a_forward_function_gets_batches_of_any_structure(more):
    spec = make_spec(steps=9, batch_size=SIZE, evaluate_every=3, **more)
    expected = curve_of(train(from_loader(of(TensorDataset(X, Y)), small_net), spec, make_task()))
    found = curve_of(train(structured(), spec, make_task()))
    for name, column in expected[0].items():
        np.testing.assert_allclose(found[0][name], column, rtol=1e-9)
    for (_, ours), (_, theirs) in zip(found[1], expected[1], strict=True):
        assert ours == pytest.approx({**theirs, "rows": (20 * 20 + 20 * 20 + 10 * 10) / 50})
    assert structured().metric_names == ("val_loss", "mae", "rows")


def test_mixed_precision_of_batches():
    spec = make_spec(steps=9, batch_size=SIZE, dtype="float32", accumulate=2, precision="bfloat16")
    whole = curve_of(train(structured(), make_spec(steps=9, batch_size=SIZE), make_task()))
    found = curve_of(train(structured(), spec, make_task()))
    np.testing.assert_allclose(found[0]["train_loss"], whole[0]["train_loss"], rtol=0.1)
    assert found[1][-1][1]["mae"] == pytest.approx(whole[1][-1][1]["mae"], rel=0.1)


def test_tensors_in_memory_may_have_a_forward_function():
    def own(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    spec = make_spec(steps=9, batch_size=SIZE)
    found = train(regression(forward=own, metrics={}), spec, make_task())
    expected = train(regression(metrics={}), spec, make_task())
    assert_same(curve_of(found), curve_of(expected))


# --- sizes ----------------------------------------------------------------------------------------


def spec_of(space=None, **training):
    content = make_spec().model_dump(mode="json", exclude_none=True)
    content["space"] |= space or {}
    content["training"] = {"steps": 9, "dtype": "float64", **training}
    if "epochs" in training:
        del content["training"]["steps"]
    content["workload"] = {"factory": "tests.test_loaders:found"}
    return StudySpec.model_validate(content)


def found(kind: str = "fixed", drop_last: bool = False) -> Workload:
    if kind == "fixed":
        return from_loader(of(drop_last=drop_last))
    return from_loader(lambda batch_size: of(batch_size=batch_size, drop_last=drop_last))


@pytest.mark.parametrize(("drop_last", "steps"), [(False, {16: 8, 20: 6}), (True, {16: 6, 20: 4})])
def test_an_epoch_has_the_batches_of_its_loader(drop_last, steps):
    """Of any size, if train is a function of it; a ragged last batch counts unless dropped."""
    spec = spec_of({"batch_size": [16, 20]}, epochs=2, evaluate_every=1)
    workload = found("of size", drop_last)
    trainer = ReferenceTrainer(workload, spec)
    for size, count in steps.items():
        params = {**make_task().params, "batch_size": size}
        settings = settings_of(spec, params, workload.rows, workload.keeps_last)
        assert settings.steps == count
        assert settings.evaluation_steps == (0, count // 2, count)
        trainer.admit(Task(number=7, seed=3, params=params))
        assert advance(trainer, ())[-1].next_step == count
        trainer.evict(7)


PREFIXES = ("tests.",)


@pytest.mark.parametrize(
    ("space", "training", "message"),
    [
        ({}, {"batch_size": 8}, "got a loader with batch_size = 16; set batch_size in"),
        ({}, {"batch_size": "full"}, 'got "full"'),
        ({"batch_size": [8, 16]}, {"epochs": 1},
         "make train a function of the batch size"),
    ],
)  # fmt: skip
def test_a_batch_size_that_a_loader_does_not_have(space, training, message):
    with pytest.raises((UsageError, WorkloadError), match=message):
        submit.prepare(spec_of(space, **training), PREFIXES)


def test_what_is_submitted_of_a_loader():
    description = submit.prepare(spec_of(batch_size=16), PREFIXES).description
    assert (description["training_rows"], description["keeps_last"]) == (ROWS, True)
    with pytest.raises(WorkloadError, match="without batch size or length set steps instead"):
        settings_of(spec_of(epochs=2), {}, from_loader(of(Streamed())).rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_inputs": X, "train_targets": Y}, "train: expected a loader or train_inputs, got"),
        ({"validation": 3}, "validation: expected a loader, got int"),
        ({"batches": lambda epoch: []}, "batches: expected nothing"),
        ({"forward": lambda model, batch: model(batch[0]).sum()}, "metrics: expected nothing"),
        ({"forward": lambda model, batch: model(batch[0]), "metrics": {}}, "one number, got"),
        ({"forward": lambda model, batch: (model(batch[0]).sum(), {"lr": 1}), "metrics": {}},
         "other than train_loss, lr"),
    ],
)  # fmt: skip
def test_mistakes_of_a_workload_with_loaders(changes, message):
    assert message in "\n".join(_problems(from_loader(**changes)))
    assert not list(_problems(from_loader()))
    assert not list(_problems(structured()))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda: of(Streamed(), num_workers=1, persistent_workers=True),
         "expected persistent_workers=False of a DataLoader over Streamed"),
        (lambda: iter([(X[:16], Y[:16])]), "a generator can be read once"),
    ],
)  # fmt: skip
def test_loaders_that_cannot_be_repeated(loader, message):
    with pytest.raises(WorkloadError, match=message):
        train(from_loader(loader()), make_spec(batch_size=16), make_task())


# --- beside training ------------------------------------------------------------------------------


def test_trials_of_a_loader_train_one_at_a_time():
    reason = eligibility.reason_not_stackable(from_loader(), make_spec(batch_size=16))
    assert "each trial reads its own batches" in reason


def test_the_curvature_is_that_of_the_same_rows_in_memory():
    spec = make_spec(batch_size=ROWS)
    one = from_loader(of(TensorDataset(X, Y), batch_size=ROWS), small_net)
    losses = [probe.losses(workload, spec)[0] for workload in (one, regression())]
    model = small_net(0, torch.float64)
    values = [loss(model).item() for loss in losses]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_a_model_is_compared_on_rows_held_out():
    model, spec = small_net(0, torch.float64), make_spec(batch_size=16)
    with pytest.raises(UsageError, match="expected a holdout"):
        models.row_values(model, from_loader(), spec, "val_loss")
    workload = from_loader(holdout=(X, Y))
    assert len(models.row_values(model, workload, spec, "val_loss")) == ROWS
    np.testing.assert_array_equal(models.example_of(workload, spec), X[:2])


def test_a_dataset_in_a_loader_is_seen_by_its_workers():
    """By `worker_init_fn`, which may open files of the dataset."""
    dataset = loaders._SeededDataset(Augmented())
    dataset.read = ["set"]
    assert dataset.__dict__["_dataset"].read == ["set"] == dataset.read


@pytest.mark.slow
def test_the_example_of_the_document_trains(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "loaders.md").read_text()
    code, study = (
        re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)[0] for kind in ("python", "toml")
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shapes.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    spec = reading.parse(study, "shapes.toml")
    workload = submit.prepare(spec, ["mine."]).workload
    own = complete(0.1, "constant", "sgd") | {"batch_size": 16, "body": 0.5}
    event = train(workload, spec, Task(number=7, seed=3, params=own), [40])[0]
    assert event.next_step == 40
    assert workload.metric_names == ("val_loss", "accuracy")
