"""Documents take turns at being split: one at a time, and only so many wait."""

import asyncio
from dataclasses import dataclass

from likewise.embedding.provider import Provider
from likewise.embedding.queue import QueueBudget, estimated_tokens
from likewise.embedding.splitting import Span
from likewise.errors import Invalid

# Ten documents of 200,000 characters, of which one takes 0.3 to 3 seconds, by the length of its parts.
WAITING_TOKENS = 500_000


@dataclass(frozen=True)
class Cut:
    """What is wanted of the parts of a document, in tokens: most of one, and what it shares with the one before.

    `parts` is how many there may be.
    """

    most: int
    overlap: int = 0
    parts: int | None = None

    def refuse(self, tokens: int) -> None:
        """Invalid if a document of so many tokens has more parts than may be, each with its whole overlap."""
        if self.parts is not None and tokens > self.parts * (self.most - self.overlap):
            raise _too_many(self.parts)

    def refuse_parts(self, count: int) -> None:
        """Invalid if so many are too many."""
        if self.parts is not None and count > self.parts:
            raise _too_many(self.parts)


class Splitter:
    """Splits the documents of one process, for all of its models."""

    def __init__(self, waiting_tokens: int = WAITING_TOKENS) -> None:
        self._budget = QueueBudget(waiting_tokens)
        self._turn = asyncio.Lock()

    async def split(self, provider: Provider, text: str, cut: Cut) -> list[Span]:
        """The parts of a text. Who is cancelled leaves the queue; what is being split is still split to its end.

        Raises:
            Overloaded: as many documents wait as may.
            Invalid: it has more parts than may be. What surely has is refused before it is split.
        """
        tokens = estimated_tokens(text)
        self._budget.take(tokens)
        try:
            return await self._in_turn(provider, text, cut)
        finally:
            self._budget.give_back(tokens)

    async def _in_turn(self, provider: Provider, text: str, cut: Cut) -> list[Span]:
        await self._turn.acquire()
        running = asyncio.ensure_future(_split(provider, text, cut))
        # A thread cannot be stopped: the next one's turn is when it has ended, whoever has left meanwhile.
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def _ended(self, split: asyncio.Future[list[Span]]) -> None:
        self._turn.release()
        if not split.cancelled():
            # Of one whose caller has left nobody else would hear.
            split.exception()


def _too_many(parts: int) -> Invalid:
    words = f"This text has more than {parts:,} parts; send it in pieces, or ask for longer parts or less overlap."
    return Invalid.at("/text", words, "too_many_segments")


async def _split(provider: Provider, text: str, cut: Cut) -> list[Span]:
    # Counting takes 0.06 s where splitting takes seconds.
    cut.refuse((await provider.lengths([text]))[0])
    found = await provider.split(text, cut.most, cut.overlap)
    cut.refuse_parts(len(found))
    return found
