"""What the benchmarks stand on: the data, the model's files, a fresh server, and the machine."""

import asyncio
import gzip
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from likewise.testing import LiveServer, open_folder

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
COMMIT_DELAY_MICROSECONDS = 2_000
MODELS_FOLDER = Path(os.environ.get("TEST_MODELS_DIR", Path.home() / ".cache" / "likewise-tests" / "models"))


def lines(file: Path) -> list[dict[str, Any]]:
    """A packed JSONL file."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        return [json.loads(line) for line in opened]


@asynccontextmanager
async def fresh_server(environment: Mapping[str, str] | None = None) -> AsyncIterator[LiveServer]:
    """A server with an empty database, gone with all its data at the end of the block."""
    folder = open_folder()
    try:
        settings = {"LIKEWISE_MODELS_DIR": str(MODELS_FOLDER), **(environment or {})}
        async with LiveServer(folder, settings).running() as server:
            yield server
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def database_url(server: LiveServer, role: str) -> str:
    """The URL of a server's Postgres, as one of its roles."""
    return f"host={server.data_dir / 'postgres' / 'socket'} port=5432 user={role} dbname=likewise"


async def slow_flushes(server: LiveServer) -> None:
    """Have each flush of a server's Postgres take 2 ms more, as on a disk that is slower than this one."""
    async with await psycopg.AsyncConnection.connect(database_url(server, "postgres"), autocommit=True) as superuser:
        await superuser.execute(f"ALTER SYSTEM SET commit_delay = {COMMIT_DELAY_MICROSECONDS}")
        await superuser.execute("ALTER SYSTEM SET commit_siblings = 0")
        await superuser.execute("SELECT pg_reload_conf()")


def peak_mib(pid: int) -> float:
    """The most memory that a process has had resident, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def resident_mib(pid: int) -> float:
    """Memory that a process has resident, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


class Caller:
    """One connection that sends a request and reads its answer, at next to no cost beside the server's."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._where = urlsplit(url)
        self._head = "host: 127.0.0.1\r\n" + (f"authorization: Bearer {token}\r\n" if token else "")
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: bytes, media_type: str = "application/json") -> tuple[int, bytes]:
        """The status and the body of the answer."""
        head = f"POST {path} HTTP/1.1\r\n{self._head}content-type: {media_type}\r\n"
        request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        try:
            return await self._exchange(request, reuse=True)
        except (OSError, asyncio.IncompleteReadError):
            # The server closes connections that have been idle for a while.
            return await self._exchange(request, reuse=False)

    async def get(self, path: str) -> tuple[int, bytes]:
        """The same for what is only read."""
        return await self._exchange(f"GET {path} HTTP/1.1\r\n{self._head}\r\n".encode(), reuse=False)

    async def _exchange(self, request: bytes, *, reuse: bool) -> tuple[int, bytes]:
        if not reuse or self._reader is None or self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection(self._where.hostname, self._where.port)
        self._writer.write(request)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
        content = await self._reader.readexactly(length)
        if b"connection: close" in answer:
            self._writer.close()
        return int(answer[9:12]), content


def machine(folder: Path | None = None) -> str:
    """The processor, its cores, and the time that one flush to disk takes, in a folder: what figures depend on."""
    flush = f"one flush of 8 KiB {flush_milliseconds(folder):.2f} ms"
    return f"{processor()}, {os.cpu_count()} cores; {flush}; Python {platform.python_version()}"


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")), "?")


def flush_milliseconds(folder: Path | None = None, times: int = 50) -> float:
    """The median time of writing 8 KiB over what is there and flushing it, as a commit does; in the data's folder."""
    flush = getattr(os, "fdatasync", os.fsync)
    taken = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(times + 1):
            started = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 8192, 0)
            flush(file.fileno())
            taken.append(time.perf_counter() - started)
    # The first one makes the file longer.
    return sorted(taken[1:])[times // 2] * 1000
