"""The settings file of executors: what each worker gets, and how engines are asked for it.

Settings are of whoever starts workers, not of a study: they are not stored in the database.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, ByteSize, Field, TypeAdapter, ValidationError

from tuner.config import reading
from tuner.config.values import Table, mistake
from tuner.core.errors import StudyFileError

FILE = "cluster.toml"
"""The settings file of the current folder, unless another one is named."""


def _bytes(text: str) -> str:
    """Refuse what is no size in memory."""
    try:
        TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        raise mistake('a size such as "8GiB"') from None
    return text


def _word(text: str) -> str:
    """Refuse what cannot be an argument of an engine's command, such as control characters."""
    if not text.strip() or not text.isprintable():
        raise mistake("printable text")
    return text


def _variable(text: str) -> str:
    """Refuse what is no name of an environment variable."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise mistake("the name of a variable")
    return text


def _name(text: str) -> str:
    """Refuse what Kubernetes does not take as a name."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", text):
        raise mistake("a name of small letters, digits, '-' and '.'")
    return text


def _command(text: str) -> str:
    """Refuse what is not the words of a command."""
    try:
        words = shlex.split(_word(text))
    except ValueError:
        words = []
    if not words:
        raise mistake("a command, with balanced quotes")
    return text


Name: TypeAlias = Annotated[str, AfterValidator(_name)]
Size: TypeAlias = Annotated[str, AfterValidator(_bytes)]
Word: TypeAlias = Annotated[str, AfterValidator(_word)]
Command: TypeAlias = Annotated[str, AfterValidator(_command)]
Variable: TypeAlias = Annotated[str, AfterValidator(_variable)]


class WorkerTable(Table):
    """What each worker gets, on every engine.

    - `cpus`, `memory` (such as "8GiB"; None: the engine's default) and `gpus`.
    - `device`: what it trains on, as of `tuner worker --device`: "auto" gives it a GPU of its own.
    - `workers_per_gpu`: how many workers share a GPU with "auto".
    - `grace_seconds`: how long it may take to save its trials before it is ended; engines notify it
      so long before a limit.
    - `python`: the interpreter on the engine's machines; by default this one.
    - `environment`: variables, beside those of the process that starts workers. Not for secrets.
    """

    cpus: Annotated[int, Field(ge=1)] = 1
    memory: Size | None = None
    gpus: Annotated[int, Field(ge=0)] = 0
    device: Word | None = None
    workers_per_gpu: Annotated[int, Field(ge=1, le=64)] = 1
    grace_seconds: Annotated[int, Field(ge=5, le=3600)] = 60
    python: Word | None = None
    environment: dict[Variable, Word] = Field(default_factory=dict)

    @property
    def megabytes(self) -> int | None:
        """The memory in MiB, rounded up."""
        if self.memory is None:
            return None
        return -(-int(TypeAdapter(ByteSize).validate_python(self.memory)) // 2**20)


class SlurmTable(Table):
    """How workers are asked for by `sbatch`.

    - `partition`, `account`, `qos`, `constraint`: as its options; None: its defaults.
    - `minutes`: the time limit of a job, after which it is queued again; None: the partition's.
    - `gpu_type`: as in "gpu:TYPE:1"; None: any.
    - `setup`: commands before the worker, such as "module load cuda".
    - `logs`: a folder that all nodes share; by default `.tuner/logs` in the current folder.
    - `options`: further options of `sbatch`.
    """

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    minutes: Annotated[int, Field(ge=1)] | None = None
    gpu_type: Word | None = None
    setup: Annotated[tuple[Command, ...], Field(strict=False)] = ()
    logs: Word | None = None
    options: Annotated[tuple[Word, ...], Field(strict=False)] = ()


class KubernetesTable(Table):
    """How workers are asked for as an Indexed Job.

    - `image`: an image with tuner and the code of the studies.
    - `namespace`, and the `context` of the kubeconfig; None: its current one.
    - `queue`: a local queue of Kueue.
    - `secrets`: Secrets whose keys become variables, such as TUNER_DATABASE_URL and PGPASSWORD.
    - `checkpoints_claim`: a volume claim that many nodes may write, for checkpoints.
    - `gpu_resource`: what GPUs are requested as.
    - `service_account`, `node_selector`, `labels`: as in manifests.
    """

    image: Word = "tuner:0.1.0"
    namespace: Name = "default"
    context: Word | None = None
    queue: Name | None = None
    secrets: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    checkpoints_claim: Name | None = None
    gpu_resource: Word = "nvidia.com/gpu"
    service_account: Name | None = None
    node_selector: dict[Word, Word] = Field(default_factory=dict)
    labels: dict[Word, Word] = Field(default_factory=dict)


class RayTable(Table):
    """How workers are asked for as actors.

    - `address`: "ray://HOST:10001", or "HOST:6379" on a node of the cluster; None: RAY_ADDRESS,
      else the cluster of this machine.
    - `namespace`: of the actors.
    - `working_dir`: a folder that goes with the workers, such as that of the studies' code.
    - `resources`: further ones that a worker takes of its node, such as { bigmem = 1 }.
    - `placement`: "spread" over the nodes, or "pack" them on few.
    """

    address: Word | None = None
    namespace: Word = "tuner"
    working_dir: Word | None = None
    resources: dict[Word, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    placement: Literal["spread", "pack"] = "spread"


class ClusterSpec(Table):
    """A settings file."""

    worker: WorkerTable = WorkerTable()
    slurm: SlurmTable = SlurmTable()
    kubernetes: KubernetesTable = KubernetesTable()
    ray: RayTable = RayTable()


def load(path: Path | None) -> ClusterSpec:
    """Read the settings file, or `cluster.toml` of the current folder if there is one.

    Raise `StudyFileError` with all its mistakes.
    """
    if path is None:
        path = Path(FILE)
        if not path.exists():
            return ClusterSpec()
    return parse(reading.read(path), str(path))


def parse(text: str, source: str) -> ClusterSpec:
    """Validate the text of a settings file; messages name `source`. Raise as `load` does."""
    document = reading.document_of(text, source)
    tables, found = reading.validated(document, ClusterSpec)
    if found:
        lines = [mistake.line(source) for mistake in found]
        raise StudyFileError(source, lines, "settings file")
    return ClusterSpec.model_validate(tables)
