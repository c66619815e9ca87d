"""`likewise serve` and `likewise worker`: the commands that stay."""

import asyncio
import gc
import socket
from typing import Annotated

import typer

from likewise.cli.opening import open_library
from likewise.cli.running import AsJson, Interruption, command_settings, run
from likewise.cli.terminal import answer, note
from likewise.library import Likewise
from likewise.server.app import create_app
from likewise.server.process import bind, url_of
from likewise.server.process import serve as serve_app
from likewise.settings import Settings

HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on, instead of LIKEWISE_HOST.")]
PortOption = Annotated[
    int | None, typer.Option("--port", help="Port to listen on, instead of LIKEWISE_PORT.", min=0, max=65535)
]


def serve(host: HostOption = None, port: PortOption = None, as_json: AsJson = False) -> None:
    settings = command_settings(serving=True, host=host, port=port)
    listener = listen(settings)
    freeze_modules()

    async def work(interruption: Interruption) -> None:
        async with open_library(settings, worker=settings.embed_worker, wait_for_models=False) as likewise:
            await likewise.runtime.admission.check_default_model()
            await serve_open(likewise, settings, listener, interruption, as_json=as_json)

    run(work)


def worker(as_json: AsJson = False) -> None:
    settings = command_settings(serving=True)
    freeze_modules()

    async def work(interruption: Interruption) -> None:
        stop = asyncio.Event()
        async with open_library(settings, worker=True, wait_for_models=False) as likewise:
            await likewise.runtime.admission.check_default_model()
            interruption.act = stop.set
            answer({"status": "working"}, "The worker is ready.", as_json=as_json)
            await stop.wait()

    run(work)


def freeze_modules() -> None:
    """Leave what was imported out of garbage collection: to look through all of it takes 60 ms each time."""
    gc.collect()
    gc.freeze()


def listen(settings: Settings) -> socket.socket:
    """Take the address first: who finds it taken should not wait for a database to start."""
    settings.require_safe_address()
    return bind(settings.host, settings.port)


async def serve_open(
    likewise: Likewise, settings: Settings, listener: socket.socket, interruption: Interruption, *, as_json: bool
) -> None:
    """Serve over an open library until a signal comes, then let running requests end."""
    url = url_of(listener)
    await likewise.runtime.authentication.warn_if_nobody_can_call()
    likewise.runtime.authentication.fetch_ahead()

    def announce() -> None:
        line = f"Likewise listens at {url} (documentation at {url}/docs). Ctrl-C stops it."
        answer({"status": "listening", "url": url}, line, as_json=as_json)

    stop = asyncio.Event()
    interruption.act = stop.set
    await serve_app(create_app(likewise, settings), settings, listener, stop, announce)
    if not as_json:
        note("Stopped.")
