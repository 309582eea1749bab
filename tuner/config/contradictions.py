"""Contradictions between tables of a study file that are valid by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tuner.config.grid import CHECKED_LIMIT, LIMIT
from tuner.config.grid import Grid as CellsOf
from tuner.config.mistakes import Mistake, Place, shown
from tuner.config.retrain import NOT_STORED, RetrainTable, StudyNotifyTable
from tuner.config.search import (
    CMAES,
    GP,
    NSGA2,
    QMC,
    TPE,
    AnyPruner,
    Auto,
    Branching,
    Comparing,
    FastForward,
    Grid,
    Halving,
    Listed,
    NoPruner,
    OptunaGP,
    Patient,
    Random,
    SingleRung,
)
from tuner.config.space import SETTINGS, Space
from tuner.config.study import (
    PLACEHOLDER,
    PROGRAM_VALUES,
    SECONDS,
    BudgetTable,
    ProbeTable,
    SearchTable,
    StudyTable,
    TrainingTable,
    WorkloadTable,
)
from tuner.config.values import Range, Table


def contradictions(tables: Mapping[str, Table]) -> Iterator[Mistake]:
    """Yield the contradictions between valid tables."""
    space, search, training = (tables.get(name) for name in ("space", "search", "training"))
    if isinstance(training, TrainingTable):
        yield from _incompatible(training, tables.get("workload"))
        if isinstance(space, Space):
            workload = tables.get("workload")
            known = workload if isinstance(workload, WorkloadTable) else None
            yield from _unmatched(space, training, known)
    yield from _command(tables.get("workload"), space, tables.get("study"))
    yield from _gpus(tables.get("workload"), training)
    yield from _gate_without_direction(tables.get("study"), tables.get("retrain"))
    yield from _not_probed(tables)
    yield from _several_objectives(tables)
    yield from _canary_of_a_person(tables.get("retrain"))
    yield from _stored_addresses(tables.get("retrain"), tables.get("notify"))
    if not isinstance(search, SearchTable):
        return
    yield from _not_branched(search, tables.get("workload"))
    if isinstance(search.sampler, Grid) and isinstance(space, Space):
        yield from _too_large(space)
    listed = search.sampler.params if isinstance(search.sampler, Listed) else ()
    for place, combinations in ((("sampler", "params"), listed), (("first",), search.first)):
        for index, params in enumerate(combinations):
            if isinstance(space, Space):
                for key, expected in space.missing(params).items():
                    got = shown(params.get(key))
                    yield Mistake(("search", *place, key, index), expected, got)
    if search.learn_from and not isinstance(search.sampler, Auto | GP):
        expected = "auto or gp, as [search] learn_from is given"
        yield Mistake(("search", "sampler"), expected, shown(search.sampler.name))
    if (
        isinstance(search.sampler, CMAES)
        and isinstance(space, Space)
        and not space.shared_numbers()
    ):
        expected = 'a range, as the sampler is "cmaes", which searches numbers alone'
        yield Mistake(("space", "lr"), expected, shown(space.lr))
    budget = tables.get("budget")
    limited = isinstance(study := tables.get("study"), StudyTable) and study.constraints
    if limited and isinstance(budget, BudgetTable) and budget.improvement_below is not None:
        expected = "nothing, as it is unknown under [study] constraints"
        yield Mistake(("budget", "improvement_below"), expected, shown(budget.improvement_below))
    yield from _samplers_without_constraints(tables.get("study"), search)
    if isinstance(training, TrainingTable):
        yield from _rungs_too_late(("search", "pruner"), search.pruner, training)


def _samplers_without_constraints(study: Table | None, search: SearchTable) -> Iterator[Mistake]:
    """Yield samplers that would take infeasible trials for good ones."""
    blind = isinstance(search.sampler, CMAES | OptunaGP)
    if blind and isinstance(study, StudyTable) and study.constraints:
        known = "one of auto, gp, tpe, random, qmc, grid, listed"
        expected = f"{known}, as [study] constraints are given"
        yield Mistake(("search", "sampler"), expected, shown(search.sampler.name))


def _several_objectives(tables: Mapping[str, Table]) -> Iterator[Mistake]:
    """Yield what needs to know which of two trials is better, in a study of several objectives."""
    study, search, training, budget, probe = map(
        tables.get, ("study", "search", "training", "budget", "probe")
    )
    several = isinstance(study, StudyTable) and bool(study.objectives)
    if isinstance(search, SearchTable) and isinstance(search.sampler, NSGA2) and not several:
        expected = "another sampler, or several [study] objectives, which nsga2 is for"
        yield Mistake(("search", "sampler"), expected, shown("nsga2"))
    if not several:
        return
    why = "as [study] objectives are several"
    if isinstance(search, SearchTable):
        if isinstance(search.sampler, GP | OptunaGP | CMAES):
            expected = f"one of auto, nsga2, tpe, random, qmc, grid, listed, {why}"
            yield Mistake(("search", "sampler"), expected, shown(search.sampler.name))
        if not isinstance(search.pruner, NoPruner):
            expected = f'"none", {why}: which trials lag behind is not known'
            yield Mistake(("search", "pruner"), expected, shown(search.pruner.name))
        if search.learn_from:
            yield Mistake(("search", "learn_from"), f"nothing, {why}", "names")
    if isinstance(training, TrainingTable) and training.patience is not None:
        yield Mistake(("training", "patience"), f"nothing, {why}", shown(training.patience))
    if isinstance(probe, ProbeTable) and probe.enabled:
        yield Mistake(("probe", "enabled"), f"false, {why}", "true")
    if isinstance(budget, BudgetTable):
        for key in ("decide", "no_improvement", "regret_below", "improvement_below"):
            if getattr(budget, key):
                yield Mistake(("budget", key), f"nothing, {why}", shown(getattr(budget, key)))


def _stored_addresses(retrain: Table | None, notify: Table | None) -> Iterator[Mistake]:
    """Find addresses of notifications; the messages do not show them."""
    if isinstance(retrain, RetrainTable):
        for key in retrain.notify.literals:
            yield Mistake(("retrain", "notify", key), NOT_STORED, "something else")
    if isinstance(notify, StudyNotifyTable):
        for key in notify.literals:
            yield Mistake(("notify", key), NOT_STORED, "something else")


def _not_probed(tables: Mapping[str, Table]) -> Iterator[Mistake]:
    """Yield settings that cannot be combined with a probe."""
    probe, workload, space, search = map(tables.get, ("probe", "workload", "space", "search"))
    if not isinstance(probe, ProbeTable) or not probe.enabled:
        return
    place = ("probe", "enabled")
    if isinstance(workload, WorkloadTable) and workload.factory is None:
        expected = f"false, since {_trainer(workload)} cannot train many rates at a time"
        yield Mistake(place, expected, "true")
    if isinstance(space, Space) and not isinstance(space.lr, Range):
        yield Mistake(("space", "lr"), "a range, as [probe] is enabled", shown(space.lr))
    known = (Auto, TPE, Random, GP, OptunaGP, QMC)
    if isinstance(search, SearchTable) and not isinstance(search.sampler, known):
        expected = "one of auto, tpe, random, gp, optuna_gp, qmc, as [probe] is enabled"
        yield Mistake(("search", "sampler"), expected, shown(search.sampler.name))


def _gate_without_direction(study: Table | None, retrain: Table | None) -> Iterator[Mistake]:
    """Yield a missing direction of a gate whose metric is not the study's."""
    if isinstance(study, StudyTable) and isinstance(retrain, RetrainTable):
        gate = retrain.gate
        if gate.metric not in (None, study.metric) and gate.direction is None:
            expected = f'"minimize" or "maximize", as {gate.metric} is not the study\'s metric'
            yield Mistake(("retrain", "gate", "direction"), expected, "nothing")


