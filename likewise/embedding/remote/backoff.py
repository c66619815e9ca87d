"""How long a remote model is waited for, and when it is left alone."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """How often, and how many seconds between.

    Attributes:
        tries: of one request.
        first, most: seconds between two of them, by chance, more after each.
        asked: seconds between two of them if the provider asks for so many; for more of them nobody waits.
        failures: tries in a row, of any requests, after which the provider is left alone for a while.
        rest: seconds of the first such while and of the longest; each lasts twice as long as the one before.
    """

    tries: int = 3
    first: float = 1.0
    most: float = 10.0
    asked: float = 60.0
    failures: int = 5
    rest: tuple[float, float] = (5.0, 60.0)

    def wait(self, failed: int) -> float:
        """Seconds until the next try, after so many that failed."""
        # by chance, so that those who failed together do not come back together
        return random.uniform(self.first, min(self.most, self.first * 3**failed))  # noqa: S311

    def seconds(self, one_try: float) -> float:
        """What a request may take, with all of its tries and waits."""
        return self.tries * (one_try + max(self.asked, self.most))
