"""Idempotency-Key: the same request any number of times has one effect and one answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from psycopg.sql import SQL

from likewise.apps import idempotency as runs
from likewise.db import collections, idempotency
from likewise.db.transaction import Tx
from likewise.errors import Conflict, DatabaseUnavailable, InProgress
from likewise.library import Likewise
from tests.patience import PATIENCE

URL = "/api/v1/collections"
RECORDS = f"{URL}/notes/records"
LINES = "application/x-ndjson"
ROWS = SQL("SELECT key, state, status, answer::text, idempotency::text FROM idempotency ORDER BY key")


def keyed(key: str, body: Any = None, **headers: str) -> dict[str, Any]:
    """What a request with this key and JSON body takes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {"content": content, "headers": {"content-type": "application/json", "idempotency-key": key} | headers}


async def rows(lw: Likewise) -> dict[str, tuple[Any, ...]]:
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        return {row[0]: row[1:] for row in await tx.rows(ROWS)}


async def change(lw: Likewise, statement: str) -> None:
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        await tx.execute(SQL(statement))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
async def no_rows(shared: Likewise) -> AsyncIterator[None]:
    """Keys of one test are not those of another."""
    yield
    await change(shared, "DELETE FROM idempotency")


async def test_a_collection_is_made_once_and_answered_twice(client: httpx2.AsyncClient) -> None:
    # When
    first = await client.post(URL, **keyed("k", {"name": "once"}))
    again = await client.post(URL, **keyed("k", {"name": "once"}))
    other = await client.post(URL, **keyed("k2", {"name": "once"}))
    # Then
    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 409)
    assert first.content == again.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]


@pytest.mark.parametrize("kind", ["application/json", LINES])
async def test_records_are_counted_as_they_were(client: httpx2.AsyncClient, kind: str) -> None:
    # Given
    body = json.dumps({"id": f"counted {kind}", "text": "counted"}).encode()
    request = keyed("k", body if kind == LINES else b"[" + body + b"]", **{"content-type": kind})
    # When
    first = await client.post(RECORDS, **request)
    again = await client.post(RECORDS, **request)
    # Then, though it would change nothing by now
    assert first.json() == again.json() == {"created": 1, "changed": 0, "unchanged": 0, "failed": []}
    assert first.content == again.content
    assert again.headers["idempotency-replayed"] == "true"


async def test_a_key_is_for_one_request(client: httpx2.AsyncClient) -> None:
    # Given
    await client.post(URL, json={"name": "elsewhere"})
    body = [{"id": "one request", "text": "x"}]
    assert (await client.post(RECORDS, **keyed("k", body))).status_code == 200
    # When another body, address or media type comes with it
    others = [
        await client.post(RECORDS, **keyed("k", [{"id": "one request", "text": "y"}])),
        await client.post(f"{URL}/elsewhere/records", **keyed("k", body)),
        await client.post(f"{RECORDS}?x=1", **keyed("k", body)),
        await client.post(RECORDS, **keyed("k", body, **{"content-type": "application/vnd.api+json"})),
    ]
    # Then it is refused, and of another route it is another key
    for answer in others:
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert (await client.post(URL, **keyed("k", {"name": "of-another-route"}))).status_code == 201
    assert (await client.get(f"{URL}/elsewhere/stats")).json()["records"] == 0


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "k\u00e9", "k\x7f"])
async def test_a_key_is_visible_ascii(client: httpx2.AsyncClient, key: str) -> None:
    headers = [("content-type", "application/json"), ("idempotency-key", key.encode("latin-1"))]
    answer = await client.post(URL, content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "invalid_value")