def _canary_of_a_person(retrain: Table | None) -> Iterator[Mistake]:
    """Yield a time after which a canary is promoted where a person promotes."""
    if isinstance(retrain, RetrainTable) and retrain.promote == "manual" and retrain.canary_hours:
        expected = 'nothing, as promote = "manual" waits for a person'
        yield Mistake(("retrain", "canary_hours"), expected, shown(retrain.canary_hours))


def _incompatible(training: TrainingTable, workload: Table | None) -> Iterator[Mistake]:
    """Yield settings of [training] that exclude each other or have no effect."""
    if isinstance(workload, WorkloadTable) and workload.factory is None:
        who = _trainer(workload)
        where = "" if workload.ask_and_tell else "; pass it in [workload.arguments]"
        if workload.command is not None:
            where = "; pass it in [workload] command"
        uses_size = "batch_size" in _placeholders(workload)
        for key in (
            *(() if uses_size else ("batch_size",)),
            "dtype",
            "clip_norm",
            "accumulate",
            "precision",
            "ema",
            "trainer",
            "slots",
        ):
            if key in training.model_fields_set:
                expected = f"nothing, since {who} has its own training loop"
                yield Mistake(("training", key), expected, shown(getattr(training, key)), where)
        return
    if training.precision and training.dtype != "float32":
        expected = 'nothing, or dtype = "float32", the type of the parameters in mixed precision'
        yield Mistake(("training", "precision"), expected, shown(training.precision))
    size = training.batch_size
    if isinstance(size, int) and training.accumulate > size:
        expected = f"at most the {size} rows of [training] batch_size"
        yield Mistake(("training", "accumulate"), expected, shown(training.accumulate))


