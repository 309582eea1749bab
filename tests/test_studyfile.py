"""Study files: what is accepted, and the exact line that each mistake gets."""

from __future__ import annotations

import json
import math
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config import ASHA, Median, Range, StudySpec, fractions
from tuner.config.reading import changed, json_schema, load, parse
from tuner.config.schedules import MultiStep
from tuner.core.errors import StudyFileError

GOOD = """
[study]
name = "digits"

[workload]
factory = "studies.digits:mlp"
arguments = { width = 64, layers = [1, 2.5, "x"], bias = true }

[training]
steps = 300
batch_size = "full"

[space]
lr = { low = 1e-4, high = 1.0 }
schedule = ["constant", { name = "step", gamma = { low = 0.1, high = 0.9 }, drops = [1, 2] }]
optimizer = { name = "sgd", momentum = [0.5, 0.9], nesterov = [true, false] }

[search]
sampler = "random"
pruner = { name = "asha", min_steps = 10 }

[guard]
window = 16

[budget]
trials = 20
"""
SHORT = """
study = { name = "short" }
workload = { factory = "studies.digits:mlp" }
training = { steps = 1 }
space = { lr = 0.1, schedule = "cosine", optimizer = "adamw" }
budget = { trials = 1 }
"""
SPARSE = """
study = { name = "sparse" }
workload = { factory = "studies.digits:mlp" }
training = { steps = 100 }
budget = { trials = 1 }
"""
WORDS = f"""{SPARSE}
[space]
schedule = [
    {{ name = "multistep", milestones = [[0.5, 0.75], [0.3, 0.6, 0.9], "0.25,0.5"] }},
    {{ name = "cyclic", mode = ["triangular2", "exp_range"], cycles = {{ low = 1, high = 9 }} }},
    {{ name = "wsd", shape = "cosine" }},
    {{ name = "plateau", patience = [1, 2] }},
]
optimizer = ["nadam", {{ name = "rmsprop", centered = [true, false] }}]
"""


def problems(*overrides: str, text: str = GOOD) -> list[str]:
    """Load what is wrong and give its lines without the file's name."""
    with pytest.raises(StudyFileError) as caught:
        parse(text, "x.toml", overrides)
    assert all(line.startswith("x.toml: ") for line in caught.value.problems)
    return [line.removeprefix("x.toml: ") for line in caught.value.problems]


@pytest.mark.parametrize("text", [GOOD, SHORT, SPARSE, WORDS])
def test_a_good_file_survives_json(text: str) -> None:
    spec = parse(text, "x.toml")
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec
    assert StudySpec.model_validate(json.loads(spec.model_dump_json())) == spec
    assert parse(text, "y.toml").digest() == spec.digest()


