"""Adapters from training libraries to a trial, one module a library.

Each needs its library, an extra of this package, and is imported on its own, such as
`import tuner.integrations.lightning`. A program that no worker runs trains as without tuner.
"""
