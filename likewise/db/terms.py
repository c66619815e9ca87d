"""Search terms of contents: written once with their BM25 weights, ranked by an inner product.

A term's weight in a text is BM25's part for term frequency, tf (k1 + 1) / (tf + k1 (1 - b + b length / average)),
with the running average at the time of writing; the query carries the idf (Robertson and Zaragoza, 2009).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pgvector import SparseVector
from psycopg.sql import SQL, Composed

from likewise.db.pool import Tx, table

# Tried on SciFact's training claims; see docs/benchmarks.md.
K1 = 1.2
B = 0.75
# The length of sparse vectors; terms are in 1..TERM_SPACE.
TERM_SPACE = 1_000_000_000
# The rarest terms of a query are taken until they may bring this many texts; more would be read to be thrown away.
MOST_CANDIDATES = 5_000

INSERT = "COPY {terms} (content, terms, weights) FROM STDIN WITH (FORMAT binary)"
DELETE = "DELETE FROM {terms} WHERE content = ANY (%s)"
COUNT = """
    SELECT term, (SELECT count(*) FROM {terms} WHERE terms @> ARRAY[term]) FROM unnest(%s::int[]) AS term
"""
RANK = """
    SELECT content, -(weights <#> %s) AS score FROM {terms}
    WHERE terms && %s::int[] ORDER BY weights <#> %s, content LIMIT %s
"""
RANK_AMONG = """
    SELECT content, -(weights <#> %s) AS score FROM {terms}
    WHERE content = ANY (%s::bigint[]) AND terms && %s::int[] ORDER BY weights <#> %s, content LIMIT %s
"""
# The planner knows little of arrays, and nothing before the first ANALYZE.
PREFER_INDEXES = SQL("SELECT set_config('enable_seqscan', 'off', true)")
OF_CONTENT = "SELECT terms FROM {terms} WHERE content = %s"


@dataclass(frozen=True)
class ContentTerms:
    """The counted terms of one content, and its length in terms."""

    content: int
    counts: Counter[int]

    @property
    def length(self) -> int:
        """How many terms the text has, repeats included."""
        return self.counts.total()


def weigh(counts: Mapping[int, int], length: int, average: float) -> SparseVector:
    """The BM25 weights of one text's terms."""
    spread = K1 * (1 - B + B * length / max(average, 1.0))
    return SparseVector({term - 1: tf * (K1 + 1) / (tf + spread) for term, tf in counts.items()}, TERM_SPACE)


async def write(tx: Tx, collection: int, contents: Sequence[ContentTerms], average: float) -> None:
    """Store the terms of contents that have none yet."""
    rows = [(one.content, sorted(one.counts), weigh(one.counts, one.length, average)) for one in contents]
    await tx.copy_in(_named(INSERT, collection), ("int8", "int4[]", "sparsevec"), rows)


async def delete(tx: Tx, collection: int, contents: Sequence[int]) -> None:
    """Take away the terms of contents that are going."""
    await tx.execute(_named(DELETE, collection), [list(contents)])


async def count(tx: Tx, collection: int, terms: Sequence[int]) -> dict[int, int]:
    """In how many contents each term occurs."""
    return {int(row[0]): int(row[1]) for row in await tx.rows(_named(COUNT, collection), [list(terms)])}


async def of_content(tx: Tx, collection: int, content: int) -> list[int]:
    """The distinct terms of one content."""
    row = await tx.row(_named(OF_CONTENT, collection), [content])
    return [] if row is None else [int(term) for term in row[0]]


async def rank(
    tx: Tx, collection: int, frequencies: Mapping[int, int], total: int, limit: int, among: Sequence[int] | None = None
) -> list[tuple[int, float]]:
    """The contents that match best by words: (content, BM25 score), best first."""
    if not frequencies:
        return []
    # A count may be a minute old: a term that no text had then may be in one now, and is found.
    known = {term: max(1, n) for term, n in frequencies.items()}
    await tx.execute(PREFER_INDEXES)
    query = SparseVector({term - 1: inverse_frequency(n, total) for term, n in known.items()}, TERM_SPACE)
    if among is not None:
        rows = await tx.rows(_named(RANK_AMONG, collection), [query, list(among), list(known), query, limit])
    else:
        rows = await tx.rows(_named(RANK, collection), [query, rarest(known), query, limit])
    return [(int(content), float(score)) for content, score in rows]


def inverse_frequency(containing: int, total: int) -> float:
    """BM25's idf in the form that is never negative: ln(1 + (N - n + 0.5) / (n + 0.5))."""
    return float(np.log1p((max(total, containing) - containing + 0.5) / (containing + 0.5)))


def rarest(frequencies: Mapping[int, int]) -> list[int]:
    """The rarest terms, as many as bring MOST_CANDIDATES contents at most, and one at least."""
    taken: list[int] = []
    candidates = 0
    for term, n in sorted(frequencies.items(), key=lambda item: item[1]):
        candidates += n
        if taken and candidates > MOST_CANDIDATES:
            break
        taken.append(term)
    return taken


def _named(statement: str, collection: int) -> Composed:
    return SQL(statement).format(terms=table("terms", collection))
