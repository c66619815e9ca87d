"""The version of the program."""

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """Return the installed version."""
    try:
        return version("likewise")
    except PackageNotFoundError:
        return "0+source"
