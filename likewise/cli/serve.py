"""Verbs that stay: the server and the worker."""

import asyncio
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from likewise.cli.running import OK, Interruption, opened, run, settings_of_verb
from likewise.cli.terminal import note, say, say_json
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.library import Likewise

Host = Annotated[str | None, typer.Option(help="Address to listen on, instead of LIKEWISE_HOST.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on, instead of LIKEWISE_PORT.", min=0, max=65535)]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


def serve(host: Host = None, port: Port = None, as_json: AsJson = False) -> None:
    """Serve the HTTP API until stopped."""
    settings = settings_of_verb(serving=True, host=host, port=port)
    listener = listen(settings)

    async def verb(interruption: Interruption) -> int:
        async with opened(settings, worker=settings.embed_worker, wait_for_models=False) as likewise:
            await likewise.runtime.admission.check_default_model()
            await serve_open(likewise, settings, listener, interruption, as_json=as_json)
        return OK

    run(verb)


def worker(as_json: AsJson = False) -> None:
    """Embed what waits until stopped, beside servers on the same database."""
    settings = settings_of_verb(serving=True)

    async def verb(interruption: Interruption) -> int:
        stop = asyncio.Event()
        async with opened(settings, worker=True, wait_for_models=False) as likewise:
            await likewise.runtime.admission.check_default_model()
            interruption.act = stop.set
            if as_json:
                say_json({"status": "working"})
            else:
                say("The worker is ready.")
            await stop.wait()
        return OK

    run(verb)


def listen(settings: Settings) -> socket.socket:
    """Take the address first: who finds it taken should not wait for a database to start."""
    from likewise.server.process import bind  # noqa: PLC0415

    settings.require_safe_address()
    return bind(settings.host, settings.port)


async def serve_open(
    likewise: "Likewise", settings: Settings, listener: socket.socket, interruption: Interruption, *, as_json: bool
) -> None:
    """Serve over an open library until a signal comes, then let running requests end."""
    from likewise.server.app import create_app  # noqa: PLC0415
    from likewise.server.process import serve as serve_app  # noqa: PLC0415
    from likewise.server.process import url_of  # noqa: PLC0415

    url = url_of(listener)
    await likewise.runtime.authentication.warn_if_nobody_can_call()
    likewise.runtime.authentication.fetch_ahead()

    def tell() -> None:
        if as_json:
            say_json({"status": "listening", "url": url})
        else:
            say(f"Likewise listens at {url} (documentation at {url}/docs). Ctrl-C stops it.")

    stop = asyncio.Event()
    interruption.act = stop.set
    await serve_app(create_app(likewise, settings), settings, listener, stop, tell)
    if not as_json:
        note("Stopped.")
