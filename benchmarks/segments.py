"""Segments of many tenants: taking them in, their vectors, searches meanwhile, and very many tenants.

    python -m benchmarks.segments [passages.jsonl.gz]

Twenty tenants, each with a token of its own, send 50,000 segments in batches to a server that embeds nothing. Then one
worker embeds them, and in another run two, while searches come one after another. At last 2,000 tenants with five
segments each: what they take, and a dump of their database that is restored into an empty one.
"""

import asyncio
import contextlib
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import psycopg

from benchmarks.overload import percentile
from benchmarks.surroundings import DATA, MODELS_FOLDER, Caller, database_url, fresh_server, lines, machine
from likewise.postgres.server import EmbeddedServer
from likewise.testing import LiveServer, LiveWorker, open_folder
from likewise.testing.tokens import Signer, claims_of

TENANTS, SEGMENTS, BATCH = 20, 50_000, 500
CLIENTS = 2
MANY_TENANTS, OF_EACH = 2_000, 5
SEARCHES_A_SECOND = 4
SECRET = "a secret of this benchmark, of 32 bytes or more"
ASKING = {"LIKEWISE_AUTH": "dev", "LIKEWISE_DEV_JWT_SECRET": SECRET, "LIKEWISE_EMBED_WORKER": "false"}


def token(number: int) -> str:
    """What a tenant shows."""
    return Signer.shared(SECRET).token(claims_of(f"tenant {number}"))


def batches(texts: list[str]) -> Iterator[tuple[int, bytes]]:
    """The tenants' segments in the bodies of requests, the tenants in turn. No tenant has a text twice."""
    each = SEGMENTS // TENANTS
    for start in range(0, each, BATCH):
        for tenant in range(TENANTS):
            segments = [
                {"segment_id": f"s{place}", "text": texts[(tenant * each + place) % len(texts)]}
                for place in range(start, min(start + BATCH, each))
            ]
            yield tenant, orjson.dumps({"asset_id": f"asset {start // BATCH}", "segments": segments})


async def enqueue(server: LiveServer, texts: list[str]) -> None:
    """Send everything."""
    for tenant in range(TENANTS):
        await send(
            Caller(server.url, token(tenant)), "/vectors/embed", {"asset_id": "w", "segment_id": "w", "text": "w"}
        )
    tokens, left = [token(tenant) for tenant in range(TENANTS)], iter(list(batches(texts)))

    async def client() -> None:
        callers = [Caller(server.url, one) for one in tokens]
        for tenant, body in left:
            status, answer = await callers[tenant].post("/vectors/embed/batch", body)
            if status != 202:
                sys.exit(f"Not taken in ({status}): {answer.decode()}")

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    seconds = time.perf_counter() - started
    print(f"taken in      {SEGMENTS} segments in {seconds:.1f} s: {SEGMENTS / seconds:.0f}/s")


async def send(caller: Caller, path: str, body: Any) -> Any:
    """The answer's content."""
    status, answer = await caller.post(path, orjson.dumps(body))
    if status >= 300:
        sys.exit(f"{path} answered {status}: {answer.decode()}")
    return orjson.loads(answer)


@contextlib.asynccontextmanager
async def workers(server: LiveServer, count: int, threads: int) -> AsyncIterator[None]:
    """Workers beside a server, each with so many threads (0: all cores)."""
    settings = {"LIKEWISE_MODELS_DIR": str(MODELS_FOLDER), "LIKEWISE_THREADS": str(threads)}
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(LiveWorker(server.data_dir, settings).running())
        yield


async def until_embedded(server: LiveServer) -> None:
    """Until nothing waits."""
    async with await psycopg.AsyncConnection.connect(database_url(server, "likewise_owner"), autocommit=True) as asking:
        while row := await (await asking.execute("SELECT EXISTS (SELECT FROM likewise.waiting)")).fetchone():
            if not row[0]:
                return
            await asyncio.sleep(0.2)


async def searches(server: LiveServer, texts: list[str], seconds: list[float]) -> None:
    """Ask for something several times a second until cancelled."""
    callers = [Caller(server.url, token(tenant)) for tenant in range(TENANTS)]
    for number in itertools.count():
        started = time.perf_counter()
        query = " ".join(texts[(number * 37) % len(texts)].split()[:12])
        await send(callers[number % TENANTS], "/vectors/search", {"query_text": query})
        seconds.append(time.perf_counter() - started)
        await asyncio.sleep(max(0.0, 1 / SEARCHES_A_SECOND - seconds[-1]))


