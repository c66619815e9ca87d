"""Waiting for what fails: pauses that grow, and a circuit breaker for what is away."""

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

F = TypeVar("F")


@dataclass(frozen=True)
class Backoff:
    """Pauses in seconds, from `first` to `longest`, each `factor` times the one before."""

    first: float
    longest: float
    factor: float = 2.0

    def pause(self, failures: int) -> float:
        """Return the pause after so many failures in a row, at least one."""
        # 2**64 times any first pause is beyond any longest one
        return min(self.longest, self.first * self.factor ** min(failures - 1, 64))

    def jittered(self, failures: int) -> float:
        """Return a random pause of `first` to `pause`, so that those who failed together do not come back together."""
        return random.uniform(self.first, self.pause(failures))  # noqa: S311

    def pauses(self) -> Iterator[float]:
        """Yield the pauses of one wait, without end."""
        return map(self.pause, itertools.count(1))


class Breaker(Generic[F]):
    """A circuit breaker: closed while all is well, open after failures in a row, and after a pause open for a trial.

    Attributes:
        fault: the reason for which it is open; None while it is closed.
        clock: returns the time in seconds.
    """

    def __init__(self, backoff: Backoff, failures: int = 1, clock: Callable[[], float] | None = None) -> None:
        """Close a breaker that so many failures in a row open, for pauses of that backoff."""
        self.fault: F | None = None
        self._backoff = backoff
        self._threshold = failures
        self.clock = clock or time.monotonic
        self._failures = self._openings = 0
        self._failing_since = self._until = -math.inf

    @property
    def left(self) -> float:
        """Seconds until the next try is allowed; none are left where it is 0 or less."""
        return self._until - self.clock()

    @property
    def pause(self) -> float:
        """Seconds of the present pause, or of the last."""
        return self._backoff.pause(max(1, self._openings))

    def allows(self) -> bool:
        """Return whether a try is allowed now: it is closed, or the pause is over."""
        return self.fault is None or self.left <= 0

    def succeeded(self) -> bool:
        """Close it, and return whether it was open."""
        was_open, self.fault = self.fault is not None, None
        self._failures = self._openings = 0
        self._until = -math.inf
        return was_open

    def failed(self, fault: F, *, began: float = math.inf, at_once: bool = False) -> bool:
        """Count a failure, and return whether it opened the breaker or has kept it open for a longer pause.

        Args:
            began: when the try began, by the clock. Tries that were under way at the first failure in a row are counted
                and do not open it: they share its reason, however many they are.
            at_once: whether this failure is enough.
        """
        if not self._failures:
            self._failing_since = self.clock()
        self._failures += 1
        enough = at_once or (self._failures >= self._threshold and began > self._failing_since)
        if self.fault is None and not enough:
            return False
        self.fault = fault
        self._openings += 1
        self._until = self.clock() + self._backoff.pause(self._openings)
        return True