MISTAKES = """
# names and text

study.name=3
    [study] name: expected a string, got 3

study.name=
    [study] name: expected at least 1 character, got ""

study.name=a\x1b[2Jb
    [study] name: expected printable characters, with no space at either end, got "a\\u001b[2Jb"

study.description='\udcff'
    [study] description: expected text without null characters, got "\\udcff"

study.direction=minimise
    [study] direction: expected "minimize" or "maximize", got "minimise"; did you mean minimize?

study.metric=a@b
    [study] metric: expected the name of a metric, of letters, digits, '_', '.', '/' and '-',
    got "a@b"

workload.factory=digits
    [workload] factory: expected a factory named as "module:function", got "digits"

workload.train=studies.wine:train
    [workload] train: expected nothing, since factory is set and a study trains one of them, got
    both

workload={}
    [workload] factory: expected this key or train, named as "module:function", got neither

workload={train='x'}
    [workload] train: expected a train function named as "module:function", got "x"

workload={train='studies.wine:train'}
    [training] batch_size: expected nothing, since a train function has its own training loop, got
    "full"; pass it in [workload.arguments]

workload.arguments.width={a=1}
    [workload.arguments] width: expected a number, a boolean, a string or a list of them, got {
    a = 1 }

workload.arguments.width=inf
    [workload.arguments] width: expected finite numbers, got inf

workload.arguments.a b=1
    [workload.arguments] "a b": expected the name of an argument of the function, got this name

workload.arguments.list=0xffffffffffffffffffff
    [workload.arguments] list: expected a number of 64 bits, got one of 80

# numbers and their bounds

study.seed=-1
    [study] seed: expected a number of at least 0, got -1

study.seed=2147483648
    [study] seed: expected a number below 2147483648, got 2147483648

training.steps=3.0
    [training] steps: expected a whole number, got 3.0

training.steps=true
    [training] steps: expected a whole number, got true

training.steps="9"
    [training] steps: expected a whole number, got "9"

training.steps=99999999
    [training] steps: expected a number of at most 10000000, got 99999999

training.batch_size=0
    [training] batch_size: expected a number of at least 1 or "full", got 0

training.batch_size=half
    [training] batch_size: expected a whole number or "full", got "half"

training.clip_norm=0
    [training] clip_norm: expected a number above 0, got 0

training.accumulate=0
    [training] accumulate: expected a number of at least 1, got 0

training={steps=300, batch_size=8, accumulate=9}
    [training] accumulate: expected at most the 8 rows of [training] batch_size, got 9

training.precision=float64
    [training] precision: expected "float32", "bfloat16" or "float16", got "float64"; did you
    mean float16?

training={steps=300, dtype='float64', precision='bfloat16'}
    [training] precision: expected nothing, or dtype = "float32", the type of the
    parameters in mixed precision, got "bfloat16"

training.patience=0
    [training] patience: expected a number of at least 1, got 0

training.seconds=0
    [training] seconds: expected a number above 0, got 0

guard.skipped_steps=0
    [guard] skipped_steps: expected a number of at least 1, got 0

study.value=first
    [study] value: expected "last" or "best", got "first"

training.device=gpu
    [training] device: expected "cpu", "cuda" or "cuda:0", got "gpu"

training.checkpoint_seconds=nan
    [training] checkpoint_seconds: expected a finite number, got nan

guard.window=10
    [guard] window: expected a multiple of 4, got 10

guard.far=1
    [guard] far: expected a number above 1, got 1

# the space

space.lr=x
    [space] lr: expected a number, a list of them, or a range, got "x"

space.lr=0
    [space] lr: expected a number above 0, got 0

space.lr=1979-05-27
    [space] lr: expected a number, a list of them, or a range, got 1979-05-27

space.lr=[]
    [space] lr: expected at least 1 item, got []

space.lr=[0.1, 'x']
    [space] lr[1]: expected a number, got "x"

space.lr=[0.1, 0]
    [space] lr[1]: expected a number above 0, got 0

space.lr=[0.1, 0.1]
    [space] lr: expected each value once, got 0.1 twice

space.lr={low=0.1}
    [space.lr] high: expected a number, got nothing

space.lr.low=0
    [space.lr] low: expected a number above 0, got 0

space.lr.low=2
    [space.lr] low: expected a number below high = 1, got 2

space.lr.low=nan
    [space.lr] low: expected a finite number, got nan

space.lr.log=false
    [space.lr] log: expected true, got false

space.lr.range=3
    [space.lr] range: expected one of low, high, log, got an unknown key

space.schedule=[]
    [space] schedule: expected at least 1 item, got []

space.schedule=3
    [space] schedule: expected a name or a table, got 3

space.schedule=cosin
    [space] schedule: expected one of constant, linear, polynomial, exponential, step,
    multistep, cosine, cosine_restarts, one_cycle, cyclic, inverse_sqrt, wsd, plateau, got
    "cosin"; did you mean cosine?

space.schedule=cosine_restart
    [space] schedule: expected one of constant, linear, polynomial, exponential, step,
    multistep, cosine, cosine_restarts, one_cycle, cyclic, inverse_sqrt, wsd, plateau, got
    "cosine_restart"; did you mean cosine_restarts?

space.optimizer=adanw
    [space] optimizer: expected one of sgd, adam, adamw, nadam, rmsprop, adagrad, lion, muon,
    schedule_free_sgd, schedule_free_adamw, prodigy, dog, got
    "adanw"; did you mean adamw?

space.optimizer={name='adam', beta2=1}
    [space.optimizer.adam] beta2: expected a number of at least 0 and below 1, got 1

space.optimizer={name='lion', eps=1e-8}
    [space.optimizer.lion] eps: expected one of name, beta1, beta2, weight_decay, got an unknown
    key; eps is a parameter of adam, adamw, nadam, rmsprop, adagrad, schedule_free_adamw and prodigy

space.optimizer={name='rmsprop', alpha={low=0.9, high=1}}
    [space.optimizer.rmsprop.alpha] high: expected a number of at least 0 and below 1, got 1

space.schedule={name='wsd', shape='1-sqr'}
    [space.schedule.wsd] shape: expected "linear", "cosine" or "1-sqrt", or a list of them, got
    "1-sqr"; did you mean 1-sqrt?

space.schedule={name='cyclic', mode=['triangular', 'square']}
    [space.schedule.cyclic] mode[1]: expected "triangular", "triangular2" or "exp_range", got
    "square"

space.schedule={name='cyclic', mode={low=1, high=2}}
    [space.schedule.cyclic] mode: expected "triangular", "triangular2" or "exp_range", or a list
    of them, got { low = 1, high = 2 }

space.schedule={name='cyclic', final=[0.1, 0.2]}
    [space.schedule.cyclic] final: expected one number, or the mode "exp_range", which alone uses
    it, got several

space.schedule={name='cosine_restarts', growth=5}
    [space.schedule.cosine_restarts] growth: expected a number of at least 1 and of at most 4,
    got 5

space.schedule={name='multistep', milestones=[0.75, 0.5]}
    [space.schedule.multistep] milestones: expected ascending fractions of the horizon, such as
    [0.5, 0.75], or a list of such lists, got [0.75, 0.5]

space.schedule={name='multistep', milestones=[[0.5], 0.75]}
    [space.schedule.multistep] milestones: expected ascending fractions of the horizon, such as
    [0.5, 0.75], or a list of such lists, got [[0.5], 0.75]

space.schedule={name='multistep', milestones=[30, 60]}
    [space.schedule.multistep] milestones: expected ascending fractions of the horizon, such as
    [0.5, 0.75], or a list of such lists, got [30, 60]

space.schedule={name='multistep', milestones=[[0.5], [0.5]]}
    [space.schedule.multistep] milestones: expected each value once, got '0.5' twice

space.schedule={name='multistep', milestones='half'}
    [space.schedule.multistep] milestones: expected ascending fractions of the horizon, such as
    [0.5, 0.75], or a list of such lists, got "half"

space.schedule.1={gamma=1}
    [space] schedule[1]: expected a table with a name, got { gamma = 1 }

space.schedule.0=step
    [space] schedule: expected each name once, got step more than once

space.schedule.1.gamma=2
    [space.schedule.step] gamma: expected a number above 0 and of at most 1, got 2

space.schedule.1.drops={low=1, high=2.5}
    [space.schedule.step.drops] high: expected a whole number, got 2.5

space.schedule.1.gama=0.5
    [space.schedule.step] gama: expected one of name, warmup, gamma, drops, got an unknown key;
    did you mean gamma?

space.gamma=0.5
    [space] gamma: expected one of lr, schedule, optimizer, batch_size, clip_norm, accumulate,
    precision, rates, arguments, constraints, got an unknown key; gamma is a parameter of
    step and multistep (schedules), and of dog: schedule = { name = "step", gamma = ... }
    searches it

space.momentum=[0.5, 0.9]
    [space] momentum: expected one of lr, schedule, optimizer, batch_size, clip_norm, accumulate,
    precision, rates, arguments, constraints, got an unknown key; momentum is a parameter of
    sgd, rmsprop, muon and schedule_free_sgd: optimizer = { name = "sgd", momentum = ... }
    searches it

space.dtype=["float32"]
    [space] dtype: expected one of lr, schedule, optimizer, batch_size, clip_norm, accumulate,
    precision, rates, arguments, constraints, got an unknown key; it can be fixed in [training]
    dtype

space.hidden=[16, 32]
    [space] hidden: expected one of lr, schedule, optimizer, batch_size, clip_norm, accumulate,
    precision, rates, arguments, constraints, got an unknown key; if it is an argument of the
    function, put it in [space.arguments] hidden

# what else is searched

space.arguments.lr=[16, 32]
    [space.arguments] lr: expected a name that tuner does not use itself (accumulate, batch_size,
    clip_norm, log10_lr, lr, optimizer, precision, schedule, self, trial), got nothing

space.optimizer.weight_decay={low=0, high=1}
    [space.optimizer.sgd.weight_decay] low: expected a number above 0, unless log = false, got 0

space.optimizer.nesterov={low=0}
    [space.optimizer.sgd] nesterov: expected true or false, or a list of them, got { low = 0 }

space.optimizer.momentum=0
    [space.optimizer.sgd] momentum: expected a number above 0, since nesterov may be true, got 0

# the search, and tables that contradict each other

search.sampler=3
    [search] sampler: expected a name or a table, got 3

search.sampler=tpee
    [search] sampler: expected one of auto, tpe, random, grid, gp, optuna_gp, qmc, cmaes,
    nsga2, listed, custom, got "tpee"; did you mean tpe?

search.pruner.min_steps=0
    [search.pruner] min_steps: expected a number of at least 1, got 0

search.pruner.startup=1
    [search.pruner] startup: expected one of name, min_steps, reduction_factor, got an unknown
    key

search.pruner.min_steps=300
    [search.pruner] min_steps: expected a number below the 300 of [training] steps, so that
    there is a rung, got 300

search.pruner={name='median', warmup_steps=400}
    [search.pruner] warmup_steps: expected a number below the 300 of [training] steps, so that
    there is a rung, got 400

# whole tables

budget=3
    [budget]: expected a table, got 3

budget={}
    [budget] trials: expected a whole number, got nothing

guard=[]
    [guard]: expected a table, got []

retrain.model = "a/b"
    [retrain] model: expected a name without / : % or quotes, got "a/b"

retrain.do = "refitt"
    [retrain] do: expected "refit", "retune" or "auto", got "refitt"; did you mean refit?

retrain.gate.level = 1
    [retrain.gate] level: expected a number below 1, got 1

retrain.gate.metrik = "accuracy"
    [retrain.gate] metrik: expected one of metric, direction, minimum_improvement, level, seeds,
    slices, tolerance, margins, slice_rows, minimum_rows, got an unknown key; did you mean metric?

retrain.gate.metric = "accuracy"
    [retrain.gate] direction: expected "minimize" or "maximize", as accuracy is not the study's
    metric, got nothing

retrain.notify.webhook = "ftp://example.com"
    [retrain.notify] webhook: expected the name of an environment variable that holds the address,
    such as "TUNER_NOTIFY_WEBHOOK", because addresses contain secrets, got something else

retrain.key_argument = "the day"
    [retrain] key_argument: expected the name of an argument, got "the day"

budget.retries.stall = 1
    [budget.retries] stall: expected one of stale, failed, out_of_memory, got an unknown key; did
    you mean stale?

# a probe

probe.enabled=1
    [probe] enabled: expected true or false, got 1

probe.margin=1
    [probe] margin: expected a number above 1, got 1

probe.sampler=tpe
    [probe] sampler: expected one of enabled, rates, steps, margin, got an unknown key

serch.sampler=tpe
    [serch]: expected one of study, workload, training, space, search, guard, probe, budget,
    retrain, notify, got an unknown table; did you mean search?

# overrides

trials
    override: expected TABLE.KEY=VALUE such as budget.trials=20, got "trials"

budget..trials=1
    override: expected TABLE.KEY=VALUE such as budget.trials=20, got "budget..trials=1"

budget.trials.x=3
    [budget] trials: expected a table, or a list with an item x, got 20, in the override
    "budget.trials.x=3"

space.schedule.0.warmup=0.1
    [space] schedule[0]: expected a table, or a list with an item warmup, got "constant", in the
    override "space.schedule.0.warmup=0.1"

workload.arguments.layers.7=1
    [workload.arguments] layers: expected a table, or a list with an item 7, got [1, 2.5, "x"],
    in the override "workload.arguments.layers.7=1"
"""


