"""Run the command line by `python -m tuner`."""

from tuner.core.importing import leave_current_folder

if __name__ == "__main__":
    leave_current_folder()  # before any library is imported

    from tuner.cli import main

    main()
