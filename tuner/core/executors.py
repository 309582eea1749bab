"""The names of executors, which commands list without importing an executor or its settings."""

from __future__ import annotations

LOCAL, SLURM, KUBERNETES, RAY = "local", "slurm", "kubernetes", "ray"
EXECUTORS = (LOCAL, SLURM, KUBERNETES, RAY)
"""Where workers are started: as processes of this machine, or by an engine."""