@pytest.mark.parametrize(("override", "line"), cases(MISTAKES))
def test_each_mistake_has_its_line(override: str, line: str) -> None:
    assert problems(override) == [line]


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (
            "[study\n",
            (
                "a syntax error: Expected ']' at the end of a table declaration "
                "(at line 1, column 7)"
            ),
        ),
        ("a = 1\nb =\n", "a syntax error: Invalid value (at line 2, column 4)"),
        ("a = " + "[" * 20_000, "tables or lists that are nested too deeply"),
    ],
)
def test_what_is_no_toml(text: str, got: str) -> None:
    assert problems(text=text) == [f"expected TOML, got {got}"]


def test_a_number_too_long_for_python_is_a_mistake() -> None:
    [line] = problems(text="a = " + "9" * 5000)
    assert line.startswith("expected TOML, got a syntax error: Exceeds the limit")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    for path, expected in [
        (file, "a file to read, got No such file or directory"),
        (tmp_path, "a file to read, got Is a directory"),
        (Path("a\0b"), "a file to read, got embedded null byte"),
    ]:
        with pytest.raises(StudyFileError, match=expected) as caught:
            load(path)
        assert caught.value.exit_code == 2
    file.write_bytes(b"[study]\nname = '\xff'")
    with pytest.raises(StudyFileError, match=r"expected UTF-8 text, got byte 0xff in line 2"):
        load(file)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(GOOD, encoding="utf-8-sig")
    assert load(file, ["budget.trials=7"]).budget.trials == 7


