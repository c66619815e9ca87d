"""An HTTP server on the loopback that follows a script: good answers, and trouble."""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import orjson

CHUNK = b"x" * 65_536


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as the server received it. Names of headers are in small letters.

    `at`: when it was read, in seconds of the monotonic clock. `good`: the good answer.
    """

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    at: float
    good: Any = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The texts to embed, or to score."""
        texts = next(self.body[name] for name in ("input", "documents", "texts") if name in self.body)
        return [texts] if isinstance(texts, str) else list(texts)


@dataclass(frozen=True)
class ScriptedReply:
    """An answer to send.

    `hangs`: nothing is sent until the server closes. `cut`: the connection ends after so many bytes. `endless`: the
    body never ends. `delay`: seconds before the first byte.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    cut: int | None = None
    endless: bool = False
    delay: float = 0.0

    @staticmethod
    def of(answer: Any, status: int = 200, **headers: str) -> "ScriptedReply":
        """Return an answer in JSON; `_` in a header's name stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return ScriptedReply(status, orjson.dumps(answer), named)


# One that returns None wants the good answer.
Behaviour = ScriptedReply | Callable[[ReceivedRequest], ScriptedReply | None]


class ScriptedServer(ABC):
    """A server that knows one good answer to each request.

    `next` has the answers to the next requests, in order; all others get `always`, by default a good answer. `asked`
    has every request, and `max_at_once` how many were under way. While `gate` is set to an event,
    answers wait for it. `path` is that of `url`.
    """

    path = ""

    def __init__(self) -> None:
        self.next: deque[Behaviour] = deque()
        self.always: Behaviour | None = None
        self.gate: asyncio.Event | None = None
        self.asked: list[ReceivedRequest] = []
        self.under_way = 0
        self.max_at_once = 0
        self.connections = 0
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def good(self, asked: ReceivedRequest) -> Any:
        """Return the good answer to a request."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen at `url` for the time of the block."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{self.path}"
        try:
            yield self
        finally:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        # A task of our own: asyncio's would tell of being cancelled at the end.
        task = asyncio.create_task(self._connected(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._served(reader, writer):
                    pass
        finally:
            writer.close()

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request, and return whether another may follow."""
        asked = await _read(reader)
        asked = replace(asked, good=await self.good(asked))
        self.asked.append(asked)
        self.under_way += 1
        self.max_at_once = max(self.max_at_once, self.under_way)
        try:
            reply = self._reply(asked)
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(reply.delay)
            if reply.hangs:
                await asyncio.Event().wait()
        finally:
            self.under_way -= 1
        return await _write(writer, reply)

    def _reply(self, asked: ReceivedRequest) -> ScriptedReply:
        behaviour = self.next.popleft() if self.next else self.always
        reply = behaviour(asked) if callable(behaviour) else behaviour
        return ScriptedReply.of(asked.good) if reply is None else reply


async def _read(reader: asyncio.StreamReader) -> ReceivedRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return ReceivedRequest(head[0].split(" ")[1], headers, orjson.loads(body or b"{}"), time.monotonic())


async def _write(writer: asyncio.StreamWriter, reply: ScriptedReply) -> bool:
    length = [] if reply.endless else [f"content-length: {len(reply.body)}"]
    headers = [f"{name}: {value}" for name, value in {"content-type": "application/json", **reply.headers}.items()]
    head = "\r\n".join([f"HTTP/1.1 {reply.status} X", *length, *headers, "", ""]).encode("latin-1")
    writer.write((head + reply.body)[: reply.cut])
    await writer.drain()
    while reply.endless:
        writer.write(CHUNK)
        await writer.drain()
    return reply.cut is None
