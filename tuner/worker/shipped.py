"""Code that was shipped with a study, for a worker that lacks it and allows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuner.core.errors import UnavailableError, WorkloadError
from tuner.core.file_stores import FileStore
from tuner.core.importing import allow_from_current_folder
from tuner.ledger import Reader, StudyRecord, events
from tuner.ledger.versions import listed
from tuner.observability.logs import logger
from tuner.training import registration, shipping, workloads

log = logger(__name__)


def provide(
    ledger: Reader, study: StudyRecord, store: FileStore, folder: Path, prefixes: Sequence[str]
) -> None:
    """Make the code of a study importable from below `folder`, if it is not installed or here.

    Raise `WorkloadError` if it was not shipped, or an entry of `prefixes` does not allow it.
    """
    table = study.spec.workload
    if table.command is not None or table.ask_and_tell:
        return
    module = registration.module_of(table.function, prefixes)
    allow_from_current_folder(prefixes)
    try:
        workloads.source_of(table.function, module)
    except WorkloadError as error:
        missing = f"{error}; missing: {listed(sorted(study.workload.get('files') or [module]))}"
    else:
        return  # other code is refused where it is compared
    shipped = [one for one in events.shipments(ledger, study.name) if shipping.is_digest(one[0])]
    if not shipped:
        raise WorkloadError(f"{missing}; install it, or submit the study with --ship")
    allowed = [
        (digest, one)
        for digest, one in shipped
        if shipping.is_allowed(digest, one.db_role, prefixes)
    ]
    if not allowed:
        digest, by = shipped[0]
        raise WorkloadError(
            f"{missing}; {by.who} has shipped it, and this worker does not allow that: if you "
            f"trust the code, start it with --allow-shipped {digest}"
        )
    digest, by = allowed[0]
    texts = _unpacked(study, store, digest, module.partition(".")[0])
    shipping.install(texts, folder / digest)
    try:
        workloads.source_of(table.function, module)
    except WorkloadError as error:
        raise WorkloadError(
            f"{error}; its shipped code is not used, as this process has another package "
            f"{module.partition('.')[0]}: start a worker for this study alone, in another folder"
        ) from error
    log.info("shipped code is used", study=study.name, digest=digest, by=by.who)


def _unpacked(study: StudyRecord, store: FileStore, digest: str, package: str) -> dict[str, str]:
    """Read and check the shipped code of a study."""
    try:
        content = store.read(shipping.key_of(digest))
    except FileNotFoundError as error:
        raise WorkloadError(
            f"the code of study {study.name!r} was shipped, but {store} has none with SHA-256 "
            f"{digest}; set TUNER_CHECKPOINTS to where it was submitted"
        ) from error
    except OSError as error:
        raise UnavailableError(f"the shipped code cannot be read: {error}") from error
    try:
        return shipping.unpack(content, digest, package, study.workload.get("files") or {})
    except (WorkloadError, ValueError) as error:
        raise WorkloadError(f"the shipped code of study {study.name!r}: {error}") from error
