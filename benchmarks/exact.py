"""What a search should have found: cosines, BM25 and their fusion computed over everything, with numpy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection
from psycopg.sql import SQL

from benchmarks.corpora import Floats, Halves, Numbers
from likewise.db.transaction import Row, table
from likewise.search.analyzer import analyze
from likewise.search.fusion import fuse

Mask = NDArray[np.bool_]

AT_ONCE = 50_000
# So many of each ranking are fused.
DEPTH = 100
# Scores are computed here and in the database with other roundings: those so near to the last are as good.
COSINE_TOLERANCE, SCORE_TOLERANCE = 1e-5, 1e-4

WEIGHTS = SQL("COPY (SELECT content, weights FROM {terms}) TO STDOUT WITH (FORMAT binary)")
_COPY_HEAD = 19


@dataclass(frozen=True)
class Best:
    """The best k of each query: places (q, k), best first, with their scores; -1 where there are fewer."""

    places: Numbers
    scores: Floats


class Vectors:
    """Vectors as they are stored, and the cosine of any to a query."""

    def __init__(self, vectors: Halves) -> None:
        self._vectors = vectors

    def best(self, queries: Floats, k: int, allowed: Mask) -> Best:
        """The nearest k of those allowed."""
        queries = self._as_asked(queries)
        places, scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        for start in range(0, len(self._vectors), AT_ONCE):
            here = np.flatnonzero(allowed[start : start + AT_ONCE]) + start
            if not len(here):
                continue
            scores = np.concatenate([scores, queries @ self._rows(here).T], axis=1)
            places = np.concatenate([places, np.broadcast_to(here, (len(queries), len(here)))], axis=1)
            if scores.shape[1] > k:
                kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
                places, scores = np.take_along_axis(places, kept, 1), np.take_along_axis(scores, kept, 1)
        order = np.argsort(-scores, axis=1, kind="stable")
        return Best(np.take_along_axis(places, order, 1), np.take_along_axis(scores, order, 1))

    def recall(self, best: Best, queries: Floats, found: Sequence[Sequence[int]]) -> float:
        """The share of the best that was found; one as near as the last of them counts."""
        shares = []
        for query, last, hits in zip(self._as_asked(queries), best.scores[:, -1], found, strict=True):
            near = self._rows(np.asarray(hits, np.int64)) @ query >= last - COSINE_TOLERANCE
            shares.append(min(1.0, float(near.sum()) / best.scores.shape[1]))
        return float(np.mean(shares))

    def _rows(self, places: Numbers) -> Floats:
        return _unit(self._vectors[places].astype(np.float32))

    @staticmethod
    def _as_asked(queries: Floats) -> Floats:
        # The store asks in half precision as well.
        return _unit(queries.astype(np.float16).astype(np.float32))


class Words:
    """The stored BM25 weights, and the score of any content for a query."""

    def __init__(self, contents: int, places: Numbers, terms: Numbers, weights: Floats, total: int) -> None:
        order = np.argsort(terms, kind="stable")
        self._known, starts, counts = np.unique(terms[order], return_index=True, return_counts=True)
        self._starts, self._counts = starts, counts
        self._places, self._weights = places[order], weights[order]
        self._contents, self._total = contents, total

    @classmethod
    async def read(cls, owner: AsyncConnection[Row], collection: int, place_of: dict[int, int], total: int) -> "Words":
        """The weights of a collection; `place_of` has the place of each content."""
        data = bytearray()
        async with owner.cursor() as cursor, cursor.copy(WEIGHTS.format(terms=table("terms", collection))) as copy:
            async for part in copy:
                data += part
        places, terms, weights = _unpacked(bytes(data), place_of)
        return cls(max(place_of.values()) + 1, places, terms, weights, total)

    def scores(self, query: str) -> Floats:
        """The BM25 score of each content."""
        found = np.zeros(self._contents, np.float32)
        for term in analyze(query):
            at = int(np.searchsorted(self._known, term))
            if at < len(self._known) and self._known[at] == term:
                n = int(self._counts[at])
                part = slice(self._starts[at], self._starts[at] + n)
                found[self._places[part]] += _rarity(n, self._total) * self._weights[part]
        return found

    def best(self, scores: Floats, k: int, allowed: Mask) -> list[tuple[int, float]]:
        """The k that score best of those allowed that score at all."""
        # The last contents may have been deleted.
        scores = np.pad(scores, (0, max(0, len(allowed) - len(scores))))
        here = np.flatnonzero((scores > 0) & allowed)
        if len(here) > k:
            here = here[np.argpartition(-scores[here], k - 1)[:k]]
        return sorted(((int(place), float(scores[place])) for place in here), key=lambda one: (-one[1], one[0]))

    def recall(self, queries: Sequence[str], k: int, allowed: Mask, found: Sequence[Sequence[int]]) -> float:
        """The share of the best k that was found; one that scores as the last of them counts."""
        shares = []
        for query, hits in zip(queries, found, strict=True):
            scores = self.scores(query)
            best = self.best(scores, k, allowed)
            if best:
                good = scores[list(hits)] >= best[-1][1] * (1 - SCORE_TOLERANCE)
                shares.append(min(1.0, float(good.sum()) / len(best)))
        return float(np.mean(shares))


def agreement(
    vectors: Vectors,
    words: Words,
    queries: tuple[Sequence[str], Floats],
    k: int,
    allowed: Mask,
    background: float,
    found: Sequence[Sequence[int]],
) -> float:
    """The share of the best k by the fusion of exact rankings that a hybrid search found."""
    texts, asked = queries
    best = vectors.best(asked, DEPTH, allowed)
    shares = []
    for text, places, cosines, hits in zip(texts, best.places, best.scores, found, strict=True):
        lexical = words.best(words.scores(text), DEPTH, allowed)
        dense = [(int(place), float(cosine)) for place, cosine in zip(places, cosines, strict=True)]
        fused = [one for one, _ in fuse(dense, lexical, depth=DEPTH, background=background)][:k]
        shares.append(len(set(fused).intersection(hits)) / max(1, len(fused)))
    return float(np.mean(shares))


def _rarity(containing: int, total: int) -> float:
    """BM25's idf in the form that is never negative."""
    return math.log1p((max(total, containing) - containing + 0.5) / (containing + 0.5))


def _unpacked(data: bytes, place_of: dict[int, int]) -> tuple[Numbers, Numbers, Floats]:
    """The rows of a binary COPY of (content, weights): the contents' places, terms and weights, entry by entry."""
    places, terms, weights = [], [], []
    at = _COPY_HEAD
    while int.from_bytes(data[at : at + 2], signed=True) == 2:
        content = int.from_bytes(data[at + 6 : at + 14])
        size, entries = int.from_bytes(data[at + 14 : at + 18]), int.from_bytes(data[at + 22 : at + 26])
        place = place_of.get(content)
        if place is not None:
            places.append(np.full(entries, place, np.int64))
            # A sparsevec counts its entries from 0, terms from 1.
            terms.append(np.frombuffer(data, ">i4", entries, at + 30).astype(np.int64) + 1)
            weights.append(np.frombuffer(data, ">f4", entries, at + 30 + 4 * entries).astype(np.float32))
        at += 18 + size
    return np.concatenate(places), np.concatenate(terms), np.concatenate(weights)


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)
