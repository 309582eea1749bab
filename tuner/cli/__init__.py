"""The command line: parse, call one operation, print."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
    from tuner.core import startup

    startup.configure_program()  # before the imports of the commands
    from tuner.cli import app

    app.run()