def test_an_empty_file_lacks_its_tables() -> None:
    required = ["study", "workload", "training", "budget"]
    assert problems(text="") == [f"[{name}]: expected a table, got nothing" for name in required]


def test_all_mistakes_are_reported_at_once() -> None:
    lines = problems(
        "study.seed=-1", "training.steps=0", "training.stesp=3", "space.lr.low=true",
        "space.lr.log=false", "space.schedule=['x', {name='step', gamma=[0, 2], drops=0}]",
        "search.sampler=x", "search.pruner.min_steps=x", "guard=1", "budget.trials=0",
        "nothing", "extra.a=1",
    )  # fmt: skip
    places = [line.partition(": ")[0] for line in lines]
    assert places == [
        "override", "[study] seed", "[training] steps", "[training] stesp", "[space.lr] low",
        "[space.lr] log", "[space] schedule[0]", "[space.schedule.step] gamma[0]",
        "[space.schedule.step] gamma[1]", "[space.schedule.step] drops", "[search] sampler",
        "[search.pruner] min_steps", "[guard]", "[budget] trials", "[extra]",
    ]  # fmt: skip


def test_a_broken_table_does_not_hide_contradictions_of_others() -> None:
    lines = problems("search.sampler=grid", "search.pruner.min_steps=500", "study=1")
    assert lines == [
        "[study]: expected a table, got 1",
        (
            '[space] lr: expected a value or a list, as the sampler is "grid", '
            "got { low = 0.0001, high = 1.0 }"
        ),
        (
            '[space.schedule.step] gamma: expected a value or a list, as the sampler is "grid", '
            "got { low = 0.1, high = 0.9 }"
        ),
        (
            "[search.pruner] min_steps: expected a number below the 300 of [training] steps, "
            "so that there is a rung, got 500"
        ),
    ]


