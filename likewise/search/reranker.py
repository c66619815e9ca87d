"""The contract of everything that scores how well texts answer a query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from likewise.embedding.provider import Capacity, Counts, Vector


@dataclass(frozen=True)
class RerankerScores:
    """The scores of n texts for a query, in their order.

    `scores` float32 (n,) of 0 to 1, more for a better answer; `tokens` and `truncated` int32 (n,): tokens of query and
    text that were read, with the model's special ones, and tokens of both that were cut off. `estimated`: nobody
    counted the tokens, they are guessed from the characters.
    """

    scores: Vector
    tokens: Counts
    truncated: Counts
    estimated: bool = False


class Reranker(Protocol):
    """Scores texts for a query, in order. Batching, checking and refusing belong to the caller.

    `numerics` names runtime, version and precision; `fault` says why a reranker that was loaded cannot work now. An
    `Unavailable` error says that it is away; any other may be the texts' own fault.
    """

    @property
    def numerics(self) -> str: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def capacity(self) -> Capacity: ...

    @property
    def fault(self) -> str | None: ...

    async def score(self, query: str, texts: Sequence[str]) -> RerankerScores:
        """Return a score of how well each text answers the query, and the counts."""
        ...

    async def close(self) -> None:
        """Let go of memory and threads."""
        ...


def check(scored: RerankerScores, count: int) -> None:
    """ValueError unless there are so many finite scores of 0 to 1, and so many of each count."""
    scores = np.asarray(scored.scores)
    if scores.shape != (count,):
        raise ValueError("wrong number of scores")
    if any(len(numbers) != count for numbers in (scored.tokens, scored.truncated)):
        raise ValueError("wrong number of counts")
    if not np.all((scores >= 0) & (scores <= 1)):  # NaN fails this too
        raise ValueError("scores that are not of 0 to 1")
