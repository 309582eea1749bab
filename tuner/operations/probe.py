"""The learning rates that a study's workload can be trained with, before any search."""

from __future__ import annotations

from collections.abc import Sequence

from tuner.config import StudySpec
from tuner.core.errors import UsageError
from tuner.core.failures import workload_code
from tuner.training import trainer_choice
from tuner.training.device import use_threads
from tuner.training.lr_probe import probe as lr_probe
from tuner.training.lr_probe.probe import Probe
from tuner.training.workloads import Workload


def probe(spec: StudySpec, prefixes: Sequence[str]) -> dict[str, Probe]:
    """Train many rates for a few steps and return what was found, by optimizer.

    Raise `UsageError` for a train function, and `WorkloadError` if the workload cannot be built.
    """
    use_threads(1 if spec.training.threads == "auto" else spec.training.threads)
    workload = trainer_choice.load(spec, prefixes)
    if not isinstance(workload, Workload):
        raise UsageError(
            f"[workload]: expected a factory, got {spec.workload.function}. A "
            "probe trains many rates at a time, and a train function trains one; name a factory, "
            "or search a range of rates without a probe"
        )
    with workload_code():
        return lr_probe.probe(workload, spec, with_warmup=True)
