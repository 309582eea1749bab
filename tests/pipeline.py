"""A pipeline in a folder of its own: it retrains the moving line, and looks at what is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from processes import PREFIXES

from tuner.config import reading
from tuner.ledger import Ledger, database
from tuner.ledger.database import Addresses, tracking_client
from tuner.operations import submit
from tuner.operations.predict import predict
from tuner.operations.retrain import retrain
from tuner.retraining import versions
from tuner.tracking.mlflow.registry import Registry


@dataclass(frozen=True)
class Pipeline:
    """What a pipeline does, in a folder of its own."""

    folder: Path
    tracking: str | None = None  # the address of a server; None: the folder's own file

    @property
    def places(self) -> Addresses:
        server = {} if self.tracking is None else {"MLFLOW_TRACKING_URI": self.tracking}
        return database.addresses(server, self.folder)

    @property
    def ledger(self) -> Ledger:
        return Ledger(database.open_ledger(self.places, create=False))

    @property
    def registry(self) -> Registry:
        return Registry(tracking_client(self.places), "moving")

    def retrain(self, key: str, **options: Any) -> dict[str, Any]:
        return retrain(self.ledger, self.places, "moving", key, prefixes=PREFIXES, **options)

    def change(self, *overrides: str) -> None:
        """Change the table `[retrain]` of the study, which is submitted again."""
        spec = reading.load(self.folder / "study.toml", overrides)
        submit.submit(self.ledger, spec, submit.prepare(spec, PREFIXES).description)

    def predictions(self) -> np.ndarray:
        file = self.folder / "rows.npy"
        np.save(file, np.linspace(0, 1, 14).reshape(7, 2))
        found = predict(self.ledger, self.places, "moving", file, prefixes=PREFIXES)
        assert found.exact
        return found.outputs

    def trainings(self) -> int:
        """Count the runs of retrainings."""
        client = tracking_client(self.places)
        experiment = client.get_experiment_by_name("moving retrain")
        if experiment is None:
            return 0
        runs = client.search_runs([experiment.experiment_id])
        return sum(run.data.tags["tuner.retraining"] != "parent" for run in runs)

    def assert_whole(self) -> None:
        """Assert that the champion, if there is one, is all that a reader could want."""
        champion = self.registry.champion()
        if champion is None:
            return
        stored = versions.read(self.ledger, self.registry, champion)
        assert {
            "tuner.reason",
            "tuner.outputs",
            "tuner.weights",
            "tuner.challenger",
            "tuner.data_digest",
        } <= set(champion.tags)
        assert champion.tags["tuner.gate"] == "promoted"
        assert stored.inputs.shape == (2,)
        self.predictions()
