"""Lines that are stored while they arrive: of any number, in bounded memory, in whole batches if one breaks off."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from likewise.apps.body import MAX_LINE_BYTES, Lines
from likewise.apps.collections.lines import write_lines
from likewise.apps.collections.service import WriteAnswer
from likewise.apps.declaration import Body, Load, RouteDeclaration, keep_declaration
from likewise.auth.quotas import Quotas
from likewise.errors import DatabaseUnavailable
from likewise.kind import BATCH
from likewise.library import Likewise
from likewise.server.bodies import BodyLimit
from likewise.server.middleware import Errors
from tests.patience import until
from tests.server.conftest import BASE, MAX_BODY

NDJSON = {"content-type": "application/x-ndjson"}


def line(n: int, **more: Any) -> bytes:
    return json.dumps({"id": f"{n}", "text": f"text {n}", **more}).encode() + b"\n"


@pytest.fixture
async def fresh(shared: Likewise) -> AsyncIterator[str]:
    """The name of an empty collection."""
    await shared.collection("streamed").create()
    yield "streamed"

    async def drop() -> bool:
        # The worker may write its vectors for longer than anybody waits for a lock.
        with suppress(DatabaseUnavailable):
            await shared.collection("streamed").drop()
            return True
        return False

    await until(drop)


def taking_lines(app: ASGIApp) -> ASGIApp:
    """The application, as if each request went to a route that takes lines."""
    declared = RouteDeclaration(
        Load.WRITE, Body(others={"application/x-ndjson": {}}, streamed=("application/x-ndjson",))
    )

    async def declaring(scope: Scope, receive: Receive, send: Send) -> None:
        keep_declaration(scope, declared)
        await app(scope, receive, send)

    return declaring


def route(name: str) -> str:
    return f"/api/v1/collections/{name}/records"


async def stored(shared: Likewise, name: str) -> int:
    return int((await shared.collection(name).stats())["records"])


async def test_more_than_a_body_may_have_is_stored_line_by_line(client: httpx2.AsyncClient, fresh: str) -> None:
    body = b"".join(line(n) for n in range(3_000))
    assert len(body) > MAX_BODY
    answer = await client.post(route(fresh), content=body, headers=NDJSON)
    assert answer.json() == {"created": 3_000, "changed": 0, "unchanged": 0, "failed": []}


async def test_lines_are_stored_while_others_arrive(client: httpx2.AsyncClient, shared: Likewise, fresh: str) -> None:
    # Given
    first_are_stored = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"".join(line(n) for n in range(BATCH))
        yield line(BATCH)
        # When
        await first_are_stored.wait()
        yield line(BATCH + 1)

    sending = asyncio.create_task(client.post(route(fresh), content=body(), headers=NDJSON))
    # Then
    await until(lambda: _has(shared, fresh, BATCH))
    first_are_stored.set()
    assert (await sending).json()["created"] == BATCH + 2


async def _has(shared: Likewise, name: str, count: int) -> bool:
    return await stored(shared, name) == count


async def test_one_that_breaks_off_leaves_whole_batches(address: str, shared: Likewise, fresh: str) -> None:
    # Given
    where = urlsplit(address)
    _, writer = await asyncio.open_connection(where.hostname, where.port)
    body = b"".join(line(n) for n in range(2 * BATCH + 100))
    head = f"POST {route(fresh)} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    # When
    writer.write(f"{head}Content-Length: {len(body) + 1_000}\r\n\r\n".encode() + body)
    await until(lambda: _has(shared, fresh, 2 * BATCH))
    writer.close()
    # Then
    await asyncio.sleep(0.1)
    assert await stored(shared, fresh) == 2 * BATCH


@pytest.mark.parametrize("parts", [1, 7])
async def test_a_line_that_is_too_long_is_named_and_the_others_stored(
    client: httpx2.AsyncClient, fresh: str, parts: int
) -> None:
    lines = [line(0), b"\n", line(2, payload={"x": "y" * MAX_LINE_BYTES}), line(3), b" \n", line(5).strip()]
    body = b"".join(lines)
    size = len(body) // parts + 1

    async def arriving() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    answer = (await client.post(route(fresh), content=arriving(), headers=NDJSON)).json()
    assert answer["created"] == 3
    assert [(fault["pointer"], fault["code"]) for fault in answer["failed"]] == [("/2", "too_large")]


async def test_bad_lines_keep_their_numbers_however_the_body_is_cut(client: httpx2.AsyncClient, fresh: str) -> None:
    body = b"".join(line(n) if n % 7 else b"bad\n" for n in range(50))
    for size in (1, 13, 64, len(body)):

        async def arriving(size: int = size) -> AsyncIterator[bytes]:
            for start in range(0, len(body), size):
                yield body[start : start + size]

        answer = (await client.post(route(fresh), content=arriving(), headers=NDJSON)).json()
        assert [fault["pointer"] for fault in answer["failed"]] == [f"/{n}" for n in range(0, 50, 7)]
        assert answer["created"] + answer["unchanged"] == 42


async def test_what_is_held_of_a_body_does_not_grow_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an application that takes lines as the routes do
    monkeypatch.setattr("likewise.apps.collections.lines.MAX_BATCH_BYTES", 50_000)
    held: list[int] = []

    class Service:
        async def get(self, tenant: int, name: str) -> None:
            return None

        async def write(self, tenant: int, name: str, records: list[Any]) -> Any:
            held.append(limit.held)
            return WriteAnswer(len(records), 0, 0, [])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        lines = Lines(Request(scope, receive))
        done = await write_lines(Service(), 1, "notes", lines, Quotas(0))  # type: ignore[arg-type]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(done.created + done.failed.__len__()).encode()})

    async def body() -> AsyncIterator[bytes]:
        for n in range(2_000):
            yield line(n, payload={"x": "y" * 1_000}) if n % 5 else b"x" * 1_000 + b"\n"
        for _ in range(100):
            yield b"x" * 2**16

    limit = BodyLimit(app, limit=1_000, total=200_000, stream_limit=2**30)
    monkeypatch.setattr("likewise.apps.body.MAX_LINE_BYTES", 100_000)
    # When
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(Errors(taking_lines(limit))), base_url=BASE) as client:
        answer = await client.post("/", content=body(), headers=NDJSON)
    # Then
    assert answer.content == b"2001"
    assert max(held) < 60_000
    assert limit.held == 0


@pytest.mark.parametrize("blank", [b"\n" * 1_000, b" " * 999 + b"\n", b"\r\n \t\n" * 200])
async def test_lines_that_are_blank_are_not_held(blank: bytes) -> None:
    # Given lines before and after more blank ones than a server may hold
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        lines = Lines(Request(scope, receive))
        found = []
        async for _, one in lines:
            found.append(one)
            lines.release(but=len(b"one"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b",".join(one or b"none" for one in found)})

    async def body() -> AsyncIterator[bytes]:
        yield b"one\n"
        for _ in range(100):
            yield blank
        yield b"\ntwo\n"

    limit = BodyLimit(app, limit=1_000, total=5_000, stream_limit=2**30)
    # When
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(Errors(taking_lines(limit))), base_url=BASE) as client:
        answer = await client.post("/", content=body(), headers=NDJSON)
    # Then
    assert (answer.status_code, answer.content) == (200, b"one,two")
    assert limit.held == 0


async def test_a_body_of_lines_has_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async for _ in Lines(Request(scope, receive)):
            pass

    limit = BodyLimit(app, limit=100, stream_limit=1_000)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(Errors(taking_lines(limit))), base_url=BASE) as client:
        assert (await client.post("/", content=b"x\n" * 600, headers=NDJSON)).status_code == 413
        assert (await client.post("/", content=_endless(), headers=NDJSON)).status_code == 413
    assert limit.held == 0


async def _endless() -> AsyncIterator[bytes]:
    for _ in range(600):
        yield b"x\n"


async def test_a_stream_that_pauses_is_not_waited_for() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async for _ in Lines(Request(scope, receive)):
            pass

    async def pausing() -> AsyncIterator[bytes]:
        yield b"x\n"
        await asyncio.sleep(1)
        yield b"x\n"

    limit = BodyLimit(app, limit=100, stream_limit=1_000, pause_seconds=0.1)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(Errors(taking_lines(limit))), base_url=BASE) as client:
        assert (await client.post("/", content=pausing(), headers=NDJSON)).status_code == 408
    assert limit.held == 0
