"""Bodies with a Content-Encoding: inflated for the routes that declare it, and as they come, in bounded memory."""

import asyncio
import gzip
import random
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request, Response

from likewise.apps.answers import Answer
from likewise.apps.body import PARSED
from likewise.apps.checking import RequestModel
from likewise.apps.declaration import Body, Load, RouteDeclaration, declares, keep_declaration
from likewise.apps.deps import CanWrite
from likewise.apps.registry import App
from likewise.library import Likewise
from likewise.server.app import create_app
from likewise.server.bodies import INFLATED_BYTES, BodyLimit
from likewise.server.inflating import MAX_RATIO, MAX_SMALL_MEMBERS, RATIO_FROM_BYTES, SMALL_BYTES
from likewise.server.process import bind, serve, url_of
from tests.patience import PATIENCE, until
from tests.server.conftest import BASE, MAX_BODY

RAW = "application/x-protobuf"
WIDE = 2**20
# As large as a message of OTLP may be.
VERY_WIDE = 64 * 2**20

router = APIRouter()


class Note(RequestModel):
    """A text."""

    text: str


@router.post("/echo")
@declares(Load.WRITE, Body(Note, encodings=("gzip", "deflate")))
async def echo(_: CanWrite, body: Annotated[Note, PARSED]) -> Answer:
    """A text of a body that may be compressed."""
    return Answer({"text": body.text})


@router.post("/raw")
@declares(Load.WRITE, Body(others={RAW: {}}, encodings=("gzip",), max_bytes=WIDE))
async def raw(_: CanWrite, request: Request) -> Response:
    """The bytes of a body."""
    return Response(await request.body())


class Gate:
    """What requests to `/held` wait for once their bodies are read."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0


@router.post("/held")
@declares(Load.WRITE, Body(others={RAW: {}}, encodings=("gzip",), max_bytes=VERY_WIDE))
async def held(_: CanWrite, request: Request) -> Answer:
    """The size of a body, once the test says so."""
    size, gate = len(await request.body()), request.app.state.gate
    gate.waiting += 1
    await gate.opened.wait()
    return Answer({"size": size})


@pytest.fixture(scope="module")
async def echoing(shared: Likewise) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server with these routes."""
    app = with_echo(shared)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=BASE) as client:
        yield client


def with_echo(shared: Likewise) -> FastAPI:
    echo = App(name="echo", package="tests.server", routers=("test_encodings:router",))
    return create_app(shared, shared.settings, apps=[echo])


@pytest.fixture
async def on_a_socket(shared: Likewise) -> AsyncIterator[tuple[httpx2.AsyncClient, Gate]]:
    """A client of the same on a socket, and the gate of its route `/held`."""
    app, listener = with_echo(shared), bind("127.0.0.1", 0)
    app.state.gate = gate = Gate()
    ready, stop = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve(app, shared.settings, listener, stop, ready.set))
    await ready.wait()
    async with httpx2.AsyncClient(base_url=url_of(listener), timeout=PATIENCE) as client:
        yield client, gate
    gate.opened.set()
    stop.set()
    with suppress(asyncio.CancelledError):
        await serving


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def headers(coding: str, kind: str = "application/json") -> dict[str, str]:
    return {"content-type": kind, "content-encoding": coding}


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip, identity", gzip.compress),
        ("gzip", lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:])),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", lambda data: data),
    ],
)
async def test_a_body_is_inflated_where_its_route_says_so(
    echoing: httpx2.AsyncClient, coding: str, compress: Any
) -> None:
    text = "kälte " * 5_000
    # When it arrives in pieces that fall where they like
    packed = compress(('{"text":"' + text + '"}').encode())

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(packed), 11):
            yield packed[start : start + 11]

    answer = await echoing.post("/echo", content=pieces(), headers=headers(coding))
    # Then
    assert (answer.status_code, answer.json()) == (200, {"text": text})


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "gzip, br", "x-unknown"])
async def test_an_encoding_that_is_not_declared_is_refused(echoing: httpx2.AsyncClient, coding: str) -> None:
    refused = await echoing.post("/echo", content=gzip.compress(b"{}"), headers=headers(coding))
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")
    assert "gzip or deflate" in refused.json()["detail"]
    packed = gzip.compress(b'{"name":"n"}')
    elsewhere = await echoing.post("/api/v1/collections", content=packed, headers=headers("gzip"))
    assert elsewhere.status_code == 415


