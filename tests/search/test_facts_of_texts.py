"""Fields that the text itself determines: known once a content, however many records point at it."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from likewise.apps.registry import App
from likewise.db import collections
from likewise.ingest.writer import Destination, NewCollection
from likewise.kind import Kind, NewRecord, Policy, View
from likewise.library import Likewise
from likewise.search.options import SearchOptions, SearchRequest, TextQuestion
from tests.conftest import Opener

SPANS = Kind(
    name="span",
    views=(View(text=lambda record: f"{record.payload['service']} {record.payload['operation']}"),),
    indexed=("host",),
    in_text=("service", "tries"),
)


@pytest.fixture
async def lw(open_likewise: Opener) -> AsyncIterator[Likewise]:
    """A Likewise with an app whose kind these spans are."""
    app = App("spans", "tests.search", kinds=("test_facts_of_texts:SPANS",))
    async with open_likewise(apps=[app]) as opened:
        yield opened


@pytest.fixture
async def tenant(lw: Likewise) -> int:
    """A tenant with a collection of spans: 3 texts, 30 records."""
    tenant = await lw.tenant()
    new = NewCollection(lw.embedder.spec(), Policy())
    batch = [
        NewRecord(
            id=f"s{n}",
            payload={"service": f"shop {n % 3}", "operation": "pay", "host": f"h{n}", "tries": [n % 3, "x"]},
        )
        for n in range(30)
    ]
    await lw.runtime.writer.write(tenant, Destination("spans", SPANS, new), batch)
    return tenant


async def found(lw: Likewise, tenant: int, *, filters: Mapping[str, Any]) -> tuple[set[str], dict[str, object]]:
    options = SearchOptions(mode="lexical", limit=100, explain=True, filters=filters)
    result = await lw.runtime.searcher.search(tenant, "spans", SearchRequest(TextQuestion("pay"), options))
    assert result.explanation is not None
    return {hit.record.id for hit in result.records}, result.explanation["filter"]


async def test_a_filter_on_a_fact_asks_the_contents_alone(lw: Likewise, tenant: int) -> None:
    ids, told = await found(lw, tenant, filters={"service": "shop 1"})
    assert ids == {f"s{n}" for n in range(30) if n % 3 == 1}
    assert (told["answered_by"], told["matching"]) == ("contents", 1)


async def test_facts_and_fields_of_records_hold_together(lw: Likewise, tenant: int) -> None:
    ids, told = await found(lw, tenant, filters={"service": "shop 1", "host": {"$in": ["h1", "h2", "h4"]}})
    assert ids == {"s1", "s4"}
    assert told["answered_by"] == "record_fields"


async def test_what_an_index_cannot_tell_is_asked_of_the_records_and_said(lw: Likewise, tenant: int) -> None:
    ids, told = await found(lw, tenant, filters={"operation": "pay", "service": {"$ne": "shop 0"}})
    assert ids == {f"s{n}" for n in range(30) if n % 3}
    assert told["answered_by"] == "scan"
    # A list is no value: it equals none of its elements.
    ids, told = await found(lw, tenant, filters={"tries": 1})
    assert ids == set()
    assert told["answered_by"] == "contents"
    ids, _ = await found(lw, tenant, filters={"tries": {"$contains": 1}})
    assert ids == {f"s{n}" for n in range(30) if n % 3 == 1}


async def test_facts_go_with_their_content(lw: Likewise, tenant: int) -> None:
    async with lw.runtime.pool.tenant(tenant) as tx:
        collection = await collections.named(tx, "spans")
    for n in range(1, 30, 3):
        assert await lw.runtime.writer.delete(tenant, collection, f"s{n}")
    ids, told = await found(lw, tenant, filters={"service": "shop 1"})
    assert (ids, told["matching"]) == (set(), 0)
