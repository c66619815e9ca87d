"""The result of a check of one part of an installation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A part and what was found; `mend` is None where nothing is wrong."""

    part: str
    what: str
    mend: str | None = None


def reason(error: OSError) -> str:
    """Take the system's own word for an error."""
    return (error.strerror or "cannot be used").lower()