@pytest.mark.parametrize(
    "broken",
    [b"no gzip", gzip.compress(b'{"text":"x"}')[:-3], gzip.compress(b"{}") + b"more"],
    # gzip writes the time of day into its bytes
    ids=["no gzip", "cut short", "followed by something else"],
)
async def test_what_is_not_the_encoding_that_it_says_is_refused(echoing: httpx2.AsyncClient, broken: bytes) -> None:
    refused = await echoing.post("/echo", content=broken, headers=headers("gzip"))
    assert (refused.status_code, refused.json()["code"]) == (400, "malformed")
    assert "gzip" in refused.json()["detail"]


async def test_a_bomb_is_refused_in_bounded_memory(echoing: httpx2.AsyncClient) -> None:
    # Given 256 MiB in 260 kB
    bomb = gzip.compress(bytes(2**28), compresslevel=1)[: MAX_BODY - 1]
    tracemalloc.start()
    # When
    refused = await echoing.post("/echo", content=bomb, headers=headers("gzip"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Then
    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    assert peak < 4 * 2**20


async def test_what_inflates_to_far_more_than_its_bytes_is_refused(
    on_a_socket: tuple[httpx2.AsyncClient, Gate], chance: random.Random
) -> None:
    client, gate = on_a_socket
    gate.opened.set()
    # Given one letter over and over, far below the limit of its route
    bomb = gzip.compress(b"a" * 2**25)
    assert MAX_RATIO * len(bomb) < 2**25 < VERY_WIDE
    # When
    refused = await client.post("/held", content=bomb, headers=headers("gzip", RAW))
    # Then
    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    assert f"more than {MAX_RATIO} times" in refused.json()["detail"]
    # And a little may be as dense as it likes, and much as dense as telemetry is
    prompt = " ".join(f"rule {n * n}" for n in range(1_000))
    spans = "".join(f'{{"id": "{chance.randbytes(16).hex()}", "prompt": "{prompt}"}}\n' for _ in range(500)).encode()
    for content in (b"a" * RATIO_FROM_BYTES, spans):
        taken = await client.post("/held", content=gzip.compress(content), headers=headers("gzip", RAW))
        assert (taken.status_code, taken.json()) == (200, {"size": len(content)})


async def test_what_is_inflated_has_a_limit_together_that_leaves_room_for_others(
    on_a_socket: tuple[httpx2.AsyncClient, Gate], chance: random.Random
) -> None:
    client, gate = on_a_socket
    # Given 60 MiB in some 3 MB, of which one body may be held at a time
    text = b"the pump fails when it is cold " * 40
    content = b"".join(chance.randbytes(50) + text for _ in range(60 * 2**20 // (50 + len(text))))
    packed = gzip.compress(content, compresslevel=1)
    assert len(content) < INFLATED_BYTES < len(content) * 2
    tracemalloc.start()
    # When eight come at once
    sent = [asyncio.create_task(client.post("/held", content=packed, headers=headers("gzip", RAW))) for _ in range(8)]
    await until(lambda: gate.waiting == 1 and sum(one.done() for one in sent) == 7)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Then one is taken, and the others hear at once to come again; it is there in pieces and, for a moment, whole
    assert peak < 3 * INFLATED_BYTES
    refused = [one.result() for one in sent if one.done()]
    assert {(one.status_code, one.json()["code"]) for one in refused} == {(503, "overloaded")}
    assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
    # And what is not compressed has room meanwhile
    plain = asyncio.create_task(client.post("/held", content=bytes(2**20), headers={"content-type": RAW}))
    await until(lambda: gate.waiting == 2)
    gate.opened.set()
    assert (await plain).json() == {"size": 2**20}
    assert sorted([(await one).status_code for one in sent]) == [200] + 7 * [503]
    # And once that is done there is room again
    again = await client.post("/held", content=packed, headers=headers("gzip", RAW))
    assert again.json() == {"size": len(content)}


async def test_a_gzip_of_many_small_members_is_refused_before_it_takes_long(echoing: httpx2.AsyncClient) -> None:
    # Given a body of members that hold next to nothing: each takes time, and none counts as inflated
    many = gzip.compress(b"") * (MAX_SMALL_MEMBERS + 1)
    assert len(many) < MAX_BODY
    # When
    refused = await echoing.post("/raw", content=many, headers=headers("gzip", RAW))
    # Then
    assert (refused.status_code, refused.json()["code"]) == (400, "malformed")
    # And one that has as many members because it is large is none of those
    large = b"".join(gzip.compress(bytes(SMALL_BYTES)) for _ in range(WIDE // SMALL_BYTES))
    few = gzip.compress(b"") * (MAX_SMALL_MEMBERS - 1)
    taken = await echoing.post("/raw", content=few + large, headers=headers("gzip", RAW))
    assert (taken.status_code, len(taken.content)) == (200, WIDE)


async def test_a_route_may_have_another_limit_and_media_type(echoing: httpx2.AsyncClient) -> None:
    # Given more than other routes take, and what is no JSON
    content = bytes(range(256)) * (WIDE // 256)
    # When
    taken = await echoing.post("/raw", content=gzip.compress(content), headers=headers("gzip", RAW))
    refused = await echoing.post("/raw", content=gzip.compress(content + b"."), headers=headers("gzip", RAW))
    # Then
    assert (taken.status_code, taken.content) == (200, content)
    assert refused.status_code == 413


async def test_what_is_inflated_counts_among_all_bodies_until_it_is_answered() -> None:
    held: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            held.append(limit.held)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limit = BodyLimit(app, limit=2**20)
    declared = gzipped()
    messages = iter([{"type": "http.request", "body": gzip.compress(bytes(2**19)), "more_body": False}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        return None

    await limit(declared, receive, send)
    assert max(held) == 2**19
    assert (limit.held, limit.inflated) == (0, 0)


async def test_a_caller_that_leaves_is_heard_while_another_body_has_all_the_room() -> None:
    heard: list[str] = []
    of_small, of_large = asyncio.Queue[Any](), asyncio.Queue[Any]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/large":
            of_small.put_nowait({"type": "http.disconnect"})
            await small
        else:
            heard.append((await receive())["type"])

    # Given a body that was taken, and after it a larger one of a route that takes more than may be inflated together
    limit = BodyLimit(app, limit=2**10, inflated_total=2**11)
    of_small.put_nowait({"type": "http.request", "body": gzip.compress(bytes(2**10)), "more_body": False})
    of_large.put_nowait({"type": "http.request", "body": gzip.compress(bytes(2**12)), "more_body": False})
    small = asyncio.create_task(limit(gzipped("/small"), of_small.get, ignore))
    await until(lambda: limit.inflated == 2**10)
    # When the caller of the first leaves
    await limit(gzipped("/large", max_bytes=2**13), of_large.get, ignore)
    # Then its route hears that, and no refusal
    assert heard == ["http.disconnect"]
    assert (limit.held, limit.inflated) == (0, 0)


async def ignore(_: Any) -> None:
    """Take a message of the server."""


def gzipped(path: str = "/", *, max_bytes: int | None = None) -> dict[str, Any]:
    scope: dict[str, Any] = {"type": "http", "path": path, "headers": [(b"content-encoding", b"gzip")]}
    body = Body(others={RAW: {}}, encodings=("gzip",), max_bytes=max_bytes)
    keep_declaration(scope, RouteDeclaration(Load.WRITE, body))
    return scope
