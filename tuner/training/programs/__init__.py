"""Programs as workloads: commands that a worker runs, and what such a program uses to report."""
