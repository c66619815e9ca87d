"""Search terms of contents, written once with their BM25 weights; `matches` ranks them by an inner product.

A term's weight in a text is BM25's part for term frequency, tf (k1 + 1) / (tf + k1 (1 - b + b length / average)),
with the running average at the time of writing; the query carries the idf (Robertson and Zaragoza, 2009).
"""

import struct
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from psycopg.sql import SQL, Composed

from likewise.db.pool import Tx, table

# Tried on SciFact's training claims; see docs/benchmarks.md.
K1 = 1.2
B = 0.75
# The largest length that a sparsevec can have; terms are in 1..TERM_SPACE.
TERM_SPACE = 1_000_000_000

# The format that COPY reads and writes with FORMAT binary: a signature, flags, no header extension; -1 ends it.
COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_END = struct.pack(">h", -1)
INT4_OID = 23

INSERT = "COPY {terms} (content, terms, weights) FROM STDIN WITH (FORMAT binary)"
DELETE = "DELETE FROM {terms} WHERE content = ANY (%s)"


def encode(counts: Counter[int], average: float) -> bytes:
    """A text's terms and their weights, as the fields of its row in a binary COPY that come after the content's id.

    Made ahead of the transaction that stores them: of a long text it takes milliseconds.
    """
    terms = np.fromiter(sorted(counts), np.int64, len(counts))
    frequencies = np.fromiter((counts[int(term)] for term in terms), np.float64, len(counts))
    spread = K1 * (1 - B + B * counts.total() / max(average, 1.0))
    weights = frequencies * (K1 + 1) / (frequencies + spread)
    # int4[]: one dimension (none if empty), no nulls, the type's oid, length, lower bound; then each with its size.
    elements = np.empty((len(terms), 2), ">i4")
    elements[:, 0], elements[:, 1] = 4, terms
    shape = struct.pack(">5i", 1, 0, INT4_OID, len(terms), 1) if len(terms) else struct.pack(">3i", 0, 0, INT4_OID)
    array = shape + elements.tobytes()
    # sparsevec: dimension, entries, zero; then the indices, which count from 0, and the values.
    sparse = struct.pack(">3i", TERM_SPACE, len(terms), 0) + (terms - 1).astype(">i4").tobytes()
    sparse += weights.astype(">f4").tobytes()
    return b"".join([struct.pack(">i", len(array)), array, struct.pack(">i", len(sparse)), sparse])


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
