"""Search terms of contents: written once with their BM25 weights, and ranked by an inner product.

A term's weight in a text is BM25's part for term frequency, tf (k1 + 1) / (tf + k1 (1 - b + b length / average)),
with the running average at the time of writing; the query carries the idf (Robertson and Zaragoza, 2009).

The candidates of a query are the contents that have one of its rare terms, and those that have two or three of its
common ones. Who has only one common term is among the best hundred of few queries, and would be most of what is read:
on 100,000 contents this finds all of the best hundred of short queries, where rare terms alone find 0.91, and 0.60 for
queries of common words only.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations

import numpy as np
from pgvector import SparseVector
from psycopg.sql import SQL, Composable, Composed, Identifier

from likewise.db.arrays import INT4, BigintArray, BinaryValue, binary_array
from likewise.db.transaction import Plan, Tx, table, table_name
from likewise.db.where import Where

# Tried on SciFact's training claims; see docs/benchmarks.md.
K1 = 1.2
B = 0.75
# The largest length that a sparsevec can have; terms are in 1..TERM_SPACE.
TERM_SPACE = 1_000_000_000
TERM_BITS = 30

# The format that COPY reads and writes with FORMAT binary: a signature, flags, no header extension; -1 ends it.
COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_END = struct.pack(">h", -1)
# A COPY takes two round trips of its own, which are worth it from some dozens of rows on.
FEW = 32

COPY = "COPY {terms} (content, terms, weights) FROM STDIN WITH (FORMAT binary)"
INSERT = "INSERT INTO {terms} (content, terms, weights) VALUES (%s, %s, %s)"
DELETE = "DELETE FROM {terms} WHERE content = ANY (%s)"

# Contents that are read for one query, those of its rare terms and, as far as these leave room, those of conjunctions;
# reading one takes 0.8 us. The best of a long query (of more than SHORT terms) are spread over more: so many for each
# further term.
MAX_READ = 3_500
MAX_BY_RARE_TERMS = 3_000
MIN_BY_CONJUNCTIONS = 500
# Of a query of common words only the rarest of them are read alone as well, up to this share of all contents, and so
# many in all: of a million it finds 0.97 of the best hundred, and 0.84 without.
MAX_OF_COMMON_ALONE = 0.02
MAX_OF_COMMON = 0.024
SHORT = 10
MORE_FOR_A_TERM = 300
MAX_AT_ALL = 8_000
# Where a filter lets only part of them through, so many times as many at most, and again where fewer fit than this.
MAX_WIDENING = 4.0
MIN_FITTING = 100
# Each conjunction is a scan of the index of its own, of 0.1 to 0.3 ms.
MAX_CONJUNCTIONS = 10
MAX_COMMON_TERMS = 8
# Terms occur together more often than by chance.
TOGETHER = 1.5
# Visiting a content by its id costs as much as this many entries of the index.
VISIT = 20

COUNT = """
    SELECT term, (SELECT count(*) FROM {terms} WHERE terms @> ARRAY[term]) FROM unnest(%s::int[]) AS term
"""
# What ANALYZE knows of the commonest terms: in which share of the contents each occurs, by a sample of 30,000.
COMMONEST = SQL("""
    SELECT most_common_elems::text::int[], most_common_elem_freqs FROM pg_stats
    WHERE schemaname = 'likewise' AND tablename = %s AND attname = 'terms'
""")
# The inner product is worked out once a row: beside ORDER BY it would be worked out again for the answer.
RANK = """
    SELECT content, -distance FROM (
        SELECT content, weights <#> %(query)b AS distance FROM {terms} WHERE {candidates}
        ORDER BY distance, content LIMIT %(limit)s
    ) best
"""
# Best first, and asked one by one whether a record of theirs fits, until enough do.
RANK_FITTING = """
    SELECT content, -distance FROM (
        SELECT content, weights <#> %(query)b AS distance FROM {terms} WHERE {candidates}
        ORDER BY distance, content OFFSET 0
    ) best
    WHERE EXISTS (SELECT FROM {pointing} WHERE {content} = best.content AND {fits} OFFSET 0) LIMIT %(limit)s