def _gpus(workload: Table | None, training: Table | None) -> Iterator[Mistake]:
    """Yield ranks on GPUs of a study that is for another device."""
    if not isinstance(workload, WorkloadTable) or not isinstance(training, TrainingTable):
        return
    if workload.processes == "gpus" and training.device != "cuda":
        expected = 'a number, or device = "cuda" in [training]'
        yield Mistake(("workload", "processes"), expected, shown("gpus"))


def _trainer(workload: WorkloadTable) -> str:
    """Return who trains if there is no factory."""
    if workload.command is not None:
        return "a command"
    return "the caller" if workload.ask_and_tell else "a train function"


def _placeholders(workload: WorkloadTable) -> set[str]:
    words = " ".join(workload.command or ())
    return {match[1] for match in PLACEHOLDER.finditer(words) if match[1]}


def _command(workload: Table | None, space: Table | None, study: Table | None) -> Iterator[Mistake]:
    """Yield placeholders without a value, and schedules and metrics that do not reach a program."""
    if not isinstance(workload, WorkloadTable) or workload.command is None:
        return
    used = _placeholders(workload)
    if isinstance(space, Space):
        parameters = space.parameters()
        fixed = {one.name: one.lowest for one in parameters if not one.varies}
        always = {one.name for one in parameters if one.exists(fixed)}
        known = {*always, *PROGRAM_VALUES}
        for name in sorted(used - known):
            expected = f"placeholders for what every trial has: {', '.join(sorted(known))}"
            if name in {one.name for one in parameters}:
                expected += "; what only some trials have is in the file TUNER_TRIAL"
            yield Mistake(("workload", "command"), expected, f"{{{name}}}")
    if not workload.patterns:
        return
    if isinstance(study, StudyTable):
        yield from _without_pattern(workload, study)
    if isinstance(space, Space) and "rates" not in used:
        names = [one.name for one in space.schedule]
        if names != ["constant"] or space.longest_warmup(100):
            expected = (
                '"constant", since a program that reports by patterns gets one rate, {lr}; pass it '
                "the file {rates}, or report with tuner.current_trial()"
            )
            yield Mistake(("space", "schedule"), expected, ", ".join(names))
    elif isinstance(space, Space) and any(one.name == "plateau" for one in space.schedule):
        expected = "a schedule that is known in advance, since {rates} is written at the start"
        yield Mistake(("space", "schedule"), expected, "plateau")