def test_the_message_counts_the_mistakes() -> None:
    with pytest.raises(StudyFileError) as caught:
        parse(GOOD, "a\x1b.toml", ["budget.trials=0"])
    assert str(caught.value) == (
        "1 mistake in the study file; nothing was created:\n"
        "a\\x1b.toml: [budget] trials: expected a number of at least 1, got 0"
    )


def test_overrides_are_toml_and_bare_words_are_strings() -> None:
    overrides = [
        "budget.trials=30", "space.lr=1e-3", "study.name=two words", "search.pruner=none",
        "space.schedule.1.gamma=0.3", "guard.late=1", "workload.arguments.layers.0=9",
        "training.evaluate_every=7", "study.description=a\nb = 2",
    ]  # fmt: skip
    spec = parse(GOOD, "x.toml", overrides)
    assert (spec.budget.trials, spec.space.lr, spec.study.name) == (30, 1e-3, "two words")
    assert (spec.search.pruner.name, spec.guard.late) == ("none", 1.0)
    assert dict(spec.space.schedule[1].entries())["step.gamma"] == 0.3
    assert spec.workload.arguments["layers"] == (9, 2.5, "x")
    assert (spec.training.evaluate_every, spec.study.description) == (7, "a\nb = 2")


# --- the space ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("[0.5, 0.75]", "0.5,0.75"),
        ("[0.1]", "0.1"),
        ("[1e-7, 0.1]", "1e-07,0.1"),
        ("'0.5, 0.750'", "0.5,0.75"),
        ("[[0.5, 0.75], [0.3, 0.6, 0.9]]", ("0.5,0.75", "0.3,0.6,0.9")),
        ("['0.5,0.75', '0.3']", ("0.5,0.75", "0.3")),
    ],
)
def test_a_list_of_milestones_is_one_value_and_is_kept_as_text(
    written: str, kept: str | tuple[str, ...]
) -> None:
    spec = parse(SHORT, "x.toml", [f"space.schedule={{name='multistep', milestones={written}}}"])
    assert dict(spec.space.schedule[0].entries())["multistep.milestones"] == kept


