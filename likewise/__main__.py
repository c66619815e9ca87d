"""`python -m likewise`: the command line."""

from likewise.cli.main import run

if __name__ == "__main__":
    run()