def _without_pattern(workload: WorkloadTable, study: StudyTable) -> Iterator[Mistake]:
    """Yield metrics that the study needs and that no pattern reads."""
    if study.metric not in workload.patterns:
        expected = f"a pattern for the study's metric {study.metric}"
        yield Mistake(("workload", "patterns"), expected, ", ".join(workload.patterns))
    for one in study.objectives[1:]:
        if one.metric not in {SECONDS, *workload.patterns}:
            expected = f"a pattern for the objective {one.metric}"
            yield Mistake(("workload", "patterns"), expected, ", ".join(workload.patterns))
    for limit in study.limits():
        if unknown := sorted(limit.names - {SECONDS, *workload.patterns}):
            expected = f"metrics that have a pattern ({', '.join(workload.patterns)}), or seconds"
            yield Mistake(("study", "constraints"), expected, ", ".join(unknown))


def _not_branched(search: SearchTable, workload: Table | None) -> Iterator[Mistake]:
    """Yield a judge by branches where there cannot be any."""
    if not isinstance(search.judge, Branching):
        return
    place, got = ("search", "judge"), shown(search.judge.name)
    if isinstance(workload, WorkloadTable) and workload.factory is None:
        if workload.train is None or workload.is_isolated:
            own = " in a process of its own" if workload.train is not None else ""
            expected = f'"raw", since the state of {_trainer(workload)}{own} cannot be copied'
            yield Mistake(place, expected, got)
        elif not isinstance(search.judge, FastForward):
            expected = '"fast_forward" or "raw", as a train function trains its branches itself'
            yield Mistake(place, expected, got)
    if not isinstance(search.pruner, SingleRung | Halving):
        expected = f'"raw", as the pruner is "{search.pruner.name}", which has no few rungs'
        hint = "; the others are for one_rung, halving, asha and hyperband"
        yield Mistake(place, expected, got, hint)


def _too_large(space: Space) -> Iterator[Mistake]:
    """Yield ranges, of which a grid has none, or the number of cells if there are too many."""
    ranges = [one for one in space.parameters() if isinstance(one.entry, Range)]
    for one in ranges:
        assert isinstance(one.entry, Range)
        got = shown(one.entry.model_dump(exclude={"log"}))
        yield Mistake(one.place, 'a value or a list, as the sampler is "grid"', got)
    if ranges:
        return
    limit = CHECKED_LIMIT if space.constraints else LIMIT
    cells = CellsOf(space).cells
    if cells > limit:
        expected = f'a grid of at most {limit:,} combinations, as the sampler is "grid"'
        yield Mistake(("search", "sampler"), expected, f"{cells:,}")


def _unmatched(
    space: Space, training: TrainingTable, workload: WorkloadTable | None
) -> Iterator[Mistake]:
    """Yield contradictions between what is searched and what is fixed."""
    own = workload is not None and workload.factory is None
    for name in SETTINGS:
        if getattr(space, name) is None:
            continue
        if own:
            assert workload is not None
            who = _trainer(workload)
            expected = f"nothing, since {who} has its own training loop"
            hint = f"; search it in [space.arguments] {name}" if name == "batch_size" else ""
            yield Mistake(("space", name), expected, "an entry", hint)
        elif name in training.model_fields_set and name in _chosen(space):
            expected = f"nothing, as [space] {name} is searched"
            yield Mistake(("training", name), expected, shown(getattr(training, name)))
    if not own:
        for name in space.rates:
            expected = "nothing, since a factory has one rate; further rates need a train function"
            yield Mistake(("space", "rates", name), expected, "an entry")
    if space.precision is not None and training.dtype != "float32":
        expected = 'dtype = "float32", the type of the parameters, as precision is searched'
        yield Mistake(("training", "dtype"), expected, shown(training.dtype))
    for name in space.function_arguments:
        if workload is not None and name in workload.arguments:
            table = "rates" if name in space.rates else "arguments"
            expected = f"nothing, as [space.{table}] has it"
            got = shown(workload.arguments[name])
            yield Mistake(("workload", "arguments", name), expected, got)
    yield from _budget_of_a_trial(space, training, workload)