async def test_two_keys_are_none(client: httpx2.AsyncClient) -> None:
    headers = [("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "b")]
    assert (await client.post(URL, content=b'{"name": "two-keys"}', headers=headers)).status_code == 422


async def test_what_was_refused_may_be_mended(client: httpx2.AsyncClient, shared: Likewise) -> None:
    for body, status in (({"name": "B"}, 422), ({"name": "notes"}, 409), ({"name": "mended"}, 201)):
        assert (await client.post(URL, **keyed("k", body))).status_code == status
    assert list(await rows(shared)) == ["k"]


@pytest.fixture
def held_back(shared: Likewise, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """The next writes begin, say so, and wait."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    write = shared.runtime.writer.transaction

    async def waiting(*arguments: Any, **named: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await write(*arguments, **named)

    monkeypatch.setattr(shared.runtime.writer, "transaction", waiting)
    return begun, go_on


async def test_while_it_runs_others_are_told_to_wait(
    client: httpx2.AsyncClient, held_back: tuple[asyncio.Event, asyncio.Event]
) -> None:
    # Given
    begun, go_on = held_back
    request = keyed("k", [{"id": "slow", "text": "slow"}])
    running = asyncio.create_task(client.post(RECORDS, **request))
    await begun.wait()
    # When
    second = await client.post(RECORDS, **request)
    other = await client.post(RECORDS, **keyed("k", [{"id": "other", "text": "x"}]))
    go_on.set()
    first = await running
    # Then
    assert (second.status_code, second.headers["retry-after"]) == (409, "1")
    assert (second.json()["code"], second.json()["retryable"]) == ("request_in_progress", True)
    assert other.json()["code"] == "idempotency_key_reused"
    assert (await client.post(RECORDS, **request)).content == first.content


async def test_many_at_once_are_one(client: httpx2.AsyncClient) -> None:
    request = keyed("k", [{"id": "many at once", "text": "once"}])
    answers = await asyncio.gather(*(client.post(RECORDS, **request) for _ in range(20)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    done = [answer.json() for answer in answers if answer.status_code == 200]
    assert done
    assert all(one["created"] == 1 for one in done)


async def test_a_run_whose_process_died_is_taken_over(
    client: httpx2.AsyncClient, shared: Likewise, held_back: tuple[asyncio.Event, asyncio.Event]
) -> None:
    # Given one that runs, and whose lease is over as if its process had died
    begun, go_on = held_back
    request = keyed("k", [{"id": "taken over", "text": "x"}])
    first = asyncio.create_task(client.post(RECORDS, **request))
    await begun.wait()
    await change(shared, "UPDATE idempotency SET lease_until = now()")
    other = await client.post(RECORDS, **keyed("k", [{"id": "not the same", "text": "x"}]))
    # When another takes it over, and the first, which lives after all, comes to its end
    second = asyncio.create_task(client.post(RECORDS, **request))
    await asyncio.sleep(0.1)
    go_on.set()
    answers = [await first, await second]
    # Then only one of them had an effect
    assert other.json()["code"] == "idempotency_key_reused"
    assert [answer.status_code for answer in answers] == [409, 200]
    assert answers[1].json()["created"] == 1
    assert (await client.post(RECORDS, **request)).content == answers[1].content


async def test_a_long_run_keeps_its_key(
    client: httpx2.AsyncClient,
    shared: Likewise,
    held_back: tuple[asyncio.Event, asyncio.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given
    monkeypatch.setattr(runs, "RENEWALS", 6_000)
    begun, go_on = held_back
    request = keyed("k", [{"id": "long", "text": "x"}])
    running = asyncio.create_task(client.post(RECORDS, **request))
    await begun.wait()
    await change(shared, "UPDATE idempotency SET lease_until = now()")
    # When it is renewed
    async with asyncio.timeout(PATIENCE):
        while True:
            async with shared.runtime.pool.tenant(await shared.tenant()) as tx:
                if await tx.row(SQL("SELECT lease_until > now() FROM idempotency")) == (True,):
                    break
    second = await client.post(RECORDS, **request)
    go_on.set()
    # Then
    assert second.status_code == 409
    assert (await running).status_code == 200


@pytest.mark.parametrize("where", ["before", "within"])
async def test_the_answer_and_the_write_are_kept_together(
    client: httpx2.AsyncClient, shared: Likewise, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    # Given a server that fails just before its commit, before or after it noted the answer
    finish = idempotency.finish

    async def failing(tx: Tx, *arguments: Any) -> None:
        if where == "within":
            await finish(tx, *arguments)
        raise DatabaseUnavailable

    monkeypatch.setattr(idempotency, "finish", failing)
    requests = [
        (RECORDS, keyed("k", [{"id": f"together {where}", "text": "x"}]), 200),
        (URL, keyed("k", {"name": f"together-{where}"}), 201),
    ]
    for address, request, _ in requests:
        assert (await client.post(address, **request)).status_code == 503
    # When
    monkeypatch.setattr(idempotency, "finish", finish)
    left = await rows(shared)
    # Then nothing was kept, and the next time it is done
    assert left == {}
    assert (await client.get(f"{RECORDS}/together {where}")).status_code == 404
    for address, request, status in requests:
        answer = await client.post(address, **request)
        assert answer.status_code == status
        assert "idempotency-replayed" not in answer.headers


async def test_a_commit_that_nobody_heard_of_is_answered_all_the_same(
    client: httpx2.AsyncClient, shared: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a connection that breaks right after the commit
    write = shared.runtime.writer.transaction

    async def unheard(*arguments: Any, **named: Any) -> Any:
        await write(*arguments, **named)
        raise DatabaseUnavailable

    request = keyed("k", [{"id": "unheard", "text": "x"}])
    with monkeypatch.context() as broken:
        broken.setattr(shared.runtime.writer, "transaction", unheard)
        assert (await client.post(RECORDS, **request)).status_code == 503
    # When
    again = await client.post(RECORDS, **request)
    # Then
    assert again.json()["created"] == 1
    assert again.headers["idempotency-replayed"] == "true"


async def test_lines_that_could_not_be_stored_are_not_the_last_word(
    client: httpx2.AsyncClient, shared: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a database that goes away after the first lines
    monkeypatch.setattr("likewise.apps.collections.lines.BATCH", 1)
    write, calls = shared.runtime.writer.write, []

    async def once(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise DatabaseUnavailable
        return await write(*arguments, **named)

    lines = b"\n".join(json.dumps({"id": f"line {n}", "text": "x"}).encode() for n in range(3))
    request = keyed("k", lines, **{"content-type": LINES})
    with monkeypatch.context() as broken:
        broken.setattr(shared.runtime.writer, "write", once)
        part = (await client.post(RECORDS, **request)).json()
    # When
    whole = await client.post(RECORDS, **request)
    # Then
    assert [fault["code"] for fault in part["failed"]] == ["not_stored"]
    assert (whole.json()["created"], whole.json()["unchanged"], whole.json()["failed"]) == (2, 1, [])
    assert (await client.post(RECORDS, **request)).content == whole.content


async def test_a_row_holds_no_text_name_or_payload(client: httpx2.AsyncClient, shared: Likewise) -> None:
    # When
    record = {"id": "secret-id", "text": "secret-text", "payload": {"secret-field": "secret-value"}}
    bad = {"id": "1", "text": 5, "payload": "secret-value"}
    lines = b"\n".join(json.dumps(line).encode() for line in (record, bad, "secret-line"))
    await client.post(RECORDS, **keyed("k1", [record]))
    await client.post(RECORDS, **keyed("k2", lines, **{"content-type": LINES}))
    # Then
    kept = await rows(shared)
    assert [(state, status) for state, status, *_ in kept.values()] == [("done", 200)] * 2
    assert "secret" not in str(kept)
    assert "notes" not in str(kept)


async def test_after_a_day_a_key_is_as_new(client: httpx2.AsyncClient, shared: Likewise) -> None:
    # Given
    request = keyed("k", [{"id": "a day", "text": "x"}])
    await client.post(RECORDS, **request)
    await change(shared, "UPDATE idempotency SET expires = now()")
    # When
    other = await client.post(RECORDS, **keyed("k", [{"id": "a day", "text": "x"}, {"id": "day two", "text": "y"}]))
    # Then
    assert (other.json()["created"], other.json()["unchanged"]) == (1, 1)


async def test_what_is_over_is_removed_a_few_at_a_time(client: httpx2.AsyncClient, shared: Likewise) -> None:
    # Given
    for number in range(5):
        await client.post(RECORDS, **keyed(f"k{number}", [{"id": "over", "text": "x"}]))
    await change(shared, "UPDATE idempotency SET expires = now() WHERE key < 'k3'")
    # When
    removed = [await idempotency.forget_expired(shared.runtime.pool, 2) for _ in range(3)]
    # Then
    assert removed == [2, 1, 0]
    assert list(await rows(shared)) == ["k3", "k4"]


async def test_a_key_is_the_tenants_own(shared: Likewise) -> None:
    # Given
    tenants = [await collections.tenant_named(shared.runtime.pool, name) for name in ("alpha", "beta")]
    attempts = [idempotency.Attempt("POST", "/", "k", tenant.to_bytes(4, "big"), runs.uuid4()) for tenant in tenants]
    # When, then
    for tenant, attempt in zip(tenants, attempts, strict=True):
        assert await idempotency.begin(shared.runtime.pool, tenant, attempt, timedelta(seconds=60)) is None
    for tenant, attempt in zip(tenants, attempts, strict=True):
        with pytest.raises(InProgress):
            await idempotency.begin(shared.runtime.pool, tenant, attempt, timedelta(seconds=60))
        await idempotency.release(shared.runtime.pool, tenant, attempt)
    assert issubclass(InProgress, Conflict)


async def test_reading_ignores_the_key(client: httpx2.AsyncClient, shared: Likewise) -> None:
    for query in ("one", "two"):
        assert (await client.post(f"{URL}/notes/search", **keyed("k", {"query": query}))).status_code == 200
    assert await rows(shared) == {}


async def test_the_document_names_the_header(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in (URL, URL + "/{name}/records"):
        assert "Idempotency-Key" in [one["name"] for one in paths[path]["post"]["parameters"]]
