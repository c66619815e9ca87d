"""Both rankings of a search, and their fusion."""

import asyncio
from dataclasses import dataclass
from typing import Any

from likewise.db import matches
from likewise.db.matches import NO_MATCHES, Matches
from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.search.candidates import Scope
from likewise.search.frequencies import TermFrequencies
from likewise.search.fusion import fuse
from likewise.search.meaning import nearest
from likewise.search.state import Question, Search
from likewise.stopping import stop
from likewise.vectors.store import Ranking, VectorStore

# What fusion was measured with; deeper brings little.
DEPTH = 100
# Of a long query, or a text that others like it are wanted of, so many terms are counted, and the rarest half ranked:
# each costs time, and the hundredth changes nothing.
MOST_COUNTED_TERMS = 128
MOST_RANKED_TERMS = 64
# Of so many ids, or under a filter of more, each ranking takes some milliseconds, and a connection a third of one.
SIDE_BY_SIDE = 2_000
# Of so many contents words take longer than it takes to embed a query.
LARGE = 300_000


@dataclass(frozen=True)
class Ranked:
    """Contents in the order of their scores, and what each ranking said of them. `exhausted`: there are no others."""

    order: list[tuple[int, float]]
    by_meaning: frozenset[int]
    words: dict[int, float]
    exhausted: bool


class Rankings:
    """Ranks by words and by meaning."""

    def __init__(self, pool: Pool, store: VectorStore) -> None:
        self._pool = pool
        self._store = store
        self._frequencies = TermFrequencies()

    async def rank(self, tx: Tx, search: Search, question: Question, scope: Scope, depth: int) -> Ranked:
        """The best `depth` of each ranking, in one order. Words come first: meanwhile the query is embedded."""
        words, meaning = await self._both(tx, search, question, scope, depth)
        found = {*meaning.contents, *(content for content, _ in words.scored)}
        if not words.candidates.complete and len(found) <= search.request.wanted:
            # Meaning had little to give, as while vectors are still being made: common words must do.
            words = await self._words(tx, search, question, scope, depth, least=depth)
        scored = [item for item in words.scored if item[0] != question.own]
        # One is left out, which may have been among them.
        full = depth - (question.own is not None)
        exhausted = len(scored) < full and words.candidates.complete and len(meaning) < full
        least_similar = search.request.threshold
        if least_similar is not None and len(meaning) and meaning.similarities[-1] < least_similar:
            # All others are less alike still.
            exhausted = True
        order = _order(search, meaning, scored, depth)
        return Ranked(order, frozenset(meaning.contents), dict(scored), exhausted)

    async def _both(
        self, tx: Tx, search: Search, question: Question, scope: Scope, depth: int
    ) -> tuple[Matches, Ranking]:
        """Both rankings; what takes long at once, words on a connection of their own.

        What came or went between the two is left out when records are loaded.
        """
        # Where words alone answer, common ones must do if there are no others.
        least = 0 if search.by_meaning else depth
        if question.terms and search.by_meaning and _is_long(search, scope):
            async with self._pool.spare(search.tenant) as other:
                if other is not None:
                    beside = asyncio.ensure_future(self._words(other, search, question, scope, depth, least=least))
                    try:
                        meaning = await self._meaning(tx, search, question, scope, depth)
                        return await beside, meaning
                    finally:
                        await stop([beside])
        words = await self._words(tx, search, question, scope, depth, least=least)
        return words, await self._meaning(tx, search, question, scope, depth)

    async def _words(
        self, tx: Tx, search: Search, question: Question, scope: Scope, depth: int, *, least: int
    ) -> Matches:
        if not question.terms:
            return NO_MATCHES
        return await search.step("words", self._match(tx, search, question, scope, depth, least), _of_matches)

    async def _meaning(self, tx: Tx, search: Search, question: Question, scope: Scope, depth: int) -> Ranking:
        vector = await search.vector(question)
        if not search.by_meaning or vector is None:
            return Ranking((), ())
        near = nearest(tx, self._store, search.collection, vector, depth, scope)
        return (await search.step("meaning", near, _of_ranking)).without(question.own)

    async def _match(self, tx: Tx, search: Search, question: Question, scope: Scope, depth: int, least: int) -> Matches:
        collection = search.collection
        counted = await self._frequencies.of(tx, collection.id, question.terms, collection.contents_total)
        rare = dict(sorted(counted.items(), key=lambda item: (item[1], item[0]))[:MOST_RANKED_TERMS])
        among = None if scope.everything else scope.where if scope.among is None else scope.among.ids
        total = collection.contents_total
        return await matches.rank(
            tx, collection.id, rare, total, depth, min_found=least, among=among, share=scope.share
        )


def _is_long(search: Search, scope: Scope) -> bool:
    """Whether each ranking takes so long that another connection for one of them pays."""
    if scope.everything:
        return search.collection.contents_total >= LARGE
    return scope.among is None or len(scope.among.ids) >= SIDE_BY_SIDE


def first_depth(search: Search) -> int:
    """How deep the rankings go at first.

    One more than is fused, by which a page of a hundred knows of the next; and one for a record in question, which is
    left out afterwards. The same for every limit, so that pages of another size have the same order.
    """
    return DEPTH + 1 + (search.request.like is not None)


def _order(search: Search, meaning: Ranking, words: list[tuple[int, float]], depth: int) -> list[tuple[int, float]]:
    near = list(zip(meaning.contents, meaning.similarities, strict=True))
    if search.request.mode == "dense":
        return near
    if search.request.mode == "lexical":
        return words
    full = depth - 1 - (search.request.like is not None)
    return fuse(near[:full], words[:full], depth=full, background=search.collection.active.background)


def _of_matches(found: Matches) -> dict[str, Any]:
    chosen = found.candidates
    return {
        "terms": len(chosen.terms),
        "conjunctions": len(chosen.conjunctions),
        "every_match_ranked": chosen.complete,
        "found": len(found.scored),
    }


def _of_ranking(found: Ranking) -> dict[str, Any]:
    return {"plan": found.plan, "found": len(found)}