def _budget_of_a_trial(
    space: Space, training: TrainingTable, workload: WorkloadTable | None
) -> Iterator[Mistake]:
    """Yield contradictions between the budget of a trial and its batch size."""
    if workload is not None and (workload.ask_and_tell or workload.command is not None):
        if training.unit != "steps":
            expected = f"steps, which {_trainer(workload)} counts and reports"
            yield Mistake(("training", training.unit), expected, shown(training.length))
        return
    own = workload is not None and workload.train is not None
    sizes = [one for one in space.parameters() if one.name == "batch_size" and one.varies]
    if sizes and training.unit == "steps":
        expected = "epochs or examples instead, as the batch size is searched: with equal steps, a "
        expected += "larger batch sees more data, and would win by that alone"
        yield Mistake(("training", "steps"), expected, shown(training.steps))
    known = own and (
        "batch_size" in space.arguments or (workload and "batch_size" in workload.arguments)
    )
    if own and training.unit != "steps":
        fixed = workload.arguments.get("batch_size", 1) if workload else 1
        for one in _wrong_sizes(space, fixed):
            expected = f"whole numbers of at least 1, as the budget of a trial is {training.unit}"
            yield Mistake(("space", "arguments", "batch_size"), expected, shown(one))
    if own and training.unit != "steps" and not known:
        expected = "steps, or an argument batch_size, from which the steps of a trial follow"
        yield Mistake(("training", training.unit), expected, shown(training.length))


def _wrong_sizes(space: Space, fixed: object) -> list[object]:
    """Return the batch sizes of a train function that are no whole numbers above 0."""
    found = [one.entry for one in space.parameters() if one.name == "batch_size"]
    entry: object = found[0] if found else fixed
    if isinstance(entry, Range):
        values: tuple[object, ...] = (entry.low, entry.high)
    else:
        values = entry if isinstance(entry, tuple) else (entry,)
    return [one for one in values if type(one) is not int or one < 1]


def _chosen(space: Space) -> set[str]:
    """Return the names of the parameters that every trial has."""
    return {one.name for one in space.parameters() if not one.when}


def _rungs_too_late(place: Place, pruner: AnyPruner, training: TrainingTable) -> Iterator[Mistake]:
    """Yield settings that leave no rung, so that the pruner would never prune."""
    unit, length = training.unit, training.length
    below = f"a number below the {length} of [training] {unit}, so that there is a rung"
    settings: list[tuple[Place, int | None]] = []
    if isinstance(pruner, Halving):
        settings.append(((*place, "min_steps"), pruner.min_steps))
    elif isinstance(pruner, Comparing):
        settings.append(((*place, "warmup_steps"), pruner.warmup_steps))
    if isinstance(pruner, Comparing | Patient):
        settings.append((("training", "evaluate_every"), training.evaluate_every))
    late = [(at, steps) for at, steps in settings if steps is not None and steps >= length]
    for at, steps in late:
        yield Mistake(at, below, str(steps))
    if isinstance(pruner, Patient):
        if not late:
            yield from _impatient(place, pruner, training)
        yield from _rungs_too_late((*place, "wraps"), pruner.wraps, training)


def _impatient(place: Place, pruner: Patient, training: TrainingTable) -> Iterator[Mistake]:
    """Yield a patience that no trial can exhaust."""
    reports = len(pruner.rungs(training.length, training.evaluation_interval))
    if reports < 2:
        expected = (
            f'enough {training.unit} for two reports before the end, as the pruner is "patient"'
        )
        yield Mistake(("training", training.unit), expected, str(training.length))
    elif pruner.patience > reports - 2:
        expected = f"a number of at most {reports - 2}, as a trial reports {reports} times"
        yield Mistake((*place, "patience"), expected, str(pruner.patience))
