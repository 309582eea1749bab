"""Run the command line by `python -m tuner`."""

from tuner.cli import main

main()
