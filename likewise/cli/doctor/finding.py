"""What a look at one part of an installation came to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One part and what was found; `mend` is None where nothing is wrong."""

    part: str
    what: str
    mend: str | None = None


def reason(error: OSError) -> str:
    """The system's own word for an error."""
    return (error.strerror or "cannot be used").lower()
