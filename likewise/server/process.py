"""The process that serves: a socket, uvicorn, and an end that lets running requests finish."""

import asyncio
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from likewise.errors import StartError
from likewise.settings import Settings

# Beyond what the application answers itself (431 above 32 KiB), the connection is cut.
MAX_HEAD_BYTES = 128 * 2**10
HEAD_SECONDS = 30.0

_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def bind(host: str, port: int) -> socket.socket:
    """Return a socket on this address that does not listen yet; StartError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it a second answer on a connection
    # waits 40 ms for the caller's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A server that was just stopped leaves closed connections behind; they are no reason not to start again.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _cannot_listen((host, port), error) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address that a bound socket is called by."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    app: FastAPI, settings: Settings, listener: socket.socket, stop: asyncio.Event, on_ready: Callable[[], None]
) -> None:
    """Serve until `stop` is set, then let running requests end within `shutdown_seconds`."""
    config = uvicorn.Config(
        app,
        http=BoundedHeads,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_seconds),
    )
    try:
        await _Server(config, app, stop, on_ready).serve(sockets=[listener])
    except OSError as error:
        # Two processes may bind the same port; the second learns of it when it begins to listen.
        raise _cannot_listen(listener.getsockname()[:2], error) from None


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol with bounds on what comes before a body: its parser would keep any amount, for any time."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give a new connection 30 seconds to send a head."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._head_is_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Cut the connection once too much has come without completing a head."""
        super().data_received(data)
        if self._head_timer is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Give another head as long."""
        super().on_message_begin()
        self._head_is_done()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        """Expect nothing more of a head that is complete; the application bounds the body."""
        self._head_is_done()
        super().on_headers_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """CONNECT and Upgrade are answered like other requests; uvicorn would advise to install a WebSocket library."""

    def _head_is_done(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer, self._head_bytes = None, 0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, stop: asyncio.Event, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._stop = stop
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's own; uvicorn would raise them again at its end, so that it could not end with 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        """Stop when it is time to; called ten times a second."""
        if self._stop.is_set():
            self._app.state.draining = self.should_exit = True
        return await super().on_tick(counter)


def _cannot_listen(address: tuple[str, int], error: OSError) -> StartError:
    reason = (error.strerror or "the address cannot be used").lower()
    return StartError(
        f"Cannot listen on {address[0]}:{address[1]}: {reason}. Choose another with --port or LIKEWISE_PORT."
    )
