"""Example studies: each a TOML file and the workload that it names.

The package contains them as `tuner.examples`; `tuner examples` copies them to a folder `studies`.
"""
