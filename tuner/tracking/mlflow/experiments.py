"""Finding experiments in MLflow by what they are; people may rename them in its UI."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.exceptions import MlflowException

from tuner.core.text import shortened
from tuner.ledger import StudyRecord

TITLE = "tuner.title"
"""The tag by which a study's experiment is known."""
NAME_LIMIT = 256
"""How many characters the name of an experiment has in MLflow's tables."""


def find(client: MlflowClient, study: StudyRecord, parent: str | None) -> Experiment | None:
    """Return the study's experiment, active or deleted; None if there is none.

    It is the one with the parent run, where that has been published, else the one with our tag,
    else one that merely has the name: MLflow allows no other of that name.
    """
    if parent is not None:
        try:
            return client.get_experiment(client.get_run(parent).info.experiment_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return named_or_tagged(client, study.title, TITLE, study.title)


def named_or_tagged(client: MlflowClient, name: str, key: str, value: str) -> Experiment | None:
    """Return the experiment with a tag, looked for by its name first; else one of that name."""
    named = client.get_experiment_by_name(name)
    if named is not None and named.tags.get(key) == value:
        return named
    return next(iter(tagged(client, key, value, ViewType.ALL)), named)


def tagged(
    client: MlflowClient, key: str, value: str, view: int = ViewType.ACTIVE_ONLY
) -> list[Experiment]:
    """Return the experiments with a tag, active ones first; not those of deleted studies."""
    found: list[Experiment] = []
    token = None
    while True:  # all of them: in a filter of MLflow's no quote can be escaped
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
