"""Quotas: the text that a tenant may send to this process in a minute."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cachetools import TTLCache

from likewise.errors import LargerThanQuota, TooManyRequests

# Counting with the model's tokenizer would cost about as much as what is refused.
CHARACTERS_PER_TOKEN = 4
MINUTE = 60.0


@dataclass(frozen=True)
class _Bucket:
    """The tokens that were left at a time."""

    tokens: float
    at: float


class Quotas:
    """A bucket of tokens for each tenant, in this process's memory: it holds a minute's worth and fills steadily.

    Args:
        per_minute: tokens; 0 is without limit.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        # A bucket that nobody has drawn from for a minute is full again, and need not be known.
        self._buckets: TTLCache[int, _Bucket] = TTLCache(math.inf, MINUTE, timer=clock)

    def spend(self, tenant: int, texts: Iterable[str]) -> None:
        """Take the tokens of these texts, or none of them.

        Raises:
            TooManyRequests: the bucket does not hold so many now.
            LargerThanQuota: it never does.
        """
        if not self._per_minute:
            return
        wanted = sum(math.ceil(len(text) / CHARACTERS_PER_TOKEN) for text in texts)
        if wanted > self._per_minute:
            raise LargerThanQuota(
                f"These texts have more tokens ({CHARACTERS_PER_TOKEN} characters each) than the quota of a minute, "
                f"{self._per_minute}, so this request can never be done. Send fewer or shorter ones at a time."
            )
        now = self._clock()
        left = self._left(tenant, now)
        if wanted > left:
            seconds = (wanted - left) * MINUTE / self._per_minute
            raise TooManyRequests(
                f"The quota of {self._per_minute} tokens a minute is used up. Send this again later.",
                code="quota_exceeded",
                retry_after=math.ceil(seconds),
            )
        self._buckets[tenant] = _Bucket(left - wanted, now)

    def _left(self, tenant: int, now: float) -> float:
        bucket = self._buckets.get(tenant)
        if bucket is None:
            return self._per_minute
        return min(self._per_minute, bucket.tokens + (now - bucket.at) * self._per_minute / MINUTE)
