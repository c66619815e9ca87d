"""What the owner does in the background: the HNSW index and the background similarity."""

import asyncio

import numpy as np
import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict

from likewise.db import collections
from likewise.db.maintenance import Maintenance
from likewise.library import Likewise
from likewise.search.options import SearchRequest, TextQuestion
from likewise.testing import DatabaseUrls, ThrowawayPostgres
from tests.patience import until

WORDS = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]


async def fill(lw: Likewise, count: int = 1500) -> None:
    """A collection of texts of five words each."""
    drawn = np.random.default_rng(3)
    texts = [" ".join(drawn.choice(WORDS, 5)) for _ in range(count)]
    await lw.collection("notes").add([{"id": str(n), "text": text} for n, text in enumerate(texts)], wait=False)
    await lw.wait_until_embedded("notes")


async def statistics_are_in(database: DatabaseUrls) -> None:
    """Postgres tells of new rows with a delay; a new connection asks it to tell at once."""
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        await owner.execute("ANALYZE")


async def nearest(lw: Likewise, query: str) -> list[str]:
    return [hit.id for hit in (await lw.collection("notes").search(query, mode="dense")).hits]


async def test_past_the_bound_an_index_is_built_and_finds_the_same(lw: Likewise, database: DatabaseUrls) -> None:
    # Given what a scan finds
    await fill(lw)
    queries = [" ".join(words) for words in np.random.default_rng(4).choice(WORDS, (40, 3))]
    by_scan = [await nearest(lw, query) for query in queries]
    assert (await lw.collection("notes").stats())["index"] == "exact"
    # When maintenance finds it large enough
    await statistics_are_in(database)
    await Maintenance(database.owner, max_scanned=100_000).step()
    # Then searches go by an index, and find the same
    assert (await lw.collection("notes").stats())["index"] == "hnsw"
    by_index = [await nearest(lw, query) for query in queries]
    kept = sum(len(set(a) & set(b)) for a, b in zip(by_scan, by_index, strict=True))
    assert kept / (10 * len(queries)) >= 0.97
    assert all(len(found) == 10 for found in by_index)
    # And new records are found by it
    await lw.collection("notes").add([{"id": "new", "text": "something new altogether"}])
    assert (await nearest(lw, "something new altogether"))[0] == "new"


async def test_below_the_bound_nothing_is_built(lw: Likewise, database: DatabaseUrls) -> None:
    await fill(lw, 50)
    await statistics_are_in(database)
    await Maintenance(database.owner).step()
    assert (await lw.collection("notes").stats())["index"] == "exact"


async def test_what_a_killed_builder_left_is_built_anew(lw: Likewise, database: DatabaseUrls) -> None:
    # Given an index that is not valid, as one is whose builder was killed
    await fill(lw, 200)
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        generation = (await collections.named(tx, "notes")).active.id
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        await owner.execute("SET search_path = likewise")
        await owner.execute(f"CREATE INDEX vec_{generation}_embedding ON vec_{generation} (tokens)")  # type: ignore[arg-type]
        await owner.execute("UPDATE generations SET index_state = 'building'")
    # When
    await Maintenance(database.owner).step()
    # Then
    assert (await lw.collection("notes").stats())["index"] == "hnsw"
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        row = await (
            await owner.execute(
                "SELECT indisvalid, am.amname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
                "JOIN pg_am am ON am.oid = c.relam WHERE c.relname = %s",
                [f"vec_{generation}_embedding"],
            )
        ).fetchone()
    assert row == (True, "hnsw")


async def test_two_builders_at_once_build_one_index(lw: Likewise, database: DatabaseUrls) -> None:
    await fill(lw, 300)
    await statistics_are_in(database)
    first, second = Maintenance(database.owner, max_scanned=0), Maintenance(database.owner, max_scanned=0)
    await asyncio.gather(first.step(), second.step(), return_exceptions=False)
    assert (await lw.collection("notes").stats())["index"] == "hnsw"


