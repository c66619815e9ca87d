"""The nearest by meaning within a scope, by whichever way costs least and finds them."""

from likewise.db.collections import Collection
from likewise.db.pool import Tx
from likewise.search.scope import Scope
from likewise.vectors.store import Fitting, Ranking, Vector, VectorStore

# What visiting a vector costs, in microseconds, on the way through an index with a question to its record, by its id,
# and what finding out one of the ids costs.
BY_INDEX_US, BY_ID_US, AN_ID_US = 12.0, 1.1, 0.2
# So many hits of a filter do for fusion; a hundred of one that a tenth of all fit would be a thousand visits.
ENOUGH = 40
# Fewer than this part of what chance would bring says that the filter goes with the meaning.
LEAST_OF_EXPECTED = 1 / 3


async def nearest(
    tx: Tx, store: VectorStore, collection: Collection, query: Vector, depth: int, least: int, scope: Scope
) -> Ranking:
    """The contents of a scope that are nearest to a query.

    Args:
        depth: how many are wanted at most.
        least: how many there must be, if so many fit.
    """
    generation, total = collection.active, collection.contents_total
    if scope.everything or scope.among is not None:
        return await store.search(tx, generation, query, depth, scope.among, total=total)
    enough = max(least, min(depth, ENOUGH))
    visits = int(1.5 * enough / max(scope.share, 1e-6)) + 200
    fit = scope.share * max(1, collection.contents_total)
    if visits * BY_INDEX_US < fit * (BY_ID_US + AN_ID_US):
        found = await store.search(tx, generation, query, depth, Fitting(scope.where, visits), total=total)
        # Those near the query may fit far less often than others do (one asset, one service), and then an index ends
        # before it has met the nearest that do: it found 0.49 of them.
        if len(found) >= min(depth, max(least, visits * scope.share * LEAST_OF_EXPECTED)):
            return found
    return await store.search(tx, generation, query, depth, await scope.all_ids(tx), total=total)
