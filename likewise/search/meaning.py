"""The nearest by meaning within a scope, by whichever way costs least and finds them."""

from likewise.db.collections import CollectionRow
from likewise.db.transaction import Tx
from likewise.embedding.provider import Vector
from likewise.search.candidates import Scope
from likewise.vectors.store import FilterSubset, Ranking, VectorStore

# What visiting a vector costs, in microseconds, on the way through an index with a question to its record, by its id,
# and what finding out one of the ids costs.
BY_INDEX_US, BY_ID_US, AN_ID_US = 12.0, 1.1, 0.2
# So many more are visited than it takes where a filter has nothing to do with the meaning. For a hundred of a tenth
# that is two and a half standard deviations: 1 search of 100 needs more.
MORE_THAN_BY_CHANCE = 1.25


async def nearest(
    tx: Tx, store: VectorStore, collection: CollectionRow, query: Vector, depth: int, scope: Scope
) -> Ranking:
    """The `depth` contents of a scope that are nearest to a query."""
    generation, total = collection.active, collection.contents_total
    if scope.everything or scope.among is not None:
        return await store.search(tx, generation, query, depth, scope.among, total=total)
    share = max(scope.share, 1e-6)
    visits = round(MORE_THAN_BY_CHANCE * depth / share)
    if visits * BY_INDEX_US < share * max(1, total) * (BY_ID_US + AN_ID_US):
        found = await store.search(tx, generation, query, depth, FilterSubset(scope.where, share, visits), total=total)
        # Those near the query may fit far less often than others do (one asset, one service). What an index gives so
        # far from the query is not the nearest any more: of a million it found 0.18 of them.
        if len(found) >= depth:
            return found
    return await store.search(tx, generation, query, depth, await scope.all_ids(tx), total=total)