@pytest.mark.longer
@given(st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), min_size=1, unique=True))
def test_milestones_are_read_as_they_were_written(numbers: list[float]) -> None:
    chosen = MultiStep(name="multistep", milestones=sorted(numbers))  # type: ignore[arg-type]
    assert isinstance(chosen.milestones, str)
    assert list(fractions(chosen.milestones)) == sorted(numbers)


def test_what_the_space_does_not_say_is_searched_by_default() -> None:
    space = parse(SPARSE, "x.toml").space
    assert space == parse(SPARSE, "x.toml", ["space={}"]).space
    assert isinstance(space.lr, Range)
    assert (space.lr.low, space.lr.high, space.lr.log) == (1e-5, 10.0, True)
    assert [choice.name for choice in space.schedule] == ["linear", "cosine"]
    assert [choice.name for choice in space.optimizer] == ["sgd", "adamw"]
    decay = dict(space.optimizer[1].entries())["adamw.weight_decay"]
    assert isinstance(decay, Range)
    assert decay.log, "a default is validated like what a file says"


@pytest.mark.parametrize(
    ("said", "changed_key"), [("lr=0.1", "lr"), ("schedule=wsd", "schedule"),
    ("optimizer=lion", "optimizer")],
)  # fmt: skip
def test_any_part_of_the_space_may_be_left_out(said: str, changed_key: str) -> None:
    default = parse(SPARSE, "x.toml").space
    space = parse(SPARSE, "x.toml", [f"space.{said}"]).space
    different = {
        key for key in ("lr", "schedule", "optimizer")
        if getattr(space, key) != getattr(default, key)
    }  # fmt: skip
    assert different == {changed_key}


def test_the_grid_wants_values_where_the_default_has_ranges() -> None:
    assert problems("search.sampler=grid", text=SPARSE) == [
        (
            '[space] lr: expected a value or a list, as the sampler is "grid", '
            "got { low = 1e-05, high = 10.0 }"
        ),
        (
            "[space.optimizer.adamw] weight_decay: expected a value or a list, as the sampler is "
            '"grid", got { low = 0.005, high = 1.0 }'
        ),
    ]


# --- two versions of a study ----------------------------------------------------------------


