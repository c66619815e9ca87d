"""How Postgres answers what search, reading and writing ask: by index, for a tenant, before and after ANALYZE."""

import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from psycopg import AsyncConnection, AsyncCursor
from psycopg.sql import SQL

import likewise
from likewise.db import collections, transaction
from likewise.db.maintenance import Maintenance
from likewise.db.transaction import Row, Statement, Tx
from likewise.embedding.embedder import Embedder
from likewise.kind import Policy
from likewise.library import Collection, Likewise
from likewise.settings import load_settings
from likewise.testing import DatabaseUrls, FakeProvider, ThrowawayPostgres
from tests.patience import until

SIZE = 3_000
COMMON = "pump valve seal motor bearing".split()
COLUMNS = {
    "records_collection_id_key": "id",
    "records_parent": "parent",
    "records_occurred_at": "occurred_at",
    "record_fields_value": "value",
    "record_fields_number": "number",
}
LARGE = ("records", "contents", "record_fields", "waiting", "vec_", "terms_")


@dataclass
class Plan:
    """One statement that was run, and how."""

    statement: str
    nodes: list[Mapping[str, Any]]

    @property
    def indexes(self) -> set[str]:
        """The names of the indexes that it reads."""
        return {node["Index Name"] for node in self.nodes if "Index Name" in node}

    @property
    def scanned(self) -> set[str]:
        """The tables that it reads whole."""
        return {node["Relation Name"] for node in self.nodes if node["Node Type"].endswith("Seq Scan")}


