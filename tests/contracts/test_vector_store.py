"""What every store of vectors does: one line in STORES adds the next."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
from psycopg.sql import SQL

from likewise.db import collections
from likewise.db.arrays import BigintArray
from likewise.db.collections import Generation
from likewise.db.deletions import DROP_VECTORS
from likewise.db.pool import Pool
from likewise.db.transaction import Tx, table
from likewise.embedding.provider import Matrix
from likewise.kind import Policy
from likewise.library import Likewise
from likewise.testing import ThrowawayPostgres
from likewise.vectors.store import IdSubset, TextReading, VectorStore
from likewise.vectors.stores.pgvector import PgvectorStore

STORES: list[tuple[str, Callable[[], VectorStore]]] = [("pgvector", PgvectorStore)]
DIMENSIONS = (3, 384, 3072)


@dataclass
class Kept:
    """A store with a generation of its own for each test."""

    pool: Pool
    store: VectorStore
    tenant: int
    made: int = 0
    names: list[str] = field(default_factory=list)

    async def generation(self, dimension: int) -> Generation:
        name = f"c{self.made}"
        self.made += 1
        async with self.pool.tenant(self.tenant) as tx:
            made = await collections.make(
                tx,
                name,
                kind="collection",
                analyzer="english-1",
                policy=Policy(),
                model="fake",
                dimension=dimension,
            )
        return made.active

    async def put(self, generation: Generation, ids: Sequence[int], vectors: Matrix) -> None:
        async with self.pool.tenant(self.tenant) as tx:
            await self.store.upsert(tx, generation, ids, vectors, [TextReading(5, 1, 20)] * len(ids))

    async def take_away(self, tx: Tx, generation: Generation, ids: Sequence[int]) -> None:
        """Delete vectors as rows go with their contents, and have the store hear of it."""
        statement = DROP_VECTORS.format(vectors=table("vec", generation.id))
        await tx.execute(statement, [list(ids)])
        await self.store.forget(tx, ids)

    async def nearest(
        self, generation: Generation, query: Matrix, k: int, among: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        async with self.pool.tenant(self.tenant, snapshot=True) as tx:
            only = None if among is None else IdSubset(BigintArray.of(among), 0.1)
            found = await self.store.search(tx, generation, query, k, only, total=1_000)
        return list(zip(found.contents, found.similarities, strict=True))


@pytest.fixture(scope="module", params=STORES, ids=lambda store: store[0])
async def kept(request: pytest.FixtureRequest, postgres: ThrowawayPostgres) -> AsyncIterator[Kept]:
    """See Kept."""
    async with postgres.database() as urls:
        pool = await Pool(urls.serving, max_size=3).open()
        yield Kept(pool, request.param[1](), await collections.tenant_named(pool, "tenant"))
        await pool.close()


def some(count: int, dimension: int, seed: int = 0) -> Matrix:
    """Vectors of unit length in all directions."""
    drawn = np.random.default_rng(seed).standard_normal((count, dimension))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("dimension", DIMENSIONS)
async def test_the_nearest_come_first_with_their_cosine(kept: Kept, dimension: int) -> None:
    generation = await kept.generation(dimension)
    vectors, query = some(200, dimension), some(1, dimension, seed=1)[0]
    await kept.put(generation, range(1, 201), vectors)
    found = await kept.nearest(generation, query, 20)
    cosines = vectors @ query
    best = np.argsort(-cosines)[:20] + 1
    assert len(set(best) & {content for content, _ in found}) >= 19
    assert [similarity for _, similarity in found] == pytest.approx(np.sort(cosines)[::-1][:20], abs=2e-3)
    assert [similarity for _, similarity in found] == sorted((one for _, one in found), reverse=True)


@pytest.mark.parametrize("dimension", DIMENSIONS)
async def test_what_was_stored_is_fetched_in_half_precision_at_least(kept: Kept, dimension: int) -> None:
    generation = await kept.generation(dimension)
    vectors = some(5, dimension)
    await kept.put(generation, [9, 2, 7, 1, 2**40], vectors)
    async with kept.pool.tenant(kept.tenant) as tx:
        found = await kept.store.fetch(tx, generation, [2**40, 2, 5, 9])
    assert set(found) == {2, 9, 2**40}
    for place, content in ((0, 9), (1, 2), (4, 2**40)):
        assert found[content].dtype == np.float32
        np.testing.assert_allclose(found[content], vectors[place], atol=5e-4)


async def test_equal_vectors_are_ranked_by_id(kept: Kept) -> None:
    generation = await kept.generation(3)
    same = np.array([[1, 0, 0]] * 6, np.float32)
    await kept.put(generation, [30, 10, 20, 60, 50, 40], same)
    for k in (1, 3, 6):
        assert [content for content, _ in await kept.nearest(generation, same[0], k)] == [10, 20, 30, 40, 50, 60][:k]
    assert [content for content, _ in await kept.nearest(generation, same[0], 2, [60, 50, 20])] == [20, 50]


async def test_a_vector_that_is_there_stays_as_it_is(kept: Kept) -> None:
    generation = await kept.generation(3)
    first, second = np.eye(3, dtype=np.float32)[:2]
    await kept.put(generation, [1], first[None])
    await kept.put(generation, [2, 1], np.array([second, second]))
    async with kept.pool.tenant(kept.tenant) as tx:
        found = await kept.store.fetch(tx, generation, [1, 2])
    np.testing.assert_array_equal(found[1], first)
    np.testing.assert_array_equal(found[2], second)


async def test_more_than_there_are_are_no_more(kept: Kept) -> None:
    generation = await kept.generation(3)
    query = some(1, 3)[0]
    assert await kept.nearest(generation, query, 10) == []
    await kept.put(generation, [1, 2], some(2, 3))
    assert len(await kept.nearest(generation, query, 1_000)) == 2
    await kept.put(generation, [], some(0, 3))
    assert len(await kept.nearest(generation, query, 1_000)) == 2


async def test_among_some_the_search_is_exact(kept: Kept) -> None:
    generation = await kept.generation(384)
    vectors, query = some(500, 384), some(1, 384, seed=2)[0]
    await kept.put(generation, range(500), vectors)
    for among in ([], [7], [499, 3, 77, 3], list(range(0, 500, 7)), [1_000, 5], list(range(500))):
        found = await kept.nearest(generation, query, 10, among)
        there = sorted({one for one in among if one < 500}, key=lambda one: -float(vectors[one] @ query))
        assert {content for content, _ in found} <= set(there)
        assert len(found) == min(10, len(there))
        assert [similarity for _, similarity in found] == pytest.approx(
            [float(vectors[one] @ query) for one in there[:10]], abs=2e-3
        )


async def test_what_was_deleted_is_gone_and_the_rest_stays(kept: Kept) -> None:
    generation = await kept.generation(3)
    vectors = some(4, 3)
    await kept.put(generation, [1, 2, 3, 4], vectors)
    async with kept.pool.tenant(kept.tenant) as tx:
        await kept.take_away(tx, generation, [2, 4, 99])
    assert {content for content, _ in await kept.nearest(generation, vectors[1], 10)} == {1, 3}
    async with kept.pool.tenant(kept.tenant) as tx:
        assert set(await kept.store.fetch(tx, generation, [1, 2, 3, 4])) == {1, 3}
        await kept.take_away(tx, generation, [])
    # And it may come again.
    await kept.put(generation, [2], vectors[1:2])
    assert {content for content, _ in await kept.nearest(generation, vectors[1], 10)} == {1, 2, 3}


async def test_generations_share_nothing(kept: Kept) -> None:
    first, second = await kept.generation(3), await kept.generation(3)
    vectors = some(2, 3)
    await kept.put(first, [1, 2], vectors)
    await kept.put(second, [2], vectors[:1])
    assert {content for content, _ in await kept.nearest(first, vectors[0], 10)} == {1, 2}
    assert {content for content, _ in await kept.nearest(second, vectors[0], 10)} == {2}


async def test_it_takes_part_in_the_transaction_of_the_rows(kept: Kept) -> None:
    generation = await kept.generation(3)
    vectors = some(2, 3)
    await kept.put(generation, [1], vectors[:1])
    with suppress(ZeroDivisionError):
        async with kept.pool.tenant(kept.tenant) as tx:
            await kept.store.upsert(tx, generation, [2], vectors[1:], [TextReading(1, 0, 1)])
            await kept.take_away(tx, generation, [1])
            # Others see nothing of it yet.
            assert [content for content, _ in await kept.nearest(generation, vectors[0], 10)] == [1]
            raise ZeroDivisionError
    assert [content for content, _ in await kept.nearest(generation, vectors[0], 10)] == [1]


@pytest.mark.parametrize("dimension", [1, 2])
async def test_vectors_of_few_numbers_work_as_well(kept: Kept, dimension: int) -> None:
    generation = await kept.generation(dimension)
    vectors = np.array([[1.0] + [0.0] * (dimension - 1), [-1.0] + [0.0] * (dimension - 1)], np.float32)
    await kept.put(generation, [1, 2], vectors)
    assert await kept.nearest(generation, vectors[0], 5) == [(1, pytest.approx(1)), (2, pytest.approx(-1))]


async def test_a_store_hears_of_what_goes_in_the_transaction_that_takes_it_away(
    idle: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    heard: list[tuple[str, int]] = []
    store, notes = idle.runtime.store, idle.collection("notes")

    async def forget(tx: Tx, ids: Sequence[int]) -> None:
        heard.append(("contents", len(ids)))
        assert await tx.rows(SQL("SELECT pk FROM contents WHERE pk = ANY (%s)"), [list(ids)]) == []

    async def drop(tx: Tx, generations: Sequence[int]) -> None:
        heard.append(("generations", len(generations)))
        assert await tx.rows(SQL("SELECT id FROM generations WHERE id = ANY (%s)"), [list(generations)]) == []

    monkeypatch.setattr(store, "forget", forget)
    monkeypatch.setattr(store, "drop", drop)
    await notes.add([{"id": one, "text": text} for one, text in zip("abc", ("x", "x", "y"), strict=True)], wait=False)
    # When one text loses a record, another is replaced, and two records with the last of a text go
    await notes.delete("a")
    await notes.add([{"id": "c", "text": "z"}], wait=False)
    await notes.delete("b")
    await notes.drop()
    # Then
    assert heard == [("contents", 1), ("contents", 1), ("generations", 1)]
