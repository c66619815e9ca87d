"""Long texts as parts that a model reads whole, cut between paragraphs, sentences and words as far as that goes."""

import re
from collections.abc import Iterator

from semantic_text_splitter import TextSplitter

from likewise.cleaning import cleaned
from likewise.embedding.tokenizing import RUN

# Where a part begins and ends in the text, in code points.
Span = tuple[int, int]

# What no space ever ends is cut beforehand, where the tokenizer puts a space as well: the splitter's time grows with
# the square of it. 200,000 characters take two seconds at most then, and 13 otherwise if they are Japanese.
_LONG_RUN = re.compile(rf"\S{{{RUN + 1},}}")


def spans(text: str, splitter: TextSplitter) -> list[Span]:
    """The parts of a text in their order, without the spaces between them; what is blank is no part."""
    found: list[Span] = []
    clean = cleaned(text)
    for start, end in _pieces(clean):
        for at, part in splitter.chunk_indices(clean[start:end]):
            if not part.isspace():
                found.append((start + at, start + at + len(part)))
    return found


def _pieces(text: str) -> Iterator[Span]:
    """The text cut within its long runs, after every so many of their characters."""
    start = 0
    for run in _LONG_RUN.finditer(text):
        for cut in range(run.start() + RUN, run.end(), RUN):
            yield start, cut
            start = cut
    yield start, len(text)
