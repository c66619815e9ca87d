"""A server over one database for a whole file of tests: as an application, and on a socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

import likewise
from likewise.embedding.embedder import Embedder
from likewise.library import Likewise
from likewise.server.app import create_app
from likewise.server.process import bind, serve, url_of
from likewise.settings import Settings, load_settings
from likewise.testing import FakeProvider, ThrowawayPostgres

BASE = "http://127.0.0.1"
# Small enough that a test may go one byte beyond it.
MAX_BODY = 64 * 2**10


def calling(lw: Likewise, settings: Settings | None = None) -> httpx2.AsyncClient:
    """A client of its HTTP API, without a socket; `settings` are the application's, by default the library's."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(create_app(lw, settings or lw.settings)), base_url=BASE)


@pytest.fixture(scope="module")
async def shared_settings(
    request: pytest.FixtureRequest, postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Settings]:
    """Settings that name the file's database, with a small limit for bodies, and the file's own `SETTINGS`."""
    async with postgres.database() as urls:
        usual: dict[str, Any] = {
            "data_dir": tmp_path_factory.mktemp("data"),
            "database_url": urls.owner,
            "database_serving_url": urls.serving,
            "max_body_bytes": MAX_BODY,
            "shutdown_seconds": 1.0,
        }
        yield load_settings(**usual | getattr(request.module, "SETTINGS", {}))


@pytest.fixture(scope="module")
async def shared(shared_settings: Settings) -> AsyncIterator[Likewise]:
    """A Likewise for all tests of a file, with the collection `notes`."""
    embedder = Embedder(shared_settings, providers={shared_settings.model: lambda spec: FakeProvider()})
    async with likewise.open(shared_settings, embedder=embedder) as opened:
        await opened.collection("notes").create()
        await opened.collection("notes").add([{"id": "a", "text": "the pump fails when it is cold"}])
        yield opened


@pytest.fixture(scope="module")
def app(shared: Likewise, shared_settings: Settings) -> FastAPI:
    """The application over it."""
    return create_app(shared, shared_settings)


@pytest.fixture(scope="module")
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that calls the application without a socket."""
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=BASE) as client:
        yield client


@pytest.fixture(scope="module")
async def address(app: FastAPI, shared_settings: Settings) -> AsyncIterator[str]:
    """The URL of the application on a real socket."""
    listener = bind("127.0.0.1", 0)
    url = url_of(listener)
    ready, stop = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve(app, shared_settings, listener, stop, ready.set))
    await ready.wait()
    yield url
    stop.set()
    with suppress(asyncio.CancelledError):
        await serving
    app.state.draining = False
