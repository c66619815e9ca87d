"""Pages, groups and explanations of a search, over HTTP."""

import json
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
from psycopg import AsyncConnection

from likewise.db.maintenance import Maintenance
from likewise.library import Likewise
from likewise.settings import Settings

COMMON = "pump valve seal motor bearing".split()


@pytest.fixture(scope="module")
async def path(client: httpx2.AsyncClient, shared: Likewise, shared_settings: Settings) -> str:
    """The search of a collection of 1,300 texts: 13 sites, every tenth record without one."""
    await client.post("/api/v1/collections", json={"name": "paged", "policy": {"indexed": ["site"]}})
    records = [
        {
            "id": f"r{n}",
            "text": f"{COMMON[n % 5]} {COMMON[n % 3]} of site number {n}",
            "payload": {} if n % 10 == 0 else {"site": f"site {n % 13}"},
            "parent": f"p{n % 7}",
        }
        for n in range(1300)
    ]
    for start in range(0, len(records), 500):
        answer = await client.post("/api/v1/collections/paged/records", json=records[start : start + 500])
        assert answer.status_code == 200, answer.text
    await shared.wait_until_embedded("paged")
    # What Postgres and maintenance learn of a collection moves hits: later they would move from one page to another.
    owner = str(shared_settings.database_url)
    async with await AsyncConnection.connect(owner, autocommit=True) as connection:
        await connection.execute("ANALYZE")
    await Maintenance(owner).step()
    shared.runtime.recent.forget(await shared.tenant(), "paged")
    return "/api/v1/collections/paged/search"


async def ask(client: httpx2.AsyncClient, path: str, **asked: Any) -> dict[str, Any]:
    answer = await client.post(path, json={"query": "pump seal", **asked})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def pages(client: httpx2.AsyncClient, path: str, **asked: Any) -> list[Mapping[str, Any]]:
    """All hits, a page after the other."""
    hits: list[Mapping[str, Any]] = []
    cursor = None
    while True:
        found = await ask(client, path, **asked, **({} if cursor is None else {"cursor": cursor}))
        hits += found["hits"]
        cursor = found["cursor"]
        if cursor is None:
            return hits


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
async def test_pages_lead_to_the_thousandth_hit_and_none_comes_twice(
    client: httpx2.AsyncClient, path: str, mode: str
) -> None:
    hits = await pages(client, path, mode=mode, limit=100)
    ids = [hit["id"] for hit in hits]
    assert len(ids) == len(set(ids)) == 1000
    # The first page is the same in pages of another size.
    first = await ask(client, path, mode=mode, limit=30)
    assert [hit["id"] for hit in first["hits"]] == ids[:30]
    second = await ask(client, path, mode=mode, limit=50, cursor=first["cursor"])
    assert [hit["id"] for hit in second["hits"]] == ids[30:80]


async def test_the_last_page_has_no_cursor(client: httpx2.AsyncClient, path: str) -> None:
    hits = await pages(client, path, filters={"site": "site 3"}, limit=45)
    assert len(hits) == 90
    assert (await ask(client, path, filters={"site": "nowhere"}))["cursor"] is None


async def test_a_cursor_belongs_to_its_search(client: httpx2.AsyncClient, path: str) -> None:
    cursor = (await ask(client, path, limit=5))["cursor"]
    await client.post("/api/v1/collections", json={"name": "another"})
    elsewhere = path.replace("paged", "another")
    for where, asked in (
        (path, {"query": "valve"}),
        (path, {"query": "pump seal", "mode": "dense"}),
        (path, {"query": "pump seal", "filters": {"site": "site 1"}}),
        (path, {"query": "pump seal", "group_by": "site"}),
        (elsewhere, {"query": "pump seal"}),
    ):
        answer = await client.post(where, json={**asked, "cursor": cursor})
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["code"] == "invalid_cursor"
    for forged in ("", "x", "AAAA", cursor[:-2], cursor + "A", "é", "=" * 500):
        answer = await client.post(path, json={"query": "pump seal", "cursor": forged})
        assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
