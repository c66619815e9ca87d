"""What only a real connection can do wrong: lengths that lie, bodies that stall, bytes that are no HTTP."""

import asyncio
import json
import logging
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI

from likewise.library import Likewise
from likewise.server import bodies, process
from tests.patience import PATIENCE

RECORDS = "/api/v1/collections/notes/records"


async def exchange(address: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send raw bytes, part by part, while reading what comes back, until an answer is whole or the server closes."""
    where = urlsplit(address)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=2**20)
    reading = asyncio.create_task(answer_from(reader))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
    except ConnectionError:
        pass
    try:
        async with asyncio.timeout(PATIENCE):
            return await reading
    finally:
        writer.close()


async def answer_from(reader: asyncio.StreamReader) -> bytes:
    received = b""
    try:
        while not complete(received) and (chunk := await reader.read(2**16)):
            received += chunk
    except ConnectionError:
        pass
    return received


def complete(received: bytes) -> bool:
    head, found, body = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bool(found) and len(body) >= int(line.partition(b":")[2])
    return False


def status(received: bytes) -> int:
    return int(received.split(b" ", 2)[1]) if received else 0


def post(body: bytes, *headers: str, path: str = RECORDS) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize("target", ["/livez", "/readyz", "/api/v1/collections"])
async def test_it_answers(address: str, target: str) -> None:
    received = await exchange(address, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status(received) == 200
    assert b"server: uvicorn" not in received.lower()


async def test_a_declared_length_over_the_limit_is_413(address: str) -> None:
    received = await exchange(address, post(b"", "Content-Length: 99999999999999999999999"))
    assert status(received) in (400, 413)
    received = await exchange(address, post(b"[" + b" " * 2**17 + b"]", f"Content-Length: {2**17 + 2}"))
    assert status(received) == 413
    assert b'"code":"too_large"' in received


@pytest.mark.parametrize("path", [RECORDS, "/api/v1/collections"])
async def test_a_declared_length_over_the_limit_is_answered_without_its_body(
    address: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(bodies, "DRAIN_SECONDS", 600)
    received = await exchange(address, post(b"", "Content-Length: 1000000", path=path))
    assert status(received) == 413
    assert b"connection: close" in received


async def test_the_sender_of_a_large_body_reads_the_answer(address: str) -> None:
    # Given: one that reads nothing before it has sent everything, and then until the server closes
    where = urlsplit(address)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(post(b" " * 2**24, f"Content-Length: {2**24}"))
    # When
    await writer.drain()
    async with asyncio.timeout(PATIENCE):
        received = await reader.read()
    writer.close()
    # Then
    assert status(received) == 413
    assert complete(received)


async def test_connect_is_refused_without_advice(address: str, caplog: pytest.LogCaptureFixture) -> None:
    received = await exchange(address, b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status(received) in (0, 400, 404, 405)
    assert not [record for record in caplog.records if "pip install" in record.getMessage()]


async def test_a_caller_that_asks_first_is_told_no(address: str) -> None:
    received = await exchange(address, post(b"", "Content-Length: 70000", "Expect: 100-continue"))
    assert status(received) == 413


async def test_a_body_without_a_length_is_counted(address: str) -> None:
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    head = post(b"", "Transfer-Encoding: chunked")
    assert status(await exchange(address, head, b"2\r\n[]\r\n0\r\n\r\n")) == 200
    assert status(await exchange(address, head, chunk, chunk, chunk, b"0\r\n\r\n")) == 413


@pytest.mark.parametrize(
    "headers",
    [("Content-Length: 50000",), ("Content-Length: 50000", "Expect: 100-continue"), ("Transfer-Encoding: chunked",)],
)
async def test_a_body_for_which_there_is_no_room_is_503_at_once(
    app: FastAPI, address: str, monkeypatch: pytest.MonkeyPatch, headers: tuple[str, ...]
) -> None:
    # Given: one who waited for the body would not answer in time
    monkeypatch.setattr(bodies, "DRAIN_SECONDS", 600)
    monkeypatch.setattr(body_limit(app), "total", 100)
    body = b" " * 50_000 if "chunked" not in headers[0] else b"c350\r\n" + b" " * 50_000 + b"\r\n0\r\n\r\n"
    # When
    received = await exchange(address, post(body, *headers))
    # Then
    assert status(received) == 503
    assert b'"code":"overloaded"' in received
    assert b"retry-after: 1" in received
    assert body_limit(app).held == 0


async def test_an_endless_body_is_413(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "DRAIN_SECONDS", 0.2)
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    received = await exchange(address, post(b"", "Transfer-Encoding: chunked"), *[chunk] * 20, pause=0.05)
    assert status(received) == 413
    assert b"connection: close" in received


async def test_a_length_that_is_too_small_cuts_the_body(address: str) -> None:
    received = await exchange(address, post(b'[{"id": "1", "text": "x"}]', "Content-Length: 5"))
    assert status(received) == 400


async def test_a_length_that_is_too_large_times_out(
    app: FastAPI, shared: Likewise, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given: bounds are read when a request begins
    limit = body_limit(app)
    monkeypatch.setattr(limit, "pause_seconds", 0.3)
    # When
    received = await exchange(address, post(b"[]", "Content-Length: 10"))
    # Then
    assert status(received) == 408
    assert b"connection: close" in received


async def test_a_slow_body_times_out(app: FastAPI, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = body_limit(app)
    monkeypatch.setattr(limit, "body_seconds", 0.5)
    received = await exchange(address, post(b"", "Content-Length: 1000"), *[b" "] * 30, pause=0.05)
    assert status(received) == 408


async def test_a_slow_but_steady_body_is_read(address: str) -> None:
    body = json.dumps([{"id": "slow", "text": "steady"}]).encode()
    parts = [body[place : place + 1] for place in range(len(body))]
    assert status(await exchange(address, post(b"", f"Content-Length: {len(body)}"), *parts, pause=0.01)) == 200


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: -1",),
        ("Content-Length: x",),
        ("Transfer-Encoding: gzip",),
        ("Transfer-Encoding: chunked, gzip",),
    ],
)
async def test_contradicting_lengths_are_400(address: str, headers: tuple[str, ...]) -> None:
    received = await exchange(address, post(b"0\r\n\r\n", *headers))
    assert status(received) in (400, 415, 501)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_4xx(address: str, request_bytes: bytes) -> None:
    received = await exchange(address, request_bytes)
    assert 400 <= status(received) < 500


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/api/v1/collections/%00", 400),
        ("/api/v1/collections/../../../etc/passwd", 404),
        ("/api/v1/collections/notes/records/../../../../etc/passwd", 404),
        ("/%2e%2e/%2e%2e/etc/passwd", 404),
        ("//evil.example/", 404),
        ("/" + "x" * 64_000, 414),
        ("/livez?" + "x" * 64_000, 414),
        ("*", 404),
    ],
)
async def test_odd_targets_are_4xx(address: str, target: str, expected: int) -> None:
    received = await exchange(address, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status(received) in (expected, 400)


async def test_a_header_of_64_kb_is_431(address: str) -> None:
    received = await exchange(address, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2**16 + b"\r\n\r\n")
    assert status(received) == 431


async def test_headers_without_end_are_cut(address: str) -> None:
    many = [b"X: " + b"x" * 2**14 + b"\r\n" for _ in range(40)]
    received = await exchange(address, b"GET / HTTP/1.1\r\nHost: localhost\r\n", *many, pause=0.005)
    assert status(received) in (0, 431)
    one = [b"x" * 2**16] * 40
    received = await exchange(address, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", *one, pause=0.005)
    assert status(received) in (0, 431)


async def test_a_head_that_does_not_come_is_not_waited_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "HEAD_SECONDS", 0.3)
    for begun in (b"", b"GET / HTTP/1.1\r\nHost:"):
        # Closed by the server: nobody else ends it.
        assert await exchange(address, begun) == b""


async def test_a_missing_host_is_400(address: str) -> None:
    assert status(await exchange(address, b"GET /livez HTTP/1.1\r\n\r\n")) == 400


async def test_a_client_that_leaves_half_way_is_no_fault(address: str, caplog: pytest.LogCaptureFixture) -> None:
    # When
    where = urlsplit(address)
    for _ in range(3):
        _, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(post(b'[{"id": "1",', "Content-Length: 500"))
        await writer.drain()
        writer.close()
    await asyncio.sleep(0.3)
    # Then
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    # The database's pool opens connections when it will, and tells of one that a busy machine held up.
    assert [message for message in told if not message.startswith("error connecting in 'likewise'")] == []
    assert status(await exchange(address, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")) == 200


async def test_a_websocket_is_refused(address: str) -> None:
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n"
    )
    received = await exchange(address, f"GET /api/v1/none HTTP/1.1\r\nHost: localhost\r\n{upgrade}".encode())
    assert status(received) == 404


def body_limit(app: FastAPI) -> bodies.BodyLimit:
    """The part of the running application that counts bodies."""
    layer = app.middleware_stack
    while not isinstance(layer, bodies.BodyLimit):
        assert layer is not None
        layer = layer.app  # type: ignore[attr-defined]
    return layer