async def test_the_background_is_the_mean_cosine_of_all_pairs_of_a_sample(lw: Likewise, database: DatabaseUrls) -> None:
    # Given a hundred and more vectors, and no more than a sample has
    await fill(lw, 400)
    await statistics_are_in(database)
    # When
    await Maintenance(database.owner).step()
    # Then
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        made = await collections.named(tx, "notes")
        rows = await tx.rows(psycopg.sql.SQL(f"SELECT embedding FROM vec_{made.active.id}"))  # type: ignore[arg-type]
    vectors = np.array([row[0].to_numpy() for row in rows], np.float64)
    products = vectors @ vectors.T
    mean = (products.sum() - np.trace(products)) / (len(vectors) * (len(vectors) - 1))
    assert abs(made.active.background - mean) < 1e-4
    # And fewer than a hundred tell nothing
    await lw.collections.create(await lw.tenant(), "few")
    await Maintenance(database.owner).step()
    result = await lw.collections.search(await lw.tenant(), "few", SearchRequest(TextQuestion("x")))
    assert result.hits == []


async def sizes(database: DatabaseUrls) -> tuple[int, int]:
    """Bytes of the vectors' table and of its index."""
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        await owner.execute("SET search_path = likewise")
        row = await (
            await owner.execute(
                "SELECT pg_relation_size('vec_' || id), pg_relation_size('vec_' || id || '_embedding') FROM generations"
            )
        ).fetchone()
    assert row is not None
    return row


async def test_an_index_with_dead_rows_is_built_anew_and_their_room_is_used_again(
    lw: Likewise, database: DatabaseUrls
) -> None:
    # Given an index, from which a tenth has gone
    await fill(lw)
    await statistics_are_in(database)
    maintenance = Maintenance(database.owner, max_scanned=100_000, min_dead=100)
    await maintenance.step()
    table_before, index_before = await sizes(database)
    for n in range(0, 1500, 10):
        await lw.collection("notes").delete(str(n))
    # When maintenance looks again
    await until(lambda: rebuilt(maintenance, database))
    # Then the index is smaller, searches go by it, and what has gone is not found
    assert (await lw.collection("notes").stats())["index"] == "hnsw"
    assert (await sizes(database))[1] < index_before
    for query in [" ".join(words) for words in np.random.default_rng(4).choice(WORDS, (10, 3))]:
        found = await nearest(lw, query)
        assert len(found) == 10
        assert not [one for one in found if int(one) % 10 == 0]
    # And as many new ones take the place of the old
    drawn = np.random.default_rng(5)
    records = [{"id": f"new {n}", "text": " ".join(drawn.choice(WORDS, 6))} for n in range(140)]
    await lw.collection("notes").add(records)
    assert (await sizes(database))[0] == table_before
    # Nothing more is due
    before = await index_made(database)
    await maintenance.step()
    assert await index_made(database) == before


async def rebuilt(maintenance: Maintenance, database: DatabaseUrls) -> bool:
    """Whether the index was built anew by one more step; deletions are counted with a delay."""
    before = await index_made(database)
    await maintenance.step()
    return await index_made(database) != before


async def index_made(database: DatabaseUrls) -> list[tuple[int]]:
    """Which file the index lies in: another after each rebuild."""
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        cursor = await owner.execute("SELECT relfilenode FROM pg_class WHERE relname ~ '^vec_[0-9]+_embedding$'")
        return await cursor.fetchall()


async def test_what_a_rebuild_left_that_was_cut_off_is_cleared_away(
    lw: Likewise, database: DatabaseUrls, postgres: ThrowawayPostgres
) -> None:
    # Given an index with dead rows, and the beginnings of another
    await fill(lw, 200)
    await statistics_are_in(database)
    maintenance = Maintenance(database.owner, max_scanned=100, min_dead=10)
    await maintenance.step()
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        generation = (await collections.named(tx, "notes")).active.id
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        await owner.execute("SET search_path = likewise")
        left = f"vec_{generation}_embedding_ccnew"
        await owner.execute(f"CREATE INDEX {left} ON vec_{generation} (tokens)")  # type: ignore[arg-type]
    name = conninfo_to_dict(database.owner)["dbname"]
    url = postgres.server.superuser_url(str(name))
    async with await AsyncConnection.connect(url, autocommit=True) as superuser:
        await superuser.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = ('likewise.' || %s)::regclass", [left]
        )
    for n in range(20):
        await lw.collection("notes").delete(str(n))
    # When
    await until(lambda: rebuilt(maintenance, database))
    # Then it is gone
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        cursor = await owner.execute("SELECT relname FROM pg_class WHERE relname ~ '_cc(new|old)'")
        assert await cursor.fetchall() == []