async def test_every_value_of_a_field_has_one_hit_its_best(client: httpx2.AsyncClient, path: str, mode: str) -> None:
    # Given the hits in their order
    hits = await pages(client, path, mode=mode, limit=100)
    best: dict[str | None, str] = {}
    for hit in hits:
        best.setdefault(hit["record"]["payload"].get("site"), hit["id"])
    # When they are grouped
    found = await ask(client, path, mode=mode, limit=50, group_by="site")
    # Then
    assert {hit["group"]: hit["id"] for hit in found["hits"]} == best
    assert [hit["id"] for hit in found["hits"]] == list(best.values())
    assert found["cursor"] is None
    # And in pages
    assert [hit["id"] for hit in await pages(client, path, mode=mode, limit=4, group_by="site")] == list(best.values())


async def test_groups_by_a_column_and_within_a_filter(client: httpx2.AsyncClient, path: str) -> None:
    found = await ask(client, path, group_by="parent", limit=100, filters={"site": {"$in": ["site 1", "site 2"]}})
    assert {hit["group"] for hit in found["hits"]} == {f"p{n}" for n in range(7)}
    assert all(hit["record"]["payload"]["site"] in ("site 1", "site 2") for hit in found["hits"])


async def test_groups_that_lie_beyond_the_nearest_thousand_are_found(client: httpx2.AsyncClient) -> None:
    # Given a group that has all of the nearest, and another
    await client.post("/api/v1/collections", json={"name": "crowded"})
    crowd = [{"id": f"c{n}", "text": f"pump pump {n}", "payload": {"of": "crowd"}} for n in range(1100)]
    rest = [{"id": f"o{n}", "text": f"oil leak pump alarm {n}", "payload": {"of": f"other {n}"}} for n in range(5)]
    for start in range(0, 1100, 500):
        await client.post("/api/v1/collections/crowded/records", json=crowd[start : start + 500])
    await client.post("/api/v1/collections/crowded/records", json=rest)
    # When
    path = "/api/v1/collections/crowded/search"
    found = await ask(client, path, mode="lexical", query="pump", group_by="of", limit=4)
    # Then as many groups come as were asked for
    assert len({hit["group"] for hit in found["hits"]}) == 4
    assert found["hits"][0]["group"] == "crowd"
    assert found["cursor"] is not None


async def test_an_explanation_has_steps_and_no_word_of_the_query(client: httpx2.AsyncClient, path: str) -> None:
    query = "pump zyzzyvacanary"
    found = await ask(client, path, query=query, filters={"site": "site 1"}, explain=True)
    told = found["explanation"]
    assert set(told) == {"embed", "filter", "words", "meaning", "load"}
    assert all(step["ms"] >= 0 for step in told.values())
    assert told["filter"]["answered_by"] == "record_fields"
    assert told["filter"]["matching"] == 90
    assert told["words"]["every_match_ranked"] is True
    assert told["meaning"]["plan"] in ("among", "scan")
    assert "canary" not in json.dumps(told)
    assert (await ask(client, path, query=query))["explanation"] is None


async def test_a_filter_on_what_has_no_index_says_that_it_scans(client: httpx2.AsyncClient, path: str) -> None:
    found = await ask(client, path, filters={"elsewhere": {"$exists": False}}, explain=True)
    assert found["explanation"]["filter"]["answered_by"] == "scan"
    for filters in ({"created_at": {"$gt": "2020-01-01T00:00:00Z"}}, {"parent": {"$gt": "a"}}, {"parent": None}):
        found = await ask(client, path, filters=filters, explain=True)
        assert found["explanation"]["filter"]["answered_by"] == "scan"
    found = await ask(client, path, filters={"parent": "p1"}, explain=True)
    assert found["explanation"]["filter"]["answered_by"] == "columns"


@pytest.mark.parametrize("field", ["", "x') OR '1'='1", "$.a", "a b", "x" * 200, 5])
async def test_a_field_that_none_can_be_is_refused(client: httpx2.AsyncClient, path: str, field: object) -> None:
    answer = await client.post(path, json={"query": "pump", "group_by": field})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/group_by"
