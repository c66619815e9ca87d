"""Search terms of contents, written once with their BM25 weights; `matches` ranks them by an inner product.

A term's weight in a text is BM25's part for term frequency, tf (k1 + 1) / (tf + k1 (1 - b + b length / average)),
with the running average at the time of writing; the query carries the idf (Robertson and Zaragoza, 2009).
"""

import struct
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from psycopg.sql import SQL, Composed

from likewise.db.pool import Tx, table

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

INSERT = "COPY {terms} (content, terms, weights) FROM STDIN WITH (FORMAT binary)"
DELETE = "DELETE FROM {terms} WHERE content = ANY (%s)"


def encode(texts: Sequence[Sequence[int]], average: float) -> list[bytes]:
    """Each text's terms and their weights, as the fields of its row in a binary COPY that come after the content's id.

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


def _row(elements: bytes, indices: bytes, weights: bytes) -> bytes:
    count = len(indices) // 4
    # int4[]: one dimension (none if empty), no nulls, the type's oid, length, lower bound.
    shape = struct.pack(">5i", 1, 0, INT4_OID, count, 1) if count else struct.pack(">3i", 0, 0, INT4_OID)
    array_size, sparse_size = len(shape) + len(elements), 12 + len(indices) + len(weights)
    # sparsevec: dimension, entries, zero; then the indices and the values.
    sparse = struct.pack(">4i", sparse_size, TERM_SPACE, count, 0)
    return b"".join([struct.pack(">i", array_size), shape, elements, sparse, indices, weights])


async def write(tx: Tx, collection: int, rows: Mapping[int, bytes]) -> None:
    """Store the encoded terms of contents that have none yet."""
    heads = ((struct.pack(">hiq", 3, 8, content), fields) for content, fields in rows.items())
    body = b"".join([COPY_HEAD, *(part for row in heads for part in row), COPY_END])
    await tx.copy_bytes(_named(INSERT, collection), body)


async def delete(tx: Tx, collection: int, contents: Sequence[int]) -> None:
    """Take away the terms of contents that are going."""
    await tx.execute(_named(DELETE, collection), [list(contents)])


def _named(statement: str, collection: int) -> Composed:
    return SQL(statement).format(terms=table("terms", collection))
