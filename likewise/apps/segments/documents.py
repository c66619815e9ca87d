"""A document as segments: `chunk_0`, `chunk_1` and so on, each a part of the text that the model reads whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from likewise.apps.segments.results import PartAnswer
from likewise.cleaning import cleaned
from likewise.embedding.embedder import Embedder
from likewise.embedding.splitting import SplitOptions, TooManyParts
from likewise.errors import Invalid

# The parts of a document. Each of 200,000 characters as a token of its own are 1,600 parts of a model that reads 128.
MAX_PARTS = 5_000
# So few tokens still hold a sentence.
MIN_TOKENS = 16
# What one part ends with the next begins with, so that what a cut falls into is whole in one of them.
SHARE_IN_COMMON = 8


@dataclass(frozen=True)
class NewSegment:
    """One segment as it arrives."""

    segment_id: str
    text: str
    metadata: Mapping[str, Any]


async def parts_of(
    embedder: Embedder, text: str, model: str, *, max_tokens: int | None = None, overlap: int | None = None
) -> list[PartAnswer]:
    """Return the parts of a document.

    Args:
        max_tokens: of a part, the model's special ones included; as many as the model reads if absent.
        overlap: most tokens that a part has in common with the one before; an eighth of `max_tokens` if absent.

    Raises:
        Invalid: it has more parts than may be stored at once, or more overlap than would leave a part any text.
        Overloaded: as many documents wait to be split as may.
    """
    most = (await embedder.opened(model)).max_tokens
    wanted = most if max_tokens is None else min(max_tokens, most)
    if overlap is None:
        overlap = wanted // SHARE_IN_COMMON
    if overlap * 2 > wanted:
        limit = "max_tokens" if wanted == max_tokens else f"the {most:,} tokens that the model reads at a time"
        raise Invalid.at("/overlap", f"This must be at most half of {limit}.", "out_of_range")
    try:
        found = await embedder.split(cleaned(text), model, options=SplitOptions(wanted, overlap, MAX_PARTS))
    except TooManyParts as error:
        raise Invalid.at("/text", error.detail, "too_many_segments") from None
    return [PartAnswer(f"chunk_{place}", start, end) for place, (start, end) in enumerate(found)]


def segments_of(text: str, parts: Sequence[PartAnswer], metadata: Mapping[str, Any]) -> list[NewSegment]:
    """Return the parts as segments."""
    return [NewSegment(part.segment_id, text[part.start : part.end], metadata) for part in parts]
