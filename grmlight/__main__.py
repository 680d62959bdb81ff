"""The program: `grmlight COMMAND ...`, also as `python -m grmlight`."""

from grmlight.cli import main as main

if __name__ == "__main__":
    main()
