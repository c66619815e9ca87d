"""Long texts as parts that a model reads whole, cut between paragraphs, sentences and words as far as that goes."""

import asyncio
from collections.abc import Iterator

from semantic_text_splitter import TextSplitter

from likewise.cleaning import cleaned
from likewise.embedding.queue import CHARS_PER_TOKEN
from likewise.embedding.tokenizing import LONG_RUN, RUN

# Where a part begins and ends in the text, in code points.
Span = tuple[int, int]


def spans(text: str, splitter: TextSplitter) -> list[Span]:
    """The parts of a text in their order, without the spaces between them; what is blank is no part."""
    found: list[Span] = []
    clean = cleaned(text)
    for start, end in _pieces(clean):
        for at, part in splitter.chunk_indices(clean[start:end]):
            if not part.isspace():
                found.append((start + at, start + at + len(part)))
    return found


async def spans_by_characters(text: str, most: int, overlap: int) -> list[Span]:
    """The parts of a text of at most so many tokens, for models whose tokenizer is not here."""
    splitter = TextSplitter(most * CHARS_PER_TOKEN, min(overlap, most - 1) * CHARS_PER_TOKEN)
    return await asyncio.to_thread(spans, text, splitter)


def _pieces(text: str) -> Iterator[Span]:
    """The text cut within its long runs, after every so many of their characters.

    The tokenizer puts a space there as well. The splitter's time grows with the square of what no space ends: 200,000
    characters of Japanese took it 13 seconds, and in pieces take 2.
    """
    start = 0
    for run in LONG_RUN.finditer(text):
        for cut in range(run.start() + RUN, run.end(), RUN):
            yield start, cut
            start = cut
    yield start, len(text)