def test_changes_are_named_and_the_budget_is_none() -> None:
    old = parse(GOOD, "x.toml")
    assert changed(old, parse(GOOD, "x.toml", ["budget.trials=99"])) == []
    overrides = [
        "training.steps=400", "space.lr.low=1e-3", "space.schedule=['constant', 'cosine']",
        "space.optimizer.momentum=0.9", "search.sampler=tpe", "workload.arguments.depth=2",
    ]  # fmt: skip
    assert changed(old, parse(GOOD, "x.toml", overrides)) == [
        "[training] steps: was 300, is now 400",
        (
            "[space] lr: was { low = 0.0001, high = 1.0, log = true }, "
            "is now { low = 0.001, high = 1.0, log = true }"
        ),
        '[space] schedule: was ["constant", "step"], is now ["constant", "cosine"]',
        '[search.sampler] name: was "random", is now "tpe"',
        "[space.optimizer.sgd] momentum: was [0.5, 0.9], is now 0.9",
        "[workload.arguments] depth: was nothing, is now 2",
    ]


@pytest.mark.parametrize("value", ["1", "1.0", "true", '"1"', "[1]", "[1.0]"])
def test_what_changes_the_digest_is_named(value: str) -> None:
    old = parse(GOOD, "x.toml", ["workload.arguments.width=1"])
    new = parse(GOOD, "x.toml", [f"workload.arguments.width={value}"])
    assert bool(changed(old, new)) == (old.digest() != new.digest())


# --- rungs and evaluations ------------------------------------------------------------------


@pytest.mark.longer
@given(
    steps=st.integers(1, 5000),
    every=st.none() | st.integers(1, 6000),
    pruner=st.one_of(
        st.builds(
            ASHA,
            name=st.just("asha"),
            min_steps=st.none() | st.integers(1, 6000),
            reduction_factor=st.integers(2, 10),
        ),
        st.builds(Median, name=st.just("median"), warmup_steps=st.integers(0, 6000)),
    ),
)
def test_rungs_are_evaluated_and_lie_below_the_horizon(
    steps: int, every: int | None, pruner: ASHA | Median
) -> None:
    good = parse(SHORT, "x.toml")
    training = good.training.model_copy(update={"steps": steps, "evaluate_every": every})
    search = good.search.model_copy(update={"pruner": pruner})
    spec = good.model_copy(update={"training": training, "search": search})
    rungs, evaluations = spec.rungs(), spec.evaluation_steps()
    assert list(rungs) == sorted(set(rungs))
    assert all(0 < rung < steps for rung in rungs)
    assert {0, steps, *rungs} <= set(evaluations)
    assert list(evaluations) == sorted(set(evaluations))
    assert max(b - a for a, b in pairwise(evaluations)) <= (every or max(1, steps // 10))


# --- anything at all ------------------------------------------------------------------------

LEAVES = st.one_of(
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(2**63), 2**63, 0, -1]),
    st.floats(),
    st.text(max_size=100),
    st.sampled_from(["", "a" * 10_000, "\x1b[31m", "\0", "\u202e", "step", "grid"]),
    st.dates(),
)  # fmt: skip
KEYS = st.one_of(
    st.text(max_size=20),
    st.sampled_from([
        "", "name", "low", "high", "log", "range", "list", "value", "gamma", "min_steps", "[key]",
        "study", "space", "search", "lr", "schedule", "momentum", "arguments", "k" * 5000,
    ]),
)  # fmt: skip
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def toml(value: Any) -> str:
    """Write a value as TOML, tables inline."""
    if isinstance(value, dict):
        pairs = (f"{toml(key)} = {toml(inner)}" for key, inner in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) and value > 2**64:
        return hex(value)  # decimal ones have a limit of their own
    return str(value)


def holders(document: Any) -> list[Any]:
    """List every table and every list in a document."""
    if not isinstance(document, dict | list):
        return []
    inner = document.values() if isinstance(document, dict) else document
    return [document, *(found for value in inner for found in holders(value))]


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_any_document_loads_or_is_refused_in_printable_lines(data: st.DataObject) -> None:
    document = tomllib.loads(data.draw(st.sampled_from([GOOD, SHORT, WORDS])))
    for _ in range(data.draw(st.integers(1, 4))):
        holder = data.draw(st.sampled_from(holders(document)))
        if isinstance(holder, list):
            holder.insert(data.draw(st.integers(0, len(holder))), data.draw(JUNK))
        else:
            known = st.sampled_from(sorted(holder)) if holder else KEYS
            key = data.draw(known | KEYS)
            if data.draw(st.booleans()):
                holder[key] = data.draw(JUNK)
            else:
                holder.pop(key, None)
    text = "\n".join(f"{toml(key)} = {toml(value)}" for key, value in document.items())
    try:
        spec = parse(text, "x.toml")
    except StudyFileError as error:
        check_lines(error)
    else:
        assert StudySpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.longer
