"""Studies to begin with: each a TOML file and the workload that it names.

A folder `studies` where tuner is run adds its modules to these.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
