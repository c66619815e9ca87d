"""Which Likewise this is."""

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """The installed version."""
    try:
        return version("likewise")
    except PackageNotFoundError:
        return "0+source"