async def with_workers(texts: list[str], count: int, threads: int) -> None:
    """Take everything in, then have it embedded while searches come."""
    async with fresh_server(ASKING) as server:
        await enqueue(server, texts)
        taken: list[float] = []
        asking = asyncio.create_task(searches(server, texts, taken))
        started = time.perf_counter()
        async with workers(server, count, threads):
            await until_embedded(server)
            seconds = time.perf_counter() - started
        asking.cancel()
        await asyncio.wait({asking})
        if not asking.cancelled():
            asking.result()
        print(
            f"{count} worker{'s' if count > 1 else ' '}     {SEGMENTS / seconds:.0f} contents/s, threads of each: "
            f"{threads or 'all'}; {len(taken)} searches meanwhile: p50 {percentile(taken, 0.5):.0f} ms, "
            f"p99 {percentile(taken, 0.99):.0f} ms"
        )


async def ask_everybody(url: str, texts: list[str]) -> list[Any]:
    """What each of very many tenants is answered to a question."""
    answers: list[Any] = [None] * MANY_TENANTS
    left = iter(range(MANY_TENANTS))

    async def client() -> None:
        for tenant in left:
            query = " ".join(texts[tenant % len(texts)].split()[:8]) or "anything"
            body = {"query_text": query, "limit": 5}
            answers[tenant] = await send(Caller(url, token(tenant)), "/vectors/search", body)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return answers


async def many_tenants(texts: list[str]) -> None:
    """Very many tenants with few segments each; then the same from a dump."""
    async with fresh_server(ASKING) as server:
        started = time.perf_counter()
        for tenant in range(MANY_TENANTS):
            segments = [
                {"segment_id": str(n), "text": texts[(tenant * OF_EACH + n) % len(texts)]} for n in range(OF_EACH)
            ]
            await send(
                Caller(server.url, token(tenant)), "/vectors/embed/batch", {"asset_id": "a", "segments": segments}
            )
        stored = time.perf_counter() - started
        async with workers(server, 1, 0):
            await until_embedded(server)
        embedded = time.perf_counter() - started
        size, relations = await size_of(server)
        print(
            f"{MANY_TENANTS} tenants  stored in {stored:.0f} s, embedded in {embedded:.0f} s; {relations} relations, "
            f"{size / 2**20:.0f} MiB"
        )
        started = time.perf_counter()
        before = await ask_everybody(server.url, texts)
        print(f"              a search of each, {CLIENTS} at once: {time.perf_counter() - started:.0f} s")
        await restored(server, texts, before)


async def size_of(server: LiveServer) -> tuple[int, int]:
    """Bytes of the database, and its relations."""
    statement = (
        "SELECT pg_database_size(current_database()), count(*) FROM pg_class "
        "WHERE relnamespace = 'likewise'::regnamespace"
    )
    async with await psycopg.AsyncConnection.connect(database_url(server, "likewise_owner"), autocommit=True) as asking:
        row = await (await asking.execute(statement)).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


async def restored(server: LiveServer, texts: list[str], before: list[Any]) -> None:
    """A dump of the database in an empty one: everybody is answered as before."""
    folder = open_folder()
    try:
        dump = folder / "dump"
        data = folder / "data"
        empty = await EmbeddedServer.start(data)
        started = time.perf_counter()
        run(empty.binaries / "pg_dump", "-Fc", "-f", dump, database_url(server, "postgres"))
        dumped = time.perf_counter() - started
        async with await psycopg.AsyncConnection.connect(empty.superuser_url("likewise"), autocommit=True) as superuser:
            await superuser.execute("DROP SCHEMA likewise CASCADE")
        started = time.perf_counter()
        run(empty.binaries / "pg_restore", "--exit-on-error", "-d", empty.superuser_url("likewise"), dump)
        seconds = time.perf_counter() - started
        await empty.close()
        # What is sealed opens with the same key, and another one is refused.
        shutil.copy(server.data_dir / "text.key", data / "text.key")
        async with LiveServer(data, {"LIKEWISE_MODELS_DIR": str(MODELS_FOLDER), **ASKING}).running() as other:
            after = await ask_everybody(other.url, texts)
        alike = sum(one == other for one, other in zip(before, after, strict=True))
        print(
            f"              dumped in {dumped:.0f} s ({dump.stat().st_size / 2**20:.0f} MiB), restored in "
            f"{seconds:.0f} s: {alike} of {MANY_TENANTS} searches answer alike"
        )
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def run(program: Path, *arguments: object) -> None:
    """A program of Postgres's, to its end."""
    subprocess.run([program, *map(str, arguments)], check=True)


async def main() -> None:
    """Measure each, on servers that leave nothing behind."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "throughput-passages" / "passages.jsonl.gz"
    if not file.is_file():
        sys.exit(f"There is no file {file}: name one of packed JSON lines with a text.")
    texts = list(dict.fromkeys(passage["text"] for passage in lines(file)))
    print(machine())
    for count, threads in ((1, 0), (2, 1)):
        await with_workers(texts, count, threads)
    await many_tenants(texts)


if __name__ == "__main__":
    asyncio.run(main())
