"""More than the server can hold is refused at the door, and at once."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks import overload
from likewise.apps.declaration import Load, RouteDeclaration
from likewise.apps.deps import TENANT
from likewise.errors import Overloaded
from likewise.library import Likewise
from likewise.server import bodies, concurrency
from likewise.server.bodies import BodyLimit
from likewise.server.concurrency import RequestLimit
from likewise.server.endpoints import all_routes
from likewise.server.middleware import Errors
from tests.patience import until
from tests.server.conftest import BASE


class Slow:
    """An application that reads a body and answers when it is told to."""

    def __init__(self) -> None:
        self.reading = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        self.bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        while (await receive()).get("more_body"):
            pass
        self.bodies += 1
        self.reading.release()
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def slow() -> Slow:
    """The application behind the door."""
    return Slow()


def declared(scope: Scope) -> RouteDeclaration:
    """What the routes of these tests declare."""
    probe, write = scope["path"] in ("/livez", "/metrics"), scope["path"].endswith("/records")
    return RouteDeclaration(Load.PROBE if probe else Load.WRITE if write else Load.OTHER)


def calling(app: ASGIApp) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(Errors(app)), base_url=BASE)


async def in_parts(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 10):
        yield b"x" * 10


def is_overloaded(answer: httpx2.Response) -> bool:
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "overloaded", True)
    assert answer.headers["content-type"] == "application/problem+json"
    return 1 <= int(answer.headers["retry-after"]) <= 120


@pytest.mark.parametrize("body", [lambda: b"x" * 60, lambda: in_parts(60)])
async def test_bodies_have_a_limit_together(slow: Slow, body: Any) -> None:
    # Given
    async with calling(BodyLimit(slow, limit=100, total=150)) as client:
        first = [asyncio.create_task(client.post("/", content=b"x" * 60)) for _ in range(2)]
        for _ in first:
            await slow.reading.acquire()
        # When
        refused = await client.post("/", content=body())
        # Then it is answered while the first ones still run
        assert is_overloaded(refused)
        slow.go.set()
        assert [answer.status_code for answer in await asyncio.gather(*first)] == [200, 200]
        assert (await client.post("/", content=body())).status_code == 200
    assert slow.bodies == 3


async def test_a_request_that_failed_or_was_cancelled_holds_nothing() -> None:
    # Given
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise RuntimeError

    limit = BodyLimit(breaks, limit=100)
    async with calling(limit) as client:
        assert (await client.post("/", content=b"x" * 60)).status_code == 500
    assert limit.held == 0


async def test_requests_have_a_limit_and_probes_are_answered(slow: Slow) -> None:
    async with calling(RequestLimit(slow, declared, max_requests=2)) as client:
        # Given
        first = [asyncio.create_task(client.get("/")) for _ in range(2)]
        for _ in first:
            await slow.reading.acquire()
        # When
        refused = await client.get("/")
        probes = [asyncio.create_task(client.get(path)) for path in ("/livez", "/metrics")]
        for _ in probes:
            await slow.reading.acquire()
        slow.go.set()
        # Then
        assert is_overloaded(refused)
        assert [answer.status_code for answer in await asyncio.gather(*probes)] == [200, 200]
        assert [answer.status_code for answer in await asyncio.gather(*first)] == [200, 200]
        assert (await client.get("/")).status_code == 200


async def test_bodies_that_do_not_come_keep_nobody_out(slow: Slow) -> None:
    # Given more requests than may run, whose bodies do not come
    coming = asyncio.Event()
    slow.go.set()
    read = BodyLimit(slow, limit=100)
    limit = RequestLimit(read, declared, max_requests=2)
    async with calling(limit) as client:
        waiting = [asyncio.create_task(client.post("/notes/records", content=_after(coming))) for _ in range(5)]
        await until(lambda: read.awaited.total() == 5)
        # When
        answers = await asyncio.gather(*(client.post("/notes/records", content=b"x") for _ in range(2)))
        # Then others are answered, and so are they once their bodies are there
        assert [answer.status_code for answer in answers] == [200, 200]
        coming.set()
        assert {(await one).status_code for one in waiting} == {200}
    assert limit.limiters[Load.WRITE].running == 0


async def test_many_bodies_that_do_not_come_are_their_tenant_s_own_trouble(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given as many bodies of one tenant on their way as may be
    monkeypatch.setattr(bodies, "MAX_AWAITED", 3)
    coming = asyncio.Event()
    slow.go.set()

    async def as_tenant(scope: Scope, receive: Receive, send: Send) -> None:
        scope[TENANT] = int(dict(scope["headers"])[b"x-tenant"])
        await slow(scope, receive, send)

    limit = BodyLimit(as_tenant, limit=100)
    async with calling(limit) as client:

        def post(tenant: int, content: Any) -> asyncio.Task[httpx2.Response]:
            return asyncio.create_task(client.post("/", content=content, headers={"x-tenant": str(tenant)}))

        waiting = [post(1, _after(coming)) for _ in range(3)]
        await until(lambda: limit.awaited[1] == 3)
        # When
        refused, other = await post(1, b"x"), await post(2, b"x")
        # Then
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert other.status_code == 200
        coming.set()
        assert {(await one).status_code for one in waiting} == {200}
    assert not limit.awaited


async def test_who_is_refused_and_still_sends_keeps_nobody_out(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given as many bodies of one tenant on their way as may be, and as many more requests of its as may run
    monkeypatch.setattr(bodies, "MAX_AWAITED", 1)
    monkeypatch.setattr(bodies, "DRAIN_SECONDS", 600)
    coming = asyncio.Event()
    slow.go.set()

    async def as_tenant(scope: Scope, receive: Receive, send: Send) -> None:
        scope[TENANT] = int(dict(scope["headers"])[b"x-tenant"])
        await slow(scope, receive, send)

    read = BodyLimit(as_tenant, limit=100)
    draining = 0

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            nonlocal draining
            draining += message["type"] == "http.response.body"
            await send(message)

        await read(scope, receive, noting)

    limit = RequestLimit(counting, declared, max_requests=2)
    async with calling(limit) as client:

        def post(tenant: int, content: Any) -> asyncio.Task[httpx2.Response]:
            path, headers = "/notes/records", {"x-tenant": str(tenant)}
            return asyncio.create_task(client.post(path, content=content, headers=headers))

        waiting = post(1, _after(coming))
        await until(lambda: read.awaited[1] == 1)
        refused = [post(1, _after(coming)) for _ in range(2)]
        await until(lambda: draining == 2)
        # When another tenant comes while their bodies are read and thrown away
        assert (await post(2, b"x")).status_code == 200
        # Then they have their answers once these have come
        coming.set()
        assert [(await one).status_code for one in (waiting, *refused)] == [200, 429, 429]
    assert limit.limiters[Load.WRITE].running == 0


async def test_a_body_that_has_begun_is_read_to_its_end_whoever_comes(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a body in two parts, of which one is here, and as many others on their way as may be
    monkeypatch.setattr(bodies, "MAX_AWAITED", 2)
    coming = asyncio.Event()
    slow.go.set()
    limit = BodyLimit(slow, limit=100)

    async def in_two() -> AsyncIterator[bytes]:
        yield b"x"
        await coming.wait()
        yield b"x"

    async with calling(limit) as client:
        waiting = [asyncio.create_task(client.post("/", content=content)) for content in (in_two(), _after(coming))]
        await until(lambda: limit.awaited.total() == 2)
        # When another comes, then it alone is refused
        assert (await client.post("/", content=b"x")).status_code == 429
        coming.set()
        assert [(await one).status_code for one in waiting] == [200, 200]
    assert not limit.awaited


async def _after(event: asyncio.Event) -> AsyncIterator[bytes]:
    await event.wait()
    yield b"x"


async def test_what_would_wait_too_long_is_refused_and_let_in_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an application that does one thing at a time, and takes longer than anybody waits when there are many
    monkeypatch.setattr(concurrency, "LEARN_SECONDS", 0.0)
    monkeypatch.setattr(concurrency, "MIN_REQUESTS", 2)
    one, seconds = asyncio.Lock(), 0.02

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with one:
            await asyncio.sleep(seconds)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limit = RequestLimit(app, declared, max_requests=40, patience_seconds=0.1)
    async with calling(limit) as client:

        async def statuses(path: str) -> list[int]:
            answers = await asyncio.gather(*(client.post(path) for _ in range(40)))
            return [answer.status_code for answer in answers]

        # When
        assert set(await statuses("/search")) == {200}
        # Then
        assert limit.limiters[Load.OTHER].allowed < 20
        assert 503 in await statuses("/search")
        # And writes have room of their own
        assert set(await statuses("/notes/records")) == {200}
        assert limit.limiters[Load.WRITE].allowed < 20
        # When it is fast again, beside what anybody waits for
        seconds, limit.limiters[Load.OTHER].patience_seconds = 0.0, 60.0
        for _ in range(10):
            await statuses("/search")
        # Then
        assert limit.limiters[Load.OTHER].allowed == 40


def test_one_body_always_fits() -> None:
    assert BodyLimit(Overloaded, limit=2**40).total == 2**40  # type: ignore[arg-type]


async def test_five_times_as_much_as_there_is_room_for(address: str, shared: Likewise) -> None:
    """The benchmark's own load, small: everybody is answered, and who asks again gets through."""
    # Given
    await shared.collection("passages").create()
    records = [{"id": f"{n}", "text": f"the pump number {n} fails when it is cold"} for n in range(200)]
    work, asked = overload.requests(records), overload.Outcome()
    # When
    asking = asyncio.create_task(overload.interactive(address, records, asked))
    outcome = await overload.offered(address, work, rate=400, seconds=2)
    await until(lambda: len(asked.done) > 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    # Then
    assert outcome.failed == 0
    assert len(outcome.done) > 0
    assert len(outcome.done) + len(outcome.refused) + outcome.unsent == 801
    written = (await shared.collection("passages").stats())["records"]
    assert written % overload.RECORDS_A_WRITE == 0


def test_no_dependency_goes_through_a_thread(app: FastAPI) -> None:
    """Which takes as long as the rest of a small request, and waits behind all who do the same."""
    asked = {dependency for route in all_routes(app.routes) if isinstance(route, APIRoute) for dependency in of(route)}
    assert asked
    assert [one for one in asked if not _is_async(one)] == []


def of(route: APIRoute) -> Iterator[Any]:
    left = list(route.dependant.dependencies)
    while left:
        dependency = left.pop()
        left += dependency.dependencies
        yield dependency.call


def _is_async(call: Any) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)