@given(text=st.text(max_size=200), override=st.text(st.characters(), max_size=50))
def test_any_text_and_any_override(text: str, override: str) -> None:
    for content, overrides in [(text, []), (GOOD, [override]), (GOOD, [f"space.{override}=1"])]:
        try:
            parse(content, "x.toml", overrides)
        except StudyFileError as error:
            check_lines(error)


def check_lines(error: StudyFileError) -> None:
    assert error.problems
    for line in error.problems:
        assert line.isprintable(), line
        assert line.startswith("x.toml: ")
        assert "expected " in line
        assert ", got " in line
        assert len(line) < 1500
        assert "pydantic" not in line


# --- the JSON Schema ------------------------------------------------------------------------


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """Validate by the part of JSON Schema that ours uses; an unknown keyword is an error."""
    said = dict(schema)
    for aside in ("$schema", "$defs", "title", "description", "default", "discriminator"):
        said.pop(aside, None)
    checks = {
        "$ref": lambda ref: accepts(root["$defs"][ref.rpartition("/")[2]], value, root),
        "oneOf": lambda parts: sum(accepts(part, value, root) for part in parts) == 1,
        "anyOf": lambda parts: any(accepts(part, value, root) for part in parts),
        "const": lambda only: value == only,
        "enum": lambda options: value in options,
        "type": lambda name: is_of_type(value, name),
        "minimum": lambda low: value >= low,
        "maximum": lambda high: value <= high,
        "exclusiveMinimum": lambda low: value > low,
        "exclusiveMaximum": lambda high: value < high,
        "multipleOf": lambda factor: math.fmod(value, factor) == 0,
        "minLength": lambda low: len(value) >= low,
        "maxLength": lambda high: len(value) <= high,
        "minItems": lambda low: len(value) >= low,
        "pattern": lambda text: isinstance(value, str) and re.search(text, value) is not None,
        "items": lambda part: all(accepts(part, item, root) for item in value),
        "required": lambda keys: set(keys) <= set(value),
        "properties": lambda parts: all(
            accepts(parts[key], item, root) for key, item in value.items() if key in parts
        ),
        "additionalProperties": lambda part: (
            (part is not False and all(accepts(part, item, root) for item in value.values()))
            or set(value) <= set(said.get("properties", {}))
        ),
    }
    order = sorted(said, key=lambda keyword: keyword != "type")  # the others presume the type
    return all(checks[keyword](said[keyword]) for keyword in order)


def is_of_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}
    return name in types and isinstance(value, types[name])


@pytest.mark.slow
@pytest.mark.parametrize("text", [GOOD, SHORT, SPARSE, WORDS])
def test_the_schema_accepts_what_we_accept(text: str) -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert accepts(schema, tomllib.loads(text), schema)


@pytest.mark.longer
@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("space", "lr", "x"),
        ("space", "schedule", "cosin"),
        ("space", "schedule", [{"name": "step", "gama": 1}]),
        ("space", "optimizer", []),
        ("search", "sampler", "none"),
        ("training", "steps", 0),
        ("training", "stesp", 3),
        ("budget", "trials", 1.5),
    ],
)
def test_the_schema_refuses_what_we_refuse(table: str, key: str, value: Any) -> None:
    document = tomllib.loads(GOOD)
    document[table][key] = value
    schema = json_schema()
    assert not accepts(schema, document, schema)


def test_the_schema_names_bounds() -> None:
    gamma = json_schema()["$defs"]["Step"]["properties"]["gamma"]
    assert gamma["description"] == "a number above 0 and of at most 1, a list of them, or a range"
