"""The text that waits for vectors, and the limits on adding to it.

Storing is some twenty times as fast as embedding, so what waits has a bound. It is measured every few seconds for all
processes together, and what this one has stored since then is added.
"""

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from likewise.db import waiting
from likewise.db.pool import Pool
from likewise.errors import LikewiseError, Overloaded, TooManyRequests

# Measuring reads the whole queue (0.2 s for a million entries), so it rests twenty times as long as it took.
MIN_PAUSE, MAX_PAUSE, PAUSE_TIMES = 2.0, 60.0, 20.0
# What is said before anything is known of the model's pace.
RETRY_SECONDS = 30
# The weight of each new measurement of the pace.
SMOOTHING = 0.2


@dataclass
class _WaitingTokens:
    """The queue of one model: tokens by tenant, as last measured and since; and tokens embedded a second."""

    measured: Mapping[int, int] = field(default_factory=dict)
    since: Counter[int] = field(default_factory=Counter)
    pace: float = 0.0

    def of(self, tenant: int) -> int:
        return self.measured.get(tenant, 0) + self.since[tenant]

    def tenants(self) -> set[int]:
        return {*self.measured, *self.since}

    def total(self) -> int:
        return sum(self.measured.values()) + self.since.total()


class Backlog:
    """Refuses bulk writes that would keep a model busy for longer than anybody wants to wait."""

    def __init__(self, pool: Pool, max_tokens: int) -> None:
        self._pool = pool
        self._max_tokens = max_tokens
        self._models: dict[str, _WaitingTokens] = {}
        self._measured_at = time.monotonic()

    def admit(self, tenant: int, model: str, tokens: int) -> None:
        """Let a write pass whose texts have so many tokens (an estimate).

        Beyond the bound a tenant may still add up to an equal share of it, so that nobody is kept out by another.

        Raises:
            Overloaded: no more may wait for this model.
            TooManyRequests: it is this tenant, of several, that has more than its share.
        """
        kept = self._models.get(model)
        if kept is None or kept.total() + tokens <= self._max_tokens:
            return
        sharing = len(kept.tenants() | {tenant})
        excess = kept.of(tenant) + tokens - self._max_tokens // sharing
        if excess <= 0:
            return
        seconds = math.ceil(excess * sharing / kept.pace) if kept.pace else RETRY_SECONDS
        if sharing == 1:
            raise Overloaded("As many texts wait for their vectors as may; send this again later.", retry_after=seconds)
        raise TooManyRequests(
            "More of your texts wait for their vectors than is your share; send this again later.", retry_after=seconds
        )

    def entered(self, tenant: int, model: str, tokens: int) -> None:
        """Count texts that wait from now on."""
        self._models.setdefault(model, _WaitingTokens()).since[tenant] += tokens

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            began = time.monotonic()
            with contextlib.suppress(LikewiseError):
                await self.measure()
            await asyncio.sleep(min(MAX_PAUSE, max(MIN_PAUSE, PAUSE_TIMES * (time.monotonic() - began))))

    async def measure(self) -> None:
        """Ask the database once."""
        before = {model: (kept.total(), kept.since.copy()) for model, kept in self._models.items()}
        found = await waiting.tokens(self._pool)
        elapsed = time.monotonic() - self._measured_at
        self._measured_at += elapsed
        for model in {*self._models, *found}:
            kept = self._models.setdefault(model, _WaitingTokens())
            total, counted = before.get(model, (0, Counter[int]()))
            kept.measured = found.get(model, {})
            # What was stored while this was measured may be in it already, and counts all the same.
            kept.since -= counted
            embedded = total - sum(kept.measured.values())
            if embedded > 0:
                kept.pace += (SMOOTHING if kept.pace else 1.0) * (embedded / elapsed - kept.pace)
