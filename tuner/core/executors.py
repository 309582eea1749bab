"""The names of executors, which commands list without importing an executor or its settings."""

from __future__ import annotations

LOCAL, SLURM, KUBERNETES = "local", "slurm", "kubernetes"
EXECUTORS = (LOCAL, SLURM, KUBERNETES)
"""Where workers are started: as processes of this machine, or by an engine."""
