"""The process that serves: taking an address, and ending without cutting anybody short."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest

from likewise.errors import StartError
from likewise.library import Likewise
from likewise.server.app import create_app
from likewise.server.process import bind, serve, url_of
from likewise.settings import Settings
from tests.patience import PATIENCE


@asynccontextmanager
async def serving(likewise: Likewise, settings: Settings) -> AsyncIterator[tuple[httpx2.AsyncClient, asyncio.Event]]:
    """A client of a server of its own, and the event that stops it."""
    listener = bind("127.0.0.1", 0)
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve(create_app(likewise, settings), settings, listener, stop, ready.set))
    await ready.wait()
    async with httpx2.AsyncClient(base_url=url_of(listener)) as client:
        yield client, stop
    stop.set()
    await asyncio.wait_for(task, PATIENCE)


@pytest.fixture
def slow(shared: Likewise, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `stats` take so many seconds."""

    def take(seconds: float) -> asyncio.Event:
        begun = asyncio.Event()

        async def stats(*_: Any) -> dict[str, Any]:
            begun.set()
            await asyncio.sleep(seconds)
            return {}

        monkeypatch.setattr(shared.collections, "stats", stats)
        return begun

    return take


async def test_a_running_request_ends_before_the_server_does(
    shared: Likewise, shared_settings: Settings, slow: Any
) -> None:
    begun = slow(0.5)
    async with serving(shared, shared_settings) as (client, stop):
        # Given
        request = asyncio.create_task(client.get("/api/v1/collections/notes/stats"))
        await begun.wait()
        # When
        stop.set()
        # Then
        assert (await request).status_code == 200
        with pytest.raises(httpx2.ConnectError):
            await client.get("/livez")


async def test_a_request_that_takes_too_long_is_told_to_come_back(
    shared: Likewise, shared_settings: Settings, slow: Any
) -> None:
    begun = slow(60)
    async with serving(shared, shared_settings) as (client, stop):
        request = asyncio.create_task(client.get("/api/v1/collections/notes/stats"))
        await begun.wait()
        stop.set()
        answer = await request
    assert (answer.status_code, answer.json()["code"]) == (503, "stopping")
    assert answer.headers["retry-after"] == "5"


async def test_an_opener_opens_and_closes_with_the_application(shared: Likewise, shared_settings: Settings) -> None:
    # Given
    seen = []

    @asynccontextmanager
    async def opener() -> AsyncIterator[Likewise]:
        seen.append("opened")
        yield shared
        seen.append("closed")

    app = create_app(opener, shared_settings)
    # When
    listener = bind("127.0.0.1", 0)
    stop = asyncio.Event()
    await asyncio.wait_for(serve(app, shared_settings, listener, stop, stop.set), PATIENCE)
    # Then
    assert seen == ["opened", "closed"]


def test_a_taken_address_cannot_be_bound() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StartError, match="already in use"):
            bind("127.0.0.1", taken.getsockname()[1])


async def test_an_answer_does_not_wait_for_the_one_before_to_be_acknowledged() -> None:
    # Given
    listener = bind("127.0.0.1", 0)
    listener.listen()
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    # When
    async with await asyncio.start_server(note, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        without_delay = await accepted
        writer.close()
    # Then
    assert without_delay


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(StartError, match="Cannot listen"):
        bind("192.0.2.1", 0)


def test_the_url_of_a_socket() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    with suppress(StartError), bind("::1", 0) as listener:
        assert url_of(listener).startswith("http://[::1]:")