class Spied(Tx):
    """A transaction that asks for the plan of each statement before it runs it."""

    plans: ClassVar[list[Plan]] = []

    async def execute(
        self,
        statement: Statement,
        parameters: Any = None,
        *,
        plan: transaction.Plan | None = None,
        commit: bool = False,
    ) -> AsyncCursor[Row]:
        """See Tx.execute."""
        said = statement.as_string(self.connection)
        if said.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
            cursor = await super().execute(SQL("EXPLAIN (FORMAT JSON) ") + statement, parameters, plan=plan)
            row = await cursor.fetchone()
            assert row is not None
            self.plans.append(Plan(said, list(_nodes(row[0][0]["Plan"]))))
        return await super().execute(statement, parameters, plan=plan, commit=commit)


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans of everything that is run from now on."""
    monkeypatch.setattr("likewise.db.pool.Tx", Spied)
    Spied.plans = []
    return Spied.plans


@dataclass
class Full:
    """A collection of some thousand records, beside another that waits for its vectors."""

    lw: Likewise
    urls: DatabaseUrls
    notes: Collection
    id: int
    generation: int


@asynccontextmanager
async def filled(postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Full]:
    async with postgres.database() as urls:
        settings = load_settings(
            data_dir=tmp_path_factory.mktemp("data"), database_url=urls.owner, database_serving_url=urls.serving
        )
        embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
        async with likewise.open(settings, worker=False, embedder=embedder) as lw:
            notes = lw.collection("notes")
            await notes.create(policy=Policy(indexed=("kind", "size")))
            chance = random.Random(1)
            records = [
                {
                    "id": f"id {n}",
                    "text": f"{' '.join(chance.sample(COMMON, 3))} number {n}",
                    "payload": {"kind": f"kind {n % 300}", "size": n, "other": n},
                    "parent": f"parent {n % 500}",
                    "occurred_at": f"2026-01-01T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}Z",
                }
                for n in range(SIZE)
            ]
            await notes.add(records)
            await lw.collection("queue").add([{"id": str(n), "text": f"waiting {n}"} for n in range(SIZE)], wait=False)
            async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
                collection = await collections.named(tx, "notes")
            yield Full(lw, urls, notes, collection.id, collection.active.id)


@pytest.fixture(scope="module", params=["before ANALYZE", "after ANALYZE"])
async def full(
    request: pytest.FixtureRequest, postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Full]:
    """See Full."""
    async with filled(postgres, tmp_path_factory) as full:
        if request.param == "after ANALYZE":
            async with await AsyncConnection.connect(full.urls.owner, autocommit=True) as connection:
                await connection.execute("ANALYZE")
        yield full


def plan_of(plans: list[Plan], part: str) -> Plan:
    """The plan of the one statement that has this in it."""
    found = [plan for plan in plans if part in plan.statement]
    assert found, f"nothing with {part} was run: {[plan.statement for plan in plans]}"
    return found[-1]


def nothing_large_is_scanned(plans: list[Plan]) -> None:
    for plan in plans:
        assert not [name for name in plan.scanned if name.startswith(LARGE)], plan.statement


@pytest.mark.parametrize("query", ["number 7", "pump valve", "pump bearing number 1234 and many other words beside"])
async def test_words_are_ranked_and_counted_by_the_gin_index(full: Full, plans: list[Plan], query: str) -> None:
    found = await full.notes.search(query, mode="lexical")
    assert found.hits
    assert f"terms_{full.id}_terms" in plan_of(plans, "weights <#>").indexes
    # What common words count, the table's statistics tell once there are any.
    assert all(f"terms_{full.id}_terms" in plan.indexes for plan in plans if "count(*)" in plan.statement)
    nothing_large_is_scanned(plans)


async def test_the_nearest_are_found_by_a_scan_while_there_are_few(full: Full, plans: list[Plan]) -> None:
    await full.notes.search("pump valve number 7", mode="dense")
    assert plan_of(plans, "AS distance FROM").scanned == {f"vec_{full.generation}"}
    nothing_large_is_scanned([plan for plan in plans if "AS distance FROM" not in plan.statement])


async def test_a_record_and_those_like_it_are_found_by_index(full: Full, plans: list[Plan]) -> None:
    assert (await full.notes.get("id 7")).vector == "ready"
    assert "records_collection_id_key" in plan_of(plans, "r.id = ").indexes
    nothing_large_is_scanned(plans)
    await full.notes.similar("id 7", mode="lexical")
    nothing_large_is_scanned(plans)


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"id": "id 7"}, "records_collection_id_key"),
        ({"id": {"$in": ["id 7", "id 8"]}}, "records_collection_id_key"),
        ({"parent": "parent 7"}, "records_parent"),
        ({"occurred_at": {"$gte": "2026-01-01T00:10:00Z", "$lt": "2026-01-01T00:10:05Z"}}, "records_occurred_at"),
        ({"kind": "kind 7"}, "record_fields_value"),
        ({"kind": {"$in": ["kind 7", "kind 8"]}}, "record_fields_value"),
        ({"size": 7}, "record_fields_number"),
        ({"size": {"$gte": 10, "$lt": 20}}, "record_fields_number"),
    ],
)
async def test_filters_on_what_is_indexed_use_its_index(
    full: Full, plans: list[Plan], filters: dict[str, Any], index: str
) -> None:
    found = await full.notes.search("pump valve", filters=filters)
    assert found.hits
    plan = plan_of(plans, "array_agg(content)")
    assert index in plan.indexes
    # By the value, and not by the collection alone.
    conditions = [node["Index Cond"] for node in plan.nodes if node.get("Index Name") == index]
    assert all(re.search(rf"\b{COLUMNS[index]}\b", one) for one in conditions)
    nothing_large_is_scanned(plans)


async def test_writing_changing_embedding_and_deleting_use_indexes(full: Full, plans: list[Plan]) -> None:
    for n in range(3):
        await full.notes.add([{"id": "new", "text": f"something new {n}", "payload": {"kind": "new"}}])
    await full.notes.delete("new")
    statements = ("unnest(", "FOR UPDATE", "INSERT INTO records", "DELETE FROM waiting", "DELETE FROM contents")
    assert all(plan_of(plans, part) for part in statements)
    nothing_large_is_scanned(plans)


async def test_once_built_hnsw_answers_and_nothing_else_changes(full: Full, plans: list[Plan]) -> None:
    """Last of its module: from here on the index is there."""

    # Given
    async def built() -> bool:
        # The counts of a table's rows appear when the connection that wrote them is used again.
        await full.notes.get("id 1")
        await Maintenance(full.urls.owner, max_scanned=1).step()
        return (await full.notes.stats())["index"] == "hnsw"

    await until(built)
    full.lw.runtime.recent.forget(await full.lw.tenant(), "notes")
    plans.clear()
    # When
    found = await full.notes.search("pump valve number 7", mode="dense", limit=50)
    # Then
    assert len(found.hits) == 50
    assert f"vec_{full.generation}_embedding" in plan_of(plans, "AS distance FROM").indexes
    nothing_large_is_scanned(plans)
    # Filters stay exact, by key.
    plans.clear()
    await full.notes.search("pump valve", mode="dense", filters={"kind": "kind 7"})
    assert plan_of(plans, "AS distance FROM").indexes == {f"vec_{full.generation}_pkey"}
