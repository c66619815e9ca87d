"""A clock for tests of what an issuer's keys do as they grow old."""


class Clock:
    """A time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now
