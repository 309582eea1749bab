"""Example studies: each a TOML file and the workload that it names.

The package has them as `tuner.examples`; `tuner examples` copies them into a folder `studies`.
"""
