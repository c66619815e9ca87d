"""Long texts split into parts that a model reads whole, between paragraphs, sentences and words as far as that goes."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from semantic_text_splitter import TextSplitter

from likewise.cleaning import cleaned
from likewise.embedding.provider import CHARS_PER_TOKEN, Provider, estimated_tokens
from likewise.embedding.queue import QueueBudget
from likewise.embedding.tokenizing import LONG_RUN, RUN
from likewise.errors import Fault, Invalid

# Start and end of a part in the text, in code points.
TextSpan = tuple[int, int]
# Ten documents of 200,000 characters; one takes 0.3 to 3 seconds, by the length of its parts.
MAX_WAITING_TOKENS = 500_000


class TooManyParts(Invalid):
    """The text has more parts than were asked for at most."""

    code = "too_many_parts"

    def __init__(self, parts: int) -> None:
        words = f"This text has more than {parts:,} parts; send it in pieces, or ask for longer parts or less overlap."
        super().__init__(words, faults=[Fault("/text", self.code, words)])


@dataclass(frozen=True)
class SplitOptions:
    """Size of the parts of a document, in tokens, overlap of each with the one before, and the most parts of all."""

    max_tokens: int
    overlap: int = 0
    max_parts: int | None = None

    def refuse(self, tokens: int) -> None:
        """Raise TooManyParts if a document of so many tokens has too many parts, each with its whole overlap."""
        if self.max_parts is not None and tokens > self.max_parts * (self.max_tokens - self.overlap):
            raise TooManyParts(self.max_parts)

    def refuse_parts(self, count: int) -> None:
        """Raise TooManyParts if so many are too many."""
        if self.max_parts is not None and count > self.max_parts:
            raise TooManyParts(self.max_parts)


class Splitter:
    """Documents of one process that are split one at a time, for all of its models; only so many wait."""

    def __init__(self, waiting_tokens: int = MAX_WAITING_TOKENS) -> None:
        self._budget = QueueBudget(waiting_tokens)
        self._turn = asyncio.Lock()

    async def split(self, provider: Provider, text: str, options: SplitOptions) -> list[TextSpan]:
        """Split a text. A caller that is cancelled leaves the queue; a text that is being split is split to its end.

        Raises:
            Overloaded: too many documents wait.
            TooManyParts: it has. A text that is sure to have them is refused before it is split.
        """
        tokens = estimated_tokens(text)
        self._budget.take(tokens)
        try:
            return await self._in_turn(provider, text, options)
        finally:
            self._budget.give_back(tokens)

    async def _in_turn(self, provider: Provider, text: str, options: SplitOptions) -> list[TextSpan]:
        await self._turn.acquire()
        running = asyncio.ensure_future(_split(provider, text, options))
        # A thread cannot be stopped: the next one's turn is when it has ended, even if its caller has left.
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def _ended(self, split: asyncio.Future[list[TextSpan]]) -> None:
        self._turn.release()
        if not split.cancelled():
            # Nobody else would hear of one whose caller has left.
            split.exception()


async def _split(provider: Provider, text: str, options: SplitOptions) -> list[TextSpan]:
    # Counting takes 0.06 s where splitting takes seconds.
    options.refuse((await provider.lengths([text]))[0])
    found = await provider.split(text, options.max_tokens, options.overlap)
    options.refuse_parts(len(found))
    return found


def spans(text: str, splitter: TextSplitter) -> list[TextSpan]:
    """Return the parts of a text in order, without the spaces between them and without blank parts."""
    found: list[TextSpan] = []
    clean = cleaned(text)
    for start, end in _pieces(clean):
        for at, part in splitter.chunk_indices(clean[start:end]):
            if not part.isspace():
                found.append((start + at, start + at + len(part)))
    return found


async def spans_by_characters(text: str, max_tokens: int, overlap: int, prefix: str = "") -> list[TextSpan]:
    """Split a text into parts of so many tokens by its characters, for models without a tokenizer here."""
    room = max(1, max_tokens - len(prefix) // CHARS_PER_TOKEN)
    splitter = TextSplitter(room * CHARS_PER_TOKEN, min(overlap, room - 1) * CHARS_PER_TOKEN)
    return await asyncio.to_thread(spans, text, splitter)


def _pieces(text: str) -> Iterator[TextSpan]:
    """Cut a text within its long runs, after every so many of their characters.

    The tokenizer puts a space there as well. The splitter's time grows with the square of what no space ends: 200,000
    characters of Japanese took it 13 seconds, and in pieces take 2.
    """
    start = 0
    for run in LONG_RUN.finditer(text):
        for cut in range(run.start() + RUN, run.end(), RUN):
            yield start, cut
            start = cut
    yield start, len(text)