"""
OF_CONTENT = "SELECT weights FROM {terms} WHERE content = %s"

# Two bitmaps, of the terms and of the ids, before any row is visited.
BY_BITMAPS = Plan(indexed=False, once=False)


@dataclass(frozen=True)
class TermRow:
    """The terms of one text and their weights, in the binary forms of an int[] and a sparsevec."""

    terms: bytes
    weights: bytes


def encode(texts: Sequence[Sequence[int]], average: float) -> list[TermRow]:
    """Encode each text's terms and their weights as its row stores them.

    Made for all texts at once: one by one they cost three times as much.

    Args:
        texts: the terms of each, as often as they occur.
        average: the length of a text in terms.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    terms = np.fromiter(chain.from_iterable(texts), np.int64, int(lengths.sum()))
    keys, frequencies = np.unique(np.repeat(np.arange(len(texts)) << TERM_BITS, lengths) | terms, return_counts=True)
    text, terms = keys >> TERM_BITS, keys & (1 << TERM_BITS) - 1
    spread = K1 * (1 - B + B * lengths / max(average, 1.0))
    weights = (frequencies * (K1 + 1) / (frequencies + spread[text])).astype(">f4").tobytes()
    # int4[] has each element with its size; sparsevec's indices count from 0.
    elements = np.stack([np.full_like(terms, 4), terms], axis=1).astype(">i4").tobytes()
    indices = (terms - 1).astype(">i4").tobytes()
    ends = np.cumsum(np.bincount(text, minlength=len(texts))).tolist()
    return [
        _row(elements[8 * start : 8 * end], indices[4 * start : 4 * end], weights[4 * start : 4 * end])
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _row(elements: bytes, indices: bytes, weights: bytes) -> TermRow:
    count = len(indices) // 4
    # sparsevec: dimension, entries, zero; then the indices and the values.
    sparse = struct.pack(">3i", TERM_SPACE, count, 0) + indices + weights
    return TermRow(binary_array(INT4, count, elements), sparse)


async def write(tx: Tx, collection: int, rows: Mapping[int, TermRow], *, view: int = 0) -> None:
    """Store the encoded terms of contents that have none yet; few go along with the commit."""
    if len(rows) <= FEW:
        statement = _named(INSERT, collection, view)
        for content, row in rows.items():
            tx.at_the_end(statement, [content, BinaryValue(row.terms), BinaryValue(row.weights)])
        return
    fields = (
        struct.pack(">hiqi", 3, 8, content, len(row.terms))
        + row.terms
        + struct.pack(">i", len(row.weights))
        + row.weights
        for content, row in rows.items()
    )
    await tx.copy_bytes(_named(COPY, collection, view), b"".join([COPY_HEAD, *fields, COPY_END]))


def deletion(collection: int, view: int, contents: Sequence[int]) -> tuple[Composed, list[list[int]]]:
    """Return the statement that deletes the terms of contents that are going."""
    return _named(DELETE, collection, view), [list(contents)]


@dataclass(frozen=True)
class Candidates:
    """The contents that are ranked: those with any of `terms`, and those with all of one of `conjunctions`.

    `complete` says that these are all contents with any term of the query.
    """

    terms: tuple[int, ...]
    conjunctions: tuple[tuple[int, ...], ...] = ()
    complete: bool = False


@dataclass(frozen=True)
class Matches:
    """Contents and their BM25 scores, best first, and among which they were looked for."""

    scored: list[tuple[int, float]]
    candidates: Candidates


NO_MATCHES = Matches([], Candidates((), complete=True))


async def count(tx: Tx, collection: int, terms: Sequence[int], *, view: int = 0) -> dict[int, int]:
    """Count the contents that each term occurs in."""
    rows = await tx.rows(_named(COUNT, collection, view), [list(terms)], plan=Plan())
    return {int(row[0]): int(row[1]) for row in rows}


async def commonest(tx: Tx, collection: int, *, view: int = 0) -> dict[int, float]:
    """Estimate the share of contents that the commonest terms occur in; empty before the first ANALYZE."""
    row = await tx.row(COMMONEST, [table_name("terms", collection, view)])
    if row is None or row[0] is None or row[1] is None:
        return {}
    # Behind the shares come the least and the greatest of them.
    return dict(zip(row[0], row[1], strict=False))


async def of_content(tx: Tx, collection: int, content: int, *, view: int = 0) -> list[int]:
    """Return the distinct terms of one content, those of most weight first."""
    row = await tx.row(_named(OF_CONTENT, collection, view), [content])
    if row is None:
        return []
    indices, values = row[0].indices(), row[0].values()
    return [index + 1 for _, index in sorted(zip(values, indices, strict=True), key=lambda one: (-one[0], one[1]))]


async def rank(
    tx: Tx,
    collection: int,
    frequencies: Mapping[int, int],
    total: int,
    limit: int,
    *,
    view: int = 0,
    min_found: int = 0,
    among: BigintArray | Where | None = None,
    share: float = 1.0,
) -> Matches:
    """Rank the contents that match best by words.

    Args:
        frequencies: in how many contents each term of the query occurs.
        total: how many contents there are.
        view: whose contents are ranked.
        min_found: so many come back, if so many have any of the terms.
        among: the only contents to rank, by their ids or by a condition on their records.
        share: about how many of all these are.
    """
    if not frequencies:
        return NO_MATCHES
    # A count may be a minute old: a term that no text had then may be in one now, and is found.
    known = {term: max(1, n) for term, n in frequencies.items()}
    query = SparseVector({term - 1: inverse_frequency(n, total) for term, n in known.items()}, TERM_SPACE)
    few = not isinstance(among, BigintArray) or len(among) * VISIT < sum(known.values())
    ranked = partial(_rank, tx, table("terms", collection, view), query, limit, among, Plan() if few else BY_BITMAPS)
    everything = Candidates(tuple(known), complete=True)
    candidates = everything if isinstance(among, BigintArray) else choose(known, total, min(1 / share, MAX_WIDENING))
    found = await ranked(candidates)
    if isinstance(among, Where) and min_found <= len(found) < min(limit, MIN_FITTING) and not candidates.complete:
        # Of what has the query's words fewer fit than of others.
        candidates = choose(known, total, MAX_WIDENING**2)
        found = await ranked(candidates)
    if len(found) < max(min_found, 1) and not candidates.complete:
        candidates = everything
        found = await ranked(candidates)
    return Matches(found, candidates)


def inverse_frequency(containing: int, total: int) -> float:
    """Compute BM25's idf in the form that is never negative: ln(1 + (N - n + 0.5) / (n + 0.5))."""
    return math.log1p((max(total, containing) - containing + 0.5) / (containing + 0.5))


def choose(frequencies: Mapping[int, int], total: int, wider: float = 1.0) -> Candidates:
    """Choose a query's candidates by how many contents have each of its terms; so many times as many as usual."""
    rarest = sorted(frequencies, key=lambda term: (frequencies[term], term))
    more = MORE_FOR_A_TERM * max(0, len(frequencies) - SHORT)
    read = round(wider * min(MAX_READ + more, MAX_AT_ALL))
    if sum(frequencies.values()) <= read:
        return Candidates(tuple(rarest), complete=True)
    by_rare = min(round(wider * (MAX_BY_RARE_TERMS + more)), read)
    if not _rare(frequencies, rarest, MAX_BY_RARE_TERMS + more):
        read = max(read, round(MAX_OF_COMMON * total))
        by_rare = max(by_rare, round(MAX_OF_COMMON_ALONE * total))
    rare = _rare(frequencies, rarest, by_rare)
    left = read - sum(frequencies[term] for term in rare)
    common = rarest[len(rare) :][:MAX_COMMON_TERMS]
    conjunctions = _conjunctions(frequencies, common, total, max(left, MIN_BY_CONJUNCTIONS))
    # One term alone, and that a common one.
    return Candidates(tuple(rare), conjunctions) if rare or conjunctions else Candidates((rarest[0],))


def _rare(frequencies: Mapping[int, int], rarest: Sequence[int], max_read: int) -> list[int]:
    """Take the rarest terms that together bring at most so many contents."""
    taken, brought = [], 0
    for term in rarest:
        brought += frequencies[term]
        if brought > max_read:
            break
        taken.append(term)
    return taken


def _conjunctions(
    frequencies: Mapping[int, int], common: Sequence[int], total: int, max_read: int
) -> tuple[tuple[int, ...], ...]:
    """Choose pairs of common terms, those that bring least first, then triples of what the pairs left out."""
    chosen: list[tuple[int, ...]] = []
    room = float(max_read)
    for size in (2, 3):
        sized = [(_together(frequencies, terms, total), terms) for terms in combinations(common, size)]
        for brought, terms in sorted(sized):
            if len(chosen) >= MAX_CONJUNCTIONS or brought > room:
                break
            if not any(set(one) <= set(terms) for one in chosen):
                chosen.append(terms)
                room -= brought
    return tuple(chosen)


def _together(frequencies: Mapping[int, int], terms: Sequence[int], total: int) -> float:
    """Estimate how many contents have all of these terms."""
    brought = float(total)
    for term in terms:
        brought *= min(1.0, frequencies[term] / max(1, total))
    return brought * TOGETHER ** (len(terms) - 1)


async def _rank(
    tx: Tx,
    stored: Identifier,
    query: SparseVector,
    limit: int,
    among: BigintArray | Where | None,
    plan: Plan,
    candidates: Candidates,
) -> list[tuple[int, float]]:
    asked = Where(parameters={"query": query, "limit": limit}, prefix="term")
    test = _any_of(candidates, asked)
    if isinstance(among, BigintArray):
        test = SQL("{} AND content = ANY ({})").format(test, asked.bind(among))
    if isinstance(among, Where):
        asked.parameters |= among.parameters
        fits = {"pointing": among.pointing, "content": among.content, "fits": among.sql}
        statement = SQL(RANK_FITTING).format(terms=stored, candidates=test, **fits)
    else:
        statement = SQL(RANK).format(terms=stored, candidates=test)
    rows = await tx.rows(statement, asked.parameters, plan=plan)
    return [(int(content), float(score)) for content, score in rows]


def _any_of(candidates: Candidates, where: Where) -> Composable:
    tests = [SQL("terms @> {}::int[]").format(where.bind(list(terms))) for terms in candidates.conjunctions]
    if candidates.terms:
        tests.append(SQL("terms && {}::int[]").format(where.bind(list(candidates.terms))))
    return SQL("({})").format(SQL(" OR ").join(tests))


def _named(statement: str, collection: int, view: int) -> Composed:
    return SQL(statement).format(terms=table("terms", collection, view))
