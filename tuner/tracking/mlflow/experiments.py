"""Find experiments in MLflow by tags, since users may rename them in the UI, and create them."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.exceptions import MlflowException

from tuner.core.errors import UnavailableError
from tuner.core.text import shortened
from tuner.ledger import StudyRecord
from tuner.tracking.mlflow.client_writer import is_run_of
from tuner.tracking.mlflow.run_content import PARENT
from tuner.tracking.mlflow.views import is_known, view_tags, views

TITLE = "tuner.title"
"""The tag that identifies a study's experiment."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the UI on training runs instead of generative AI."""
NAME_LIMIT = 256
"""The longest name of an experiment in MLflow's tables."""


def find(client: MlflowClient, study: StudyRecord, parent: str | None) -> Experiment | None:
    """Return the study's experiment, active or deleted, or None.

    It is the experiment of the published parent run if that is the study's, else the one with the
    tag of the title, else the one with that name, since MLflow's names are unique.
    """
    if parent is not None:
        try:
            run = client.get_run(parent)
            if is_run_of(run, study, PARENT):  # the id is a row's, which others may have written
                return client.get_experiment(run.info.experiment_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return named_or_tagged(client, study.title, TITLE, study.title)


def find_or_create(
    client: MlflowClient, study: StudyRecord, artifacts: Path | None, parent: str | None
) -> str:
    """Return the id of the study's experiment, created if missing, with its saved views.

    `parent` is the id of the parent run if it is published. Raise `UnavailableError` if the
    experiment is deleted.
    """
    saved = view_tags(study, views(study)) if is_known() else {}
    found = find(client, study, parent)
    if found is None:
        location = None if artifacts is None else (artifacts / f"study-{study.id}").as_uri()
        tags = {"tuner.study": study.name, TITLE: study.title, **KIND, **saved}
        return str(client.create_experiment(study.title, artifact_location=location, tags=tags))
    if found.lifecycle_stage != "active":
        raise UnavailableError(
            f"the experiment {found.name!r} is deleted in MLflow; restore it (`mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`) or remove it for good (`mlflow gc`)"
        )
    where = str(found.experiment_id)
    for key, value in saved.items():
        if found.tags.get(key) != value:  # written by another version of tuner
            client.set_experiment_tag(where, key, value)
    return where


def named_or_tagged(client: MlflowClient, name: str, key: str, value: str) -> Experiment | None:
    """Return the experiment with a tag, else the experiment with that name, or None."""
    named = client.get_experiment_by_name(name)
    if named is not None and named.tags.get(key) == value:
        return named
    return next(iter(tagged(client, key, value, ViewType.ALL)), named)


def tagged(
    client: MlflowClient, key: str, value: str, view: int = ViewType.ACTIVE_ONLY
) -> list[Experiment]:
    """Return the experiments with a tag, active ones first, without those of deleted studies."""
    found: list[Experiment] = []
    token = None
    while True:  # read all of them, since MLflow's filters cannot escape quotes
        page = client.search_experiments(view_type=view, max_results=1000, page_token=token)
        found.extend(
            one
            for one in page
            if one.tags.get(key) == value and one.name != erased_name(value, one.experiment_id)
        )
        token = page.token
        if not token:
            return sorted(found, key=lambda one: one.lifecycle_stage != "active")


def erased_name(title: str, experiment: str) -> str:
    """Return the name of a deleted study's experiment."""
    suffix = f" (deleted, {experiment})"
    return shortened(title, NAME_LIMIT - len(suffix)) + suffix
