"""Search terms of contents, written once with their BM25 weights; `matches` ranks them by an inner product.

A term's weight in a text is BM25's part for term frequency, tf (k1 + 1) / (tf + k1 (1 - b + b length / average)),
with the running average at the time of writing; the query carries the idf (Robertson and Zaragoza, 2009).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from psycopg.sql import SQL, Composed

from likewise.db.transaction import BinaryValue, Tx, table

# Tried on SciFact's training claims; see docs/benchmarks.md.
K1 = 1.2
B = 0.75
# The largest length that a sparsevec can have; terms are in 1..TERM_SPACE.
TERM_SPACE = 1_000_000_000
TERM_BITS = 30

# The format that COPY reads and writes with FORMAT binary: a signature, flags, no header extension; -1 ends it.
COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_END = struct.pack(">h", -1)
INT4_OID = 23
# A COPY takes two round trips of its own, which are worth it from some dozens of rows on.
FEW = 32

COPY = "COPY {terms} (content, terms, weights) FROM STDIN WITH (FORMAT binary)"
INSERT = "INSERT INTO {terms} (content, terms, weights) VALUES (%s, %s, %s)"
DELETE = "DELETE FROM {terms} WHERE content = ANY (%s)"


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
    # int4[]: one dimension (none if empty), no nulls, the type's oid, length, lower bound.
    shape = struct.pack(">5i", 1, 0, INT4_OID, count, 1) if count else struct.pack(">3i", 0, 0, INT4_OID)
    # sparsevec: dimension, entries, zero; then the indices and the values.
    return TermRow(shape + elements, struct.pack(">3i", TERM_SPACE, count, 0) + indices + weights)


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


def _named(statement: str, collection: int, view: int) -> Composed:
    return SQL(statement).format(terms=table("terms", collection, view))
